//! Embeddings, on the worker's thread between two steps. The second context that they need is made
//! when the first request comes.
//!
//! Models made for embedding pool a whole input at once. For others the vector is the mean of the
//! last hidden states, computed in chunks as small as those of a prompt, so that running answers are
//! not held up.

use std::collections::VecDeque;
use std::sync::Arc;

use tenzro_protocol::inference::{Embeddings, GenerateError};

use crate::llama::{Batch, Context, ContextParams, Model, Pooling, Token};
use crate::worker::EmbedJob;

/// Longest input of a model that must see it whole, where the model would allow more: the compute
/// buffer grows with it.
const WHOLE_INPUT_TOKENS_MAX: u32 = 2048;

/// Largest chunk for the others.
const CHUNK_TOKENS_MAX: u32 = 512;

/// See the module header.
pub(crate) struct Embedder {
    model: Arc<Model>,
    ctx_size: u32,
    threads: u32,
    context: Option<Context>,
    batch: Batch,
    waiting: VecDeque<EmbedJob>,
    current: Option<Progress>,
}

/// The request that is being computed.
struct Progress {
    job: EmbedJob,
    done: Vec<Vec<f32>>,
    /// Tokens of the input `done.len()` that are computed.
    computed: usize,
    sum: Vec<f64>,
}

impl Embedder {
    pub(crate) fn new(model: Arc<Model>, ctx_size: u32, threads: u32) -> Self {
        Self {
            model,
            ctx_size,
            threads,
            context: None,
            batch: Batch::default(),
            waiting: VecDeque::new(),
            current: None,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.current.is_none() && self.waiting.is_empty()
    }

    pub(crate) fn push(&mut self, job: EmbedJob) {
        self.waiting.push_back(job);
    }

    pub(crate) fn fail_all(&mut self, error: &GenerateError) {
        let current = self.current.take().map(|progress| progress.job);
        for job in current.into_iter().chain(self.waiting.drain(..)) {
            let _ = job.reply.send(Err(error.clone()));
        }
    }

    /// Computes one chunk of at most `tokens`, when there is something to compute.
    pub(crate) fn work(&mut self, tokens: usize) {
        let progress = match self.current.take() {
            Some(progress) => progress,
            None => match self.waiting.pop_front() {
                Some(job) => Progress {
                    job,
                    done: Vec::new(),
                    computed: 0,
                    sum: Vec::new(),
                },
                None => return,
            },
        };
        if progress.job.reply.is_closed() {
            return;
        }
        match self.advance(progress, tokens) {
            Ok(Ok(progress)) => self.current = Some(progress),
            Ok(Err(finished)) => {
                let prompt_tokens = finished.job.inputs.iter().map(Vec::len).sum::<usize>();
                let _ = finished.job.reply.send(Ok(Embeddings {
                    vectors: finished.done,
                    prompt_tokens: u32::try_from(prompt_tokens).unwrap_or(u32::MAX),
                    provider: None,
                    cost: None,
                }));
            }
            Err(failed) => {
                let (job, error) = *failed;
                let _ = job.reply.send(Err(error));
            }
        }
    }

    /// `Ok(Ok)` is unfinished, `Ok(Err)` finished.
    fn advance(
        &mut self,
        mut progress: Progress,
        tokens: usize,
    ) -> Result<Result<Progress, Progress>, Box<(EmbedJob, GenerateError)>> {
        match self.compute(&mut progress, tokens) {
            Ok(()) if progress.done.len() == progress.job.inputs.len() => Ok(Err(progress)),
            Ok(()) => Ok(Ok(progress)),
            Err(error) => Err(Box::new((progress.job, error))),
        }
    }

    fn compute(&mut self, progress: &mut Progress, tokens: usize) -> Result<(), GenerateError> {
        let whole = sees_inputs_whole(&self.model);
        let limit = input_tokens_max(&self.model, self.ctx_size);
        let Some(input) = progress.job.inputs.get(progress.done.len()) else {
            return Ok(());
        };
        let first = progress.computed;
        let chunk = if whole {
            input.len()
        } else {
            tokens
                .min(CHUNK_TOKENS_MAX as usize)
                .clamp(1, input.len() - first)
        };
        let part: Vec<Token> = input[first..first + chunk].to_vec();
        let is_last = first + chunk == input.len();
        if self.context.is_none() {
            self.context = Some(self.make_context(whole, limit)?);
        }
        let (Some(context), batch) = (self.context.as_mut(), &mut self.batch) else {
            return Err(no_memory());
        };
        if first == 0 {
            context.clear();
        }
        batch.clear();
        for (position, token) in (first..).zip(part) {
            let position = u32::try_from(position).expect("no longer than the limit");
            batch.push(token, position, 0, true);
        }
        context
            .decode(batch)
            .map_err(|error| GenerateError::Internal {
                message: format!("llama.cpp failed to embed: {error:?}"),
            })?;
        if whole {
            let vector = context.sequence_embedding(0).ok_or_else(no_vector)?;
            progress
                .done
                .push(normalised(vector.iter().map(|&x| f64::from(x))));
            return Ok(());
        }
        progress.sum.resize(self.model.embedding_length(), 0.0);
        for index in 0..chunk {
            for (sum, &value) in progress.sum.iter_mut().zip(context.token_embedding(index)) {
                *sum += f64::from(value);
            }
        }
        progress.computed += chunk;
        if is_last {
            // The mean and the sum have the same direction.
            progress.done.push(normalised(progress.sum.drain(..)));
            progress.computed = 0;
        }
        Ok(())
    }

    fn make_context(&self, whole: bool, limit: u32) -> Result<Context, GenerateError> {
        let ubatch_tokens = if whole {
            limit
        } else {
            CHUNK_TOKENS_MAX.min(limit)
        };
        let params = ContextParams {
            cells: limit,
            batch_tokens: ubatch_tokens,
            ubatch_tokens,
            sequences: 1,
            threads: self.threads,
            embeddings: Some(if whole {
                Pooling::Model
            } else {
                Pooling::PerToken
            }),
        };
        Context::new(Arc::clone(&self.model), params).ok_or_else(no_memory)
    }
}

/// Most tokens of one input, with requests of `ctx_size` tokens.
pub(crate) fn input_tokens_max(model: &Model, ctx_size: u32) -> u32 {
    if sees_inputs_whole(model) {
        model
            .context_train_tokens()
            .clamp(1, WHOLE_INPUT_TOKENS_MAX)
    } else {
        ctx_size
    }
}

fn sees_inputs_whole(model: &Model) -> bool {
    let architecture = model.meta("general.architecture").unwrap_or_default();
    model
        .meta(&format!("{architecture}.pooling_type"))
        .is_some_and(|pooling| pooling != "0")
}

fn no_memory() -> GenerateError {
    GenerateError::Internal {
        message: "no memory for the embedding context".to_owned(),
    }
}

fn no_vector() -> GenerateError {
    GenerateError::Internal {
        message: "the model's pooling gave no vector".to_owned(),
    }
}

/// The vector with length 1, or as it is when its length is 0.
fn normalised(values: impl Iterator<Item = f64>) -> Vec<f32> {
    let values: Vec<f64> = values.collect();
    let length = values.iter().map(|value| value * value).sum::<f64>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 1.0 };
    values
        .into_iter()
        .map(|value| (value * scale) as f32)
        .collect()
}
