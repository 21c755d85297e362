//! How requests end: with a receipt, broken off, or never served.

use tenzro_protocol::amount::Wei;

use super::Books;
use crate::payer::PayError;
use crate::payer::audit::{Bill, Overbill, audit};
use crate::payer::budget::Spend;
use crate::payer::channel::{Channel, ChannelState, Running};
use crate::payer::store::{Outcome, RequestState};
use crate::price::Tokens;

/// How a request ended.
#[derive(Debug, Clone)]
pub(in crate::payer) struct Ending<'a> {
    pub(in crate::payer) id: i64,
    /// Tokens that what arrived can hold.
    pub(in crate::payer) heard: u32,
    /// What the payee says it charged for this request; none where it only says `spent`.
    pub(in crate::payer) bill: Option<Bill>,
    /// What the payee says it charged since the channel was opened.
    pub(in crate::payer) spent: u128,
    /// JSON.
    pub(in crate::payer) receipt: &'a str,
}

impl Books {
    /// A receipt came: what was agreed, and whether more was asked for.
    pub(in crate::payer) fn finish(
        &mut self,
        ending: &Ending<'_>,
        now: u64,
    ) -> Result<(Bill, Option<Overbill>), PayError> {
        let (running, mut channel) = self.running(ending.id)?;
        let is_alone = self.others(Some(ending.id), channel.id).is_empty();
        let unspoken = || Bill {
            tokens: Tokens {
                input: running.prompt.most,
                output: ending.heard,
            },
            charged: Wei(match is_alone {
                true => ending.spent.saturating_sub(channel.due),
                false => running.authorized,
            }),
        };
        let asked = ending.bill.unwrap_or_else(unspoken);
        let (Running { prompt, shape, .. }, pricing) = (running, running.pricing);
        let (mut agreed, mut overbill) = audit(&pricing, prompt, shape, ending.heard, asked);
        let is_over = channel.state == ChannelState::Closed;
        if channel.is_unknown() && !is_over {
            // It served, for a voucher that was forgotten, or on trust: the next one may be for this.
            let earned = channel.due.saturating_add(channel.doubt);
            let earned = earned.saturating_add(agreed.charged.0).min(channel.deposit);
            let room = self.budget(now).map_or(u128::MAX, |(left, _)| left);
            channel.signed = earned.clamp(channel.signed, channel.signed.saturating_add(room));
        }
        // Nobody may charge what was not signed for, and nobody can once the channel is over.
        let credit = channel.credit() + if is_over { 0 } else { channel.doubt };
        if agreed.charged.0 > credit {
            agreed.charged.0 = credit;
            let most = agreed;
            if !is_over {
                overbill.get_or_insert(Overbill { asked, most });
            }
        }
        let doubt = channel.doubt;
        channel.due += agreed.charged.0;
        channel.doubt = self.bounded_doubt(&channel)?;
        let mut is_changed = false;
        if is_alone && !is_over {
            is_changed = self.doubt_what_was_promised(&mut channel, now)?;
            let (before, most) = (channel.due - agreed.charged.0, agreed);
            if ending.spent > channel.due + channel.doubt && !channel.is_unknown() {
                let mut asked = asked;
                asked.charged.0 = ending.spent.saturating_sub(before);
                overbill.get_or_insert(Overbill { asked, most });
            }
            self.settle_doubt(&mut channel, ending.spent)?;
        }
        let evidence = overbill.and_then(|overbill| serde_json::to_string(&overbill).ok());
        let outcome = Outcome {
            state: RequestState::Done,
            tokens: agreed.tokens,
            charged: agreed.charged.0,
            receipt: Some(ending.receipt),
            overbill: evidence.as_deref(),
        };
        self.store.end_request(ending.id, now, &outcome)?;
        self.store.put_channel(&channel)?;
        if is_changed || channel.doubt != doubt {
            // What lost requests cost is known better now.
            self.spends = self.store.spends(now)?;
        }
        self.end(ending.id, channel, agreed.charged.0, now);
        Ok((agreed, overbill))
    }

