//! All that a payer knows, and every decision taken on it: one call after the other, each written to the
//! file before its outcome is used.
//!
//! ```text
//! offer ─▶ running ─ offer (more is needed) ─▶ finish   the receipt is here: due grows by what we audited
//!                                           └▶ lose     it broke off: doubt grows by what may be charged
//!                                           └▶ refuse   it was never served: nothing
//! ```

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use tenzro_protocol::amount::Wei;

use super::PayError;
use super::audit::{AnswerShape, Bill, Overbill, PromptTokens, audit};
use super::budget::{self, Limits, Spend};
use super::channel::{Channel, ChannelState, Running, Wanted, decide};
use super::store::{Deposit, Outcome, RequestState, Store, StoreError};
use crate::escrow::EscrowChannel;
use crate::price::{Pricing, Tokens};

/// Seconds that spends count for.
const DAY: u64 = 24 * 3_600;

/// See the module header.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) store: Store,
    limits: Limits,
    channels: BTreeMap<B256, Channel>,
    running: BTreeMap<i64, Running>,
    spends: Vec<Spend>,
}

/// A wish to pay.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) payee: Address,
    pub(super) pricing: Pricing,
    /// By how much a voucher has to exceed the one before.
    pub(super) step: u128,
    pub(super) purchase: Purchase,
    /// What the payee says it needs.
    pub(super) required: Option<u128>,
    /// The deposit that goes with the voucher.
    pub(super) deposit: Option<NewDeposit>,
}

/// What is paid for.
#[derive(Debug, Clone)]
pub(super) enum Purchase {
    /// A new request.
    New {
        model: String,
        prompt: PromptTokens,
        shape: AnswerShape,
    },
    /// A running one, of which so many tokens may have arrived.
    Running { id: i64, heard: u32 },
}

/// A deposit, and for one that opens a channel, the channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewDeposit {
    pub(super) deposit: Deposit,
    pub(super) payee: Address,
}

/// What comes of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It is written; a voucher of that amount may be signed and sent.
    Pay {
        request: i64,
        channel: B256,
        amount: u128,
        /// The payee asks for more than that.
        is_overbill: bool,
    },
    /// The channel has to hold `needed` wei in all. None: there is no channel.
    Deposit {
        channel: Option<Channel>,
        needed: u128,
        pending: Option<Deposit>,
        /// What the budget leaves; none is no limit.
        budget: Option<u128>,
    },
}

/// How a request ended.
#[derive(Debug, Clone)]
pub(super) struct Ending<'a> {
    pub(super) id: i64,
    /// Tokens that what arrived can hold.
    pub(super) heard: u32,
    /// What the payee says it charged for this request; none where it only says `spent`.
    pub(super) bill: Option<Bill>,
    /// What the payee says it charged since the channel was opened.
    pub(super) spent: u128,
    /// JSON.
    pub(super) receipt: &'a str,
}

impl Books {
    /// Reads the file. Requests that ran when the process ended are lost.
    pub(super) fn open(store: Store, limits: Limits, now: u64) -> Result<Self, StoreError> {
        let mut books = Self {
            store,
            limits,
            channels: BTreeMap::new(),
            running: BTreeMap::new(),
            spends: Vec::new(),
        };
        books.load(now)?;
        Ok(books)
    }

    /// Forgets what is only in memory, and reads the file again.
    pub(super) fn load(&mut self, now: u64) -> Result<(), StoreError> {
        self.running.clear();
        let channels = self.store.channels()?;
        self.channels = channels
            .into_iter()
            .map(|channel| (channel.id, channel))
            .collect();
        self.store.begin()?;
        for mut channel in self.channels.values().copied().collect::<Vec<_>>() {
            let running = self.store.requests(channel.id, RequestState::Running)?;
            if running.is_empty() {
                continue;
            }
            // Nobody knows what arrived; the payee cannot have charged more than was signed.
            let doubt = channel
                .signed
                .saturating_sub(channel.due)
                .max(channel.doubt);
            let mut more = doubt - channel.doubt;
            for (id, _) in running {
                let charged = std::mem::take(&mut more);
                self.store.recharge(id, RequestState::Lost, charged)?;
            }
            channel.doubt = doubt;
            self.store.put_channel(&channel)?;
            self.channels.insert(channel.id, channel);
        }
        self.store.commit()?;
        self.spends = self.store.spends(now.saturating_sub(DAY))?;
        Ok(())
    }

