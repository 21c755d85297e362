//! Reads the logs of a contract in the order of the chain, in ranges that the chain takes, and notices
//! when the chain takes blocks back.
//!
//! ```text
//! head ─▶ does the last block still stand? ─▶ range ─▶ logs ─▶ is it all of one chain? ─▶ Sink
//!                    │ no: Sink::start_anew     ▲ refused: a smaller one │
//!                    ▼                          └────────────────────────┘
//! ```
//!
//! Blocks are read up to `confirmations` behind the head. The last block read is remembered with its
//! hash; when the chain has another one there, it was reorganised deeper than that, and all is read
//! anew. When the chain has none there, the answer may be a node's that lags behind the one asked
//! before, and only if that goes on the chain has become shorter.

use alloy::eips::BlockNumberOrTag;
use alloy::primitives::B256;
use alloy::providers::{DynProvider, Provider};
use alloy::rpc::types::{Filter, Log};
use alloy::transports::{RpcError, TransportError};

use super::{LedgerError, repeat};

/// Blocks that are asked for at once; halved when the chain refuses, doubled when it does not.
const RANGE_FIRST: u64 = 2_000;
const RANGE_MAX: u64 = 50_000;
/// How often a chain is read anew that is reorganised while it is read.
const ATTEMPTS: u32 = 4;
/// Ranges that have to succeed after a refusal until one is doubled again.
const CALM: u32 = 16;
/// Rounds in a row in which the last block may be missing until the chain counts as shorter.
const LAGS_MAX: u32 = 5;

/// A block of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its height.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
    /// Unix seconds.
    pub time: u64,
}

/// Which logs are read.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// Contract and topics; its range of blocks is set here.
    pub(crate) filter: Filter,
    /// The first block that is read.
    pub(crate) first_block: u64,
    /// The last one, however long the chain is.
    pub(crate) last_block: u64,
    /// Blocks on top of a block before it counts.
    pub(crate) confirmations: u64,
}

/// Who takes in what is read.
pub(crate) trait Sink {
    /// Logs of the blocks up to `last`, which go on where those before ended. All have the time of
    /// their block.
    fn take(&mut self, logs: Vec<Log>, last: Block);
    /// The chain took blocks back that were taken in: they come again from the first one.
    fn start_anew(&mut self);
}

/// How far the logs are read.
#[derive(Debug, Clone)]
pub(crate) struct LogReader {
    last: Option<Block>,
    range: u64,
    /// Ranges until the next is doubled.
    calm: u32,
    /// Rounds in a row in which the last block was missing.
    lags: u32,
}

/// How a round without an error ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    /// All that the chain has is taken in.
    Current,
    /// A block is missing, perhaps on a node that lags behind another: a later round finds out.
    Lagging,
    /// The chain became another one while it was read.
    Reorganised,
}

impl LogReader {
    /// Goes on after that block.
    pub(crate) fn after(last: Option<Block>) -> Self {
        Self {
            last,
            range: RANGE_FIRST,
            calm: 0,
            lags: 0,
        }
    }

    /// Reads all that the chain has by now. After an error, and where the chain does not stand still,
    /// what came before is taken in. Dropped halfway, it goes on the next time.
    pub(crate) async fn catch_up(
        &mut self,
        provider: &DynProvider,
        question: &Question,
        sink: &mut impl Sink,
    ) -> Result<Round, LedgerError> {
        let mut round = self.round(provider, question, sink).await?;
        for _ in 1..ATTEMPTS {
            if round != Round::Reorganised {
                break;
            }
            round = self.round(provider, question, sink).await?;
        }
        Ok(round)
    }

    async fn round(
        &mut self,
        provider: &DynProvider,
        question: &Question,
        sink: &mut impl Sink,
    ) -> Result<Round, LedgerError> {
        let head = provider.get_block_number().await?;
        if let Some(last) = self.last {
            match block_at(provider, last.number).await? {
                Some(found) if found.hash == last.hash => self.lags = 0,
                // A chain in this process is one node, and does not lag behind itself.
                None if self.lags < LAGS_MAX && !provider.client().is_local() => {
                    self.lags += 1;
                    return Ok(Round::Lagging);
                }
                _ => {
                    tracing::warn!(
                        number = last.number,
                        "the chain was reorganised: reading it anew"
                    );
                    self.lags = 0;
                    self.last = None;
                    sink.start_anew();
                }
            }
        }
        let target = head.saturating_sub(question.confirmations);
        let target = target.min(question.last_block);
        loop {
            let from = self
                .last
                .map_or(question.first_block, |last| last.number + 1);
            if from > target {
                return Ok(Round::Current);
            }
            let to = target.min(from.saturating_add(self.range - 1));
            let Some(block) = block_at(provider, to).await? else {
                return Ok(Round::Lagging);
            };
            let Some(logs) = self.logs(provider, &question.filter, from, to).await? else {
                continue;
            };
            let Some(logs) = with_times(provider, logs).await? else {
                return Ok(Round::Lagging);
            };
            // Reorganised meanwhile, nobody knows which blocks these logs are from. Below them, they
            // do not go on where the last ones ended.
            let is_whole = block_at(provider, to).await? == Some(block);
            let goes_on = match self.last {
                Some(last) => {
                    let found = block_at(provider, last.number).await?;
                    found.is_some_and(|found| found.hash == last.hash)
                }
                None => true,
            };
            if !is_whole || !goes_on {
                return Ok(Round::Reorganised);
            }
            self.last = Some(block);
            sink.take(logs, block);
            if self.calm == 0 {
                self.range = self.range.saturating_mul(2).min(RANGE_MAX);
            }
            self.calm = self.calm.saturating_sub(1);
        }
    }

    /// `None` where the chain wants a smaller range, which is asked for next.
    async fn logs(
        &mut self,
        provider: &DynProvider,
        filter: &Filter,
        from: u64,
        to: u64,
    ) -> Result<Option<Vec<Log>>, LedgerError> {
        let filter = filter.clone().from_block(from).to_block(to);
        let error = match provider.get_logs(&filter).await {
            Ok(logs) => return Ok(Some(logs)),
            Err(error) => error,
        };
        let reason = Refusal::of(&error);
        let can_shrink = to > from;
        if reason != Refusal::Other && can_shrink {
            tracing::debug!(from, to, %error, "a smaller range");
            self.range = (to - from).div_ceil(2);
            self.calm = CALM;
        }
        if reason == Refusal::TooMany && can_shrink {
            return Ok(None);
        }
        Err(error.into())
    }
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

/// The block of that height, where the chain has one.
pub(crate) async fn block_at(
    provider: &DynProvider,
    number: u64,
) -> Result<Option<Block>, LedgerError> {
    let block = provider.get_block_by_number(BlockNumberOrTag::Number(number));
    Ok(block.await?.map(|block| Block {
        number,
        hash: block.header.hash,
        time: block.header.timestamp,
    }))
}

/// Newer chains tell the time with the log; of others the block is asked, once for all its logs.
/// `None` where a block is missing.
async fn with_times(
    provider: &DynProvider,
    mut logs: Vec<Log>,
) -> Result<Option<Vec<Log>>, LedgerError> {
    let mut known: Option<Block> = None;
    for log in &mut logs {
        if log.block_timestamp.is_some() {
            continue;
        }
        let number = log.block_number.unwrap_or_default();
        if known.is_none_or(|known| known.number != number) {
            known = block_at(provider, number).await?;
        }
        let Some(block) = known else {
            return Ok(None);
        };
        log.block_timestamp = Some(block.time);
    }
    Ok(Some(logs))
}
