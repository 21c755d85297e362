//! Text in, tokens out: llama.cpp under continuous batching.
//!
//! ```text
//! Engine (handle, any thread)                    worker (one thread, owns the llama.cpp context)
//!   chat_template -> tokenize -> admit ──queue──▶ schedule: which tokens next (pure)
//!                                                 llama: KV ops, one decode
//!   EngineStream ◀──events── answer_text ◀─────── sampling
//!      drop = cancel flag ──────────────────────▶ leaves before the next step, or aborts this one
//! ```
//!
//! The model's immutable parts (vocabulary, metadata) are read from any thread, so that rendering
//! and tokenizing a long prompt never holds up running answers.

mod answer_text;
mod chat_template;
mod cpu;
mod embedder;
mod engine;
mod error;
mod llama;
mod pace;
mod prefix_tree;
mod sampling;
mod schedule;
mod tokenizer;
mod worker;

pub use engine::{Engine, EngineConfig, EngineStream, ModelInfo};
pub use error::LoadError;
pub use tokenizer::Tokenizer;
