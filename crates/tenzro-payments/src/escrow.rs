//! What the two roles need of the ledger. Implemented by `tenzro-node`, which knows both.

use std::fmt;

use alloy::primitives::{Address, B256};
use futures::future::BoxFuture;

use crate::signature::Signature;
use crate::voucher::Voucher;
use crate::wire::Authorization;

/// A channel as the ledger has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EscrowChannel {
    /// Who put the deposit in and gets the rest back.
    pub payer: Address,
    /// Who is paid.
    pub payee: Address,
    /// Who signs vouchers: the payer, unless it named somebody else.
    pub signer: Address,
    /// Wei put in, as far as that is confirmed.
    pub deposit: u128,
    /// Wei paid to the payee.
    pub settled: u128,
    /// Whether the payer asked to leave.
    pub is_closing: bool,
    /// Whether it is closed for ever.
    pub is_final: bool,
}

/// A deposit that the payer signed and anybody may submit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignedDeposit {
    /// Opens a channel.
    Open {
        /// Makes the channel's id a new one.
        salt: B256,
        /// Zero means the payer.
        authorized_signer: Address,
        /// Amount and time.
        authorization: Authorization,
        /// Of the authorization.
        signature: Signature,
    },
    /// Adds to a channel.
    TopUp {
        /// The channel.
        channel_id: B256,
        /// Makes the authorization's nonce a new one.
        salt: B256,
        /// Amount and time.
        authorization: Authorization,
        /// Of the authorization.
        signature: Signature,
    },
}

/// What became of one row of a settlement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// The payee had so much in all.
    Paid(u128),
    /// The contract would not; in words.
    Refused(String),
}

/// Why the ledger did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EscrowError {
    /// The contract refuses, for good: a definitive answer.
    #[error("the ledger refuses: {reason}")]
    Reverted {
        /// In words.
        reason: String,
        /// Whether the payer's wallet lacks the money.
        is_funds: bool,
    },
    /// The ledger does not answer, or not yet: may be tried again.
    #[error("the ledger cannot be reached: {0}")]
    Unavailable(String),
}

/// The escrow contract, acted on by one wallet.
pub trait Escrow: Send + Sync + fmt::Debug + 'static {
    /// The id of the channel that a payer opens to this wallet with these parameters.
    fn channel_id(&self, payer: Address, salt: B256, authorized_signer: Address) -> B256;

    /// Whether a deposit is signed by who gives it, for this escrow and for what it says it is for. Asks
    /// nobody; the error says what is wrong.
    fn check(&self, deposit: &SignedDeposit) -> Result<(), String>;

    /// The channel now; its deposit with as many confirmations as the ledger is trusted after. `None` where
    /// there is none.
    fn channel(&self, id: B256) -> BoxFuture<'_, Result<Option<EscrowChannel>, EscrowError>>;

    /// Submits a deposit for its payer, to a channel with this wallet as its payee.
    fn submit(&self, deposit: SignedDeposit) -> BoxFuture<'_, Result<B256, EscrowError>>;

    /// Which channel a mined, successful transaction opened or topped up.
    fn deposited_by(&self, transaction: B256) -> BoxFuture<'_, Result<Option<B256>, EscrowError>>;

    /// Settles vouchers of channels with this wallet as their payee; an outcome for each, in order.
    fn settle(
        &self,
        vouchers: Vec<Voucher>,
    ) -> BoxFuture<'_, Result<(B256, Vec<Settled>), EscrowError>>;

    /// Settles the last voucher, if there is one, and gives the payer the rest back.
    fn close(
        &self,
        channel_id: B256,
        last: Option<Voucher>,
    ) -> BoxFuture<'_, Result<B256, EscrowError>>;

    /// Channels with this wallet as their payee about which the ledger has news since the last call, at once
    /// and again when they are confirmed; at the first call all that there ever were.
    fn news(&self) -> BoxFuture<'_, Result<Vec<B256>, EscrowError>>;
}
