//! Connections that read, and the threads on which they do: the asynchronous runtime is never blocked,
//! and however many ask, only so many read at once.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::clock::Clock;
use super::error::RpcError;
use super::state::Codes;
use super::store::{self, Head};

/// How long a question may take. Source: geth's `--rpc.evmtimeout`.
const TIME: Duration = Duration::from_secs(5);
/// SQLite looks at the clock every so many of its instructions: about a millisecond.
const INSTRUCTIONS: i32 = 10_000;
/// Readers at the same time, at least and at most.
const READERS: std::ops::RangeInclusive<usize> = 2..=8;

/// The pool; empty connections are opened when first needed.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    codes: Arc<Codes>,
    clock: Clock,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

/// The chain as one reader sees it: all of it at the same block.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) conn: &'a Connection,
    pub(super) codes: &'a Codes,
    pub(super) head: Head,
    /// When the answer must be there.
    pub(super) deadline: Instant,
    /// Wall clock, Unix seconds.
    pub(super) now: u64,
}

impl Readers {
    pub(super) fn new(path: PathBuf, codes: Arc<Codes>, clock: Clock) -> Self {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            path,
            codes,
            clock,
            idle: Mutex::default(),
            permits: Arc::new(Semaphore::new(
                processors.clamp(*READERS.start(), *READERS.end()),
            )),
        }
    }

    /// Runs a question on a thread of its own.
    pub(super) async fn read<T, F>(self: &Arc<Self>, question: F) -> Result<T, RpcError>
    where
        T: Send + 'static,
        F: FnOnce(&View<'_>) -> Result<T, RpcError> + Send + 'static,
    {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|error| RpcError::Internal(error.to_string()))?;
        let readers = Arc::clone(self);
        let answer = tokio::task::spawn_blocking(move || {
            // Held by the thread: whoever asked may have gone, the work goes on.
            let _permit = permit;
            readers.answer(question)
        });
        answer
            .await
            .map_err(|error| RpcError::Internal(error.to_string()))?
    }

    fn answer<T>(
        &self,
        question: impl FnOnce(&View<'_>) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let mut conn = match idle {
            Some(conn) => conn,
            None => store::open_reader(&self.path)?,
        };
        let deadline = Instant::now() + TIME;
        conn.progress_handler(INSTRUCTIONS, Some(move || Instant::now() > deadline))?;
        let answer = {
            // Ends, with its view of the file, when dropped.
            let _transaction = conn.unchecked_transaction()?;
            let view = View {
                head: store::head(&conn)?,
                conn: &conn,
                codes: &self.codes,
                deadline,
                now: self.clock.unix_seconds(),
            };
            question(&view)
        };
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(conn);
        answer
    }
}
