//! One channel as its payee sees it: plain rules on plain values.
//!
//! ```text
//!   0 ≤ settled ≤ deposit          what the ledger says
//!   0 ≤ spent + held ≤ accepted    what was delivered, what running requests may still use
//!       accepted ≤ deposit         what the payer signed
//! ```
//!
//! `accepted` and `spent` only grow, and so does `settled` on a chain that takes nothing back. `held` lives as
//! long as the requests that hold it.

use std::collections::VecDeque;

use alloy::primitives::{Address, B256};
use tenzro_protocol::amount::Wei;

use crate::escrow::EscrowChannel;
use crate::signature::Signature;
use crate::voucher::Voucher;
use crate::wire::ChannelState;

/// Vouchers that are kept. A payer that signs more of them before it is served loses steps between
/// the last two, and what is settled may then be a little more than what it had.
pub(crate) const VOUCHERS_MAX: usize = 256;

/// What can happen to a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Money can be spent.
    Open,
    /// The payer asked the ledger to leave: nothing new is begun.
    Closing,
    /// The payee's closing transaction is under way: nothing is begun, and nothing else settled. Only that the
    /// channel is closed, or that the transaction failed, ends it.
    Ending,
    /// Closed for ever, or never there.
    Final,
}

/// See the module header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Its id.
    pub id: B256,
    /// Who pays.
    pub payer: Address,
    /// Who signs.
    pub signer: Address,
    /// Wei in the escrow.
    pub deposit: u128,
    /// Wei that the payee had of it.
    pub settled: u128,
    /// Wei charged for what was delivered.
    pub spent: u128,
    /// What may happen.
    pub status: Status,
    /// Whether its payer binds credentials to requests: then an unbound one is not its payer's.
    pub binds_requests: bool,
    /// Wei set aside by running requests.
    held: u128,
    /// The last voucher that is earned in full, and those above it, lowest first: of too many not all.
    vouchers: VecDeque<(u128, Signature)>,
}

/// Why a voucher is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VoucherRefusal {
    /// Not signed by the channel's signer.
    #[error("the voucher is not signed by who may sign for this channel")]
    Signer,
    /// The payer asked to leave, or for the channel to be closed.
    #[error("the payer has asked for this channel to be closed")]
    Closing,
    /// Nothing can be paid any more.
    #[error("this channel is closed")]
    Final,
    /// There is not that much in the channel.
    #[error("the voucher is above the channel's deposit of {deposit} wei")]
    AboveDeposit {
        /// Wei.
        deposit: u128,
    },
}

impl Channel {
    /// A channel of the ledger that no voucher was seen of. Where the payee had money of it, it counts as
    /// spent: a payee that lost its books owes nothing and is owed nothing.
    pub fn new(id: B256, found: &EscrowChannel) -> Self {
        let mut channel = Self {
            id,
            payer: found.payer,
            signer: found.signer,
            deposit: 0,
            settled: 0,
            spent: found.settled,
            status: Status::Open,
            binds_requests: false,
            held: 0,
            vouchers: VecDeque::new(),
        };
        channel.sync(Some(found));
        channel
    }

    /// As it was written down.
    pub fn restore(self, vouchers: impl IntoIterator<Item = (u128, Signature)>) -> Self {
        let mut restored = Self {
            held: 0,
            vouchers: vouchers.into_iter().collect(),
            ..self
        };
        restored.forget_vouchers();
        restored
    }

    /// Takes in what the ledger says now.
    pub fn sync(&mut self, found: Option<&EscrowChannel>) {
        let Some(found) = found else {
            // A reorganisation took it back, or it never was.
            self.deposit = self.settled;
            self.status = Status::Final;
            return;
        };
        self.deposit = found.deposit;
        self.settled = found.settled;
        self.status = match (found.is_final, self.status, found.is_closing) {
            (true, ..) => Status::Final,
            // It is open until the transaction is mined.
            (false, Status::Ending, _) => Status::Ending,
            (false, _, true) => Status::Closing,
            (false, _, false) => Status::Open,
        };
    }

    /// The closing transaction failed for good: what the ledger says counts again.
    pub fn resume(&mut self, found: Option<&EscrowChannel>) {
        if self.status == Status::Ending {
            self.status = Status::Open;
        }
        self.sync(found);
    }

    /// Wei of the highest voucher, or what was settled where there is none.
    pub fn accepted(&self) -> u128 {
        let highest = self.vouchers.back().map_or(0, |(amount, _)| *amount);
        highest.max(self.settled)
    }

    /// Wei that can be set aside: what is signed and in the escrow, and neither spent nor held.
    pub fn available(&self) -> u128 {
        if self.status != Status::Open {
            return 0;
        }
        let backed = self.accepted().min(self.deposit);
        backed.saturating_sub(self.spent).saturating_sub(self.held)
    }

    /// Wei set aside by running requests.
    pub fn held(&self) -> u128 {
        self.held
    }