    /// It broke off. The payee may have charged for what arrived and for a window that did not, and it may
    /// have used credit that was signed before: all that is not promised to other requests is in doubt, and
    /// what these left of it when they have ended.
    pub(in crate::payer) fn lose(&mut self, id: i64, now: u64) -> Result<(), PayError> {
        let (running, mut channel) = self.running(id)?;
        let most = running.limit().ok_or(PayError::TooMuch)?;
        let others = self.others(Some(id), channel.id);
        let others = others.iter().map(|other| other.authorized);
        let promised = others.fold(0, u128::saturating_add);
        let credit = channel.credit();
        let more = credit.saturating_sub(promised).max(most.min(credit));
        channel.doubt += more;
        self.promised.insert(channel.id, channel.credit());
        let outcome = Outcome {
            state: RequestState::Lost,
            tokens: Tokens::output(running.heard),
            charged: more,
            receipt: None,
            overbill: None,
        };
        self.store.end_request(id, now, &outcome)?;
        self.store.put_channel(&channel)?;
        self.end(id, channel, more, now);
        Ok(())
    }

    /// It was answered with an error and nothing else: it cost nothing.
    pub(in crate::payer) fn refuse(&mut self, id: i64, now: u64) -> Result<(), PayError> {
        let (_, mut channel) = self.running(id)?;
        if self.others(Some(id), channel.id).is_empty()
            && self.doubt_what_was_promised(&mut channel, now)?
        {
            self.store.put_channel(&channel)?;
            self.spends = self.store.spends(now)?;
        }
        let outcome = Outcome {
            state: RequestState::Refused,
            tokens: Tokens::default(),
            charged: 0,
            receipt: None,
            overbill: None,
        };
        self.store.end_request(id, now, &outcome)?;
        self.end(id, channel, 0, now);
        Ok(())
    }

    /// Nothing runs on a channel any more: what was promised to others when a request broke off, and they did
    /// not need, it may have used. Whether there is any; it counts as of now.
    fn doubt_what_was_promised(
        &mut self,
        channel: &mut Channel,
        now: u64,
    ) -> Result<bool, PayError> {
        let promised = self.promised.remove(&channel.id).unwrap_or(0);
        let more = promised.min(channel.credit());
        let lost = self.store.requests(channel.id, RequestState::Lost)?;
        let Some((id, charged)) = lost.last().filter(|_| more > 0) else {
            return Ok(false);
        };
        channel.doubt += more;
        self.store
            .recharge(*id, RequestState::Lost, charged.saturating_add(more))?;
        self.store.redate(*id, now)?;
        Ok(true)
    }

    fn end(&mut self, id: i64, channel: Channel, charged: u128, now: u64) {
        self.running.remove(&id);
        self.channels.insert(channel.id, channel);
        if charged > 0 {
            let amount = charged;
            self.spends.insert(id, Spend { at: now, amount });
        }
    }

    /// What was charged in all is known while nothing else runs: what lost requests really cost.
    pub(super) fn settle_doubt(&self, channel: &mut Channel, spent: u128) -> Result<(), PayError> {
        let lost = self.store.requests(channel.id, RequestState::Lost)?;
        let booked = lost.iter().map(|(_, charged)| charged);
        let booked = booked.fold(0u128, |sum, charged| sum.saturating_add(*charged));
        let more = spent.saturating_sub(channel.due).min(channel.doubt);
        // A part of it may have become due before.
        let mut cost = booked.saturating_sub(channel.doubt).saturating_add(more);
        channel.due += more;
        channel.doubt = 0;
        for (id, charged) in lost {
            let part = charged.min(cost);
            cost -= part;
            self.store.recharge(id, RequestState::Settled, part)?;
        }
        Ok(())
    }

    /// What is agreed cannot be in doubt as well: takes from lost requests what no longer fits.
    fn bounded_doubt(&self, channel: &Channel) -> Result<u128, PayError> {
        let most = channel.signed.saturating_sub(channel.due);
        let mut excess = channel.doubt.saturating_sub(most);
        for (id, charged) in self.store.requests(channel.id, RequestState::Lost)? {
            let part = charged.min(excess);
            if part > 0 {
                excess -= part;
                self.store
                    .recharge(id, RequestState::Lost, charged - part)?;
            }
        }
        Ok(channel.doubt.min(most))
    }
}
