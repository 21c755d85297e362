//! Payment channels on the chain: what they are, how they are opened, settled and closed, and what
//! happened to them.
//!
//! ```text
//! ChannelTerms ─▶ id                    Operations (operations.rs) ─▶ receipt, or ChannelRefusal
//!       └▶ OpenRequest, TopUpRequest ─────────▲  signed by the payer, sent by the payee
//! chain ─▶ Ledger::channel_now          one channel, right now
//!       ─▶ Ledger::channel_before       one channel, some blocks ago
//!       ─▶ Ledger::funding              what one transaction opened or topped up
//!       ─▶ events.rs, follow.rs         all channels of a payer or a payee
//! ```
//!
//! Amounts are wei of TNZO. Source of ids, nonces and what is signed: the MPP draft
//! draft-evm-session-00, as in `contracts/src/PaymentChannels.sol`.

mod authorization;
mod events;
mod follow;
mod funding;
mod operations;
mod refusal;

use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolValue;

use crate::ledger::{Ledger, LedgerError};

pub use crate::ledger::logs::Block;
pub use authorization::{Authorization, OpenRequest, TopUpRequest, top_up_nonce};
pub use events::{Change, ChannelEvent, Party, channel_events};
pub use follow::{ChannelFollower, ChannelNews};
pub use funding::Funding;
pub use operations::{RowOutcome, SettledBatch, Settlement};
pub use refusal::ChannelRefusal;

/// The contract that holds the deposits, as signatures and ids name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Escrow {
    /// EIP-155 id of the chain.
    pub chain_id: u64,
    /// The contract.
    pub address: Address,
    /// TNZO on that chain.
    pub token: Address,
}

/// What a payer chooses for a channel; all of it is in the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelTerms {
    /// Who can draw on it.
    pub payee: Address,
    /// Anything that makes the id a new one.
    pub salt: B256,
    /// Who signs vouchers; zero means the payer does.
    pub authorized_signer: Address,
}

impl ChannelTerms {
    /// Terms for a new channel of a payer that signs its vouchers itself.
    pub fn fresh(payee: Address) -> Self {
        Self {
            payee,
            // A random key is the randomness that is at hand.
            salt: keccak256(PrivateKeySigner::random().to_bytes()),
            authorized_signer: Address::ZERO,
        }
    }

    /// The id of the payer's channel with these terms: the contract's `computeChannelId`.
    pub fn id(&self, payer: Address, escrow: &Escrow) -> B256 {
        let fields = (
            payer,
            self.payee,
            escrow.token,
            self.salt,
            self.authorized_signer,
            escrow.address,
            U256::from(escrow.chain_id),
        );
        keccak256(fields.abi_encode())
    }

    /// The EIP-3009 nonce of the payer's deposit, which binds these terms to its signature.
    pub fn open_nonce(&self, payer: Address, escrow: &Escrow) -> B256 {
        let fields = (
            payer,
            self.payee,
            escrow.token,
            self.salt,
            self.authorized_signer,
        );
        keccak256(fields.abi_encode())
    }
}

/// A channel as the contract has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// See [`ChannelTerms::id`].
    pub id: B256,
    /// Who put the deposit in and gets back what is left.
    pub payer: Address,
    /// Who can draw on it.
    pub payee: Address,
    /// Of the deposit.
    pub token: Address,
    /// Who signs vouchers; zero means the payer does. See [`Channel::signer`].
    pub authorized_signer: Address,
    /// Wei put in.
    pub deposit: u128,
    /// Wei paid to the payee.
    pub settled: u128,
    /// Unix seconds; 0 while the payer did not ask for closing.
    pub close_requested_at: u64,
    /// Closed for ever.
    pub finalized: bool,
}

impl Channel {
    /// Whose signature vouchers need.
    pub fn signer(&self) -> Address {
        if self.authorized_signer.is_zero() {
            self.payer
        } else {
            self.authorized_signer
        }
    }
}

/// Rules of the ledger that the escrow was deployed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelRules {
    /// From the payer's wish to close a channel until it can withdraw.
    pub close_grace_seconds: u64,
}

impl Ledger {
    /// What signatures and ids for this ledger's channels name.
    pub fn escrow(&self) -> Escrow {
        Escrow {
            chain_id: self.chain_id(),
            address: self.addresses().payment_channels,
            token: self.addresses().tnzo,
        }
    }

    /// The rules.
    pub async fn channel_rules(&self) -> Result<ChannelRules, LedgerError> {
        let close_grace_seconds = self.channels().CLOSE_GRACE_PERIOD().call().await?;
        Ok(ChannelRules {
            close_grace_seconds,
        })
    }

    /// A channel as of the newest block; `None` where there was never one of that id. Closed ones stay.
    pub async fn channel_now(&self, id: B256) -> Result<Option<Channel>, LedgerError> {
        self.channel_at(id, BlockId::latest()).await
    }

    /// The same as of a block with so many others on top; `None` also where the channel is younger.
    pub async fn channel_before(
        &self,
        id: B256,
        blocks_on_top: u64,
    ) -> Result<Option<Channel>, LedgerError> {
        let block = self.head().await?.checked_sub(blocks_on_top);
        let deployed = block.filter(|block| *block >= self.addresses().first_block);
        match deployed {
            Some(block) => self.channel_at(id, block.into()).await,
            None => Ok(None),
        }
    }

    async fn channel_at(&self, id: B256, block: BlockId) -> Result<Option<Channel>, LedgerError> {
        let found = self.channels().getChannel(id).block(block).call().await?;
        // The zero address can sign nothing, so that it can pay for no channel.
        if found.payer.is_zero() {
            return Ok(None);
        }
        Ok(Some(Channel {
            id,
            payer: found.payer,
            payee: found.payee,
            token: found.token,
            authorized_signer: found.authorizedSigner,
            deposit: found.deposit,
            settled: found.settled,
            close_requested_at: found.closeRequestedAt,
            finalized: found.finalized,
        }))
    }
}
