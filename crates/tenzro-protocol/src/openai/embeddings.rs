//! `POST /v1/embeddings`.

use serde::{Deserialize, Serialize};

use super::Other;
use super::completions::Input;
use crate::amount::Wei;

/// The request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingRequest {
    /// Model id.
    pub model: String,
    /// What to embed.
    pub input: Input,
    /// `float` (default) or `base64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding_format: Option<EncodingFormat>,
    /// Only the model's own length is supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// Further fields.
    #[serde(flatten)]
    pub other: Other,
}

/// How a vector is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// A list of numbers.
    Float,
    /// Little-endian 32-bit floats.
    Base64,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingList {
    /// Always `list`.
    pub object: String,
    /// In the order of the inputs.
    pub data: Vec<EmbeddingObject>,
    /// Model id.
    pub model: String,
    /// Tokens used.
    pub usage: EmbeddingUsage,
}

/// One vector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingObject {
    /// Always `embedding`.
    pub object: String,
    /// Number of the input.
    pub index: u32,
    /// The vector.
    pub embedding: Vector,
}

/// A vector in one of the two encodings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Vector {
    /// Numbers.
    Float(Vec<f32>),
    /// Little-endian 32-bit floats in base64.
    Base64(String),
}

/// Tokens used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddingUsage {
    /// Tokens of all inputs.
    pub prompt_tokens: u32,
    /// The same.
    pub total_tokens: u32,
    /// Wei of TNZO that were paid for it; not OpenAI's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Wei>,
}
