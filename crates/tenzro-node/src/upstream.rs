//! Any OpenAI-compatible server as the engine: vLLM, SGLang, llama-server, Ollama and others. Tokens
//! are counted by the usage that it reports.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use tenzro_api::{GenerateStream, Inference};
use tenzro_protocol::inference::{
    Delta, EmbedRequest, Embeddings, EngineGauges, FinishReason, Finished, GenerateError,
    GenerateEvent, GenerateRequest, ModelCard, Prompt, ScoredToken, ServerState, Started,
    TokenLogprob, Usage,
};
use tenzro_protocol::openai::chat::{ChatChunk, ChatRequest, Content, Message};
use tenzro_protocol::openai::completions::{Completion, CompletionRequest, Input};
use tenzro_protocol::openai::embeddings::{EmbeddingRequest, EncodingFormat, Vector};
use tenzro_protocol::openai::{self, Parameters, Stop, StreamOptions};

use crate::openai_client::{Chunks, ClientError, OpenAiClient};

/// One model of an upstream server, served under our id.
#[derive(Debug)]
pub(crate) struct Upstream {
    client: OpenAiClient,
    /// Its name there.
    name: String,
    card: ModelCard,
}

impl Upstream {
    /// `card` is what is shown here, `name` the model's name at the upstream server.
    pub(crate) fn new(client: OpenAiClient, name: String, card: ModelCard) -> Self {
        Self { client, name, card }
    }
}

impl Inference for Upstream {
    fn state(&self) -> ServerState {
        ServerState::Ready
    }

    fn models(&self) -> Vec<ModelCard> {
        vec![self.card.clone()]
    }

    fn generate(
        &self,
        _model: &str,
        request: GenerateRequest,
    ) -> BoxFuture<'static, Result<GenerateStream, GenerateError>> {
        let (client, name) = (self.client.clone(), self.name.clone());
        Box::pin(async move {
            let parameters = parameters(&request);
            match request.prompt {
                Prompt::Chat(prompt) => {
                    let messages = prompt.messages.into_iter().map(|message| Message {
                        role: message.role,
                        content: Some(Content::Text(message.content)),
                        name: message.name,
                        ..Message::default()
                    });
                    let kwargs = prompt.template_kwargs;
                    let chat = ChatRequest {
                        model: name,
                        messages: messages.collect(),
                        logprobs: request.logprobs.map(|_| true),
                        top_logprobs: request.logprobs.map(u32::from),
                        chat_template_kwargs: (!kwargs.is_empty()).then_some(kwargs),
                        parameters,
                        ..ChatRequest::default()
                    };
                    let chunks = client.chat(&chat).await.map_err(|error| refused(&error))?;
                    Ok(events(chunks).boxed())
                }
                prompt => {
                    let input = input_of(prompt)?;
                    let completion = CompletionRequest {
                        model: name,
                        prompt: input,
                        echo: None,
                        logprobs: request.logprobs.map(u32::from),
                        best_of: None,
                        parameters,
                        other: openai::Other::default(),
                    };
                    let chunks = client.complete(&completion).await;
                    Ok(events(chunks.map_err(|error| refused(&error))?).boxed())
                }
            }
        })
    }

    fn embed(
        &self,
        _model: &str,
        request: EmbedRequest,
    ) -> BoxFuture<'static, Result<Embeddings, GenerateError>> {
        let (client, model) = (self.client.clone(), self.name.clone());
        Box::pin(async move {
            let mut vectors = Vec::new();
            let mut prompt_tokens = 0u32;
            for input in request.inputs {
                let request = EmbeddingRequest {
                    model: model.clone(),
                    input: input_of(input)?,
                    encoding_format: Some(EncodingFormat::Float),
                    dimensions: None,
                    other: openai::Other::default(),
                };
                let answer = client
                    .embed(&request)
                    .await
                    .map_err(|error| refused(&error))?;
                prompt_tokens = prompt_tokens.saturating_add(answer.usage.prompt_tokens);
                match answer
                    .data
                    .into_iter()
                    .next()
                    .map(|object| object.embedding)
                {
                    Some(Vector::Float(vector)) => vectors.push(vector),
                    _ => return Err(not_understood("it sent no vector")),
                }
            }
            Ok(Embeddings {
                vectors,
                prompt_tokens,
            })
        })
    }

    fn gauges(&self) -> Option<EngineGauges> {
        None
    }
}

