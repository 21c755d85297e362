//! Everything spoken over HTTP: the OpenAI API of a model server, the JSON-RPC of a node, health and
//! metrics.
//!
//! ```text
//! socket -> routes -> request id -> gate (who pays) -> extract (size, JSON) -> openai/* (validate)
//!                                     │ Billing                     bill (money set aside) │
//!                                                                                Inference ▼
//!                        metrics <- observer <──────────────── events ─────────────────────┤
//!                                        sse / paid stream / whole answer  <───────────────┘
//! ```
//!
//! Nothing below this crate knows an HTTP status; `error.rs` is the only map from errors to it.

mod bill;
pub mod billing;
mod connections;
mod error;
mod extract;
mod gate;
mod health;
mod inference;
mod metrics;
mod node;
mod openai;
mod paid_stream;
mod provider;
mod request_id;
mod routes;
mod rpc;
mod server;
mod sse;
mod state;

pub use inference::{GenerateStream, Inference};
pub use node::token_hash;
pub use rpc::{Caller, JsonRpc, LedgerView};
pub use server::{Limits, NodeServerConfig, Server, ServerConfig};