    pub(super) fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.channels.values()
    }

    /// The channel that pays a payee now.
    pub(super) fn channel_to(&self, payee: Address) -> Option<Channel> {
        let of = |state| {
            let mut channels = self.channels.values();
            channels.find(|channel| channel.payee == payee && channel.state == state)
        };
        of(ChannelState::Open)
            .or_else(|| of(ChannelState::Opening))
            .copied()
    }

    /// Whether requests run on a channel.
    pub(super) fn is_busy(&self, channel: B256) -> bool {
        self.running
            .values()
            .any(|running| running.channel == channel)
    }

    /// Decides on an offer and writes what is decided.
    pub(super) fn offer(&mut self, offer: &Offer, now: u64) -> Result<Step, PayError> {
        let (id, mut own, channel) = self.subject(offer)?;
        let channel = channel.or_else(|| new_channel(offer.deposit.as_ref()?));
        let budget = self.budget(now);
        let Some(mut channel) = channel else {
            let needed = own.likely().ok_or(PayError::TooMuch)?;
            return Ok(Step::Deposit {
                channel: None,
                needed: needed.max(offer.required.unwrap_or(0)),
                pending: None,
                budget: budget.map(|(left, _)| left),
            });
        };
        own.channel = channel.id;
        let others: Vec<Running> = (self.running.iter())
            .filter(|(other, running)| Some(**other) != id && running.channel == channel.id)
            .map(|(_, running)| *running)
            .collect();
        let beginning = if id.is_none() { own.likely() } else { Some(0) };
        let beginning = beginning.ok_or(PayError::TooMuch)?;
        if let Some((left, period)) = budget.filter(|(left, _)| *left < beginning) {
            return Err(PayError::Budget { period, left });
        }
        let wanted = Wanted {
            required: offer.required,
            step: offer.step,
            // Credit of earlier requests is used first; what is signed on top must fit.
            room: budget.map(|(left, _)| left),
        };
        let decision = decide(&channel, &own, &others, wanted).ok_or(PayError::TooMuch)?;
        if decision.is_cut && (id.is_none() || decision.amount == channel.signed) {
            let (left, period) = budget.unwrap_or((0, budget::Period::Day));
            return Err(PayError::Budget { period, left });
        }
        let new = offer
            .deposit
            .filter(|new| new.deposit.channel == channel.id);
        let added = new.map_or(0, |new| new.deposit.amount);
        let holds = channel
            .deposit
            .checked_add(added)
            .ok_or(PayError::TooMuch)?;
        if decision.amount > holds || (channel.state == ChannelState::Opening && added == 0) {
            return Ok(Step::Deposit {
                channel: Some(channel),
                needed: decision.amount,
                pending: self.store.pending_deposit(channel.id)?,
                budget: budget.map(|(left, _)| left),
            });
        }
        let raised = decision.amount - channel.signed;
        own.authorized = own.authorized.saturating_add(raised).max(beginning);
        channel.signed = decision.amount;
        if raised > 0 || new.is_some() {
            self.store.put_channel(&channel)?;
        }
        if let Some(new) = new {
            self.store.put_deposit(&new.deposit)?;
        }
        let request = match &offer.purchase {
            Purchase::New { model, .. } => self.store.begin_request(now, &channel, model)?,
            Purchase::Running { id, .. } => *id,
        };
        if let (true, Some(required)) = (decision.is_overbill, offer.required) {
            let limit = decision.limit;
            let evidence = format!(r#"{{"requiredCumulative":"{required}","limit":"{limit}"}}"#);
            self.store.put_evidence(request, &evidence)?;
        }
        self.channels.insert(channel.id, channel);
        self.running.insert(request, own);
        Ok(Step::Pay {
            request,
            channel: channel.id,
            amount: decision.amount,
            is_overbill: decision.is_overbill,
        })
    }

    /// The request of an offer and its channel, where there is one.
    fn subject(&self, offer: &Offer) -> Result<(Option<i64>, Running, Option<Channel>), PayError> {
        match offer.purchase {
            Purchase::Running { id, heard } => {
                let (mut own, channel) = self.running(id)?;
                if !matches!(channel.state, ChannelState::Open | ChannelState::Opening) {
                    return Err(PayError::NoChannel);
                }
                own.heard = own.heard.max(heard);
                Ok((Some(id), own, Some(channel)))
            }
            Purchase::New { prompt, shape, .. } => {
                let own = Running {
                    channel: B256::ZERO,
                    pricing: offer.pricing,
                    prompt,
                    shape,
                    heard: 0,
                    authorized: 0,
                };
                Ok((None, own, self.channel_to(offer.payee)))
            }
        }
    }

    /// What the budget leaves besides what running requests were promised.
    fn budget(&mut self, now: u64) -> Option<(u128, budget::Period)> {
        budget::forget(&mut self.spends, now);
        let promised = self.running.values().map(|running| running.authorized);
        let reserved = promised.fold(0, u128::saturating_add);
        budget::left(&self.limits, &self.spends, reserved, now)
    }

    /// A receipt came: what was agreed, and whether more was asked for.
    pub(super) fn finish(
        &mut self,
        ending: &Ending<'_>,
        now: u64,
    ) -> Result<(Bill, Option<Overbill>), PayError> {
        let (running, mut channel) = self.running(ending.id)?;
        let is_alone = self.is_alone(ending.id, channel.id);
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
        // Nobody may charge what was not signed for.
        let credit = channel.signed.saturating_sub(channel.due);
        if agreed.charged.0 > credit {
            agreed.charged.0 = credit;
            let most = agreed;
            overbill.get_or_insert(Overbill { asked, most });
        }
        channel.due += agreed.charged.0;
        if is_alone && ending.spent > channel.due.saturating_add(channel.doubt) {
            let mut asked = asked;
            asked.charged.0 = ending.spent - (channel.due - agreed.charged.0);
            let most = agreed;
            overbill.get_or_insert(Overbill { asked, most });
        }
        if is_alone {
            self.settle_doubt(&mut channel, ending.spent)?;
        }
        channel.doubt = self.bounded_doubt(&channel)?;
        let evidence = overbill.and_then(|overbill| serde_json::to_string(&overbill).ok());
        let outcome = Outcome {
            state: RequestState::Done,
            tokens: agreed.tokens,
            charged: agreed.charged.0,
            receipt: Some(ending.receipt),
            overbill: evidence.as_deref(),
        };
        self.store.end_request(ending.id, &outcome)?;
        self.store.put_channel(&channel)?;
        self.end(ending.id, channel, agreed.charged.0, now);
        Ok((agreed, overbill))
    }

    /// It broke off. The payee may have charged for what arrived and for a window that did not, and it may
    /// have used credit that was signed before: all that is not promised to other requests is in doubt.
    pub(super) fn lose(&mut self, id: i64, heard: u32, now: u64) -> Result<(), PayError> {
        let (mut running, mut channel) = self.running(id)?;
        running.heard = running.heard.max(heard);
        let most = running.limit().ok_or(PayError::TooMuch)?;
        let others = (self.running.iter())
            .filter(|(other, running)| **other != id && running.channel == channel.id)
            .map(|(_, other)| other.authorized);
        let promised = others.fold(0, u128::saturating_add);
        let credit = channel.signed.saturating_sub(channel.due);
        let credit = credit.saturating_sub(channel.doubt);
        let more = credit.saturating_sub(promised).max(most.min(credit));
        channel.doubt += more;
        let outcome = Outcome {
            state: RequestState::Lost,
            tokens: Tokens::output(heard),
            charged: more,
            receipt: None,
            overbill: None,
        };
        self.store.end_request(id, &outcome)?;
        self.store.put_channel(&channel)?;
        self.end(id, channel, more, now);
        Ok(())
    }

    /// It was answered with an error and nothing else.
    pub(super) fn refuse(&mut self, id: i64, now: u64) -> Result<(), PayError> {
        let (_, channel) = self.running(id)?;
        let outcome = Outcome {
            state: RequestState::Refused,
            tokens: Tokens::default(),
            charged: 0,
            receipt: None,
            overbill: None,
        };
        self.store.end_request(id, &outcome)?;
        self.end(id, channel, 0, now);
        Ok(())
    }

    fn running(&self, id: i64) -> Result<(Running, Channel), PayError> {
        let running = *self.running.get(&id).ok_or(PayError::Ended)?;
        let channel = self.channels.get(&running.channel);
        Ok((running, *channel.ok_or(PayError::Ended)?))
    }

    fn is_alone(&self, id: i64, channel: B256) -> bool {
        let mut others = self.running.iter();
        !others.any(|(other, running)| *other != id && running.channel == channel)
    }

    fn end(&mut self, id: i64, channel: Channel, charged: u128, now: u64) {
        self.running.remove(&id);
        self.channels.insert(channel.id, channel);
        if charged > 0 {
            let amount = charged;
            self.spends.push(Spend { at: now, amount });
        }
    }

    /// The payee says what it charged in all while nothing else runs: what lost requests really cost.
    fn settle_doubt(&mut self, channel: &mut Channel, spent: u128) -> Result<(), PayError> {
        let mut more = spent.saturating_sub(channel.due).min(channel.doubt);
        channel.due += more;
        channel.doubt = 0;
        for (id, charged) in self.store.requests(channel.id, RequestState::Lost)? {
            let part = charged.min(more);
            more -= part;
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

    /// A deposit is there, by the payee's word: it served, or took the voucher.
    pub(super) fn accept(&mut self, channel: B256, nonce: B256) -> Result<(), PayError> {
        let Some(mut channel) = self.channels.get(&channel).copied() else {
            return Ok(());
        };
        let pending = self.store.pending_deposit(channel.id)?;
        let Some(deposit) = pending.filter(|deposit| deposit.nonce == nonce) else {
            return Ok(());
        };
        self.store.end_deposit(nonce, true)?;
        channel.deposit = channel.deposit.saturating_add(deposit.amount);
        if channel.state == ChannelState::Opening {
            channel.state = ChannelState::Open;
        }
        self.store.put_channel(&channel)?;
        self.channels.insert(channel.id, channel);
        Ok(())
    }

    /// The ledger's word on a channel of ours, which counts more than anybody's.
    pub(super) fn reconcile(
        &mut self,
        id: B256,
        found: Option<&EscrowChannel>,
        now: u64,
    ) -> Result<(), PayError> {
        let Some(mut channel) = self.channels.get(&id).copied() else {
            return Ok(());
        };
        let pending = self.store.pending_deposit(id)?;
        let is_late = |deposit: &Deposit| deposit.valid_before <= now;
        match found {
            None => {
                // It can still be opened as long as the authorization holds.
                if pending.is_some_and(|deposit| !is_late(&deposit))
                    || self.store.last_deposit(id)? > now
                {
                    return Ok(());
                }
                if let Some(deposit) = pending {
                    self.store.end_deposit(deposit.nonce, false)?;
                }
                channel.state = ChannelState::Closed;
            }
            Some(found) => {
                if let Some(deposit) = pending {
                    let is_there = found.deposit >= channel.deposit.saturating_add(deposit.amount);
                    if is_there || is_late(&deposit) {
                        self.store.end_deposit(deposit.nonce, is_there)?;
                    }
                }
                // A view that lags behind does not know the last deposits yet.
                if found.deposit > channel.deposit || self.store.last_deposit(id)? <= now {
                    channel.deposit = found.deposit;
                }
                // What the payee could settle we signed, whether or not our books know.
                channel.signed = channel.signed.max(found.settled);
                channel.due = channel.due.max(found.settled.min(channel.signed));
                channel.state = state_of(found);
            }
        }
        self.store.put_channel(&channel)?;
        self.channels.insert(id, channel);
        Ok(())
    }

    /// A channel that the ledger has and these books have not.
    pub(super) fn adopt(&mut self, id: B256, found: &EscrowChannel) -> Result<(), PayError> {
        if self.channels.contains_key(&id) {
            return Ok(());
        }
        let channel = Channel {
            id,
            payee: found.payee,
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
    pub(super) fn remember(&mut self, id: B256, amount: u128, spent: u128) -> Result<(), PayError> {
        let Some(mut channel) = self.channels.get(&id).copied() else {
            return Ok(());
        };
        if amount > channel.signed {
            channel.signed = amount;
            channel.due = channel.due.max(spent.min(amount));
            self.store.put_channel(&channel)?;
            self.channels.insert(id, channel);
        }
        Ok(())
    }

    /// No more is paid on a channel: what is due on it. Refused while requests run.
    pub(super) fn close(&mut self, id: B256) -> Result<u128, PayError> {
        let channel = self.channels.get(&id).copied();
        let mut channel = channel.ok_or(PayError::NoChannel)?;
        if self.is_busy(id) {
            return Err(PayError::Busy);
        }
        if channel.state == ChannelState::Closed {
            return Err(PayError::NoChannel);
        }
        channel.state = ChannelState::Closing;
        self.store.put_channel(&channel)?;
        self.channels.insert(id, channel);
        Ok(channel.due)
    }
}

fn new_channel(new: &NewDeposit) -> Option<Channel> {
    let deposit = &new.deposit;
    deposit.is_open.then(|| Channel {
        id: deposit.channel,
        payee: new.payee,
        salt: Some(deposit.salt),
        deposit: 0,
        signed: 0,
        due: 0,
        doubt: 0,
        state: ChannelState::Opening,
    })
}

fn state_of(found: &EscrowChannel) -> ChannelState {
    match (found.is_final, found.is_closing) {
        (true, _) => ChannelState::Closed,
        (false, true) => ChannelState::Closing,
        (false, false) => ChannelState::Open,
    }
}
