//! The SQLite file: who may open it, what is in it, and blocks, receipts and logs as its rows.
//!
//! Account and storage rows carry the block that wrote them, and a reader takes the newest one up to
//! its block: old states stay readable, and going back is deleting rows above a block. Code is found
//! by its hash and never changes. State rows are read and written in `state.rs`.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use alloy::consensus::{Header, TxEnvelope};
use alloy::eips::{Decodable2718, Encodable2718};
use alloy::primitives::{Address, B256, Log, LogData};
use alloy::rlp::{Decodable, Encodable};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, params};

use super::EmbeddedError;

/// "TNZO": says that a SQLite file is one of these.
const APPLICATION_ID: i32 = 0x544E_5A4F;
/// Bumped when the tables change their meaning.
const VERSION: i32 = 1;
/// Pages in the write-ahead log before they are copied into the file: 16 MiB.
const CHECKPOINT_PAGES: u32 = 4_096;
/// Bytes of the write-ahead log from which on the writer waits for readers to begin it anew.
/// Readers that always overlap would let it grow without end.
const WAL_MAX: u64 = 64 * 1024 * 1024;
/// Page cache of one connection in KiB.
const CACHE_KIB: u32 = 16 * 1024;
/// Statements of a connection that stay compiled.
const STATEMENTS: usize = 64;
/// How long another connection of this process may hold what one waits for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value ANY NOT NULL
) STRICT, WITHOUT ROWID;
-- One row a block; the transaction's columns are null in a block without one.
CREATE TABLE block (
  number INTEGER PRIMARY KEY,
  hash BLOB NOT NULL,
  timestamp INTEGER NOT NULL,
  header BLOB NOT NULL,        -- RLP
  tx_hash BLOB,
  sender BLOB,
  succeeded INTEGER,
  tx BLOB                      -- EIP-2718
) STRICT;
CREATE UNIQUE INDEX block_by_hash ON block (hash);
CREATE UNIQUE INDEX block_by_tx ON block (tx_hash) WHERE tx_hash IS NOT NULL;
CREATE TABLE log (
  block INTEGER NOT NULL,
  position INTEGER NOT NULL,
  address BLOB NOT NULL,
  topic0 BLOB, topic1 BLOB, topic2 BLOB, topic3 BLOB,
  data BLOB NOT NULL,
  PRIMARY KEY (block, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX log_by_address ON log (address, block);
CREATE INDEX log_by_topic1 ON log (topic1, block) WHERE topic1 IS NOT NULL;
CREATE INDEX log_by_topic2 ON log (topic2, block) WHERE topic2 IS NOT NULL;
CREATE TABLE account (
  address BLOB NOT NULL,
  block INTEGER NOT NULL,
  nonce INTEGER NOT NULL,
  balance BLOB NOT NULL,       -- 32 bytes, big-endian
  code_hash BLOB NOT NULL,
  PRIMARY KEY (address, block)
) STRICT, WITHOUT ROWID;
CREATE TABLE storage (
  address BLOB NOT NULL,
  slot BLOB NOT NULL,
  block INTEGER NOT NULL,
  value BLOB NOT NULL,         -- without leading zeros
  PRIMARY KEY (address, slot, block)
) STRICT, WITHOUT ROWID;
CREATE TABLE code (
  hash BLOB PRIMARY KEY,
  code BLOB NOT NULL
) STRICT, WITHOUT ROWID;
-- evm_snapshot
CREATE TABLE snapshot (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  block INTEGER NOT NULL,
  clock_offset_s INTEGER NOT NULL
) STRICT;
";

/// A file that this process alone has open. The lock is a file of its own beside it: closing a
/// second descriptor of a SQLite file would drop SQLite's own locks (POSIX advisory locks).
#[derive(Debug)]
pub(super) struct FileLock {
    _file: File,
}

impl FileLock {
    pub(super) fn take(path: &Path) -> Result<Self, EmbeddedError> {
        let io = |source| EmbeddedError::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(io)?;
        }
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(PathBuf::from(lock))
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(EmbeddedError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }
}

/// What is known of the last block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) number: u64,
    pub(super) hash: B256,
    pub(super) timestamp: u64,
}

/// A block as it is kept.
#[derive(Debug, Clone)]
pub(super) struct BlockRow {
    pub(super) hash: B256,
    pub(super) header: Header,
    pub(super) transaction: Option<Mined>,
}

/// A transaction in its block; the gas it used is the block's.
#[derive(Debug, Clone)]
pub(super) struct Mined {
    pub(super) hash: B256,
    pub(super) sender: Address,
    pub(super) succeeded: bool,
    pub(super) envelope: TxEnvelope,
}

/// A log and where it is.
#[derive(Debug, Clone)]
pub(super) struct LogRow {
    pub(super) log: Log,
    pub(super) position: u64,
    pub(super) block: u64,
    pub(super) block_hash: B256,
    pub(super) timestamp: u64,
    pub(super) tx_hash: B256,
}

/// Whether a file has a chain in it already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Empty,
    Chain,
}

