//! The values that pass between the HTTP edge and an engine.
//!
//! One answer is one [`GenerateRequest`] and a stream of [`GenerateEvent`]s in this order:
//!
//! ```text
//! Started  ->  Delta*  ->  Finished        or, at any point,  GenerateError (last)
//! ```
//!
//! Dropping the stream cancels the work. Requests for `n` choices are `n` generations: the engine
//! shares their common prefix. With a [`TokenBudget`] the events come as far as tokens are in it,
//! and go on when more are added.

pub mod prompt_bound;
mod token_budget;

use std::time::Duration;

use crate::amount::Wei;

pub use token_budget::{TokenBudget, TokenHold};

/// What an engine is asked to continue.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// A conversation, rendered through the model's own chat template.
    Chat(ChatPrompt),
    /// Plain text; the model's BOS token is added where the model wants one, and special tokens that
    /// the text spells are meant as such.
    Text(String),
    /// Token ids of the served model, used as they are.
    Tokens(Vec<u32>),
}

/// A conversation to be rendered by the chat template of the model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ChatPrompt {
    /// Oldest first; never empty.
    pub messages: Vec<ChatMessage>,
    /// `chat_template_kwargs` of the request: extra template variables such as `enable_thinking`.
    pub template_kwargs: serde_json::Map<String, serde_json::Value>,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Text of the message; several text parts are joined by the HTTP edge.
    pub content: String,
    /// `name` of the speaker, when the request gives one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
}

/// One generation: a single choice of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// What to continue.
    pub prompt: Prompt,
    /// Most tokens to generate; `None` is up to the end of the context.
    pub max_tokens: Option<u32>,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Generation ends before the first of these would be printed. At most 16, none empty.
    pub stop: Vec<String>,
    /// Continue past end-of-generation tokens (load tests with a fixed output length).
    pub ignore_eos: bool,
    /// `Some(n)`: report each token's log probability and its `n` likeliest alternatives (0–20).
    pub logprobs: Option<u8>,
    /// How many tokens may be computed before more are added; `None` is no limit. Each token that
    /// a delta counts costs one, when it is sent: what has no text, or not yet, is computed on the
    /// token in hand. While the budget is empty nothing is computed, the prompt neither; the
    /// generation keeps its place. It is shared by the choices of one request.
    pub budget: Option<TokenBudget>,
}

/// Tokens that prompt and answer have at most together where nobody tells the context of a model.
pub const CONTEXT_TOKENS_DEFAULT: u32 = 32_768;

/// How large a prompt is, or all inputs of an [`EmbedRequest`] together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptSize {
    /// Tokens of the rendered prompt, at most.
    pub tokens: u32,
    /// Tokens that it has at least; just as many where the engine can count them.
    pub least: u32,
}

impl PromptSize {
    /// As the engine counts it.
    pub fn exact(tokens: u32) -> Self {
        Self {
            tokens,
            least: tokens,
        }
    }

    /// Of both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.saturating_add(other.tokens),
            least: self.least.saturating_add(other.least),
        }
    }

    /// Whether the engine will count just as many.
    pub fn is_exact(self) -> bool {
        self.least == self.tokens
    }
}

/// How the next token is chosen. `None` is the engine's default for the model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sampling {
    /// 0 is greedy. Range 0–2.
    pub temperature: Option<f32>,
    /// Keep the `k` likeliest tokens; 0 keeps all.
    pub top_k: Option<u32>,
    /// Keep the smallest set of tokens whose probability reaches this. Range 0–1.
    pub top_p: Option<f32>,
    /// Drop tokens less likely than this share of the likeliest. Range 0–1.
    pub min_p: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens seen lately; 1 is off.
    pub repeat_penalty: Option<f32>,
    /// Subtracted once from the logit of every generated token. Range −2–2.
    pub presence_penalty: Option<f32>,
    /// Subtracted from a token's logit for each time it was generated. Range −2–2.
    pub frequency_penalty: Option<f32>,
    /// Added to the logit of a token id, range −100–100.
    pub logit_bias: Vec<(u32, f32)>,
    /// Makes the choice repeatable for the same model, build and batch shape.
    pub seed: Option<u64>,
}

/// One event of a running generation; see the module header for the order.
#[derive(Debug, Clone, PartialEq)]
pub enum GenerateEvent {
    /// The prompt has been processed and the first token is due.
    Started(Started),
    /// Text that is ready to be shown.
    Delta(Delta),
    /// The answer is complete. Always the last event of a stream that did not fail.
    Finished(Finished),
}

/// The prompt has been processed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Tokens of the rendered prompt.
    pub prompt_tokens: u32,
    /// How many of them were found in the prefix cache and not computed again.
    pub cached_tokens: u32,
    /// Time between arrival and the first prompt token being computed.
    pub queued: Duration,
    /// Who answers, where a node chose: the wallet that is paid, or `local`.
    pub provider: Option<String>,
}

/// Text that is ready to be shown: valid UTF-8, never part of a stop string. One delta may hold
/// several tokens, and tokens whose text is held back are counted by a later delta. Tokens without
/// any text are in none.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Delta {
    /// The new text; not empty.
    pub text: String,
    /// Tokens with text that were generated since the last delta.
    pub token_count: u32,
    /// One entry per counted token, when [`GenerateRequest::logprobs`] asked for them. They tell the
    /// text of a token and of others in its place, so they never come before its text.
    pub logprobs: Vec<TokenLogprob>,
}