fn parameters(request: &GenerateRequest) -> Parameters {
    let sampling = &request.sampling;
    let bias = sampling.logit_bias.iter();
    Parameters {
        n: None,
        max_tokens: request.max_tokens,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k,
        min_p: sampling.min_p,
        repeat_penalty: sampling.repeat_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        logit_bias: (!sampling.logit_bias.is_empty()).then(|| {
            bias.map(|(token, bias)| (token.to_string(), *bias))
                .collect()
        }),
        seed: sampling.seed.map(u64::cast_signed),
        stop: (!request.stop.is_empty()).then(|| Stop::Many(request.stop.clone())),
        stream: Some(true),
        stream_options: Some(StreamOptions {
            include_usage: Some(true),
        }),
        ignore_eos: request.ignore_eos.then_some(true),
    }
}

fn input_of(prompt: Prompt) -> Result<Input, GenerateError> {
    match prompt {
        Prompt::Text(text) => Ok(Input::Text(text)),
        Prompt::Tokens(tokens) => Ok(Input::Tokens(tokens)),
        Prompt::Chat(_) => Err(GenerateError::Invalid {
            param: "input",
            message: "a conversation cannot be embedded".to_owned(),
        }),
    }
}

/// What one chunk of either endpoint adds.
#[derive(Debug, Default)]
struct Part {
    text: String,
    logprobs: Vec<TokenLogprob>,
    finish_reason: Option<String>,
    usage: Option<openai::Usage>,
}

impl From<ChatChunk> for Part {
    fn from(chunk: ChatChunk) -> Self {
        let mut part = Self {
            usage: chunk.usage.flatten(),
            ..Self::default()
        };
        if let Some(choice) = chunk.choices.into_iter().next() {
            part.text = choice.delta.content.unwrap_or_default();
            part.finish_reason = choice.finish_reason;
            let tokens = choice.logprobs.and_then(|logprobs| logprobs.content);
            part.logprobs = tokens.into_iter().flatten().map(scored).collect();
        }
        part
    }
}

impl From<Completion> for Part {
    fn from(chunk: Completion) -> Self {
        let mut part = Self {
            usage: chunk.usage,
            ..Self::default()
        };
        if let Some(choice) = chunk.choices.into_iter().next() {
            part.text = choice.text;
            part.finish_reason = choice.finish_reason;
            let logprobs = choice.logprobs.unwrap_or_default();
            let tops = logprobs
                .top_logprobs
                .into_iter()
                .map(Some)
                .chain(std::iter::repeat(None));
            part.logprobs = logprobs
                .tokens
                .into_iter()
                .zip(logprobs.token_logprobs)
                .zip(tops)
                .map(|((token, logprob), top)| TokenLogprob {
                    chosen: scored_text(token, logprob),
                    top: top
                        .into_iter()
                        .flatten()
                        .map(|(token, logprob)| scored_text(token, logprob))
                        .collect(),
                })
                .collect();
        }
        part
    }
}

fn scored(token: openai::chat::TokenLogprob) -> TokenLogprob {
    let one = |text: String, bytes: Option<Vec<u8>>, logprob| ScoredToken {
        bytes: bytes.unwrap_or_else(|| text.into_bytes()),
        logprob,
    };
    TokenLogprob {
        chosen: one(token.token, token.bytes, token.logprob),
        top: token
            .top_logprobs
            .into_iter()
            .map(|top| one(top.token, top.bytes, top.logprob))
            .collect(),
    }
}

