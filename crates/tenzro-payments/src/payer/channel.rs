//! One channel as its payer knows it, and the highest amount that may be signed on it.
//!
//! ```text
//! 0 ── due ── + doubt ── + each running request: prompt, what arrived, a window ── limit
//!       │        └ of requests that broke off: may have been charged
//!       └ agreed by the payer's own audit
//! ```
//!
//! `signed` never decreases. What is signed anew passes neither `limit` nor the deposit.

use std::sync::Arc;

use alloy::primitives::{Address, B256};

use super::audit::{AnswerShape, PromptTokens};
use crate::price::{Pricing, Tokens};

/// Where a channel is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelState {
    /// The deposit is signed; nobody has said yet that it is there.
    Opening,
    /// Pays.
    Open,
    /// Pays no more; what is left is on its way back.
    Closing,
    /// Over.
    Closed,
}

/// A channel of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Its id at the escrow.
    pub id: B256,
    /// Who is paid.
    pub payee: Address,
    /// Base URL of the model server that takes it; none where that is not known: it was found on the
    /// ledger, or its server did not take it any more.
    pub place: Option<Arc<str>>,
    /// Made the id a new one; none where the channel was found on the ledger.
    pub salt: Option<B256>,
    /// Wei in it.
    pub deposit: u128,
    /// Highest amount of a voucher that was signed, as far as is known.
    pub signed: u128,
    /// Wei that the payee earned by our own audit.
    pub due: u128,
    /// Wei that it may have earned besides: of requests whose end was not seen.
    pub doubt: u128,
    /// Where it is.
    pub state: ChannelState,
}

impl Channel {
    /// Found on the ledger, where vouchers do not stand: more may have been signed than is known, until a server
    /// shows its last voucher.
    pub(super) fn is_unknown(&self) -> bool {
        self.place.is_none() && self.salt.is_none()
    }

    /// Wei that are signed, and neither due nor in doubt. The payee of a channel that is over has what it has.
    pub(super) fn credit(&self) -> u128 {
        match self.state {
            ChannelState::Closed => 0,
            _ => self
                .signed
                .saturating_sub(self.due)
                .saturating_sub(self.doubt),
        }
    }

    /// The payee had so much in all, or charged it: what was in doubt is known to be due then. Wei of it
    /// that nobody knew of.
    pub(super) fn learn(&mut self, total: u128) -> u128 {
        let more = total.min(self.signed).saturating_sub(self.due);
        let known = more.min(self.doubt);
        self.due += more;
        self.doubt -= known;
        more - known
    }
}

/// A request that is being answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Running {
    pub(super) channel: B256,
    pub(super) pricing: Pricing,
    pub(super) prompt: PromptTokens,
    pub(super) shape: AnswerShape,
    /// Tokens that what arrived can hold.
    pub(super) heard: u32,
    /// Wei signed for it so far.
    pub(super) authorized: u128,
}

impl Running {
    /// Wei that may be signed for it at most: the prompt, what arrived, and a window.
    pub(super) fn limit(&self) -> Option<u128> {
        self.cost(self.prompt.most)
    }

    /// Wei that it takes to begin.
    pub(super) fn likely(&self) -> Option<u128> {
        self.cost(self.prompt.likely)
    }

    fn cost(&self, input: u32) -> Option<u128> {
        let window = self.pricing.window_tokens;
        let output = self.shape.ahead(self.heard, window);
        self.pricing.cost(Tokens { input, output })
    }

    fn window(&self) -> Option<u128> {
        let window = Tokens::output(self.pricing.window_tokens);
        self.pricing.cost(window)
    }
}

/// What a voucher is wanted for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// What the payee says it needs; none at first.
    pub(super) required: Option<u128>,
    /// The payee refused what was signed before.
    pub(super) is_refused: bool,
    /// By how much a voucher has to exceed the one before.
    pub(super) step: u128,
    /// What the budget leaves; none is no limit.
    pub(super) room: Option<u128>,
}

