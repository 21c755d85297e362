//! A development chain inside this process: an EVM, and one SQLite file with all there is to it.
//!
//! ```text
//! provider ─▶ transport.rs ─▶ rpc.rs ─┬─▶ readers.rs (each at one block) ◀── SQLite, WAL
//!                                     └─▶ writer.rs (one thread) ─▶ execute.rs ─▶ commit ─▶ answer
//! ```
//!
//! There is a block for each transaction, mined as it comes. Gas is free. A transaction that was
//! acknowledged is on the disk. Old states can be asked for, and opening replays nothing.
//!
//! A file keeps the contracts with which it was begun: their code is part of its state. A program with
//! other contracts refuses it ([`EmbeddedError::OtherContracts`]), because calls made for the one would
//! fail on the other, or worse, not fail.

mod clock;
mod error;
mod execute;
mod filters;
mod genesis;
mod logs;
mod params;
mod raw;
mod readers;
mod rpc;
mod state;
mod store;
mod transport;
mod view;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use alloy::providers::DynProvider;
use alloy::rpc::client::RpcClient;
use alloy::rpc::json_rpc::ErrorPayload;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::ledger::{Addresses, provider_of};
use clock::Clock;
use error::RpcError;
use filters::Filters;
use readers::Readers;
use state::Codes;
use store::{Content, FileLock};
use transport::InProcess;
use writer::{Job, Writer};

pub use genesis::{
    BLOCK_GAS_LIMIT, CHAIN_ID, DEVELOPMENT_ACCOUNT, DEVELOPMENT_KEY, GENESIS_TIMESTAMP,
};

/// The chain; cheap to clone. It ends, and frees its file, when the last handle and the last provider
/// of it are dropped.
#[derive(Debug, Clone)]
pub struct EmbeddedChain {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Taken when the chain ends.
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    readers: Arc<Readers>,
    filters: Mutex<Filters>,
    /// Freed last.
    _lock: FileLock,
}

/// Why a file cannot be used as a chain.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Another process, or another handle of this one, has it open.
    #[error(
        "the ledger {} is in use by another process; stop it, or use its address with --chain",
        .0.display()
    )]
    InUse(PathBuf),
    /// It is something else.
    #[error("{} is no ledger of this program; choose another file", .0.display())]
    Foreign(PathBuf),
    /// It was written by another version of this program.
    #[error(
        "the ledger {} has version {actual}, but this program reads version {expected}; \
         use the program that wrote it, or move the file away to begin anew",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// What it is.
        actual: i32,
        /// What is read here.
        expected: i32,
    },
    /// It was begun with other contracts, or with other parameters of them.
    #[error(
        "the ledger {} was begun with other contracts than this program has; \
         use the program that began it, or move the file away to begin anew",
        .0.display()
    )]
    OtherContracts(PathBuf),
    /// Its content is wrong.
    #[error(
        "the ledger {} is damaged ({reason}); restore it from a copy, or move it away to begin anew",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The contracts of this program cannot be deployed.
    #[error("no ledger can be begun: {0}")]
    Genesis(String),
    /// The file system, or SQLite, refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl EmbeddedError {
    fn of(path: &Path, error: rusqlite::Error) -> Self {
        let path = path.to_owned();
        if store::is_damage(&error) {
            let reason = error.to_string();
            return Self::Damaged { path, reason };
        }
        Self::Io {
            path,
            source: io::Error::other(error),
        }
    }
}

impl EmbeddedChain {
    /// Opens the chain of a SQLite file; begins one where there is no file. Beside it lie
    /// `PATH.lock`, and SQLite's `PATH-wal` and `PATH-shm` while it is open.
    pub fn open(path: &Path) -> Result<Self, EmbeddedError> {
        Self::start(path, Clock::system())
    }

    /// As [`EmbeddedChain::open`], with another clock than the system's: Unix seconds.
    pub fn open_with_clock(
        path: &Path,
        clock: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Self, EmbeddedError> {
        Self::start(path, Clock::new(clock))
    }

    fn start(path: &Path, clock: Clock) -> Result<Self, EmbeddedError> {
        let failed = |error| EmbeddedError::of(path, error);
        let lock = FileLock::take(path)?;
        let (conn, content) = store::open(path)?;
        let codes = Arc::new(Codes::default());
        let transactions = genesis::transactions();
        let fingerprint = genesis::fingerprint(&transactions);
        if content == Content::Empty {
            Writer::create(&conn, &codes, transactions)
                .map_err(|error| EmbeddedError::Genesis(error.to_string()))?;
        }
        let begun = store::meta::<[u8; 32]>(&conn, "genesis").map_err(failed)?;
        if begun != Some(fingerprint.0) {
            return Err(EmbeddedError::OtherContracts(path.to_owned()));
        }
        let writer = Writer::new(path.to_owned(), conn, Arc::clone(&codes), clock.clone())
            .map_err(failed)?;
        let (jobs, waiting) = mpsc::channel(writer::WAITING);
        let writer = std::thread::Builder::new()
            .name("ledger-writer".to_owned())
            .spawn(move || writer.run(waiting))
            .map_err(|source| EmbeddedError::Io {
                path: path.to_owned(),
                source,
            })?;
        let inner = Inner {
            jobs: Some(jobs),
            writer: Some(writer),
            readers: Arc::new(Readers::new(path.to_owned(), codes, clock)),
            filters: Mutex::default(),
            _lock: lock,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Where the contracts are on every embedded chain.
    pub const fn addresses() -> Addresses {
        genesis::ADDRESSES
    }

    /// The chain as everything else here sees one.
    pub fn provider(&self) -> DynProvider {
        let transport = InProcess {
            chain: self.clone(),
        };
        provider_of(RpcClient::new(transport, true))
    }

    /// Answers one JSON-RPC request. Needs a tokio runtime.
    pub async fn request(
        &self,
        method: &str,
        params: Option<&RawValue>,
    ) -> Result<Box<RawValue>, ErrorPayload> {
        let answer = self.answer(method, params).await;
        answer.map_err(RpcError::into)
    }
}

impl Drop for Inner {
    /// Waits for the writer: when the file is free, nothing of this chain touches it any more.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the writer of the embedded chain panicked");
        }
    }
}
