//! All that a payer knows, and every decision taken on it: one call after the other, each written to the
//! file before its outcome is used.
//!
//! ```text
//! offer ─▶ running ─ offer (more is needed) ─▶ finish   the receipt is here: due grows by what we audited
//!                                           └▶ lose     it broke off: doubt grows by what may be charged
//!                                           └▶ refuse   it was never served: nothing
//! ```

mod endings;
mod ledger_word;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use alloy::primitives::{Address, B256};

use super::audit::{AnswerShape, Heard, PromptTokens};
use super::budget::{self, Limits, Spend};
use super::channel::{Channel, ChannelState, Running, Wanted, decide};
use super::store::{Deposit, Outcome, RequestState, Store, StoreError};
use super::{PayError, Server};
use crate::price::{Pricing, Tokens};
use crate::sync::lock;

/// Channels to one payee that no server is known to take, at most: no other is opened then, so that nobody
/// gets money locked up by turning channels away.
const STRAYS_MAX: usize = 16;

/// What arrived of an answer: its reader adds, and every decision on its channel counts.
pub(super) type SharedHeard = Arc<Mutex<Heard>>;

/// See the module header.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) store: Store,
    limits: Limits,
    channels: BTreeMap<B256, Channel>,
    running: BTreeMap<i64, Request>,
    /// Channels, each with a server that did not take it. A server that has no channel at the next start
    /// is asked once more.
    turned_away: BTreeSet<(B256, Arc<str>)>,
    /// By channel: credit that other requests had when the last one broke off.
    promised: BTreeMap<B256, u128>,
    /// By request.
    spends: BTreeMap<i64, Spend>,
    /// The highest deposit that a server found too small, and what it suggested then.
    too_small: BTreeMap<Server, (u128, u128)>,
}

/// A request that is being answered, and where.
#[derive(Debug)]
struct Request {
    running: Running,
    heard: SharedHeard,
    place: Arc<str>,
}

/// A wish to pay.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) payee: Address,
    pub(super) place: Arc<str>,
    pub(super) pricing: Pricing,
    /// By how much a voucher has to exceed the one before.
    pub(super) step: u128,
    pub(super) purchase: Purchase,
    /// What the payee says it needs.
    pub(super) required: Option<u128>,
    /// The deposit that goes with the voucher.
    pub(super) deposit: Option<Deposit>,
}

/// What is paid for.
#[derive(Debug, Clone)]
pub(super) enum Purchase {
    /// A new request.
    New {
        model: String,
        prompt: PromptTokens,
        shape: AnswerShape,
        heard: SharedHeard,
    },
    /// A running one.
    Running { id: i64 },
    /// One that the payee refused until it has all that it requires.
    Refused { id: i64 },
}

/// The request of an offer, if it is no new one, and its channel, if there is one.
type Subject = (Option<i64>, Running, Option<Channel>);

