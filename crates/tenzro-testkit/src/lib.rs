//! For tests only: a writer of model files, a stand-in for the hub and the real binary as a child.

pub mod gguf;
pub mod hub;
