//! One running generation: from logits to events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context as TaskContext;
use std::time::{Duration, Instant};

use tenzro_protocol::inference::{
    Delta, FinishReason, Finished, GenerateError, GenerateEvent, GenerateRequest, ScoredToken,
    Started, TokenHold, TokenLogprob, Usage,
};
use tokio::sync::mpsc;

use super::Permit;
use crate::answer_text::AnswerText;
use crate::llama::{Model, Token};
use crate::sampling::{LogSoftmax, Sampler, likeliest};

/// Tokens in a row without any text after which a paid answer ends: they cost nothing, and models that
/// are not made to say them seldom have more than a few.
const SILENT_TOKENS_MAX: u32 = 256;

/// An admitted request.
#[derive(Debug)]
pub(crate) struct GenerateJob {
    /// Not empty, shorter than the context.
    pub(crate) prompt: Vec<Token>,
    /// At least 1; prompt and answer together fit the context.
    pub(crate) answer_tokens_max: u32,
    /// The request's logit bias with checked ids.
    pub(crate) bias: Vec<(Token, f32)>,
    pub(crate) request: GenerateRequest,
    /// Used when the request has none.
    pub(crate) seed: u64,
    /// Has room for every event of this generation.
    pub(crate) events: mpsc::Sender<Result<GenerateEvent, GenerateError>>,
    /// Raised when the client left.
    pub(crate) cancel: Arc<AtomicBool>,
    pub(crate) arrived: Instant,
    pub(crate) permit: Permit,
}

/// What to do with a generation after a token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Compute this token next.
    Continue(Token),
    /// The last event was sent.
    Finished,
}

/// See the module header.
#[derive(Debug)]
pub(crate) struct Answer {
    events: mpsc::Sender<Result<GenerateEvent, GenerateError>>,
    cancel: Arc<AtomicBool>,
    sampler: Sampler,
    text: AnswerText,
    /// Tokens that no sent delta has counted: their text is held back.
    pending: Delta,
    /// Tokens without text since the last one with text.
    silent: u32,
    usage: Usage,
    answer_tokens_max: u32,
    ignore_eos: bool,
    logprobs: Option<u8>,
    arrived: Instant,
    scheduled: Option<Instant>,
    has_started: bool,
    piece: Vec<u8>,
    /// What pays for the next token.
    hold: TokenHold,
    _permit: Permit,
}

