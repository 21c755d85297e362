//! What a payer needs of the ledger. Implemented by `tenzro-node`.

use std::fmt;

use alloy::primitives::{Address, B256};
use futures::future::BoxFuture;

use crate::escrow::{EscrowChannel, EscrowError};

/// The escrow and the token, read only: deposits are submitted by payees.
pub trait PayerLedger: Send + Sync + fmt::Debug + 'static {
    /// The channel now; none where there is none.
    fn channel(&self, id: B256) -> BoxFuture<'_, Result<Option<EscrowChannel>, EscrowError>>;

    /// Wei of the token that an address holds.
    fn balance(&self, owner: Address) -> BoxFuture<'_, Result<u128, EscrowError>>;

    /// Ids of all channels that an address ever opened, from the escrow's events.
    fn channels_of(&self, payer: Address) -> BoxFuture<'_, Result<Vec<B256>, EscrowError>>;
}
