//! Who may enter, and what the engine is doing: counters shared by the handle and the worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tenzro_protocol::inference::{EngineGauges, GenerateError};

use crate::engine::queue_full;

/// Told to clients before any request was finished.
const FIRST_GUESS: Duration = Duration::from_secs(2);

/// Bounds of what a client is told to wait.
const RETRY_AFTER_MS: std::ops::RangeInclusive<u64> = 1_000..=60_000;

/// Places for running and waiting requests. A request that finds none is refused at once.
#[derive(Debug)]
pub(crate) struct Admission {
    parallel: u32,
    queue_size: u32,
    taken: AtomicU32,
    /// Running average of the time a request holds its place.
    held_ms: AtomicU64,
}

/// A place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    since: Instant,
}

impl Admission {
    pub(crate) fn new(parallel: u32, queue_size: u32) -> Self {
        Self {
            parallel,
            queue_size,
            taken: AtomicU32::new(0),
            held_ms: AtomicU64::new(0),
        }
    }

    /// Running and waiting requests together.
    pub(crate) fn places_max(&self) -> u32 {
        self.parallel.saturating_add(self.queue_size)
    }

    /// Takes a place or says when one is likely to be free.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Permit, GenerateError> {
        let places_max = self.places_max();
        let entered = self
            .taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
                (taken < places_max).then_some(taken + 1)
            });
        match entered {
            Ok(_) => Ok(Permit {
                admission: Arc::clone(self),
                since: Instant::now(),
            }),
            Err(_) => Err(queue_full(self.queue_size, self.retry_after())),
        }
    }

    /// With `parallel` requests ending every `held_ms`, a place is free after their quotient.
    fn retry_after(&self) -> Duration {
        let held_ms = match self.held_ms.load(Ordering::Relaxed) {
            0 => return FIRST_GUESS,
            held_ms => held_ms,
        };
        let wait_ms = held_ms / u64::from(self.places_max().max(1));
        Duration::from_millis(wait_ms.clamp(*RETRY_AFTER_MS.start(), *RETRY_AFTER_MS.end()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let held_ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let average = match self.admission.held_ms.load(Ordering::Relaxed) {
            0 => held_ms.max(1),
            before => (before.saturating_mul(7).saturating_add(held_ms) / 8).max(1),
        };
        self.admission.held_ms.store(average, Ordering::Relaxed);
        self.admission.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What [`EngineGauges`] is read from.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    running: AtomicU32,
    waiting: AtomicU32,
    cells: AtomicU32,
    cells_total: AtomicU32,
    pub(crate) steps: AtomicU64,
    pub(crate) prefill: AtomicU64,
    pub(crate) cached: AtomicU64,
    pub(crate) generated: AtomicU64,
    pub(crate) cancelled: AtomicU64,
}

impl Counters {
    pub(crate) fn set_cells_total(&self, cells: usize) {
        self.cells_total.store(clip(cells), Ordering::Relaxed);
    }

    pub(crate) fn set_now(&self, running: usize, waiting: usize, cells: usize) {
        self.running.store(clip(running), Ordering::Relaxed);
        self.waiting.store(clip(waiting), Ordering::Relaxed);
        self.cells.store(clip(cells), Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> EngineGauges {
        // Before those that are published before it.
        let cancelled_total = self.cancelled.load(Ordering::Acquire);
        EngineGauges {
            running: self.running.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            kv_cells_used: self.cells.load(Ordering::Relaxed),
            kv_cells_total: self.cells_total.load(Ordering::Relaxed),
            steps_total: self.steps.load(Ordering::Relaxed),
            prefill_tokens_total: self.prefill.load(Ordering::Relaxed),
            cached_tokens_total: self.cached.load(Ordering::Relaxed),
            generated_tokens_total: self.generated.load(Ordering::Relaxed),
            cancelled_total,
        }
    }
}

fn clip(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_until_a_place_is_given_back() {
        let admission = Arc::new(Admission::new(1, 1));
        let first = admission.enter().unwrap();
        let _second = admission.enter().unwrap();
        let refused = admission.enter().unwrap_err();
        assert!(matches!(
            refused,
            GenerateError::QueueFull { waiting_max: 1, retry_after } if retry_after >= Duration::from_secs(1)
        ));
        drop(first);
        assert!(admission.enter().is_ok());
    }
}
