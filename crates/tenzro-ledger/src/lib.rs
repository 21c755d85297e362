//! Money and registration: the contracts, transactions to them, the chain they run on, wallets, and
//! a view of the provider registry.

pub mod contracts;
mod deploy;
mod ledger;
mod operations;
pub mod registry;
mod revert;
mod transaction;
mod wallet;

pub use deploy::{FaucetRules, Rules, deploy};
pub use ledger::{Addresses, Ledger, LedgerError, connect};
pub use operations::{MODEL_PROVIDER, Offer, Operations};
pub use transaction::{Account, SendError, Signed, submit};
pub use wallet::{Keystore, Wallet, WalletError};
