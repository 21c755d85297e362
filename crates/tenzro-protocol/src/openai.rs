//! The OpenAI wire shapes, as servers read and clients write them and the other way round.
//!
//! Fields that are not listed are tolerated and kept in `other`, so that a server can refuse the
//! ones that it knows and does not support. Source: the types of the official clients
//! (openai-python 3.54, openai-node 6), and llama-server for the sampling extensions.

pub mod chat;
pub mod completions;
pub mod embeddings;
mod error;
mod models;

pub use error::{ErrorBody, ErrorObject};
pub use models::{ModelList, ModelObject};

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::amount::Wei;
use crate::inference;

/// `stop`: one string or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Stop {
    /// One string.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Stop {
    /// As a list.
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(stop) => vec![stop],
            Self::Many(stops) => stops,
        }
    }
}

/// `stream_options`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StreamOptions {
    /// Ask for a last chunk with the usage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_usage: Option<bool>,
}

/// The parameters that chat and text completions share.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Parameters {
    /// Number of answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
    /// Most tokens of an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// 0–2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// 0–1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Extension: keep the k likeliest tokens; 0 keeps all, and so do the negative numbers that
    /// clients of vLLM and llama-server send.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "top_k"
    )]
    pub top_k: Option<u32>,
    /// Extension: 0–1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Extension, above 0.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        alias = "repetition_penalty"
    )]
    pub repeat_penalty: Option<f32>,
    /// −2–2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// −2–2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// Token id to bias, −100–100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// Makes sampling repeatable. Negative seeds are used by their bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// At most four.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Answer as server-sent events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Only with `stream`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// Extension: go on past the end-of-generation token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore_eos: Option<bool>,
}

fn top_k<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let Some(number) = Option::<i64>::deserialize(deserializer)? else {
        return Ok(None);
    };
    // More than a vocabulary can hold means all of it.
    Ok(Some(u32::try_from(number.max(0)).unwrap_or(0)))
}

/// Keeps `null` apart from an absent field.
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// Any further fields of a request.
pub type Other = Map<String, Value>;

/// Tokens used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of all answers; embeddings have none.
    #[serde(default)]
    pub completion_tokens: u32,
    /// Their sum.
    pub total_tokens: u32,
    /// Parts of the prompt tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
    /// Parts of the completion tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionTokensDetails>,
    /// Wei of TNZO that were paid for it; not OpenAI's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Wei>,
}

/// Parts of the prompt tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// Found in the prefix cache.
    #[serde(default)]
    pub cached_tokens: u32,
    /// Always 0 here.
    #[serde(default)]
    pub audio_tokens: u32,
}

/// Parts of the completion tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CompletionTokensDetails {
    /// Always 0 here.
    #[serde(default)]
    pub reasoning_tokens: u32,
    /// Always 0 here.
    #[serde(default)]
    pub audio_tokens: u32,
    /// Always 0 here.
    #[serde(default)]
    pub accepted_prediction_tokens: u32,
    /// Always 0 here.
    #[serde(default)]
    pub rejected_prediction_tokens: u32,
}

/// The sum; none where there is nothing, or the cost of a part is not known.
pub fn total_cost(costs: impl IntoIterator<Item = Option<Wei>>) -> Option<Wei> {
    let sum = |one: Option<Wei>, other: Option<Wei>| Some(Wei(one?.0.saturating_add(other?.0)));
    costs.into_iter().reduce(sum)?
}

impl Usage {
    /// Of several answers to one prompt: the prompt is counted once.
    pub fn of_choices(choices: &[inference::Usage]) -> Self {
        let prompt_tokens = choices.first().map_or(0, |usage| usage.prompt_tokens);
        let completion_tokens = choices.iter().map(|usage| usage.completion_tokens).sum();
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: Some(PromptTokensDetails {
                cached_tokens: choices.first().map_or(0, |usage| usage.cached_tokens),
                audio_tokens: 0,
            }),
            completion_tokens_details: Some(CompletionTokensDetails::default()),
            cost: total_cost(choices.iter().map(|usage| usage.cost)),
        }
    }

    /// Of several prompts.
    pub fn sum(parts: &[Self]) -> Self {
        let mut total = Self {
            prompt_tokens_details: Some(PromptTokensDetails::default()),
            completion_tokens_details: Some(CompletionTokensDetails::default()),
            cost: total_cost(parts.iter().map(|part| part.cost)),
            ..Self::default()
        };
        for part in parts {
            total.prompt_tokens += part.prompt_tokens;
            total.completion_tokens += part.completion_tokens;
            total.total_tokens += part.total_tokens;
            if let (Some(details), Some(part)) =
                (&mut total.prompt_tokens_details, part.prompt_tokens_details)
            {
                details.cached_tokens += part.cached_tokens;
            }
        }
        total
    }
}

/// Why an answer ended, as OpenAI spells it.
pub fn finish_reason(reason: inference::FinishReason) -> &'static str {
    match reason {
        inference::FinishReason::Stop => "stop",
        inference::FinishReason::Length => "length",
        inference::FinishReason::PaymentRequired => "payment_required",
    }
}
