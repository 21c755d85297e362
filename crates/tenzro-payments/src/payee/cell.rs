//! One channel in memory: its state under a lock, and who waits for money to come.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};

use alloy::primitives::B256;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::challenge::LIFETIME;
use crate::channel::{Channel, Status};
use crate::settlement::Policy;
use crate::sync::lock;
use crate::voucher::Voucher;

/// Vouchers of one channel in a second, and as many at once. Source: design, payments; the draft recommends
/// at least a limit.
const VOUCHERS_PER_SECOND: u32 = 50;
/// Prompts of one channel that are counted at once without being paid for, and in a second from then on. Source:
/// our choice; a payer learns by a refusal what its prompt costs, so it takes one for each request at most.
const COUNTS: (f64, f64) = (32.0, 4.0);
/// Signed requests of one channel that are remembered while their challenge lives.
const NONCES_MAX: usize = 16_384;

/// One channel and who waits for it.
#[derive(Debug)]
pub(crate) struct Cell {
    state: Mutex<State>,
    /// Bumped whenever there may be more money.
    pub(super) changed: watch::Sender<u64>,
    /// Held by whoever closes the channel.
    pub(super) closing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) channel: Channel,
    pub(super) running: u32,
    /// What an ending channel is closed with.
    last: Option<Voucher>,
    /// Vouchers that may come now, and since when.
    allowance: (f64, Instant),
    /// Prompts that may be counted now, and since when.
    counts: (f64, Instant),
    /// Nonces of signed requests: of the present span of a challenge's lifetime, and of the one before.
    nonces: [HashSet<B256>; 2],
    nonces_since: Instant,
    /// Since when something is not settled.
    pub(super) unsettled_since: Option<Instant>,
}

impl Cell {
    pub(super) fn new(channel: Channel) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            state: Mutex::new(State {
                unsettled_since: (channel.unsettled() > 0).then_some(now),
                channel,
                running: 0,
                last: None,
                allowance: (f64::from(VOUCHERS_PER_SECOND), now),
                counts: (COUNTS.0, now),
                nonces: Default::default(),
                nonces_since: now,
            }),
            changed: watch::Sender::new(0),
            closing: tokio::sync::Mutex::default(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn wake(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    /// The voucher to settle now, if any.
    pub(crate) fn due(&self, policy: &Policy, now: Instant) -> Option<Voucher> {
        let state = self.lock();
        let channel = &state.channel;
        let age = state.unsettled_since.map(|since| now.duration_since(since));
        let is_due = policy.is_due(channel.unsettled(), age.unwrap_or_default(), channel.status);
        is_due.then(|| channel.settleable(policy.amount)).flatten()
    }

    /// Whether the closing transaction is under way.
    pub(super) fn is_ending(&self) -> bool {
        self.lock().channel.status == Status::Ending
    }

    /// Which channel to close, and with what; none where nothing is owed.
    pub(super) fn ending(&self) -> (B256, Option<Voucher>) {
        let state = self.lock();
        let settled = state.channel.settled;
        let last = state.last.filter(|last| last.amount.0 > settled);
        (state.channel.id, last)
    }

    /// Wei that the ledger says were settled.
    pub(crate) fn settled(&self) -> u128 {
        self.lock().channel.settled
    }
}

impl State {
    /// Nothing begins any more; no answer may be running. The payer's last voucher counts where it covers what
    /// was delivered.
    pub(super) fn end_with(&mut self, last: &Voucher) {
        let channel = &mut self.channel;
        let pays = |amount: u128| (channel.spent..=channel.deposit).contains(&amount);
        let given = Some(*last).filter(|last| channel.unsettled() > 0 && pays(last.amount.0));
        let held = channel.last();
        let lower = held.filter(|held| {
            let is_lower = given.is_none_or(|given| held.amount.0 < given.amount.0);
            is_lower && pays(held.amount.0)
        });
        self.last = lower.or(given).or(held);
        channel.status = Status::Ending;
    }

    /// Whether one more voucher may come now.
    pub(super) fn allows_voucher(&mut self, now: Instant) -> bool {
        let rate = f64::from(VOUCHERS_PER_SECOND);
        take(&mut self.allowance, rate, rate, now)
    }

    /// Whether one more prompt may be counted now.
    pub(super) fn allows_count(&mut self, now: Instant) -> bool {
        take(&mut self.counts, COUNTS.0, COUNTS.1, now)
    }

    /// The prompt that was counted is paid for.
    pub(super) fn count_is_paid(&mut self) {
        self.counts.0 = (self.counts.0 + 1.0).min(COUNTS.0);
    }

    /// Whether a nonce is new. It is remembered for at least as long as its challenge can be answered.
    pub(super) fn is_new(&mut self, nonce: B256, now: Instant) -> bool {
        let age = now.duration_since(self.nonces_since);
        if age >= LIFETIME {
            let before = std::mem::take(&mut self.nonces[0]);
            self.nonces[1] = if age < LIFETIME * 2 {
                before
            } else {
                HashSet::new()
            };
            self.nonces_since = now;
        }
        let [present, before] = &mut self.nonces;
        !before.contains(&nonce) && present.len() < NONCES_MAX && present.insert(nonce)
    }
}

/// Takes one of what is left, which grows by `rate` in a second up to `most`; false where there is none.
fn take((left, since): &mut (f64, Instant), most: f64, rate: f64, now: Instant) -> bool {
    let grown = (*left + now.duration_since(*since).as_secs_f64() * rate).min(most);
    let is_allowed = grown >= 1.0;
    (*left, *since) = (if is_allowed { grown - 1.0 } else { grown }, now);
    is_allowed
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use alloy::primitives::Address;

    use super::*;
    use crate::escrow::EscrowChannel;

    fn cell() -> Arc<Cell> {
        let found = EscrowChannel {
            payer: Address::ZERO,
            payee: Address::ZERO,
            signer: Address::ZERO,
            deposit: 1,
            settled: 0,
            is_closing: false,
            is_final: false,
        };
        Cell::new(Channel::new(B256::ZERO, &found))
    }

    #[test]
    fn m17_vouchers_come_at_a_limited_rate() {
        let cell = cell();
        let mut state = cell.lock();
        let began = Instant::now();
        let mut taken = |after: u64, tries: u32| {
            let now = began + Duration::from_millis(after);
            (0..tries).filter(|_| state.allows_voucher(now)).count()
        };
        assert_eq!(taken(0, 200), 50, "at once");
        assert_eq!(taken(10, 200), 0);
        assert_eq!(taken(110, 200), 5, "also for who does not stop asking");
        assert_eq!(taken(60_000, 200), 50, "and no more later");
    }

    #[test]
    fn m24_a_nonce_is_remembered_while_its_challenge_can_be_answered() {
        let cell = cell();
        let mut state = cell.lock();
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        for used in [1, 299, 300, 301, 599, 600, 601, 900] {
            let nonce = B256::with_last_byte(u8::try_from(used % 251).expect("small"));
            assert!(state.is_new(nonce, at(used)), "{used}");
            // Each look at a later time leaves the state as it was.
            for later in [0, 1, 298] {
                let kept = (state.nonces.clone(), state.nonces_since);
                assert!(!state.is_new(nonce, at(used + later)), "{used} + {later}");
                (state.nonces, state.nonces_since) = kept;
            }
        }
    }
}
