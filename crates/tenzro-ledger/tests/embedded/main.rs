//! The embedded chain as its users meet it: through the provider, `Account`, `Ledger` and `Registry`.

mod channel_attacks;
mod channel_scene;
mod channel_vectors;
mod channels;
mod crash;
mod durability;
mod filters;
mod flow;
mod follow;
mod money;
mod queue;
mod rpc;
mod scene;
mod transactions;
#[path = "../channels/vouchers.rs"]
mod vouchers;