/// A generated token with its log probability under the unmodified logits.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token that was generated.
    pub chosen: ScoredToken,
    /// The likeliest tokens at this place, likeliest first.
    pub top: Vec<ScoredToken>,
}

/// A token with its log probability.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    /// Bytes of the token; not always valid UTF-8 on their own.
    pub bytes: Vec<u8>,
    /// Natural logarithm of the softmax of the raw logits.
    pub logprob: f32,
}

/// Why a generation ended, and what it used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens used.
    pub usage: Usage,
    /// Tokens of text that no delta has counted, where an engine tells only at the end how many there
    /// were.
    pub late_tokens: u32,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its answer, or a stop string was reached.
    Stop,
    /// `max_tokens` or the end of the context was reached.
    Length,
    /// The payer stopped paying. Said by the HTTP edge, and by an engine that buys its answers.
    PaymentRequired,
}

/// Tokens used by one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the rendered prompt.
    pub prompt_tokens: u32,
    /// Tokens generated, the end-of-generation token included.
    pub completion_tokens: u32,
    /// Prompt tokens that were found in the prefix cache.
    pub cached_tokens: u32,
    /// What it cost, by the payer's own count, where another provider was paid for it.
    pub cost: Option<Wei>,
}

/// Texts or token sequences to embed.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedRequest {
    /// Inputs in order; [`Prompt::Chat`] is refused.
    pub inputs: Vec<Prompt>,
}

/// The vectors of an [`EmbedRequest`], in its order.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// One L2-normalised vector per input.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs.
    pub prompt_tokens: u32,
    /// As in [`Started::provider`].
    pub provider: Option<String>,
    /// What they cost, by the payer's own count, where another provider was paid for them.
    pub cost: Option<Wei>,
}

/// Why an engine refused or broke off a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// Prompt (plus what was asked for) does not fit.
    #[error(
        "this model's maximum context length is {context_tokens} tokens, but the prompt has {prompt_tokens} tokens"
    )]
    ContextLength {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Most tokens that prompt and answer may have together.
        context_tokens: u32,
    },
    /// The engine behind `--upstream` says that the prompt does not fit.
    #[error("{message}")]
    UpstreamContextLength {
        /// Its own text.
        message: String,
    },
    /// The waiting queue is full; nothing was computed.
    #[error("the server is busy: its queue of {waiting_max} waiting requests is full")]
    QueueFull {
        /// Size of the queue.
        waiting_max: u32,
        /// When a place is likely to be free.
        retry_after: Duration,
    },
    /// The engine behind `--upstream` has no room; nothing was computed.
    #[error("the upstream engine is busy: {message}")]
    UpstreamBusy {
        /// Its own text.
        message: String,
        /// When it is likely to have some.
        retry_after: Duration,
    },
    /// The request asks for something that cannot be done.
    #[error("{message}")]
    Invalid {
        /// The request field at fault.
        param: &'static str,
        /// What is wrong with it, for the client.
        message: String,
    },
    /// The model is still loading, or the server is shutting down.
    #[error("{message}")]
    Unavailable {
        /// What the client may be told.
        message: String,
    },
    /// The engine behind `--upstream` failed. `status` is its HTTP status, when it answered.
    #[error("the upstream engine failed: {message}")]
    Upstream {
        /// HTTP status of its answer.
        status: Option<u16>,
        /// What the client may be told.
        message: String,
    },
    /// The wallet here cannot or may not pay for the answer.
    #[error("{message}")]
    Payment {
        /// `insufficient_funds` or `spending_limit`.
        code: &'static str,
        /// What is missing, for the client.
        message: String,
    },
    /// Our fault; `message` is for the log.
    #[error("internal error: {message}")]
    Internal {
        /// For the log, never for the client.
        message: String,
    },
}

/// One model as `/v1/models` shows it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ModelCard {
    /// The model id used on the network.
    pub id: String,
    /// When the server started serving it, Unix seconds.
    #[serde(default)]
    pub created: u64,
    /// Repository owner, or `local`.
    #[serde(default)]
    pub owned_by: String,
    /// Other names that requests may use for it: repo, `repo:QUANT`, file name.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub aliases: Vec<String>,
    /// Most tokens of prompt and answer together.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub context_length: Option<u32>,
    /// Quantization tag such as `Q4_K_M`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub quantization: Option<String>,
    /// SHA-256 of the weights, 64 hex digits: ties the answers to an exact file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sha256: Option<String>,
    /// Size of the weights.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub size_bytes: Option<u64>,
}

/// Where a model server is in its life.
#[derive(Debug, Clone, PartialEq)]
pub enum ServerState {
    /// The model is being read; `progress` is 0–1.
    Loading {
        /// Share of the weights that is in memory.
        progress: f32,
    },
    /// Requests are served.
    Ready,
    /// Running answers finish, new requests are refused.
    Draining,
}

/// What an engine is doing at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineGauges {
    /// Generations with tokens in the batch.
    pub running: u32,
    /// Generations waiting for a place.
    pub waiting: u32,
    /// Cells of the KV buffer in use, cached prefixes included.
    pub kv_cells_used: u32,
    /// Cells of the KV buffer.
    pub kv_cells_total: u32,
    /// Batches computed since start.
    pub steps_total: u64,
    /// Prompt tokens computed since start.
    pub prefill_tokens_total: u64,
    /// Prompt tokens taken from the prefix cache since start.
    pub cached_tokens_total: u64,
    /// Tokens generated since start.
    pub generated_tokens_total: u64,
    /// Generations whose client left before the end.
    pub cancelled_total: u64,
}
