//! The payer's SQLite file: what it signed, what it owes, and what it bought.
//!
//! WAL with an fsync at each commit: a voucher or a deposit is in the file before anybody else sees it, so
//! that no crash makes the payer sign twice for the same or lose a deposit. One process has the file.

mod requests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, B256};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};

use super::channel::{Channel, ChannelState};
use crate::books::make_private;

/// "TNZP": says that a SQLite file is one of these.
const APPLICATION_ID: i32 = 0x544E_5A50;
/// Bumped when the tables change their meaning.
const VERSION: i32 = 1;

const SCHEMA: &str = "
CREATE TABLE channel (
  id BLOB PRIMARY KEY,
  chain INTEGER NOT NULL,
  escrow BLOB NOT NULL,
  payer BLOB NOT NULL,         -- also signs its vouchers
  payee BLOB NOT NULL,
  place TEXT,                  -- base URL of the model server, where it is known
  salt BLOB,
  deposit BLOB NOT NULL,       -- amounts: 16 bytes, big-endian
  signed BLOB NOT NULL,
  due BLOB NOT NULL,
  doubt BLOB NOT NULL,
  state TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE deposit (
  salt BLOB PRIMARY KEY,       -- makes the authorization's nonce a new one
  channel BLOB NOT NULL,
  is_open INTEGER NOT NULL,    -- opens the channel, or adds to it
  amount BLOB NOT NULL,
  valid_before INTEGER NOT NULL,
  state TEXT NOT NULL          -- pending, done, dead
) STRICT, WITHOUT ROWID;
CREATE INDEX deposit_by_channel ON deposit (channel, state);
CREATE TABLE request (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  at INTEGER NOT NULL,
  channel BLOB NOT NULL,
  payee BLOB NOT NULL,
  model TEXT NOT NULL,
  state TEXT NOT NULL,         -- running, done, lost, settled (lost, and known since), refused, taken
  input INTEGER NOT NULL,
  output INTEGER NOT NULL,
  charged BLOB NOT NULL,
  receipt TEXT,                -- JSON, as the provider sent it
  overbill TEXT                -- JSON, what was asked and what was the most
) STRICT;
CREATE INDEX request_by_time ON request (at);
CREATE INDEX request_by_channel ON request (channel, state);
";

/// Why the file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process, or another payer of this one, has it open.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// Not such a file, or one of another version.
    #[error("{} is no file of payments of this version", .0.display())]
    Foreign(PathBuf),
    /// The disk, or the file's content.
    #[error("the payer's books cannot be read or written: {0}")]
    Sqlite(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error.to_string())
    }
}

/// A signed deposit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deposit {
    /// Makes it a new one.
    pub(super) salt: B256,
    pub(super) channel: B256,
    pub(super) is_open: bool,
    pub(super) amount: u128,
    /// Unix seconds.
    pub(super) valid_before: u64,
}

pub use requests::{Evidence, Spending};
pub(super) use requests::{Outcome, RequestState};

/// The file.
#[derive(Debug)]
pub(super) struct Store {
    conn: Connection,
    payer: Address,
    chain: i64,
    escrow: Address,
}

