//! Everything spoken over HTTP.

mod inference;

pub use inference::{GenerateStream, Inference};
