//! What others say of channels: the payee of deposits and of its servers' channels, the ledger of
//! everything, and our own signature.

use std::sync::Arc;

use alloy::primitives::B256;

use super::Books;
use crate::escrow::EscrowChannel;
use crate::payer::budget::Spend;
use crate::payer::channel::{Channel, ChannelState};
use crate::payer::store::Deposit;
use crate::payer::{PayError, Server};

impl Books {
    /// A server served, or took a new voucher: a channel that was nobody's is its own from now on.
    pub(in crate::payer) fn settle_down(
        &mut self,
        id: B256,
        place: &Arc<str>,
    ) -> Result<(), PayError> {
        let found = self.channels.get(&id);
        if let Some(mut channel) = found.filter(|found| found.place.is_none()).cloned() {
            channel.place = Some(Arc::clone(place));
            self.store.put_channel(&channel)?;
            self.channels.insert(id, channel);
        }
        Ok(())
    }

    /// A server says that a channel is not its own, or over: it gets another one, and this one may turn out
    /// to be another server's.
    pub(in crate::payer) fn turn_away(
        &mut self,
        id: B256,
        place: &Arc<str>,
    ) -> Result<(), PayError> {
        let found = self.channels.get(&id);
        let is_its_own = |found: &&Channel| found.place.as_ref() == Some(place);
        if let Some(mut channel) = found.filter(is_its_own).cloned() {
            channel.place = None;
            self.store.put_channel(&channel)?;
            self.channels.insert(id, channel);
        }
        self.turned_away.insert((id, Arc::clone(place)));
        Ok(())
    }

    /// A deposit is there, by the payee's word: it served, or took the voucher.
    pub(in crate::payer) fn accept(&mut self, channel: B256, salt: B256) -> Result<(), PayError> {
        let Some(mut channel) = self.channels.get(&channel).cloned() else {
            return Ok(());
        };
        let pending = self.store.pending_deposit(channel.id)?;
        let Some(deposit) = pending.filter(|deposit| deposit.salt == salt) else {
            return Ok(());
        };
        self.store.end_deposit(salt, true)?;
        channel.deposit = channel.deposit.saturating_add(deposit.amount);
        if channel.state == ChannelState::Opening {
            channel.state = ChannelState::Open;
        }
        self.store.put_channel(&channel)?;
        self.channels.insert(channel.id, channel);
        Ok(())
    }

    /// A server finds a deposit too small: it is not sent again, and only a larger one is made where the same
    /// is suggested. Should it come all the same, the ledger will tell.
    pub(in crate::payer) fn refuse_deposit(
        &mut self,
        id: B256,
        place: &Arc<str>,
        suggested: u128,
    ) -> Result<(), PayError> {
        let pending = self.store.pending_deposit(id)?;
        let (Some(deposit), Some(mut channel)) = (pending, self.channels.get(&id).cloned()) else {
            return Ok(());
        };
        self.store.end_deposit(deposit.salt, false)?;
        if channel.state == ChannelState::Opening {
            // Over once the authorization is, and until then what was signed is reserved.
            channel.state = ChannelState::Closing;
            self.store.put_channel(&channel)?;
        }
        let server = (channel.payee, Arc::clone(place));
        let known = self.too_small(&server, suggested);
        let amount = deposit.amount.max(known);
        self.too_small.insert(server, (amount, suggested));
        self.channels.insert(id, channel);
        Ok(())
    }

    /// Wei that a server found too small for a deposit; 0 where it found none.
    pub(in crate::payer) fn too_small(&self, server: &Server, suggested: u128) -> u128 {
        let known = self.too_small.get(server);
        known.map_or(
            0,
            |&(amount, then)| if then == suggested { amount } else { 0 },
        )
    }

