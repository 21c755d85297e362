//! The file itself: its tables, how it is opened, and amounts in it.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Row};

/// "TNZP": says that a SQLite file is one of these.
const APPLICATION_ID: i32 = 0x544E_5A50;
/// Bumped when the tables change their meaning.
const VERSION: i32 = 1;
/// How long another model server of the wallet may hold the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Amounts are 16 bytes, big-endian: they compare as numbers do.
const SCHEMA: &str = "
CREATE TABLE channel (
  id BLOB PRIMARY KEY,
  owner TEXT NOT NULL,
  payer BLOB NOT NULL,
  signer BLOB NOT NULL,
  deposit BLOB NOT NULL,
  settled BLOB NOT NULL,
  spent BLOB NOT NULL,
  status INTEGER NOT NULL,       -- 0 open, 1 closing, 2 final
  binds_requests INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE voucher (
  channel BLOB NOT NULL,
  amount BLOB NOT NULL,
  signature BLOB NOT NULL,
  PRIMARY KEY (channel, amount)
) STRICT, WITHOUT ROWID;
CREATE TABLE request (
  key BLOB PRIMARY KEY,
  request_id TEXT NOT NULL,
  channel BLOB NOT NULL,
  model TEXT NOT NULL,
  at INTEGER NOT NULL,
  input_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  charged BLOB NOT NULL,
  finish TEXT NOT NULL,          -- empty while it runs; later too, where its end was not seen
  ttft_ms INTEGER NOT NULL,
  duration_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE settlement (
  tx BLOB NOT NULL,
  channel BLOB NOT NULL,
  total BLOB NOT NULL,           -- wei settled of the channel by then
  at INTEGER NOT NULL,
  PRIMARY KEY (tx, channel)
) STRICT, WITHOUT ROWID;
";

/// Why the books cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BooksError {
    /// The disk or SQLite fails.
    #[error("the payment books cannot be used: {0}")]
    Io(String),
    /// Some other program's file, or a newer version's.
    #[error("{0} is no file of payment books of this version")]
    Foreign(String),
    /// The channel is another model server's.
    #[error("this channel belongs to another model server of the provider")]
    Elsewhere,
    /// Too many changes wait.
    #[error("too many payments at once")]
    Busy,
    /// The server stops.
    #[error("the payment books are closed")]
    Closed,
}

impl From<rusqlite::Error> for BooksError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Io(error.to_string())
    }
}

/// Opens or makes the file, readable by its owner only.
pub(crate) fn open(path: &Path) -> Result<Connection, BooksError> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(|error| BooksError::Io(error.to_string()))?;
    }
    make_private(path).map_err(|error| BooksError::Io(error.to_string()))?;
    let mut conn = Connection::open(path)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    // One fsync at each commit: what was committed survives a loss of power too.
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.set_prepared_statement_cache_capacity(32);
    // Two servers of a wallet may start at the same time.
    let transaction = super::begin(&mut conn)?;
    let number =
        |name: &str| transaction.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    match (number("application_id")?, number("user_version")?) {
        (APPLICATION_ID, VERSION) => {}
        (0, 0) => {
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
        _ => return Err(BooksError::Foreign(path.display().to_string())),
    }
    transaction.commit()?;
    Ok(conn)
}

/// `None` where there is no file.
pub(crate) fn read_only(path: &Path) -> Result<Option<Connection>, BooksError> {
    if !path.exists() {
        return Ok(None);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    let id: i32 = conn.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if id != APPLICATION_ID {
        return Err(BooksError::Foreign(path.display().to_string()));
    }
    Ok(Some(conn))
}

/// Vouchers are money: nobody else reads them.
pub(crate) fn make_private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::File::options();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

pub(crate) fn wei_blob(amount: u128) -> [u8; 16] {
    amount.to_be_bytes()
}

pub(crate) fn amount(row: &Row<'_>, column: usize) -> rusqlite::Result<u128> {
    Ok(u128::from_be_bytes(row.get::<_, [u8; 16]>(column)?))
}

/// SQLite's integers are signed.
pub(crate) fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
