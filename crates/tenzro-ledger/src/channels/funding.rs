//! What a transaction that somebody names did to channels.

use alloy::primitives::B256;
use alloy::providers::Provider;

use super::events::{Change, ChannelEvent};
use crate::ledger::logs::block_at;
use crate::ledger::{Ledger, LedgerError};

/// What became of a transaction that is said to have put money into a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Funding {
    /// It is in no block of the chain: it may still come.
    NotMined,
    /// It was mined and failed: it did nothing, and never will.
    Failed,
    /// It was mined and has succeeded.
    Mined {
        /// Blocks on top of its block.
        confirmations: u64,
        /// Channels that it opened or topped up at this ledger's escrow; none where it did something
        /// else.
        events: Vec<ChannelEvent>,
    },
}

impl Ledger {
    /// What that transaction opened or topped up, whoever sent it and through whatever contract.
    pub async fn funding(&self, transaction: B256) -> Result<Funding, LedgerError> {
        let provider = self.provider();
        let Some(receipt) = provider.get_transaction_receipt(transaction).await? else {
            return Ok(Funding::NotMined);
        };
        let (Some(number), Some(hash)) = (receipt.block_number, receipt.block_hash) else {
            return Ok(Funding::NotMined);
        };
        // A node may still have the receipt of a block that the chain took back.
        let block = block_at(provider, number).await?;
        let Some(block) = block.filter(|block| block.hash == hash) else {
            return Ok(Funding::NotMined);
        };
        if receipt.transaction_hash != transaction {
            return Err(LedgerError::Receipt(transaction));
        }
        if !receipt.status() {
            return Ok(Funding::Failed);
        }
        let head = provider.get_block_number().await?;
        let escrow = self.addresses().payment_channels;
        let events = receipt
            .logs()
            .iter()
            .filter_map(|log| ChannelEvent::from_log(log, escrow));
        let is_funding = |event: &ChannelEvent| {
            matches!(
                event.change,
                Change::Opened { .. } | Change::ToppedUp { .. }
            )
        };
        let at_block = |event| ChannelEvent {
            time: block.time,
            ..event
        };
        Ok(Funding::Mined {
            confirmations: head.saturating_sub(number),
            events: events.filter(is_funding).map(at_block).collect(),
        })
    }
}