impl Answer {
    /// Also returns the prompt, which the scheduler keeps.
    pub(crate) fn new(job: GenerateJob) -> (Vec<Token>, Self) {
        let sampler = Sampler::new(&job.request.sampling, job.bias, &job.prompt, job.seed);
        let answer = Self {
            events: job.events,
            cancel: job.cancel,
            sampler,
            text: AnswerText::new(job.request.stop),
            pending: Delta::default(),
            silent: 0,
            usage: Usage {
                prompt_tokens: u32::try_from(job.prompt.len()).unwrap_or(u32::MAX),
                ..Usage::default()
            },
            answer_tokens_max: job.answer_tokens_max,
            ignore_eos: job.request.ignore_eos,
            logprobs: job.request.logprobs,
            arrived: job.arrived,
            scheduled: None,
            has_started: false,
            piece: Vec::new(),
            hold: TokenHold::new(job.request.budget),
            _permit: job.permit,
        };
        (job.prompt, answer)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    pub(crate) fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancel)
    }

    /// Whether its next token is paid for; if not, `worker` is woken when it may be.
    pub(crate) fn is_paid(&mut self, worker: &TaskContext<'_>) -> bool {
        self.hold.poll_hold(worker).is_ready()
    }

    /// Some of its tokens are in a step that begins `now`.
    pub(crate) fn note_scheduled(&mut self, now: Instant) {
        self.scheduled.get_or_insert(now);
    }

    /// The prompt is computed; does nothing when called again.
    pub(crate) fn start(&mut self, cached_tokens: usize) {
        if std::mem::replace(&mut self.has_started, true) {
            return;
        }
        self.usage.cached_tokens = u32::try_from(cached_tokens).unwrap_or(u32::MAX);
        let queued = self
            .scheduled
            .map_or(Duration::ZERO, |at| at.duration_since(self.arrived));
        self.send(GenerateEvent::Started(Started {
            prompt_tokens: self.usage.prompt_tokens,
            cached_tokens: self.usage.cached_tokens,
            queued,
            provider: None,
        }));
    }

    /// Samples a token and sends what became visible. Changes `logits`.
    pub(crate) fn advance(
        &mut self,
        model: &Model,
        logits: &mut [f32],
        end_tokens: &[Token],
    ) -> Outcome {
        let unmodified = self.logprobs.map(|_| logits.to_vec());
        if self.ignore_eos {
            for &token in end_tokens {
                if let Ok(index) = usize::try_from(token) {
                    logits[index] = f32::NEG_INFINITY;
                }
            }
        }
        let token = self.sampler.sample(logits);
        self.usage.completion_tokens += 1;
        if model.is_end(token) && !self.ignore_eos {
            return self.finish(FinishReason::Stop);
        }
        self.piece.clear();
        model.append_piece(token, false, &mut self.piece);
        if self.piece.is_empty() {
            return self.pass_over(token);
        }
        self.silent = 0;
        self.pending.token_count += 1;
        if let (Some(count), Some(row)) = (self.logprobs, unmodified) {
            let logprob = score(model, &row, token, count);
            self.pending.logprobs.push(logprob);
        }
        let ready = self.text.push(&self.piece);
        self.pending.text.push_str(&ready.text);
        if ready.stopped {
            self.text = AnswerText::new(Vec::new());
            return self.finish(FinishReason::Stop);
        }
        if self.usage.completion_tokens >= self.answer_tokens_max {
            return self.finish(FinishReason::Length);
        }
        if !self.pending.text.is_empty() {
            self.send_pending();
        }
        Outcome::Continue(token)
    }

    /// A token without text is neither told nor paid for: what a model might have said in its place,
    /// which its log probabilities would tell, is not given away.
    fn pass_over(&mut self, token: Token) -> Outcome {
        self.silent += 1;
        let is_full = self.usage.completion_tokens >= self.answer_tokens_max;
        if is_full || (self.silent >= SILENT_TOKENS_MAX && self.hold.is_limited()) {
            return self.finish(FinishReason::Length);
        }
        Outcome::Continue(token)
    }

    /// Ends the stream with an error.
    pub(crate) fn fail(self, error: GenerateError) {
        let _ = self.events.try_send(Err(error));
    }

    fn finish(&mut self, reason: FinishReason) -> Outcome {
        let text = std::mem::replace(&mut self.text, AnswerText::new(Vec::new()));
        self.pending.text.push_str(&text.finish());
        // Tokens of a stop string before which nothing was held back have no text to be sent.
        if !self.pending.text.is_empty() {
            self.send_pending();
        }
        // Before the client hears of it.
        self.hold.give_back();
        self.send(GenerateEvent::Finished(Finished {
            reason,
            usage: self.usage,
            late_tokens: 0,
        }));
        Outcome::Finished
    }

    fn send_pending(&mut self) {
        let delta = std::mem::take(&mut self.pending);
        self.hold.spend(delta.token_count);
        self.send(GenerateEvent::Delta(delta));
    }

    /// The channel has room for every event; it is closed only when the client left, which the
    /// cancel flag says too.
    fn send(&self, event: GenerateEvent) {
        let _ = self.events.try_send(Ok(event));
    }
}

fn score(model: &Model, row: &[f32], chosen: Token, count: u8) -> TokenLogprob {
    let softmax = LogSoftmax::new(row);
    let scored = |token: Token, logit: f32| {
        let mut bytes = Vec::new();
        model.append_piece(token, true, &mut bytes);
        ScoredToken {
            bytes,
            logprob: softmax.of(logit),
        }
    };
    let logit = usize::try_from(chosen).map_or(f32::NEG_INFINITY, |index| row[index]);
    TokenLogprob {
        chosen: scored(chosen, logit),
        top: likeliest(row, usize::from(count))
            .into_iter()
            .map(|(token, logit)| scored(token, logit))
            .collect(),
    }
}
