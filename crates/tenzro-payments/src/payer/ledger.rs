//! What a payer needs of the ledger. Implemented by `tenzro-node`.

use std::fmt;

use alloy::primitives::{Address, B256};
use futures::future::BoxFuture;

use crate::escrow::{EscrowChannel, EscrowError};
use crate::signature::Signature;
use crate::wire::Authorization;

/// The escrow, the token and the wallet, which signs deposits: payees submit them. What is signed is the
/// ledger's affair; the same deposit has the same signature each time.
pub trait PayerLedger: Send + Sync + fmt::Debug + 'static {
    /// The id of the wallet's channel to a payee, whose vouchers the wallet signs.
    fn channel_id(&self, payee: Address, salt: B256) -> B256;

    /// Signs the deposit of so many wei that opens this channel, to be used before `valid_before` (Unix
    /// seconds).
    fn sign_open(
        &self,
        payee: Address,
        salt: B256,
        amount: u128,
        valid_before: u64,
    ) -> (Authorization, Signature);

    /// Signs for so many wei more in a channel, to be used before `valid_before` (Unix seconds).
    fn sign_top_up(
        &self,
        channel: B256,
        salt: B256,
        amount: u128,
        valid_before: u64,
    ) -> (Authorization, Signature);

    /// The channel now; none where there is none.
    fn channel(&self, id: B256) -> BoxFuture<'_, Result<Option<EscrowChannel>, EscrowError>>;

    /// Wei of the token that an address holds.
    fn balance(&self, owner: Address) -> BoxFuture<'_, Result<u128, EscrowError>>;

    /// Ids of all channels that an address ever opened, from the escrow's events.
    fn channels_of(&self, payer: Address) -> BoxFuture<'_, Result<Vec<B256>, EscrowError>>;
}
