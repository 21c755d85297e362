//! The OpenAI endpoints: read, check, run, write.

pub(crate) mod chat;
mod choices;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod models;
mod parameters;

pub(crate) use choices::{ChoiceEvent, Choices, STOPPED};
