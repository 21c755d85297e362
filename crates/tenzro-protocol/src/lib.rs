//! What two parties must agree on: model ids, the OpenAI wire shapes and the values that pass
//! between the HTTP edge and an engine. Plain data: no I/O, no async, no clock.

pub mod inference;
pub mod model_id;
pub mod openai;
pub mod sse;
