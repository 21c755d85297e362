//! The payee against payers of every kind, with an escrow that fails on demand. Names begin with the number of
//! the failure mode in research/market.md, section 6.

mod closing;
mod crash;
mod deposits;
mod dishonest;
mod flow;
mod ledger;
mod model;
mod scene;
