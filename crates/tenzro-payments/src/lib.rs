//! Payment channels: what is signed, what both sides keep in their books, and when the payee settles.
//!
//! ```text
//! payer                                             payee
//! payer.rs     which channel, how much, is it fair   payee.rs      is it paid for
//!    │ Voucher (voucher.rs) in a credential (wire.rs) ─▶ │
//! payer/store  durable before it is sent             books.rs      durable before it counts
//!                                                       │ settlement.rs: when
//!                            Escrow (escrow.rs): the ledger, implemented by tenzro-node
//! ```
//!
//! Decisions are plain functions on plain values: `channel.rs` for the payee, `budget.rs` and `audit.rs` for
//! the payer.

pub mod books;
mod challenge;
pub mod channel;
pub mod escrow;
pub mod payee;
pub mod payer;
pub mod price;
pub mod refusal;
pub mod settlement;
pub mod signature;
mod sync;
pub mod voucher;
pub mod wire;