    /// The ledger's word on a channel of ours, which counts more than anybody's.
    pub(in crate::payer) fn reconcile(
        &mut self,
        id: B256,
        found: Option<&EscrowChannel>,
        now: u64,
    ) -> Result<(), PayError> {
        let Some(had) = self.channels.get(&id).cloned() else {
            return Ok(());
        };
        let (mut channel, mut taken) = (had.clone(), None);
        let pending = self.store.pending_deposit(id)?;
        let is_late = |deposit: &Deposit| deposit.valid_before <= now;
        match found {
            None => {
                // It can still be opened as long as an authorization holds.
                if pending.is_some_and(|deposit| !is_late(&deposit))
                    || self.store.last_deposit(id)? > now
                {
                    return Ok(());
                }
                if let Some(deposit) = pending {
                    self.store.end_deposit(deposit.salt, false)?;
                }
                channel.state = ChannelState::Closed;
                // Nobody had anything of it.
                self.settle_doubt(&mut channel, 0)?;
            }
            Some(found) => {
                if let Some(deposit) = pending {
                    let is_there = found.deposit >= channel.deposit.saturating_add(deposit.amount);
                    if is_there || is_late(&deposit) {
                        self.store.end_deposit(deposit.salt, is_there)?;
                    }
                }
                // A view that lags behind does not know the last deposits yet.
                if found.deposit > channel.deposit || self.store.last_deposit(id)? <= now {
                    channel.deposit = found.deposit;
                }
                channel.state = state_of(found);
                taken = self.settled(&mut channel, found, now)?;
            }
        }
        self.store.put_channel(&channel)?;
        if had.doubt != channel.doubt {
            self.spends = self.store.spends(now)?;
        }
        self.spends.extend(taken);
        self.channels.insert(id, channel);
        Ok(())
    }

    /// What the payee had of a channel. While it is open that says nothing of what was earned: payees may
    /// settle all that is signed, and it pays the next requests all the same. Only what these books do not
    /// know to be signed is taken for earned before they were lost.
    fn settled(
        &self,
        channel: &mut Channel,
        found: &EscrowChannel,
        now: u64,
    ) -> Result<Option<(i64, Spend)>, PayError> {
        let mut amount = found.settled.saturating_sub(channel.signed);
        channel.signed += amount;
        channel.due += amount;
        if found.is_final {
            self.settle_doubt(channel, found.settled)?;
            amount += channel.learn(found.settled);
        }
        if amount == 0 {
            return Ok(None);
        }
        let id = self.store.take(now, channel, amount)?;
        Ok(Some((id, Spend { at: now, amount })))
    }

    /// A channel that the ledger has and these books have not.
    pub(in crate::payer) fn adopt(
        &mut self,
        id: B256,
        found: &EscrowChannel,
    ) -> Result<(), PayError> {
        if self.channels.contains_key(&id) {
            return Ok(());
        }
        let channel = Channel {
            id,
            payee: found.payee,
            place: None,
            salt: None,
            deposit: found.deposit,
            signed: found.settled,
            due: found.settled,
            doubt: 0,
            state: state_of(found),
        };
        self.store.put_channel(&channel)?;
        self.channels.insert(id, channel);
        Ok(())
    }

    /// A voucher of ours came back that these books do not know: they were lost or are old. The caller has
    /// checked its signature.
    pub(in crate::payer) fn remember(
        &mut self,
        id: B256,
        amount: u128,
        spent: u128,
    ) -> Result<(), PayError> {
        let Some(mut channel) = self.channels.get(&id).cloned() else {
            return Ok(());
        };
        if amount > channel.signed {
            channel.signed = amount;
            channel.learn(spent);
            self.store.put_channel(&channel)?;
            self.channels.insert(id, channel);
        }
        Ok(())
    }

    /// No more is paid on a channel: what is due on it. Refused while requests run.
    pub(in crate::payer) fn close(&mut self, id: B256) -> Result<u128, PayError> {
        let channel = self.channels.get(&id).cloned();
        let mut channel = channel.ok_or(PayError::NoChannel)?;
        if self.is_busy(id) {
            return Err(PayError::Busy);
        }
        if channel.state == ChannelState::Closed {
            return Err(PayError::NoChannel);
        }
        channel.state = ChannelState::Closing;
        self.store.put_channel(&channel)?;
        let due = channel.due;
        self.channels.insert(id, channel);
        Ok(due)
    }
}

fn state_of(found: &EscrowChannel) -> ChannelState {
    match (found.is_final, found.is_closing) {
        (true, _) => ChannelState::Closed,
        (false, true) => ChannelState::Closing,
        (false, false) => ChannelState::Open,
    }
}