impl Store {
    /// Opens or makes the file; what it shows is that payer's at that escrow.
    pub(super) fn open(
        path: &Path,
        payer: Address,
        chain_id: u64,
        escrow: Address,
    ) -> Result<Self, StoreError> {
        let failed = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy) => StoreError::InUse(path.to_owned()),
            Some(ErrorCode::NotADatabase) => StoreError::Foreign(path.to_owned()),
            _ => error.into(),
        };
        make_private(path).map_err(|error| StoreError::Sqlite(error.to_string()))?;
        let conn = Connection::open(path)?;
        // Nobody else writes; who finds the lock taken finds it taken for long.
        conn.busy_timeout(Duration::ZERO)?;
        conn.pragma_update(None, "locking_mode", "EXCLUSIVE")
            .and_then(|()| conn.pragma_update(None, "journal_mode", "WAL"))
            .and_then(|()| conn.pragma_update(None, "synchronous", "FULL"))
            // Takes the lock for good, since the locking mode is exclusive.
            .and_then(|()| conn.execute_batch("BEGIN EXCLUSIVE; COMMIT"))
            .map_err(failed)?;
        let read = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
        let tables: i64 =
            conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        match (read("application_id")?, read("user_version")?) {
            (APPLICATION_ID, VERSION) => {}
            (0, 0) if tables == 0 => {
                let made = conn.unchecked_transaction()?;
                made.execute_batch(SCHEMA)?;
                made.pragma_update(None, "application_id", APPLICATION_ID)?;
                made.pragma_update(None, "user_version", VERSION)?;
                made.commit()?;
            }
            _ => return Err(StoreError::Foreign(path.to_owned())),
        }
        let chain = i64::try_from(chain_id).unwrap_or(i64::MAX);
        Ok(Self {
            conn,
            payer,
            chain,
            escrow,
        })
    }

    pub(super) fn begin(&self) -> Result<(), StoreError> {
        Ok(self.conn.execute_batch("BEGIN")?)
    }

    pub(super) fn commit(&self) -> Result<(), StoreError> {
        Ok(self.conn.execute_batch("COMMIT")?)
    }

    /// Begins a part of the transaction.
    pub(super) fn mark(&self) -> Result<(), StoreError> {
        Ok(self.conn.execute_batch("SAVEPOINT part")?)
    }

    /// Ends it, and undoes what it wrote unless it is kept.
    pub(super) fn end_mark(&self, is_kept: bool) -> Result<(), StoreError> {
        let end = match is_kept {
            true => "RELEASE part",
            false => "ROLLBACK TO part; RELEASE part",
        };
        Ok(self.conn.execute_batch(end)?)
    }

    /// Also where SQLite has rolled back by itself.
    pub(super) fn roll_back(&self) -> Result<(), StoreError> {
        if self.conn.is_autocommit() {
            return Ok(());
        }
        Ok(self.conn.execute_batch("ROLLBACK")?)
    }

    pub(super) fn channels(&self) -> Result<Vec<Channel>, StoreError> {
        let mut query = self.conn.prepare_cached(
            "SELECT id, payee, salt, deposit, signed, due, doubt, state, place FROM channel
             WHERE payer = ?1 AND chain = ?2 AND escrow = ?3",
        )?;
        let owner = params![self.payer.as_slice(), self.chain, self.escrow.as_slice()];
        let rows = query.query_map(owner, channel_row)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    pub(super) fn put_channel(&self, channel: &Channel) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO channel
                   (id, chain, escrow, payer, payee, salt, deposit, signed, due, doubt, state, place)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
                 ON CONFLICT (id) DO UPDATE SET deposit = excluded.deposit, signed = excluded.signed,
                   due = excluded.due, doubt = excluded.doubt, state = excluded.state,
                   place = excluded.place",
            )?
            .execute(params![
                channel.id.as_slice(),
                self.chain,
                self.escrow.as_slice(),
                self.payer.as_slice(),
                channel.payee.as_slice(),
                channel.salt.as_ref().map(B256::as_slice),
                channel.deposit.to_be_bytes(),
                channel.signed.to_be_bytes(),
                channel.due.to_be_bytes(),
                channel.doubt.to_be_bytes(),
                state_text(channel.state),
                channel.place.as_deref(),
            ])?;
        Ok(())
    }

    /// The deposit of a channel that is signed and not known to be there.
    pub(super) fn pending_deposit(&self, channel: B256) -> Result<Option<Deposit>, StoreError> {
        let found = self
            .conn
            .prepare_cached(
                "SELECT salt, channel, is_open, amount, valid_before FROM deposit
                 WHERE channel = ?1 AND state = 'pending'",
            )?
            .query_row([channel.as_slice()], deposit_row)
            .optional()?;
        Ok(found)
    }

    /// Wei of all deposits that are signed and not known to be there.
    pub(super) fn pending_total(&self) -> Result<u128, StoreError> {
        let mut query = self.conn.prepare_cached(
            "SELECT amount FROM deposit JOIN channel ON channel.id = deposit.channel
             WHERE deposit.state = 'pending' AND channel.payer = ?1",
        )?;
        let amounts = query.query_map([self.payer.as_slice()], |row| amount(row, 0))?;
        let mut total = 0u128;
        for amount in amounts {
            total = total.saturating_add(amount?);
        }
        Ok(total)
    }

    pub(super) fn put_deposit(&self, deposit: &Deposit) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO deposit (salt, channel, is_open, amount, valid_before, state)
                 VALUES (?1, ?2, ?3, ?4, ?5, 'pending') ON CONFLICT (salt) DO NOTHING",
            )?
            .execute(params![
                deposit.salt.as_slice(),
                deposit.channel.as_slice(),
                deposit.is_open,
                deposit.amount.to_be_bytes(),
                seconds(deposit.valid_before),
            ])?;
        Ok(())
    }

    /// `false` where it was not pending.
    pub(super) fn end_deposit(&self, salt: B256, is_there: bool) -> Result<bool, StoreError> {
        let state = if is_there { "done" } else { "dead" };
        let changed = self
            .conn
            .prepare_cached("UPDATE deposit SET state = ?2 WHERE salt = ?1 AND state = 'pending'")?
            .execute(params![salt.as_slice(), state])?;
        Ok(changed == 1)
    }

    /// The latest time until which a deposit of a channel could be submitted, besides a pending one.
    pub(super) fn last_deposit(&self, channel: B256) -> Result<u64, StoreError> {
        let last: Option<i64> = self
            .conn
            .prepare_cached(
                "SELECT max(valid_before) FROM deposit WHERE channel = ?1 AND state <> 'pending'",
            )?
            .query_row([channel.as_slice()], |row| row.get(0))?;
        Ok(last.map_or(0, i64::cast_unsigned))
    }
}

