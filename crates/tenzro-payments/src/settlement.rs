//! When the payee turns vouchers into money, and how it notices that a payer wants to leave.
//!
//! ```text
//! every few seconds ─┬─ news of the ledger ─▶ channels take it in
//! a request ended ───┘                          │
//!                                               ▼
//!                   due? ─▶ one batch ─▶ receipt ─▶ books
//!          closing under way? ─▶ its receipt, or again
//! ```
//!
//! It runs whether or not anybody is served, and begins with what an earlier process left behind.

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::B256;
use tokio::time::{Instant, MissedTickBehavior};

use crate::channel::Status;
use crate::escrow::Settled;
use crate::payee::{Cell, Payee};
use crate::refusal::Refusal;
use crate::voucher::Voucher;

/// Rows of one transaction: about 30,000 gas each, so that it fits into any block.
const BATCH: usize = 100;
/// Until news are asked for again: far less than any grace period.
const PERIOD: Duration = Duration::from_secs(5);

/// When to settle. Source: design, payments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Wei delivered and not settled; that much is settled also where no voucher is earned in full.
    pub amount: u128,
    /// Time since the first of it was delivered.
    pub age: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            amount: 10 * 10u128.pow(18),
            age: Duration::from_secs(600),
        }
    }
}

impl Policy {
    /// Whether so much that waits so long is to be settled now. A payer that leaves is settled at once.
    pub fn is_due(&self, unsettled: u128, age: Duration, status: Status) -> bool {
        match status {
            Status::Final | Status::Ending => false,
            Status::Closing => true,
            Status::Open => unsettled > 0 && (unsettled >= self.amount || age >= self.age),
        }
    }
}

/// What a round of settling brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Round {
    /// Channels that were settled.
    pub channels: usize,
    /// Wei that arrived.
    pub amount: u128,
    /// Channels whose voucher the ledger refused.
    pub refused: usize,
}

impl Payee {
    /// Watches the ledger and settles by the policy, until it is dropped.
    pub async fn keep_settled(&self, policy: Policy) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.something_to_settle() => {}
            }
            if let Err(error) = self.take_news().await {
                tracing::warn!(%error, "the ledger's news of channels cannot be read");
            }
            match self.settle_due(&policy).await {
                Ok(round) if round.channels > 0 => {
                    tracing::info!(channels = round.channels, wei = round.amount, "settled");
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "settling failed; it is tried again"),
            }
            self.finish_closings().await;
        }
    }

    /// Settles all that is earned in full, for a server that stops.
    pub async fn settle_all(&self) -> Result<Round, Refusal> {
        let everything = Policy {
            amount: u128::MAX,
            age: Duration::ZERO,
        };
        self.settle_due(&everything).await
    }

    /// Takes in what the ledger says about channels since the last time. What cannot be taken in now is kept
    /// for the next time; the error is the first one.
    pub async fn take_news(&self) -> Result<(), Refusal> {
        let mut result = Ok(());
        for id in self.news().await? {
            match self.hear(id).await {
                Ok(()) => self.has_heard(id),
                Err(error) if error.may_pass() => result = result.and(Err(error)),
                Err(error) => {
                    // Closed, or another server's.
                    tracing::debug!(%id, %error, "news of a channel");
                    self.has_heard(id);
                }
            }
        }
        result
    }

    async fn hear(&self, id: B256) -> Result<(), Refusal> {
        let cell = self.cell(id).await?;
        self.sync(&cell).await
    }

    /// Settles what is due.
    pub async fn settle_due(&self, policy: &Policy) -> Result<Round, Refusal> {
        let now = Instant::now();
        let due: Vec<(Arc<Cell>, Voucher)> = self
            .all_cells()
            .into_iter()
            .filter_map(|cell| Some((Arc::clone(&cell), cell.due(policy, now)?)))
            .collect();
        let mut round = Round::default();
        for rows in due.chunks(BATCH) {
            let vouchers = rows.iter().map(|(_, voucher)| *voucher).collect();
            let (transaction, outcomes) = self.escrow().settle(vouchers).await?;
            for ((cell, voucher), outcome) in rows.iter().zip(outcomes) {
                self.note(cell, voucher, outcome, transaction, &mut round)
                    .await?;
            }
        }
        Ok(round)
    }

    async fn note(
        &self,
        cell: &Cell,
        voucher: &Voucher,
        outcome: Settled,
        transaction: B256,
        round: &mut Round,
    ) -> Result<(), Refusal> {
        let before = cell.settled();
        self.sync(cell).await?;
        match outcome {
            Settled::Paid(total) => {
                round.channels += 1;
                round.amount += total.saturating_sub(before);
                self.note_settlement(voucher.channel_id, total, transaction)
                    .await?;
            }
            Settled::Refused(reason) => {
                round.refused += 1;
                let channel = voucher.channel_id;
                tracing::warn!(%channel, reason, "the ledger refuses a voucher");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due() {
        let policy = Policy {
            amount: 100,
            age: Duration::from_secs(60),
        };
        let minute = Duration::from_secs(60);
        let cases = [
            (0, minute * 9, Status::Open, false),
            (1, minute, Status::Open, true),
            (99, minute / 2, Status::Open, false),
            (100, Duration::ZERO, Status::Open, true),
            (0, Duration::ZERO, Status::Closing, true),
            (500, minute, Status::Ending, false),
            (500, minute, Status::Final, false),
        ];
        for (unsettled, age, status, expected) in cases {
            let is_due = policy.is_due(unsettled, age, status);
            assert_eq!(is_due, expected, "{unsettled} {age:?} {status:?}");
        }
    }
}