/// Opens the file for writing; checks that it is one of ours, of this version.
pub(super) fn open(path: &Path) -> Result<(Connection, Content), EmbeddedError> {
    let damaged = |error| EmbeddedError::of(path, error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(damaged)?;
    let content = content(&conn, path)?;
    prepare(&conn).map_err(damaged)?;
    conn.pragma_update(None, "journal_mode", "WAL")
        .map_err(damaged)?;
    // One fsync at each commit: what was committed survives a loss of power too.
    conn.pragma_update(None, "synchronous", "FULL")
        .map_err(damaged)?;
    conn.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)
        .map_err(damaged)?;
    Ok((conn, content))
}

/// Begins the write-ahead log anew when it has grown too long. Waits for those who read it now, at
/// most as long as a question may take.
pub(super) fn bound_wal(conn: &Connection, path: &Path) -> rusqlite::Result<()> {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    if fs::metadata(PathBuf::from(wal)).is_ok_and(|file| file.len() > WAL_MAX) {
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    }
    Ok(())
}

/// A connection that only reads; it never waits for the writer, nor the writer for it (WAL).
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    // Read-write, because readers of a write-ahead log share its index in memory; `query_only`
    // refuses every write.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    prepare(&conn)?;
    conn.pragma_update(None, "query_only", true)?;
    Ok(conn)
}

fn prepare(conn: &Connection) -> rusqlite::Result<()> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    // A statement is compiled once, whatever is bound to it. Without this guarantee SQLite compiles
    // a query with a range anew for each value: that was most of the time of a call.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    conn.pragma_update(None, "cache_size", -i64::from(CACHE_KIB))
}

fn content(conn: &Connection, path: &Path) -> Result<Content, EmbeddedError> {
    let read = |name| {
        conn.pragma_query_value(None, name, |row| row.get::<_, i32>(0))
            .map_err(|error| EmbeddedError::of(path, error))
    };
    let (application, version) = (read("application_id")?, read("user_version")?);
    if application == APPLICATION_ID {
        return if version == VERSION {
            Ok(Content::Chain)
        } else {
            Err(EmbeddedError::Version {
                path: path.to_owned(),
                actual: version,
                expected: VERSION,
            })
        };
    }
    let tables = conn
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| {
            row.get::<_, i64>(0)
        })
        .map_err(|error| EmbeddedError::of(path, error))?;
    if application == 0 && tables == 0 {
        Ok(Content::Empty)
    } else {
        Err(EmbeddedError::Foreign(path.to_owned()))
    }
}

/// Makes the tables. Within the caller's transaction, so that a file is never half made.
pub(super) fn create_tables(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch(SCHEMA)?;
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    conn.pragma_update(None, "user_version", VERSION)
}

/// Small facts by name.
pub(super) fn meta<T: rusqlite::types::FromSql>(
    conn: &Connection,
    key: &str,
) -> rusqlite::Result<Option<T>> {
    conn.prepare_cached("SELECT value FROM meta WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()
}

pub(super) fn set_meta(
    conn: &Connection,
    key: &str,
    value: impl rusqlite::ToSql,
) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
        .execute(params![key, value])?;
    Ok(())
}

pub(super) fn unset_meta(conn: &Connection, key: &str) -> rusqlite::Result<()> {
    conn.prepare_cached("DELETE FROM meta WHERE key = ?1")?
        .execute([key])?;
    Ok(())
}

/// The last block.
pub(super) fn head(conn: &Connection) -> rusqlite::Result<Head> {
    conn.prepare_cached("SELECT number, hash, timestamp FROM block ORDER BY number DESC LIMIT 1")?
        .query_row([], |row| {
            Ok(Head {
                number: unsigned(row, 0)?,
                hash: hash(row, 1)?,
                timestamp: unsigned(row, 2)?,
            })
        })
}

/// Adds a block with its logs.
pub(super) fn insert_block(
    conn: &Connection,
    block: &BlockRow,
    logs: &[Log],
) -> rusqlite::Result<()> {
    let number = signed(block.header.number);
    let mut header = Vec::with_capacity(640);
    block.header.encode(&mut header);
    let mined = block.transaction.as_ref();
    conn.prepare_cached(
        "INSERT INTO block (number, hash, timestamp, header, tx_hash, sender, succeeded, tx)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        number,
        block.hash.as_slice(),
        signed(block.header.timestamp),
        header,
        mined.map(|mined| mined.hash.as_slice()),
        mined.map(|mined| mined.sender.as_slice()),
        mined.map(|mined| mined.succeeded),
        mined.map(|mined| mined.envelope.encoded_2718()),
    ])?;
    let mut insert = conn.prepare_cached(
        "INSERT INTO log (block, position, address, topic0, topic1, topic2, topic3, data)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    for (position, log) in (0_i64..).zip(logs) {
        let topic = |index: usize| log.topics().get(index).map(B256::as_slice);
        insert.execute(params![
            number,
            position,
            log.address.as_slice(),
            topic(0),
            topic(1),
            topic(2),
            topic(3),
            log.data.data.as_ref(),
        ])?;
    }
    Ok(())
}

const BLOCK_COLUMNS: &str = "SELECT hash, header, tx_hash, sender, succeeded, tx FROM block";

