//! Money and registration: the contracts, transactions to them, the chain they run on, wallets, payment
//! channels, and a view of the provider registry.

pub mod channels;
pub mod contracts;
mod deploy;
pub mod embedded;
mod ledger;
mod operations;
pub mod registry;
mod revert;
mod transaction;
mod views;
mod wallet;

pub use alloy::primitives::{Address, B256, Bytes, U256};
pub use alloy::rpc::types::TransactionReceipt;
pub use alloy::signers::local::PrivateKeySigner;
pub use alloy::transports::TransportError;
pub use deploy::{FaucetRules, Rules, deploy};
pub use embedded::{EmbeddedChain, EmbeddedError};
pub use ledger::{Addresses, Ledger, LedgerError, chain_id, connect, forward};
pub use operations::{Offer, Operations, stopped_endpoints};
pub use transaction::{Account, SendError, Signed, recipient, sender, submit};
pub use views::{RegistryRules, wei};
pub use wallet::{Keystore, Wallet, WalletError};
