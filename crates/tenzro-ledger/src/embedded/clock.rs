//! What time the next block has.
//!
//! A block's time is the wall clock plus what `evm_increaseTime` added, and never before its parent.
//! Several blocks may share a second: there is a block for each transaction, thousands a second, and
//! times that rose with each would run ahead of the clock that prices and deadlines are compared with.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::Connection;

use super::store::{self, Head};

/// What development tools added to the clock, in seconds.
const OFFSET: &str = "clock_offset_s";
/// The time that the next block gets, if one was set.
const NEXT: &str = "next_timestamp";

/// Tells the time; another one in tests.
#[derive(Clone)]
pub(super) struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl Clock {
    pub(super) fn new(unix_seconds: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(unix_seconds))
    }

    pub(super) fn system() -> Self {
        Self::new(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            since.map_or(0, |since| since.as_secs())
        })
    }

    pub(super) fn unix_seconds(&self) -> u64 {
        (self.0)()
    }
}

/// The time of a block mined now on top of `head`.
pub(super) fn next_timestamp(conn: &Connection, head: &Head, now: u64) -> rusqlite::Result<u64> {
    let time = match next(conn)? {
        Some(set) => set,
        None => now.saturating_add_signed(offset(conn)?),
    };
    Ok(time.max(head.timestamp))
}

/// A block with that time was mined: where its time was set, the clock goes on from there.
pub(super) fn mined(conn: &Connection, timestamp: u64, now: u64) -> rusqlite::Result<()> {
    if next(conn)?.is_none() {
        return Ok(());
    }
    store::unset_meta(conn, NEXT)?;
    set_offset(conn, store::signed(timestamp) - store::signed(now))
}

pub(super) fn offset(conn: &Connection) -> rusqlite::Result<i64> {
    Ok(store::meta(conn, OFFSET)?.unwrap_or(0))
}

pub(super) fn set_offset(conn: &Connection, seconds: i64) -> rusqlite::Result<()> {
    store::set_meta(conn, OFFSET, seconds)
}

pub(super) fn set_next(conn: &Connection, timestamp: u64) -> rusqlite::Result<()> {
    store::set_meta(conn, NEXT, store::signed(timestamp))
}

pub(super) fn unset_next(conn: &Connection) -> rusqlite::Result<()> {
    store::unset_meta(conn, NEXT)
}

fn next(conn: &Connection) -> rusqlite::Result<Option<u64>> {
    Ok(store::meta::<i64>(conn, NEXT)?.map(i64::cast_unsigned))
}
