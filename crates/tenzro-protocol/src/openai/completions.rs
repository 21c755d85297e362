//! `POST /v1/completions`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Other, Parameters, Usage, present};

/// The request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompletionRequest {
    /// Model id.
    pub model: String,
    /// What to continue.
    pub prompt: Input,
    /// Repeat the prompt before the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<bool>,
    /// Alternatives for each token, 0–5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u32>,
    /// Only its default, `n`, is supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_of: Option<u32>,
    /// Shared with chats.
    #[serde(flatten)]
    pub parameters: Parameters,
    /// Further fields.
    #[serde(flatten)]
    pub other: Other,
}

/// One or several texts or token sequences.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Input {
    /// One text.
    Text(String),
    /// One token sequence.
    Tokens(Vec<u32>),
    /// Several texts.
    Texts(Vec<String>),
    /// Several token sequences.
    TokenLists(Vec<Vec<u32>>),
}

/// The answer when it is not streamed. Its `usage` may also be read from a [`CompletionChunk`],
/// where null and absent mean the same to most clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// `cmpl-…`.
    pub id: String,
    /// Always `text_completion`.
    pub object: String,
    /// Unix seconds.
    pub created: u64,
    /// Model id.
    pub model: String,
    /// Which build answered.
    #[serde(default)]
    pub system_fingerprint: Option<String>,
    /// `n` for each prompt.
    pub choices: Vec<TextChoice>,
    /// Tokens used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// One event of a streamed answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompletionChunk {
    /// The same in all chunks.
    pub id: String,
    /// Always `text_completion`.
    pub object: String,
    /// Unix seconds.
    pub created: u64,
    /// Model id.
    pub model: String,
    /// Which build answers.
    #[serde(default)]
    pub system_fingerprint: Option<String>,
    /// What is new; empty in the usage chunk.
    pub choices: Vec<TextChoice>,
    /// Absent unless asked for; then null but in the last chunk.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub usage: Option<Option<Usage>>,
}

/// One answer or its new part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextChoice {
    /// Prompt number × n + answer number.
    pub index: u32,
    /// The text.
    pub text: String,
    /// When asked for.
    #[serde(default)]
    pub logprobs: Option<TextLogprobs>,
    /// `stop` or `length`.
    #[serde(default)]
    pub finish_reason: Option<String>,
}

/// Log probabilities, one entry per token in each list.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TextLogprobs {
    /// Texts.
    pub tokens: Vec<String>,
    /// Natural logarithms.
    pub token_logprobs: Vec<f32>,
    /// Alternatives.
    pub top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<usize>,
}
