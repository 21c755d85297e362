//! What two parties must agree on: amounts, model ids, schedules, the OpenAI and JSON-RPC wire shapes
//! and the values that pass between the HTTP edge and an engine. Plain data: no I/O, no async, no
//! clock.

pub mod amount;
pub mod inference;
pub mod json_rpc;
pub mod model_id;
pub mod network;
pub mod openai;
pub mod schedule;
pub mod sse;
