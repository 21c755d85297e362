//! The `eth_newFilter` family: what a client has not seen yet. Kept in memory; a client whose filter is
//! gone makes a new one, as with any node.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::error::RpcError;
use super::logs::Wanted;

/// Filters at the same time.
const FILTERS_MAX: usize = 1_000;
/// One that nobody asked for so long is gone. Source: geth `eth/filters/api.go`.
const UNUSED_MAX: Duration = Duration::from_secs(5 * 60);

/// What a filter lets through.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Blocks,
    Logs(Box<Wanted>),
}

#[derive(Debug)]
struct Filter {
    kind: Kind,
    /// The first block that its client has not seen.
    next: u64,
    used: Instant,
}

/// All of them, by number.
#[derive(Debug, Default)]
pub(super) struct Filters {
    filters: HashMap<u64, Filter>,
    last: u64,
}

impl Filters {
    /// A new one, which shows what comes after `head`. It takes the place of the one that was unused
    /// for longest when there are too many, so that nobody can keep others from having any.
    pub(super) fn add(&mut self, kind: Kind, head: u64, now: Instant) -> u64 {
        self.filters
            .retain(|_, filter| now.duration_since(filter.used) < UNUSED_MAX);
        if self.filters.len() >= FILTERS_MAX {
            let oldest = self.filters.iter().min_by_key(|(_, filter)| filter.used);
            if let Some(id) = oldest.map(|(id, _)| *id) {
                self.filters.remove(&id);
            }
        }
        self.last += 1;
        let filter = Filter {
            kind,
            next: head + 1,
            used: now,
        };
        self.filters.insert(self.last, filter);
        self.last
    }

    /// What the filter lets through, and from which block on it was not seen.
    pub(super) fn get(&mut self, id: u64, now: Instant) -> Result<(Kind, u64), RpcError> {
        let filter = self
            .filters
            .get_mut(&id)
            .filter(|filter| now.duration_since(filter.used) < UNUSED_MAX)
            // Geth's words; ethers and viem look for them.
            .ok_or_else(|| RpcError::Refused("filter not found".to_owned()))?;
        filter.used = now;
        Ok((filter.kind.clone(), filter.next))
    }

    /// All before `next` was shown.
    pub(super) fn seen(&mut self, id: u64, next: u64) {
        if let Some(filter) = self.filters.get_mut(&id) {
            filter.next = next;
        }
    }

    /// The chain went back to `head`: what comes after it is new again.
    pub(super) fn rewind(&mut self, head: u64) {
        for filter in self.filters.values_mut() {
            filter.next = filter.next.min(head + 1);
        }
    }

    /// Whether there was one.
    pub(super) fn remove(&mut self, id: u64) -> bool {
        self.filters.remove(&id).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_filters_expire_and_make_room() {
        let start = Instant::now();
        let mut filters = Filters::default();
        for number in 0..FILTERS_MAX {
            filters.add(
                Kind::Blocks,
                7,
                start + Duration::from_millis(number as u64),
            );
        }
        let later = start + UNUSED_MAX / 2;
        assert!(filters.get(1, later).is_ok());
        let id = filters.add(Kind::Blocks, 7, later);
        assert!(
            filters.get(2, later).is_err(),
            "the one unused for longest made room"
        );
        assert!(filters.get(1, later).is_ok() && filters.remove(id));
        assert_eq!(filters.filters.len(), FILTERS_MAX - 1);

        let used = start + UNUSED_MAX - Duration::from_secs(1);
        assert_eq!(filters.get(1, used).unwrap().1, 8);
        let late = start + UNUSED_MAX + Duration::from_secs(2);
        assert!(filters.get(3, late).is_err());
        let id = filters.add(Kind::Blocks, 9, late);
        assert!(filters.get(1, late).is_ok() && filters.get(id, late).is_ok());
        assert_eq!(filters.filters.len(), 2);
    }

    #[test]
    fn a_chain_that_goes_back_shows_its_blocks_again() {
        let now = Instant::now();
        let mut filters = Filters::default();
        let id = filters.add(Kind::Blocks, 10, now);
        filters.rewind(4);
        assert_eq!(filters.get(id, now).unwrap().1, 5);
        filters.rewind(20);
        assert_eq!(filters.get(id, now).unwrap().1, 5);
        assert!(filters.remove(id) && !filters.remove(id));
    }
}
