//! The ledger on a chain over HTTP: a real anvil, which restarts, reorganises and refuses.

mod anvil;
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
