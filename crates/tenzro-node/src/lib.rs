//! Composition: configuration becomes a running model server or node. The only crate that knows the
//! others.
//!
//! ```text
//! config + home ─┬▶ ModelServer ─┬─ tenzro_api::Server   (HTTP)
//!                │               └─ LocalInference | Upstream   (tenzro_api::Inference)
//!                └▶ Node ─┬─ tenzro_api::Server   (HTTP)
//!                         └─ NodeRpc   (tenzro_api::JsonRpc) ─▶ ledger, registry view, probes
//! ```

mod billing;
mod channel_view;
mod choice;
mod closing;
pub mod config;
mod directory;
mod escrow;
mod health;
mod home;
mod http_client;
mod ledger_source;
mod local_endpoints;
mod local_inference;
mod model_server;
mod network;
mod network_inference;
mod node;
mod node_client;
mod node_rpc;
pub mod openai_client;
mod operator_token;
mod payer_ledger;
pub mod paying_client;
mod probe;
mod registration;
mod sale;
mod servers;
mod upstream;

pub use directory::{pricing_info, provider_info};
pub use home::{Home, replace_file};
pub use ledger_source::{EMBEDDED, LedgerSourceError};
pub use model_server::{ModelServer, ServeOptions, Source, StartError};
pub use network::{Network, NetworkError};
pub use node::{Node, NodeStartError};
pub use node_client::{NodeClient, NodeError};
pub use operator_token::operator_token;
pub use payer_ledger::LedgerView;
pub use registration::{Recorded, Registration, RegistrationError, forget};
pub use sale::{Goods, Sale, SaleError, earnings};
pub use servers::{
    LedgerPlace, NodeRecord, ServerRecord, Servers, Slot, is_node_running, running_node,
};

pub use tenzro_payments::books::{BooksError, DayEarnings, Earnings};

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
