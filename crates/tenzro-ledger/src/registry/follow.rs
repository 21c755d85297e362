//! Follows the registry contract's events.
//!
//! Blocks are taken in up to `confirmations` behind the head. The last block taken in is remembered
//! with its hash; when the chain has another one there, it was reorganised deeper than that, and the
//! view is built anew from the first block: readers see the old one until that is done. When the chain
//! has none there, the answer may be a node's that lags behind the one asked before, and only if that
//! goes on the chain has become shorter. What was taken in is kept in a file, so that a restart goes on
//! where it ended.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::eips::BlockNumberOrTag;
use alloy::primitives::{Address, B256};
use alloy::providers::{DynProvider, Provider};
use alloy::rpc::types::{Filter, Log};
use alloy::sol_types::SolEventInterface;
use alloy::transports::{RpcError, TransportError};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use super::{Event, Snapshot};
use crate::ledger::{Ledger, LedgerError, repeat};

/// Blocks that are asked for at once; halved when the chain refuses, doubled when it does not.
const RANGE_FIRST: u64 = 2_000;
const RANGE_MAX: u64 = 50_000;
/// How often a chain is read anew that is reorganised while it is read.
const ATTEMPTS: u32 = 4;
/// Ranges that have to succeed after a refusal until one is doubled again.
const CALM: u32 = 16;
/// Rounds in a row in which the last block may be missing until the chain counts as shorter.
const LAGS_MAX: u32 = 5;
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
    state: State,
    range: u64,
    /// Ranges until the next is doubled.
    calm: u32,
    /// Rounds in a row in which the last block was missing.
    lags: u32,
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
        let cursor = Cursor {
            state,
            range: RANGE_FIRST,
            calm: 0,
            lags: 0,
            is_rebuilding: false,
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
        let before = cursor.state.last;
        let mut result = self.take_in(&mut cursor).await;
        for _ in 1..ATTEMPTS {
            if !matches!(result, Ok(Round::Reorganised)) {
                break;
            }
            result = self.take_in(&mut cursor).await;
        }
        let is_current = matches!(result, Ok(Round::Current));
        cursor.is_rebuilding &= !is_current;
        let is_new = cursor.state.last != before && !cursor.is_rebuilding;
        if is_new || is_current {
            let snapshot = &cursor.state.snapshot;
            self.shared.seen.send_modify(|seen| {
                if *seen.snapshot != *snapshot {
                    seen.snapshot = Arc::new(snapshot.clone());
                }
                seen.block = cursor.state.last.map(|(number, _)| number);
                seen.time = cursor.state.time;
                if is_current {
                    seen.at = started;
                }
            });
        }
        if is_new
            && let Some(file) = &self.shared.config.file
            && let Err(error) = write(file, &cursor.state)
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

    async fn take_in(&self, cursor: &mut Cursor) -> Result<Round, LedgerError> {
        let Shared { ledger, config, .. } = &*self.shared;
        let provider = ledger.provider();
        let head = provider.get_block_number().await?;
        if let Some((number, hash)) = cursor.state.last {
            match block_of(provider, number).await? {
                Some((found, _)) if found == hash => cursor.lags = 0,
                // A chain in this process is one node, and does not lag behind itself.
                None if cursor.lags < LAGS_MAX && !provider.client().is_local() => {
                    cursor.lags += 1;
                    return Ok(Round::Lagging);
                }
                _ => {
                    tracing::warn!(number, "the chain was reorganised: reading it anew");
                    cursor.lags = 0;
                    cursor.is_rebuilding = true;
                    cursor.state.last = None;
                    cursor.state.snapshot = Snapshot::default();
                }
            }
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
            let Some((hash, time)) = block_of(provider, to).await? else {
                return Ok(Round::Lagging);
            };
            let filter = Filter::new()
                .address(ledger.addresses().provider_registry)
                .from_block(from)
                .to_block(to);
            let logs = match provider.get_logs(&filter).await {
                Ok(logs) => logs,
                Err(error) => {
                    let reason = Refusal::of(&error);
                    let can_shrink = to > from;
                    if reason != Refusal::Other && can_shrink {
                        tracing::debug!(from, to, %error, "a smaller range");
                        cursor.range = (to - from).div_ceil(2);
                        cursor.calm = CALM;
                    }
                    if reason == Refusal::TooMany && can_shrink {
                        continue;
                    }
                    return Err(error.into());
                }
            };
            // On a copy: an error halfway must not leave half a range taken in.
            let mut snapshot = cursor.state.snapshot.clone();
            let mut block = None;
            for log in logs {
                let Some(time) = block_time(provider, &log, &mut block).await? else {
                    return Ok(Round::Lagging);
                };
                match Event::decode_log(&log.inner) {
                    Ok(event) => snapshot.apply(event.data, time),
                    Err(error) => tracing::debug!(%error, "an unknown event"),
                }
            }
            // Reorganised meanwhile, nobody knows which blocks these events are from. Below them, they
            // do not go on where the last ones ended.
            let is_whole = block_of(provider, to).await? == Some((hash, time));
            let goes_on = match cursor.state.last {
                Some((number, hash)) => {
                    let found = block_of(provider, number).await?;
                    found.is_some_and(|(found, _)| found == hash)
                }
                None => true,
            };
            if !is_whole || !goes_on {
                return Ok(Round::Reorganised);
            }
            cursor.state.snapshot = snapshot;
            cursor.state.last = Some((to, hash));
            cursor.state.time = time;
            if cursor.calm == 0 {
                cursor.range = cursor.range.saturating_mul(2).min(RANGE_MAX);
            }
            cursor.calm = cursor.calm.saturating_sub(1);
        }
    }
}