fn scored_text(text: String, logprob: f32) -> ScoredToken {
    ScoredToken {
        bytes: text.into_bytes(),
        logprob,
    }
}

/// The events of an answer. The prompt's size is known only at its end, so `Started` says 0.
fn events<T: Into<Part> + 'static>(
    chunks: Chunks<T>,
) -> impl Stream<Item = Result<GenerateEvent, GenerateError>> + Send {
    struct State<T> {
        chunks: Chunks<T>,
        has_started: bool,
        is_over: bool,
        reason: Option<FinishReason>,
        usage: Option<openai::Usage>,
        deltas: u32,
    }
    let state = State {
        chunks,
        has_started: false,
        is_over: false,
        reason: None,
        usage: None,
        deltas: 0,
    };
    futures::stream::unfold(state, async |mut state| {
        if state.is_over {
            return None;
        }
        if !std::mem::replace(&mut state.has_started, true) {
            let started = Started {
                prompt_tokens: 0,
                cached_tokens: 0,
                queued: Duration::ZERO,
            };
            return Some((Ok(GenerateEvent::Started(started)), state));
        }
        loop {
            let part: Part = match state.chunks.next().await {
                Some(Ok(chunk)) => chunk.into(),
                Some(Err(error)) => {
                    state.is_over = true;
                    return Some((Err(refused(&error)), state));
                }
                None => {
                    state.is_over = true;
                    let finished = match state.reason {
                        Some(reason) => Ok(GenerateEvent::Finished(Finished {
                            reason,
                            usage: usage_of(state.usage, state.deltas),
                        })),
                        None => Err(not_understood("its answer has no finish_reason")),
                    };
                    return Some((finished, state));
                }
            };
            state.usage = part.usage.or(state.usage);
            if let Some(reason) = part.finish_reason {
                state.reason = Some(match reason.as_str() {
                    "length" => FinishReason::Length,
                    _ => FinishReason::Stop,
                });
            }
            if !part.text.is_empty() || !part.logprobs.is_empty() {
                let tokens = u32::try_from(part.logprobs.len()).unwrap_or(1).max(1);
                state.deltas = state.deltas.saturating_add(tokens);
                let delta = Delta {
                    text: part.text,
                    token_count: tokens,
                    logprobs: part.logprobs,
                };
                return Some((Ok(GenerateEvent::Delta(delta)), state));
            }
        }
    })
}

/// Servers that report no usage send one token in each chunk.
fn usage_of(reported: Option<openai::Usage>, deltas: u32) -> Usage {
    match reported {
        Some(usage) => Usage {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_tokens: usage
                .prompt_tokens_details
                .map_or(0, |details| details.cached_tokens),
        },
        None => Usage {
            completion_tokens: deltas,
            ..Usage::default()
        },
    }
}

fn not_understood(message: &str) -> GenerateError {
    GenerateError::Upstream {
        status: None,
        message: message.to_owned(),
    }
}

fn refused(error: &ClientError) -> GenerateError {
    match error {
        ClientError::Server {
            status,
            error: object,
            retry_after,
        } => {
            let code = object.code.as_deref().unwrap_or_default();
            let is_overflow = matches!(
                code,
                "context_length_exceeded" | "exceed_context_size_error"
            );
            match status {
                400 if is_overflow => GenerateError::UpstreamContextLength {
                    message: object.message.clone(),
                },
                400 | 422 => GenerateError::Invalid {
                    param: "prompt",
                    message: object.message.clone(),
                },
                429 => GenerateError::QueueFull {
                    waiting_max: 0,
                    retry_after: retry_after.unwrap_or(Duration::from_secs(1)),
                },
                503 => GenerateError::Unavailable {
                    message: object.message.clone(),
                },
                status => GenerateError::Upstream {
                    status: Some(*status),
                    message: object.message.clone(),
                },
            }
        }
        ClientError::Connection(message) | ClientError::Protocol(message) => {
            GenerateError::Upstream {
                status: None,
                message: message.clone(),
            }
        }
    }
}
