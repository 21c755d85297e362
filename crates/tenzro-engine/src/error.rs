//! Why an engine cannot be started.

use std::path::PathBuf;

/// Why [`crate::Engine::load`] failed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be opened.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// llama.cpp refused the file: damaged, or an architecture it does not know.
    #[error("llama.cpp cannot load {}: {reason}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// llama.cpp's own text.
        reason: String,
    },
    /// The model has no text vocabulary, or needs a separate encoder.
    #[error("{} cannot generate text from text: {reason}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: &'static str,
    },
    /// A setting is out of range.
    #[error("{setting} is {value}, but must be {range}")]
    Setting {
        /// Name of the setting as the command line spells it.
        setting: &'static str,
        /// What it was.
        value: u32,
        /// What it may be.
        range: String,
    },
    /// The KV buffer does not fit into memory.
    #[error(
        "{parallel} contexts of {ctx_size} tokens need {} MiB of memory, and {} MiB are free",
        needed_bytes / (1 << 20), available_bytes / (1 << 20)
    )]
    Memory {
        /// For the KV buffer.
        needed_bytes: u64,
        /// What the machine has left.
        available_bytes: u64,
        /// Tokens per request.
        ctx_size: u32,
        /// Requests at the same time.
        parallel: u32,
    },
    /// llama.cpp could not allocate its buffers.
    #[error("llama.cpp could not allocate {parallel} contexts of {ctx_size} tokens")]
    Context {
        /// Tokens per request.
        ctx_size: u32,
        /// Requests at the same time.
        parallel: u32,
    },
    /// The caller's progress function asked to stop.
    #[error("loading was cancelled")]
    Cancelled,
    /// The model computes nothing, even for one token.
    #[error("the model failed its first computation")]
    WarmUp,
    /// No thread could be started.
    #[error("cannot start the engine's thread: {0}")]
    Thread(std::io::Error),
}

impl LoadError {
    /// What the user can do about it, when there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Memory {
                ctx_size, parallel, ..
            }
            | Self::Context { ctx_size, parallel } => Some(format!(
                "use a smaller --ctx-size than {ctx_size} or a smaller --parallel than {parallel}"
            )),
            Self::Model { .. } => Some(
                "check the file with `tenzro-cli model info`, or try another quantization"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}