    /// Whether a voucher of that amount, signed by `signer`, is new money. The signature comes first: whoever
    /// only knows a channel's id learns nothing and uses nothing.
    pub fn check(&self, amount: u128, signer: Address) -> Result<bool, VoucherRefusal> {
        if signer != self.signer || signer.is_zero() {
            return Err(VoucherRefusal::Signer);
        }
        match self.status {
            Status::Open => {}
            Status::Closing | Status::Ending => return Err(VoucherRefusal::Closing),
            Status::Final => return Err(VoucherRefusal::Final),
        }
        let accepted = self.accepted();
        if amount <= accepted {
            return Ok(false);
        }
        if amount > self.deposit {
            let deposit = self.deposit;
            return Err(VoucherRefusal::AboveDeposit { deposit });
        }
        Ok(true)
    }

    /// Counts a voucher that was checked and written down. Vouchers may come in any order. Says whether there
    /// are too many, so that another one is forgotten for it.
    pub fn accept(&mut self, voucher: &Voucher) -> bool {
        if voucher.amount.0 <= self.accepted() {
            return false;
        }
        self.vouchers
            .push_back((voucher.amount.0, voucher.signature));
        self.forget_vouchers()
    }

    /// Sets money aside; false where there is not enough.
    pub fn hold(&mut self, amount: u128) -> bool {
        let fits = amount <= self.available();
        if fits {
            self.held += amount;
        }
        fits
    }

    /// Gives back what was set aside and not spent.
    pub fn release(&mut self, amount: u128) {
        self.held = self.held.saturating_sub(amount);
    }

    /// Spends what was set aside.
    pub fn spend(&mut self, amount: u128) {
        let amount = amount.min(self.held);
        self.held -= amount;
        self.spent = self.spent.saturating_add(amount);
        self.forget_vouchers();
    }

    /// The voucher to settle. While the channel is open, the highest that is earned in full, so that what was
    /// only paid ahead stays the payer's; but where that leaves `unearned_max` wei or more unsettled, the
    /// lowest that covers what was delivered. Of a channel that its payer leaves, see [`Self::last`].
    pub fn settleable(&self, unearned_max: u128) -> Option<Voucher> {
        let amount = match self.status {
            Status::Final | Status::Ending => return None,
            Status::Closing => return self.last(),
            Status::Open => {
                let mut amounts = self.vouchers.iter().rev().map(|(amount, _)| *amount);
                let earned = amounts.find(|amount| *amount <= self.spent);
                let earned = earned.unwrap_or(0).max(self.settled);
                match self.spent.saturating_sub(earned) >= unearned_max {
                    true => self.covering(self.spent).unwrap_or(earned),
                    false => earned,
                }
            }
        };
        self.voucher(amount)
    }

    /// The voucher to close with: the lowest that covers what was delivered and what running requests may still
    /// use, since there is no later; the highest where none does. None where nothing is owed.
    pub fn last(&self) -> Option<Voucher> {
        let owed = self.spent.saturating_add(self.held);
        if owed <= self.settled {
            return None;
        }
        let highest = || self.vouchers.back().map(|(amount, _)| *amount);
        self.voucher(self.covering(owed).or_else(highest)?)
    }

    /// Amount of the lowest voucher that covers so much and is in the escrow.
    fn covering(&self, owed: u128) -> Option<u128> {
        let mut amounts = self.vouchers.iter().map(|(amount, _)| *amount);
        amounts.find(|amount| (owed..=self.deposit).contains(amount))
    }

    /// The voucher of that amount, while it is worth anything.
    fn voucher(&self, amount: u128) -> Option<Voucher> {
        let mut vouchers = self.vouchers.iter();
        let (_, signature) = vouchers.find(|(held, _)| *held == amount)?;
        (amount > self.settled && amount <= self.deposit).then_some(Voucher {
            channel_id: self.id,
            amount: Wei(amount),
            signature: *signature,
        })
    }

    /// Whether a voucher stands on the chain, where everybody can read it. One over nothing never does.
    pub fn is_public(&self, amount: u128) -> bool {
        amount > 0 && amount <= self.settled
    }

    /// Wei that were delivered and not settled.
    pub fn unsettled(&self) -> u128 {
        self.spent.saturating_sub(self.settled)
    }

    /// What a payer without books may know.
    pub fn state(&self) -> ChannelState {
        let last = self.vouchers.back();
        ChannelState {
            voucher: last.map(|(amount, signature)| Voucher {
                channel_id: self.id,
                amount: Wei(*amount),
                signature: *signature,
            }),
            spent: Wei(self.spent),
            settled: Wei(self.settled),
            deposit: Wei(self.deposit),
        }
    }

    /// Of the vouchers that are earned only the highest is worth keeping. Of too many others the steps right
    /// below the newest are the last to be earned.
    fn forget_vouchers(&mut self) -> bool {
        let is_earned = |voucher: Option<&(u128, Signature)>| {
            voucher.is_some_and(|(amount, _)| *amount <= self.spent)
        };
        while is_earned(self.vouchers.get(1)) {
            self.vouchers.pop_front();
        }
        let is_crowded = self.vouchers.len() > VOUCHERS_MAX;
        while self.vouchers.len() > VOUCHERS_MAX {
            self.vouchers.remove(self.vouchers.len() - 2);
        }
        is_crowded
    }
}

#[cfg(test)]
#[path = "channel/tests.rs"]
mod tests;