pub(super) fn block_by_number(
    conn: &Connection,
    number: u64,
) -> rusqlite::Result<Option<BlockRow>> {
    conn.prepare_cached(&format!("{BLOCK_COLUMNS} WHERE number = ?1"))?
        .query_row([signed(number)], block_row)
        .optional()
}

pub(super) fn block_by_hash(conn: &Connection, hash: B256) -> rusqlite::Result<Option<BlockRow>> {
    conn.prepare_cached(&format!("{BLOCK_COLUMNS} WHERE hash = ?1"))?
        .query_row([hash.as_slice()], block_row)
        .optional()
}

pub(super) fn block_by_tx(conn: &Connection, hash: B256) -> rusqlite::Result<Option<BlockRow>> {
    conn.prepare_cached(&format!("{BLOCK_COLUMNS} WHERE tx_hash = ?1"))?
        .query_row([hash.as_slice()], block_row)
        .optional()
}

/// Whether a transaction was mined.
pub(super) fn is_mined(conn: &Connection, hash: B256) -> rusqlite::Result<bool> {
    conn.prepare_cached("SELECT 1 FROM block WHERE tx_hash = ?1")?
        .exists([hash.as_slice()])
}

pub(super) fn number_of(conn: &Connection, hash: B256) -> rusqlite::Result<Option<u64>> {
    conn.prepare_cached("SELECT number FROM block WHERE hash = ?1")?
        .query_row([hash.as_slice()], |row| unsigned(row, 0))
        .optional()
}

pub(super) fn hash_of(conn: &Connection, number: u64) -> rusqlite::Result<Option<B256>> {
    conn.prepare_cached("SELECT hash FROM block WHERE number = ?1")?
        .query_row([signed(number)], |row| hash(row, 0))
        .optional()
}

/// Takes the chain back: all above `block` is forgotten. Reads the state tables through, which
/// takes about a second for a million rows; it is for development only.
pub(super) fn delete_above(conn: &Connection, block: u64) -> rusqlite::Result<()> {
    for (table, column) in [
        ("block", "number"),
        ("log", "block"),
        ("account", "block"),
        ("storage", "block"),
    ] {
        conn.execute(
            &format!("DELETE FROM {table} WHERE {column} > ?1"),
            [signed(block)],
        )?;
    }
    Ok(())
}

fn block_row(row: &Row<'_>) -> rusqlite::Result<BlockRow> {
    let header: Vec<u8> = row.get(1)?;
    let header = Header::decode(&mut header.as_slice()).map_err(|error| damaged(1, error))?;
    let transaction = match row.get::<_, Option<[u8; 32]>>(2)? {
        None => None,
        Some(hash) => {
            let bytes: Vec<u8> = row.get(5)?;
            let envelope = TxEnvelope::decode_2718(&mut bytes.as_slice())
                .map_err(|error| damaged(5, error))?;
            Some(Mined {
                hash: hash.into(),
                sender: row.get::<_, [u8; 20]>(3)?.into(),
                succeeded: row.get(4)?,
                envelope,
            })
        }
    };
    Ok(BlockRow {
        hash: hash(row, 0)?,
        header,
        transaction,
    })
}

/// Columns that `log_row` reads, in its order.
pub(super) const LOG_COLUMNS: &str = "log.block, log.position, log.address, log.topic0, log.topic1, \
     log.topic2, log.topic3, log.data, block.hash, block.timestamp, block.tx_hash";

pub(super) fn log_row(row: &Row<'_>) -> rusqlite::Result<LogRow> {
    let mut topics = Vec::with_capacity(4);
    for column in 3..7 {
        match row.get::<_, Option<[u8; 32]>>(column)? {
            Some(topic) => topics.push(B256::from(topic)),
            None => break,
        }
    }
    let data: Vec<u8> = row.get(7)?;
    Ok(LogRow {
        log: Log {
            address: row.get::<_, [u8; 20]>(2)?.into(),
            data: LogData::new_unchecked(topics, data.into()),
        },
        block: unsigned(row, 0)?,
        position: unsigned(row, 1)?,
        block_hash: hash(row, 8)?,
        timestamp: unsigned(row, 9)?,
        tx_hash: hash(row, 10)?,
    })
}

/// The logs of one block.
pub(super) fn logs_of(conn: &Connection, block: u64) -> rusqlite::Result<Vec<LogRow>> {
    conn.prepare_cached(&format!(
        "SELECT {LOG_COLUMNS} FROM log JOIN block ON block.number = log.block
         WHERE log.block = ?1 ORDER BY log.position"
    ))?
    .query_map([signed(block)], log_row)?
    .collect()
}

fn hash(row: &Row<'_>, column: usize) -> rusqlite::Result<B256> {
    Ok(row.get::<_, [u8; 32]>(column)?.into())
}

pub(super) fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.cast_unsigned())
}

/// SQLite's integers are signed; block numbers, times and nonces stay far below the difference.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn damaged(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, Box::new(error))
}

/// Whether SQLite says that the file's content is wrong, rather than that the disk is full or slow.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
    ) || matches!(
        error,
        rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::QueryReturnedNoRows
    )
}
