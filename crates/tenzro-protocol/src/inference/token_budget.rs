//! How many tokens may be computed before more of them are paid for.
//!
//! ```text
//! payment gate ── add ──▶ TokenBudget ── poll_hold ──▶ TokenHold of each generation
//!                             ▲  one for all choices        one token at most, taken before it is
//!                             └──── give_back ──────────    computed, given back when it never was
//! ```

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Tokens that are paid for and not yet computed. A cheap handle: clones share one balance, so the
/// choices of one request can live on one budget. Two handles are equal when they share it.
#[derive(Clone)]
pub struct TokenBudget {
    balance: Arc<Mutex<Balance>>,
}

struct Balance {
    /// Negative after [`TokenHold::spend`] of more than was there.
    left: i64,
    /// Tokens in the hands of generations.
    held: u64,
    /// Woken, once, when there is something to take.
    waiting: Vec<Waker>,
}

impl TokenBudget {
    /// A budget of so many tokens; more than `i64::MAX` are as many as that.
    pub fn new(tokens: u64) -> Self {
        Self {
            balance: Arc::new(Mutex::new(Balance {
                left: i64::try_from(tokens).unwrap_or(i64::MAX),
                held: 0,
                waiting: Vec::new(),
            })),
        }
    }

    /// Adds tokens, pays debts first, and wakes whoever waits for one.
    pub fn add(&self, tokens: u64) {
        let mut balance = self.lock();
        let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
        balance.left = balance.left.saturating_add(tokens);
        if balance.left <= 0 {
            return;
        }
        let waiting = std::mem::take(&mut balance.waiting);
        drop(balance);
        // Not under the lock: a waker may run anything.
        for waker in waiting {
            waker.wake();
        }
    }

    /// Takes one token; false when none is left.
    #[must_use]
    pub fn take(&self) -> bool {
        let mut balance = self.lock();
        let is_enough = balance.left > 0;
        if is_enough {
            balance.left -= 1;
        }
        is_enough
    }

    /// Takes one token, or lets `task` be woken when there is one to take.
    pub fn poll_take(&self, task: &Context<'_>) -> Poll<()> {
        let mut balance = self.lock();
        if balance.left > 0 {
            balance.left -= 1;
            return Poll::Ready(());
        }
        let waker = task.waker();
        if !balance.waiting.iter().any(|other| other.will_wake(waker)) {
            balance.waiting.push(waker.clone());
        }
        Poll::Pending
    }

    /// Tokens that can be taken now. Those that generations hold for their next step are not among
    /// them, see [`TokenHold`].
    pub fn left(&self) -> u64 {
        u64::try_from(self.lock().left).unwrap_or(0)
    }

    /// Whether nothing can be computed before tokens are added: none is left, and no generation has
    /// one in hand.
    pub fn is_dry(&self) -> bool {
        let balance = self.lock();
        balance.left <= 0 && balance.held == 0
    }

    /// Notes that a generation has a token in hand from now on, or no more.
    fn note_held(&self, is_held: bool) {
        let mut balance = self.lock();
        balance.held = match is_held {
            true => balance.held.saturating_add(1),
            false => balance.held.saturating_sub(1),
        };
    }

    /// Takes so many, also when they are not there.
    fn owe(&self, tokens: u32) {
        let mut balance = self.lock();
        balance.left = balance.left.saturating_sub(i64::from(tokens));
    }

    fn lock(&self) -> MutexGuard<'_, Balance> {
        self.balance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for TokenBudget {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.balance, &other.balance)
    }
}

impl fmt::Debug for TokenBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = self.lock().left;
        f.debug_struct("TokenBudget").field("left", &left).finish()
    }
}

/// What one generation has in hand of a budget: at most one token, taken before the token is
/// computed, so that generations that share a budget never compute more than is in it. Dropping it
/// gives the token back. Without a budget there is always one in hand.
#[derive(Debug)]
pub struct TokenHold {
    budget: Option<TokenBudget>,
    is_held: bool,
}

impl TokenHold {
    /// Holds nothing yet.
    pub fn new(budget: Option<TokenBudget>) -> Self {
        Self {
            budget,
            is_held: false,
        }
    }