/// How a round without an error ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// All that the chain has is taken in.
    Current,
    /// A block is missing, perhaps on a node that lags behind another: a later round finds out.
    Lagging,
    /// The chain became another one while it was read.
    Reorganised,
}

/// What a refused question for logs means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// Too many blocks or logs: ask for fewer at once.
    TooMany,
    /// No answer, perhaps for the same reason: ask for fewer next time.
    Unclear,
    /// The number of blocks has nothing to do with it.
    Other,
}

impl Refusal {
    /// Nodes agree on no code and no words for it, so that every error of JSON-RPC counts that is not
    /// known to be another.
    fn of(error: &TransportError) -> Self {
        match error {
            RpcError::ErrorResp(payload) if repeat::is_too_often_for_logs(payload) => Self::Other,
            RpcError::ErrorResp(_) => Self::TooMany,
            RpcError::Transport(error) => match error.as_http_error().map(|error| error.status) {
                Some(401..=404 | 407 | 429) => Self::Other,
                Some(400..=499) => Self::TooMany,
                None if repeat::is_never_sent(error) => Self::Other,
                _ => Self::Unclear,
            },
            RpcError::DeserError { .. } => Self::Unclear,
            _ => Self::Other,
        }
    }
}

/// Hash and time of a block.
async fn block_of(provider: &DynProvider, number: u64) -> Result<Option<(B256, u64)>, LedgerError> {
    let block = provider.get_block_by_number(BlockNumberOrTag::Number(number));
    let header = block.await?.map(|block| block.header);
    Ok(header.map(|header| (header.hash, header.timestamp)))
}

/// Newer chains say it with the log; of others the block is asked, once for all its logs.
async fn block_time(
    provider: &DynProvider,
    log: &Log,
    last: &mut Option<(u64, u64)>,
) -> Result<Option<u64>, LedgerError> {
    if log.block_timestamp.is_some() {
        return Ok(log.block_timestamp);
    }
    let number = log.block_number.unwrap_or_default();
    if last.is_none_or(|(known, _)| known != number) {
        let block = provider.get_block_by_number(BlockNumberOrTag::Number(number));
        *last = block.await?.map(|block| (number, block.header.timestamp));
    }
    Ok(last.map(|(_, time)| time))
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
