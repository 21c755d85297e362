//! Money and registration: the contracts, transactions to them, the chain they run on, wallets, and
//! a view of the provider registry.

pub mod contracts;
pub mod embedded;
mod ledger;
pub mod registry;
mod revert;
mod transaction;
mod wallet;

pub use embedded::{EmbeddedChain, EmbeddedError};
pub use ledger::{Addresses, Ledger, LedgerError, connect};
pub use transaction::{Account, SendError, Signed, submit};
pub use wallet::{Keystore, Wallet, WalletError};
