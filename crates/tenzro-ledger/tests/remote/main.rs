//! The ledger on a chain over HTTP: a real anvil, which restarts, reorganises and refuses.

mod anvil;
mod channel_events;
mod channel_failures;
mod channel_scene;
mod channels;
mod concurrency;
mod deployment;
mod fees;
mod flaky;
mod flow;
mod proxy;
mod reorg;
mod restart;
mod reverts;
mod scene;
#[path = "../channels/vouchers.rs"]
mod vouchers;
