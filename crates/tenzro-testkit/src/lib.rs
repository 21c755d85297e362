//! For tests only: a writer of model files, a stand-in for the hub and a fake engine.

pub mod fake_inference;
pub mod gguf;
pub mod hub;
