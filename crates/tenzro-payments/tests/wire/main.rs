//! Our messages against the words of others: the examples that are printed in draft-evm-session-00, and the types
//! of the `mpp` crate.
//!
//! Placeholders in the draft's examples (`0xabcdef…`, `eyJ...`) are filled up to the length that it demands.

mod draft;
mod envelope;
