//! Follows the registry contract's events.
//!
//! `ledger/logs.rs` reads them. After a reorganisation the view is built anew from the first block:
//! readers see the old one until that is done. What was taken in is kept in a file, so that a restart
//! goes on where it ended.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256};
use alloy::rpc::types::{Filter, Log};
use alloy::sol_types::SolEventInterface;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use super::{Event, Snapshot};
use crate::ledger::logs::{Block, LogReader, Question, Round, Sink};
use crate::ledger::{Ledger, LedgerError};

/// Bumped when the file's content changes its meaning.
const FILE_VERSION: u32 = 1;

/// How to follow.
#[derive(Debug, Clone)]
pub struct FollowConfig {
    /// Blocks on top of a block before it counts.
    pub confirmations: u64,
    /// Where what was taken in is kept; `None` keeps nothing.
    pub file: Option<PathBuf>,
}

/// The view; cheap to clone, and reading it never waits for the chain.
#[derive(Debug, Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ledger: Ledger,
    config: FollowConfig,
    seen: watch::Sender<Seen>,
    /// Held by whoever takes events in.
    cursor: Mutex<Cursor>,
}

/// What readers see.
#[derive(Debug, Clone)]
struct Seen {
    snapshot: Arc<Snapshot>,
    block: Option<u64>,
    /// Unix seconds of that block.
    time: u64,
    at: Instant,
}

#[derive(Debug, Clone)]
struct Cursor {
    taken: Taken,
    reader: LogReader,
}

#[derive(Debug, Clone)]
struct Taken {
    state: State,
    /// The chain was reorganised: nobody sees the state until it is complete.
    is_rebuilding: bool,
}

/// What is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    version: u32,
    chain_id: u64,
    contract: Address,
    /// The last block taken in, with its hash.
    last: Option<(u64, B256)>,
    /// Unix seconds of that block.
    #[serde(default)]
    time: u64,
    snapshot: Snapshot,
}

impl Registry {
    /// Reads the file, when there is one that fits; asks the chain nothing yet.
    pub fn open(ledger: Ledger, config: FollowConfig) -> Self {
        let fresh = State {
            version: FILE_VERSION,
            chain_id: ledger.chain_id(),
            contract: ledger.addresses().provider_registry,
            last: None,
            time: 0,
            snapshot: Snapshot::default(),
        };
        let kept = config.file.as_deref().and_then(read);
        let state = kept
            .filter(|kept| {
                (kept.version, kept.chain_id, kept.contract)
                    == (fresh.version, fresh.chain_id, fresh.contract)
            })
            .unwrap_or(fresh);
        let seen = Seen {
            snapshot: Arc::new(state.snapshot.clone()),
            block: state.last.map(|(number, _)| number),
            time: state.time,
            at: Instant::now(),
        };
        let last = state.last.map(|(number, hash)| Block {
            number,
            hash,
            time: state.time,
        });
        let cursor = Cursor {
            reader: LogReader::after(last),
            taken: Taken {
                state,
                is_rebuilding: false,
            },
        };
        Self {
            shared: Arc::new(Shared {
                ledger,
                config,
                seen: watch::Sender::new(seen),
                cursor: Mutex::new(cursor),
            }),
        }
    }

    /// The ledger that is followed.
    pub fn ledger(&self) -> &Ledger {
        &self.shared.ledger
    }

    /// The registry as last seen.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.shared.seen.borrow().snapshot)
    }

    /// The last block taken in.
    pub fn block(&self) -> Option<u64> {
        self.shared.seen.borrow().block
    }

    /// Unix seconds of the last block taken in, by which the contracts reckon.
    pub fn time(&self) -> u64 {
        self.shared.seen.borrow().time
    }

    /// How old the view is at most.
    pub fn lag(&self) -> Duration {
        self.shared.seen.borrow().at.elapsed()
    }

    /// Takes in all that the chain has by now. On an error what came before it is kept.
    pub async fn catch_up(&self) -> Result<(), LedgerError> {
        let asked = Instant::now();
        let mut cursor = self.shared.cursor.lock().await;
        // Whoever waited for somebody who began later need not ask again.
        if self.shared.seen.borrow().at > asked {
            return Ok(());
        }
        let started = Instant::now();
        let Cursor { taken, reader } = &mut *cursor;
        let before = taken.state.last;
        let provider = self.shared.ledger.provider();
        let question = self.shared.question();
        let result = reader.catch_up(provider, &question, taken).await;
        let is_current = matches!(result, Ok(Round::Current));
        taken.is_rebuilding &= !is_current;
        let is_new = taken.state.last != before && !taken.is_rebuilding;
        if is_new || is_current {
            let snapshot = &taken.state.snapshot;
            self.shared.seen.send_modify(|seen| {
                if *seen.snapshot != *snapshot {
                    seen.snapshot = Arc::new(snapshot.clone());
                }
                seen.block = taken.state.last.map(|(number, _)| number);
                seen.time = taken.state.time;
                if is_current {
                    seen.at = started;
                }
            });
        }
        if is_new
            && let Some(file) = &self.shared.config.file
            && let Err(error) = write(file, &taken.state)
        {
            // The next start reads more of the chain again: slower, not wrong.
            tracing::warn!(%error, file = %file.display(), "cannot keep the registry view");
        }
        match result? {
            Round::Current | Round::Lagging => Ok(()),
            Round::Reorganised => Err(LedgerError::Reorganising),
        }
    }

    /// Catches up every `period`, until the future is dropped. A chain that does not answer is asked
    /// again ever more slowly.
    pub async fn follow(&self, period: Duration) {
        let mut pause = period;
        loop {
            match self.catch_up().await {
                Ok(()) => pause = period,
                Err(error) => {
                    tracing::warn!(%error, "the ledger cannot be followed");
                    pause = (pause * 2).min(Duration::from_secs(30));
                }
            }
            tokio::time::sleep(pause).await;
        }
    }
}

impl Shared {
    fn question(&self) -> Question {
        let addresses = self.ledger.addresses();
        Question {
            filter: Filter::new().address(addresses.provider_registry),
            first_block: addresses.first_block,
            last_block: u64::MAX,
            confirmations: self.config.confirmations,
        }
    }
}

impl Sink for Taken {
    fn take(&mut self, logs: Vec<Log>, last: Block) {
        for log in logs {
            let time = log.block_timestamp.unwrap_or_default();
            match Event::decode_log(&log.inner) {
                Ok(event) => self.state.snapshot.apply(event.data, time),
                Err(error) => tracing::debug!(%error, "an unknown event"),
            }
        }
        self.state.last = Some((last.number, last.hash));
        self.state.time = last.time;
    }

    fn start_anew(&mut self) {
        self.is_rebuilding = true;
        self.state.last = None;
        self.state.snapshot = Snapshot::default();
    }
}

fn read(file: &Path) -> Option<State> {
    let bytes = std::fs::read(file).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn write(file: &Path, state: &State) -> std::io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let new = tempfile::NamedTempFile::new_in(directory)?;
    serde_json::to_writer(std::io::BufWriter::new(new.as_file()), state)?;
    new.persist(file)?;
    Ok(())
}