/// What to sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    /// Not lower than what was signed before.
    pub(super) amount: u128,
    /// What may be signed at most.
    pub(super) limit: u128,
    /// The payee wants more than it can have earned or may have ahead.
    pub(super) is_overbill: bool,
    /// The budget cut it.
    pub(super) is_cut: bool,
}

/// Decides what to sign for `own` while `others` run on the same channel; none where amounts overflow.
/// Where the payee sets a least step, vouchers may be higher by a step than what else is allowed.
pub(super) fn decide(
    channel: &Channel,
    own: &Running,
    others: &[Running],
    wanted: Wanted,
) -> Option<Decision> {
    let base = channel.due.checked_add(channel.doubt)?;
    let mut limit = base.checked_add(own.limit()?)?;
    // What is in doubt was mostly not charged: a payee that did charge it says so.
    let base = match (wanted.is_refused, wanted.required) {
        (true, None) => base,
        _ => channel.due,
    };
    let mut target = base.checked_add(own.likely()?)?;
    // What the payee sent on other streams, and we have not read yet, is no lie.
    let mut unread = 0u128;
    for other in others {
        limit = limit.checked_add(other.limit()?)?;
        target = target.checked_add(other.authorized)?;
        unread = unread.checked_add(other.window()?)?;
    }
    let signed = channel.signed;
    let most = wanted
        .room
        .map_or(u128::MAX, |room| signed.saturating_add(room));
    let asked = wanted.required.unwrap_or(target);
    // Of several that were refused at the same time each is told only what it needs itself.
    let target = match wanted.is_refused {
        true => asked.max(target.min(most)),
        false => asked,
    };
    let mut amount = target.min(limit).max(signed);
    if amount > signed {
        amount = amount.max(signed.checked_add(wanted.step)?);
    }
    let limit = limit.checked_add(wanted.step)?;
    let is_cut = amount > most;
    if is_cut {
        // Less than a step more would not be taken.
        amount = if most - signed < wanted.step {
            signed
        } else {
            most
        };
    }
    Some(Decision {
        amount,
        limit,
        is_overbill: asked > limit.saturating_add(unread),
        is_cut,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tenzro_protocol::amount::Wei;

    use super::*;

    fn running(prompt: u32, heard: u32, authorized: u128) -> Running {
        Running {
            channel: B256::ZERO,
            pricing: Pricing {
                input_per_token: Wei(10),
                output_per_token: Wei(30),
                price_version: 1,
                window_tokens: 32,
            },
            prompt: PromptTokens {
                likely: prompt,
                most: prompt * 2,
            },
            shape: AnswerShape::stream(None),
            heard,
            authorized,
        }
    }

    fn channel(signed: u128, due: u128, doubt: u128) -> Channel {
        Channel {
            id: B256::ZERO,
            payee: Address::ZERO,
            place: None,
            salt: None,
            deposit: 1_000_000,
            signed,
            due,
            doubt,
            state: ChannelState::Open,
        }
    }

    fn decide_one(channel: &Channel, own: &Running, wanted: Wanted) -> Decision {
        decide(channel, own, &[], wanted).expect("small")
    }

    #[test]
    fn m08_first_the_likely_prompt_and_a_window_then_what_is_asked_up_to_the_limit() {
        let own = running(20, 0, 0);
        let first = decide_one(&channel(0, 0, 0), &own, Wanted::default());
        assert_eq!((first.amount, first.limit), (200 + 960, 400 + 960));
        let ask = |required| Wanted {
            required: Some(required),
            ..Wanted::default()
        };
        let signed = channel(1_160, 0, 0);
        let more = decide_one(&signed, &own, ask(1_300));
        assert_eq!((more.amount, more.is_overbill), (1_300, false));
        let greedy = decide_one(&signed, &own, ask(1_361));
        assert_eq!((greedy.amount, greedy.is_overbill), (1_360, true));
        let later = decide_one(&signed, &running(20, 10, 1_160), ask(9_999));
        assert_eq!((later.amount, later.is_overbill), (1_360 + 300, true));
        let old = decide_one(&signed, &own, ask(7));
        assert_eq!((old.amount, old.is_overbill), (1_160, false));
    }

    #[test]
    fn m08_what_other_streams_may_have_sent_is_no_overbill_but_is_not_signed_either() {
        let own = running(20, 0, 1_160);
        let other = [running(20, 5, 1_160)];
        let limit = (400 + 960) + (400 + 150 + 960);
        for (required, is_overbill) in [(limit, false), (limit + 960, false), (limit + 961, true)] {
            let wanted = Wanted {
                required: Some(required),
                ..Wanted::default()
            };
            let decision = decide(&channel(2_320, 0, 0), &own, &other, wanted).expect("small");
            assert_eq!(
                (decision.amount, decision.is_overbill),
                (limit, is_overbill)
            );
        }
    }

    #[test]
    fn credit_of_earlier_requests_is_used_before_more_is_signed() {
        let decision = decide_one(
            &channel(5_000, 1_000, 0),
            &running(20, 0, 0),
            Wanted::default(),
        );
        assert_eq!(decision.amount, 5_000);
    }

    #[test]
    fn what_is_in_doubt_is_signed_for_when_the_payee_says_that_it_was_charged() {
        let (lost, own) = (channel(1_500, 0, 1_500), running(20, 0, 0));
        let first = decide_one(&lost, &own, Wanted::default());
        assert_eq!((first.amount, first.limit), (1_500, 1_500 + 1_360));
        let refused = Wanted {
            is_refused: true,
            ..Wanted::default()
        };
        assert_eq!(decide_one(&lost, &own, refused).amount, 1_500 + 1_160);
    }

    #[test]
    fn a_budget_cuts_and_steps_round_up() {
        let own = running(20, 0, 0);
        let with = |step, room| Wanted {
            step,
            room,
            ..Wanted::default()
        };
        let cut = decide_one(&channel(0, 0, 0), &own, with(0, Some(500)));
        assert_eq!((cut.amount, cut.is_cut), (500, true));
        let almost = channel(1_159, 0, 0);
        assert_eq!(decide_one(&almost, &own, with(100, None)).amount, 1_259);
        let none = decide_one(&almost, &own, with(100, Some(99)));
        assert_eq!((none.amount, none.is_cut), (1_159, true));
    }

    proptest! {
        #[test]
        fn m08_m32_nothing_is_signed_beyond_the_limit_or_below_what_was_signed(
            signed: u128, due in 0u128..1 << 100, doubt in 0u128..1 << 100,
            required: Option<u128>, is_refused: bool, step in 0u128..240, room: Option<u128>,
            own in (0u32..1 << 20, 0u32..1 << 20),
            others in proptest::collection::vec((0u32..1 << 20, 0u32..1 << 20, 0u128..1 << 40), 0..4),
        ) {
            let own = running(own.0, own.1, 0);
            let others: Vec<_> = others.into_iter().map(|(p, h, a)| running(p, h, a)).collect();
            let channel = channel(signed, due, doubt);
            let wanted = Wanted { required, is_refused, step, room };
            let Some(decision) = decide(&channel, &own, &others, wanted) else {
                return Ok(());
            };
            let of = |request: &Running| {
                20 * u128::from(request.prompt.likely) + 30 * u128::from(request.heard) + 960
            };
            let limit = due + doubt + step + of(&own) + others.iter().map(of).sum::<u128>();
            prop_assert_eq!(decision.limit, limit);
            prop_assert!(decision.amount >= signed);
            prop_assert!(decision.amount <= limit.max(signed));
            if let Some(room) = room {
                prop_assert!(decision.amount - signed <= room);
            }
            prop_assert!(decision.amount == signed || decision.amount - signed >= step);
        }
    }
}