/// What comes of an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "short-lived, one at a time")]
pub(super) enum Step {
    /// It is written; a voucher of that amount may be signed and sent.
    Pay {
        request: i64,
        channel: B256,
        /// No server is known to take the channel yet, and the one that takes this voucher does.
        is_stray: bool,
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

pub(super) use endings::Ending;

impl Books {
    /// Reads the file. Requests that ran when the process ended are lost.
    pub(super) fn open(store: Store, limits: Limits, now: u64) -> Result<Self, StoreError> {
        let mut books = Self {
            store,
            limits,
            channels: BTreeMap::new(),
            running: BTreeMap::new(),
            turned_away: BTreeSet::new(),
            promised: BTreeMap::new(),
            spends: BTreeMap::new(),
            too_small: BTreeMap::new(),
        };
        books.load(now)?;
        Ok(books)
    }

    /// Forgets what is only in memory, and reads the file again.
    pub(super) fn load(&mut self, now: u64) -> Result<(), StoreError> {
        self.running.clear();
        self.promised.clear();
        let channels = self.store.channels()?;
        self.channels = channels
            .into_iter()
            .map(|channel| (channel.id, channel))
            .collect();
        self.store.begin()?;
        for mut channel in self.channels.values().cloned().collect::<Vec<_>>() {
            let running = self.store.requests(channel.id, RequestState::Running)?;
            if running.is_empty() {
                continue;
            }
            // Nobody knows what arrived; the payee can have charged all that was signed.
            let mut more = channel.credit();
            let doubt = channel.doubt + more;
            for (id, _) in running {
                let outcome = Outcome {
                    state: RequestState::Lost,
                    tokens: Tokens::default(),
                    charged: std::mem::take(&mut more),
                    receipt: None,
                    overbill: None,
                };
                self.store.end_request(id, now, &outcome)?;
            }
            channel.doubt = doubt;
            self.store.put_channel(&channel)?;
            self.channels.insert(channel.id, channel);
        }
        self.store.commit()?;
        self.spends = self.store.spends(now)?;
        Ok(())
    }

    pub(super) fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.channels.values()
    }

    /// The channel that pays a server of a payee now: its own, or one that may be its own.
    fn channel_to(&self, payee: Address, place: &Arc<str>) -> Option<Channel> {
        let own = |state| {
            let mut channels = self.channels.values();
            channels.find(|channel| {
                channel.payee == payee
                    && channel.state == state
                    && channel.place.as_ref() == Some(place)
            })
        };
        let stray = || {
            let mut channels = self.channels.values();
            channels.find(|channel| {
                channel.payee == payee
                    && channel.state == ChannelState::Open
                    && self.may_be_of(channel, place)
            })
        };
        own(ChannelState::Open)
            .or_else(|| own(ChannelState::Opening))
            .or_else(stray)
            .cloned()
    }

    /// Whether a channel is nobody's, and may turn out to be that server's. Only one server is asked at a
    /// time.
    fn may_be_of(&self, channel: &Channel, place: &Arc<str>) -> bool {
        let is_asked_elsewhere = || {
            let mut running = self.running.values();
            running.any(|other| other.running.channel == channel.id && other.place != *place)
        };
        channel.place.is_none()
            && !self.turned_away.contains(&(channel.id, Arc::clone(place)))
            && !is_asked_elsewhere()
    }

    /// Refuses another channel to a payee where too many are nobody's.
    fn check_strays(&self, payee: Address) -> Result<(), PayError> {
        let is_stray = |channel: &&Channel| {
            channel.payee == payee
                && channel.place.is_none()
                && matches!(channel.state, ChannelState::Open | ChannelState::Opening)
        };
        match self.channels.values().filter(is_stray).count() {
            STRAYS_MAX.. => Err(PayError::Strays(STRAYS_MAX)),
            _ => Ok(()),
        }
    }

    /// Whether requests run on a channel.
    pub(super) fn is_busy(&self, channel: B256) -> bool {
        self.running
            .values()
            .any(|request| request.running.channel == channel)
    }

    /// Decides on an offer and writes what is decided.
    pub(super) fn offer(&mut self, offer: &Offer, now: u64) -> Result<Step, PayError> {
        let (id, mut own, channel) = self.subject(offer)?;
        let channel = channel.or_else(|| new_channel(offer));
        let budget = self.budget(now);
        let Some(mut channel) = channel else {
            self.check_strays(offer.payee)?;
            let needed = own.likely().ok_or(PayError::TooMuch)?;
            return Ok(Step::Deposit {
                channel: None,
                needed: needed.max(offer.required.unwrap_or(0)),
                pending: None,
                budget: budget.map(|(left, _)| left),
            });
        };
        own.channel = channel.id;
        let others = self.others(id, channel.id);
        let beginning = if id.is_none() { own.likely() } else { Some(0) };
        let beginning = beginning.ok_or(PayError::TooMuch)?;
        let is_refused = matches!(offer.purchase, Purchase::Refused { .. });
        // A server shows its last voucher where a request takes more, unless that is overtaken: on a channel
        // that is not known no more is signed before.
        let is_guess = channel.is_unknown() && !(is_refused && offer.required.is_some());
        if let (true, None, Some((left, period))) = (is_guess, id, budget) {
            // What is served all the same has to fit.
            let running = others.iter().map(|other| other.authorized);
            if left < running.fold(beginning, u128::saturating_add) {
                return Err(PayError::Budget { period, left });
            }
        }
        let wanted = Wanted {
            required: match is_guess {
                true => Some(channel.signed),
                false => offer.required,
            },
            is_refused: is_refused && !is_guess,
            step: offer.step,
            // Credit of earlier requests is reserved, and used first; what is signed on top must fit.
            room: budget.map(|(left, _)| left),
        };
        let decision = decide(&channel, &own, &others, wanted).ok_or(PayError::TooMuch)?;
        let is_whole = !matches!(offer.purchase, Purchase::Running { .. });
        if decision.is_cut && (is_whole || decision.amount == channel.signed) {
            let (left, period) = budget.unwrap_or((0, budget::Period::Day));
            return Err(PayError::Budget { period, left });
        }
        if let Some(required) = offer.required
            && is_whole
            && required > decision.limit
        {
            let signed = decision.limit;
            return Err(match decision.is_overbill {
                true => PayError::Overbilled { required, signed },
                false => PayError::Behind,
            });
        }
        let new = offer
            .deposit
            .filter(|deposit| deposit.channel == channel.id);
        let added = new.map_or(0, |deposit| deposit.amount);
        let holds = channel
            .deposit
            .checked_add(added)
            .ok_or(PayError::TooMuch)?;
        let mut amount = decision.amount;
        if added > 0 && holds >= channel.signed {
            // A deposit of before may be too small now: once it is there, the payee asks for the rest.
            amount = amount.min(holds);
        }
        if amount > holds || (channel.state == ChannelState::Opening && added == 0) {
            return Ok(Step::Deposit {
                pending: self.store.pending_deposit(channel.id)?,
                channel: Some(channel),
                needed: amount,
                budget: budget.map(|(left, _)| left),
            });
        }
        let raised = amount - channel.signed;
        let authorized = own.authorized.saturating_add(raised);
        // It may be for others as well that were refused at the same time.
        let most = own.limit().ok_or(PayError::TooMuch)?;
        own.authorized = authorized.min(most.max(own.authorized)).max(beginning);
        channel.signed = amount;
        if raised > 0 || new.is_some() {
            self.store.put_channel(&channel)?;
        }
        if let Some(deposit) = new {
            self.store.put_deposit(&deposit)?;
        }
        let (request, heard) = match &offer.purchase {
            Purchase::New { model, heard, .. } => {
                let request = self.store.begin_request(now, &channel, model)?;
                (request, Arc::clone(heard))
            }
            Purchase::Running { id } | Purchase::Refused { id } => {
                let known = self.running.get(id).ok_or(PayError::Ended)?;
                (*id, Arc::clone(&known.heard))
            }
        };
        if let (true, Some(required)) = (decision.is_overbill, offer.required) {
            self.accuse(request, required, decision.limit)?;
        }
        let step = Step::Pay {
            request,
            channel: channel.id,
            is_stray: channel.place.is_none() && (raised > 0 || !channel.is_unknown()),
            amount,
            is_overbill: decision.is_overbill,
        };
        self.channels.insert(channel.id, channel);
        let known = Request {
            running: own,
            heard,
            place: Arc::clone(&offer.place),
        };
        self.running.insert(request, known);
        Ok(step)
    }

    /// Keeps what a payee asked for beside the most that it might ask for.
    pub(super) fn accuse(&self, request: i64, required: u128, limit: u128) -> Result<(), PayError> {
        let evidence = format!(r#"{{"requiredCumulative":"{required}","limit":"{limit}"}}"#);
        Ok(self.store.put_evidence(request, &evidence)?)
    }

    /// The request of an offer and its channel, where there is one.
    fn subject(&self, offer: &Offer) -> Result<Subject, PayError> {
        match offer.purchase {
            Purchase::Running { id } | Purchase::Refused { id } => {
                let (own, channel) = self.running(id)?;
                if !matches!(channel.state, ChannelState::Open | ChannelState::Opening) {
                    return Err(PayError::NoChannel);
                }
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
                Ok((None, own, self.channel_to(offer.payee, &offer.place)))
            }
        }
    }

    /// What the budget leaves besides what is signed and not spent, which payees can take without asking.
    fn budget(&mut self, now: u64) -> Option<(u128, budget::Period)> {
        self.spends.retain(|_, spend| budget::counts(spend, now));
        let credit = self.channels.values().map(Channel::credit);
        let reserved = credit.fold(0, u128::saturating_add);
        budget::left(&self.limits, self.spends.values(), reserved, now)
    }

    fn running(&self, id: i64) -> Result<(Running, Channel), PayError> {
        let running = current(self.running.get(&id).ok_or(PayError::Ended)?);
        let channel = self.channels.get(&running.channel);
        Ok((running, channel.ok_or(PayError::Ended)?.clone()))
    }

    /// What else runs on a channel.
    fn others(&self, id: Option<i64>, channel: B256) -> Vec<Running> {
        let others = self
            .running
            .iter()
            .filter(|(other, request)| Some(**other) != id && request.running.channel == channel);
        others.map(|(_, request)| current(request)).collect()
    }
}

/// With what arrived until now.
fn current(request: &Request) -> Running {
    let heard = &request.heard;
    let mut heard = lock(heard);
    Running {
        heard: heard.most_so_far(),
        ..request.running
    }
}

fn new_channel(offer: &Offer) -> Option<Channel> {
    let deposit = offer.deposit.as_ref()?;
    deposit.is_open.then_some(Channel {
        id: deposit.channel,
        payee: offer.payee,
        place: Some(Arc::clone(&offer.place)),
        salt: Some(deposit.salt),
        deposit: 0,
        signed: 0,
        due: 0,
        doubt: 0,
        state: ChannelState::Opening,
    })
}
