//! Transactions that arrived before the one that they follow, as happens when a wallet sends several
//! at once over several connections: they wait for it for a moment.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use alloy::consensus::Transaction;
use alloy::primitives::Address;
use serde_json::Value;
use tokio::sync::oneshot;

use super::error::RpcError;
use super::writer::{Change, Incoming, Job};

/// How long one waits: connections of one client are not further apart.
const PATIENCE: Duration = Duration::from_secs(2);
/// How far ahead of its sender's next nonce one may be.
const AHEAD_MAX: u64 = 256;
/// How many wait at most.
const WAITING_MAX: usize = 1_024;

/// By sender and nonce.
#[derive(Debug, Default)]
pub(super) struct Early {
    waiting: BTreeMap<(Address, u64), Waiting>,
}

#[derive(Debug)]
struct Waiting {
    incoming: Box<Incoming>,
    /// The sender's next nonce when it came.
    next: u64,
    answer: oneshot::Sender<Result<Value, RpcError>>,
    until: Instant,
}

impl Waiting {
    fn refuse(self) {
        let error = RpcError::NonceTooHigh {
            sender: self.incoming.sender,
            nonce: self.incoming.envelope.nonce(),
            next: self.next,
        };
        // Whoever no longer waits does not need it.
        let _ = self.answer.send(Err(error));
    }
}

impl Early {
    /// Keeps a transaction; refuses it where there is no room, where it is too far ahead, and where
    /// another one with the same nonce waits.
    pub(super) fn keep(
        &mut self,
        incoming: Box<Incoming>,
        next: u64,
        answer: oneshot::Sender<Result<Value, RpcError>>,
        now: Instant,
    ) {
        let nonce = incoming.envelope.nonce();
        let key = (incoming.sender, nonce);
        let waiting = Waiting {
            incoming,
            next,
            answer,
            until: now + PATIENCE,
        };
        let is_far = nonce.saturating_sub(next) > AHEAD_MAX;
        if is_far || self.waiting.len() >= WAITING_MAX || self.waiting.contains_key(&key) {
            return waiting.refuse();
        }
        self.waiting.insert(key, waiting);
    }

    /// The one that follows a mined transaction.
    pub(super) fn take_after(&mut self, mined: &Incoming) -> Option<Job> {
        let key = (mined.sender, mined.envelope.nonce().checked_add(1)?);
        let found = self.waiting.remove(&key)?;
        Some(Job {
            change: Change::Transaction(found.incoming),
            answer: found.answer,
        })
    }

    /// How long until the next one has waited long enough; `None` when none waits.
    pub(super) fn patience(&self, now: Instant) -> Option<Duration> {
        let first = self.waiting.values().map(|waiting| waiting.until).min()?;
        Some(first.saturating_duration_since(now))
    }

    /// Refuses those that have waited long enough.
    pub(super) fn refuse_old(&mut self, now: Instant) {
        let old = self
            .waiting
            .extract_if(.., |_, waiting| waiting.until <= now);
        old.for_each(|(_, waiting)| waiting.refuse());
    }
}
