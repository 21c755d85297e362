//! Follows the registry contract's events.
//!
//! Blocks are taken in up to `confirmations` behind the head. The last block taken in is remembered
//! with its hash; when the chain has another one there, it was reorganised deeper than that, and the
//! view is built anew from the first block, at once even where that happens while it is read. What was taken in is kept in a file, so that a restart
//! goes on where it ended.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::eips::BlockNumberOrTag;
use alloy::primitives::{Address, B256};
use alloy::providers::{DynProvider, Provider};
use alloy::rpc::types::{Filter, Log};
use alloy::sol_types::SolEventInterface;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use super::{Event, Snapshot};
use crate::ledger::{Ledger, LedgerError};

/// Blocks that are asked for at once; halved when the chain refuses, doubled when it does not.
const RANGE_FIRST: u64 = 2_000;
const RANGE_MAX: u64 = 50_000;
/// How often a chain is read that is reorganised each time.
const ATTEMPTS: u32 = 4;
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
    at: Instant,
}

#[derive(Debug, Clone)]
struct Cursor {
    state: State,
    range: u64,
}

/// What is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    version: u32,
    chain_id: u64,
    contract: Address,
    /// The last block taken in, with its hash.
    last: Option<(u64, B256)>,
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
            at: Instant::now(),
        };
        let cursor = Cursor {
            state,
            range: RANGE_FIRST,
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
        let before = cursor.state.last;
        let result = self.take_in(&mut cursor).await;
        let is_current = result.is_ok();
        if cursor.state.last != before || is_current {
            let snapshot = &cursor.state.snapshot;
            self.shared.seen.send_modify(|seen| {
                if *seen.snapshot != *snapshot {
                    seen.snapshot = Arc::new(snapshot.clone());
                }
                seen.block = cursor.state.last.map(|(number, _)| number);
                if is_current {
                    seen.at = started;
                }
            });
        }
        if cursor.state.last != before
            && let Some(file) = &self.shared.config.file
            && let Err(error) = write(file, &cursor.state)
        {
            // The next start reads more of the chain again: slower, not wrong.
            tracing::warn!(%error, file = %file.display(), "cannot keep the registry view");
        }
        result
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

    async fn take_in(&self, cursor: &mut Cursor) -> Result<(), LedgerError> {
        for _ in 0..ATTEMPTS {
            if self.read_on(cursor).await? == Round::Current {
                return Ok(());
            }
        }
        Err(LedgerError::Reorganising)
    }

    async fn read_on(&self, cursor: &mut Cursor) -> Result<Round, LedgerError> {
        let Shared { ledger, config, .. } = &*self.shared;
        let provider = ledger.provider();
        let head = provider.get_block_number().await?;
        if let Some((number, hash)) = cursor.state.last
            && hash_of(provider, number).await? != Some(hash)
        {
            tracing::warn!(number, "the chain was reorganised: reading it anew");
            cursor.state.last = None;
            cursor.state.snapshot = Snapshot::default();
        }
        let target = head.saturating_sub(config.confirmations);
        loop {
            let from = match cursor.state.last {
                Some((number, _)) => number + 1,
                None => ledger.addresses().first_block,
            };
            if from > target {
                return Ok(Round::Current);
            }
            let to = target.min(from.saturating_add(cursor.range - 1));
            // Before and after: logs are of that block's chain only if it stood there all the while.
            let before = hash_of(provider, to).await?;
            let filter = Filter::new()
                .address(ledger.addresses().provider_registry)
                .from_block(from)
                .to_block(to);
            let logs = match provider.get_logs(&filter).await {
                Ok(logs) => logs,
                Err(error) if error.is_error_resp() && cursor.range > 1 => {
                    tracing::debug!(from, to, %error, "a smaller range");
                    cursor.range = (to - from + 1).div_ceil(2).min(cursor.range / 2).max(1);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let hash = hash_of(provider, to).await?;
            let Some(hash) = hash.filter(|_| hash == before) else {
                return Ok(Round::Reorganised);
            };
            // And these logs have to go on where the last ones ended: the chain may have changed below
            // them before the first look at their block.
            if let Some((number, known)) = cursor.state.last
                && hash_of(provider, number).await? != Some(known)
            {
                return Ok(Round::Reorganised);
            }
            // On a copy: an error halfway must not leave half a range taken in.
            let mut snapshot = cursor.state.snapshot.clone();
            for log in logs {
                let time = block_time(provider, &log).await?;
                match Event::decode_log(&log.inner) {
                    Ok(event) => snapshot.apply(event.data, time),
                    Err(error) => tracing::debug!(%error, "an unknown event"),
                }
            }
            cursor.state.snapshot = snapshot;
            cursor.state.last = Some((to, hash));
            cursor.range = cursor.range.saturating_mul(2).min(RANGE_MAX);
        }
    }
}

/// How a round without an error ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// All that the chain has is taken in.
    Current,
    /// The chain became another one meanwhile; the next round finds out from where on.
    Reorganised,
}

async fn hash_of(provider: &DynProvider, number: u64) -> Result<Option<B256>, LedgerError> {
    let block = provider.get_block_by_number(BlockNumberOrTag::Number(number));
    Ok(block.await?.map(|block| block.header.hash))
}

/// Newer chains say it with the log; of others the block is asked.
async fn block_time(provider: &DynProvider, log: &Log) -> Result<u64, LedgerError> {
    if let Some(time) = log.block_timestamp {
        return Ok(time);
    }
    let number = BlockNumberOrTag::Number(log.block_number.unwrap_or_default());
    let block = provider.get_block_by_number(number).await?;
    Ok(block.map_or(0, |block| block.header.timestamp))
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