const STATES: [(ChannelState, &str); 4] = [
    (ChannelState::Opening, "opening"),
    (ChannelState::Open, "open"),
    (ChannelState::Closing, "closing"),
    (ChannelState::Closed, "closed"),
];

fn state_text(state: ChannelState) -> &'static str {
    let found = STATES.iter().find(|(one, _)| *one == state);
    found.map_or("closed", |(_, text)| text)
}

fn channel_row(row: &Row<'_>) -> rusqlite::Result<Channel> {
    let text: String = row.get(7)?;
    let state = STATES.iter().find(|(_, one)| *one == text);
    let (state, _) = state.ok_or(rusqlite::Error::InvalidQuery)?;
    Ok(Channel {
        id: row.get::<_, [u8; 32]>(0)?.into(),
        payee: row.get::<_, [u8; 20]>(1)?.into(),
        place: row.get::<_, Option<String>>(8)?.map(Arc::from),
        salt: row.get::<_, Option<[u8; 32]>>(2)?.map(B256::from),
        deposit: amount(row, 3)?,
        signed: amount(row, 4)?,
        due: amount(row, 5)?,
        doubt: amount(row, 6)?,
        state: *state,
    })
}

fn deposit_row(row: &Row<'_>) -> rusqlite::Result<Deposit> {
    Ok(Deposit {
        salt: row.get::<_, [u8; 32]>(0)?.into(),
        channel: row.get::<_, [u8; 32]>(1)?.into(),
        is_open: row.get(2)?,
        amount: amount(row, 3)?,
        valid_before: row.get::<_, i64>(4)?.cast_unsigned(),
    })
}

fn amount(row: &Row<'_>, column: usize) -> rusqlite::Result<u128> {
    Ok(u128::from_be_bytes(row.get(column)?))
}

/// SQLite's integers are signed; times stay far below the difference.
fn seconds(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}
