//! From the chunks of another server to the events of an answer, as far as they are paid for.

use std::future::poll_fn;
use std::time::Duration;

use futures::{Stream, StreamExt};
use tenzro_protocol::inference::{
    Delta, FinishReason, Finished, GenerateError, GenerateEvent, ScoredToken, Started, TokenBudget,
    TokenHold, TokenLogprob, Usage,
};
use tenzro_protocol::openai;
use tenzro_protocol::openai::chat::ChatChunk;
use tenzro_protocol::openai::completions::Completion;

use super::{not_understood, refused};
use crate::openai_client::Chunks;

/// What one chunk of either endpoint adds.
#[derive(Debug, Default)]
pub(super) struct Part {
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

/// What an answer may take.
#[derive(Debug)]
pub(super) struct Allowance {
    /// Most tokens of the answer.
    pub(super) answer_tokens_max: Option<u32>,
    /// See [`events`].
    pub(super) budget: Option<TokenBudget>,
}

/// The events of an answer. The prompt's size is known only at its end, so `Started` says 0.
///
/// Another engine cannot be paused. While the budget is empty nothing is read: what it computes on
/// waits in the buffers of the connection, and dropping the stream closes that. A chunk is read for
/// one token in hand; one that has more of them puts the budget into debt, once, because the next
/// chunk is read only after that is paid. When `answer_tokens_max` have come, only the end follows,
/// and that is read without a token; an engine that goes on is cut off. Tokens of which only the
/// usage at the end tells are late, as far as that is not the token that ended the answer.
pub(super) fn events<T: Into<Part> + 'static>(
    chunks: Chunks<T>,
    allowance: Allowance,
) -> impl Stream<Item = Result<GenerateEvent, GenerateError>> + Send {
    let state = State {
        chunks,
        has_started: false,
        is_over: false,
        reason: None,
        usage: None,
        answer_tokens: 0,
        answer_tokens_max: allowance.answer_tokens_max.unwrap_or(u32::MAX),
        hold: TokenHold::new(allowance.budget),
    };
    futures::stream::unfold(state, async |mut state| {
        if state.is_over {
            return None;
        }
        let event = state.next().await;
        if matches!(event, Err(_) | Ok(GenerateEvent::Finished(_))) {
            state.is_over = true;
            state.hold.give_back();
        }
        Some((event, state))
    })
}

struct State<T> {
    chunks: Chunks<T>,
    has_started: bool,
    is_over: bool,
    reason: Option<FinishReason>,
    usage: Option<openai::Usage>,
    /// Tokens of all deltas.
    answer_tokens: u32,
    answer_tokens_max: u32,
    hold: TokenHold,
}

impl<T: Into<Part>> State<T> {
    async fn next(&mut self) -> Result<GenerateEvent, GenerateError> {
        if !std::mem::replace(&mut self.has_started, true) {
            return Ok(GenerateEvent::Started(Started {
                prompt_tokens: 0,
                cached_tokens: 0,
                queued: Duration::ZERO,
                provider: None,
            }));
        }
        loop {
            if self.answer_tokens < self.answer_tokens_max {
                poll_fn(|task| self.hold.poll_hold(task)).await;
            }
            let Some(chunk) = self.chunks.next().await else {
                return self.finished();
            };
            let part: Part = chunk.map_err(|error| refused(&error))?.into();
            self.usage = part.usage.or(self.usage.take());
            if let Some(reason) = part.finish_reason {
                self.reason = Some(match reason.as_str() {
                    "length" => FinishReason::Length,
                    "payment_required" => FinishReason::PaymentRequired,
                    _ => FinishReason::Stop,
                });
            }
            if !part.text.is_empty() {
                if self.answer_tokens >= self.answer_tokens_max {
                    self.reason = Some(FinishReason::Length);
                    return self.finished();
                }
                let tokens = u32::try_from(part.logprobs.len()).unwrap_or(1).max(1);
                self.answer_tokens = self.answer_tokens.saturating_add(tokens);
                self.hold.spend(tokens);
                return Ok(GenerateEvent::Delta(Delta {
                    text: part.text,
                    token_count: tokens,
                    logprobs: part.logprobs,
                }));
            }
        }
    }

    fn finished(&mut self) -> Result<GenerateEvent, GenerateError> {
        let reason = self
            .reason
            .ok_or_else(|| not_understood("its answer has no finish_reason"))?;
        let usage = usage_of(self.usage.take(), self.answer_tokens);
        let end_token = u32::from(reason == FinishReason::Stop);
        let told = usage.completion_tokens.saturating_sub(end_token);
        let late_tokens = told
            .min(self.answer_tokens_max)
            .saturating_sub(self.answer_tokens);
        self.hold.spend(late_tokens);
        Ok(GenerateEvent::Finished(Finished {
            reason,
            usage,
            late_tokens,
        }))
    }
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
            cost: usage.cost,
        },
        None => Usage {
            completion_tokens: deltas,
            ..Usage::default()
        },
    }
}

#[cfg(test)]
mod tests;