    /// Ready when a token is in hand. If there is none to take, `task` is woken when there is.
    pub fn poll_hold(&mut self, task: &Context<'_>) -> Poll<()> {
        if let Some(budget) = &self.budget
            && !self.is_held
        {
            std::task::ready!(budget.poll_take(task));
            self.is_held = true;
            budget.note_held(true);
        }
        Poll::Ready(())
    }

    /// Whether there is a budget.
    pub fn is_limited(&self) -> bool {
        self.budget.is_some()
    }

    /// So many tokens were delivered: the one in hand, and the others on credit. What is owed is
    /// taken from the next tokens that are added.
    pub fn spend(&mut self, tokens: u32) {
        let Some(budget) = &self.budget else {
            return;
        };
        let is_paid = self.is_held && tokens > 0;
        if is_paid {
            self.is_held = false;
            budget.note_held(false);
        }
        let owed = tokens - u32::from(is_paid);
        if owed > 0 {
            budget.owe(owed);
        }
    }

    /// The token in hand will not be computed.
    pub fn give_back(&mut self) {
        if let Some(budget) = &self.budget
            && std::mem::take(&mut self.is_held)
        {
            budget.note_held(false);
            budget.add(1);
        }
    }
}

impl Drop for TokenHold {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Calls(AtomicU32);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Calls {
        fn count(&self) -> u32 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn no_more_is_taken_than_was_added() {
        let budget = TokenBudget::new(2);
        let shared = budget.clone();
        assert!(budget.take() && shared.take() && !budget.take());
        shared.add(1);
        assert_eq!(
            (budget.left(), budget.take(), budget.take()),
            (1, true, false)
        );
        budget.add(u64::MAX);
        budget.add(u64::MAX);
        assert_eq!(budget.left(), i64::MAX.unsigned_abs());
        assert_eq!(budget, shared);
        assert_ne!(budget, TokenBudget::new(budget.left()));
    }

    #[test]
    fn who_found_nothing_is_woken_once_when_there_is_something() {
        let calls = Arc::new(Calls::default());
        let waker = Waker::from(Arc::clone(&calls));
        let task = Context::from_waker(&waker);
        let budget = TokenBudget::new(0);
        assert!(budget.poll_take(&task).is_pending() && budget.poll_take(&task).is_pending());
        budget.add(0);
        assert_eq!(calls.count(), 0, "nothing was added");
        budget.add(2);
        budget.add(1);
        assert_eq!(calls.count(), 1);
        assert_eq!(
            (budget.poll_take(&task), budget.left()),
            (Poll::Ready(()), 2)
        );
    }

    #[test]
    fn a_debt_is_paid_before_anybody_goes_on() {
        let calls = Arc::new(Calls::default());
        let waker = Waker::from(Arc::clone(&calls));
        let task = Context::from_waker(&waker);
        let budget = TokenBudget::new(1);
        let mut hold = TokenHold::new(Some(budget.clone()));
        assert!(hold.poll_hold(&task).is_ready());
        hold.spend(4);
        assert!(hold.poll_hold(&task).is_pending());
        budget.add(3);
        assert_eq!((budget.left(), calls.count()), (0, 0), "that paid the debt");
        budget.add(1);
        assert_eq!((budget.left(), calls.count()), (1, 1));
    }

    #[test]
    fn a_held_token_counts_once_and_comes_back_when_it_was_not_computed() {
        let task = Context::from_waker(Waker::noop());
        let budget = TokenBudget::new(3);
        let mut hold = TokenHold::new(Some(budget.clone()));
        assert!(hold.poll_hold(&task).is_ready() && hold.poll_hold(&task).is_ready());
        assert_eq!(budget.left(), 2);
        assert!(budget.take() && budget.take());
        assert!(!budget.is_dry(), "a token in hand can be computed with");
        budget.add(2);
        hold.spend(0);
        hold.give_back();
        hold.give_back();
        assert_eq!(budget.left(), 3);
        assert!(hold.poll_hold(&task).is_ready());
        hold.spend(1);
        assert!(hold.poll_hold(&task).is_ready());
        assert_eq!(budget.left(), 1);
        assert!(budget.take() && !budget.is_dry());
        hold.spend(1);
        assert!(budget.is_dry());
        budget.add(2);
        drop(hold);
        assert_eq!(budget.left(), 2);

        let mut unlimited = TokenHold::new(None);
        unlimited.spend(1000);
        assert!(unlimited.poll_hold(&task).is_ready());
    }
}
