//! Composition: configuration becomes a running model server. The only crate that knows the others.
//!
//! ```text
//! config + home -> ModelServer ─┬─ tenzro_api::Server   (HTTP)
//!                               └─ LocalInference | Upstream   (tenzro_api::Inference)
//! ```

pub mod config;
mod home;
mod local_inference;
mod model_server;
pub mod openai_client;
mod servers;
mod upstream;

pub use home::{Home, replace_file};
pub use model_server::{ModelServer, ServeOptions, Source, StartError};
pub use servers::{ServerRecord, Servers, Slot};

pub use tenzro_engine::{EngineConfig, LoadError, ModelInfo};

/// Whether this build can put layers on a GPU.
pub const fn has_gpu_backend() -> bool {
    cfg!(any(
        feature = "cuda",
        feature = "vulkan",
        feature = "metal",
        feature = "rocm"
    ))
}
