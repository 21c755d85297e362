//! The one thread that changes the chain.
//!
//! ```text
//! requests ─▶ bounded channel ─▶ all that wait ─▶ one SQLite transaction ─▶ commit (one fsync) ─▶ answers
//! ```
//!
//! Nobody is answered before the commit: what was acknowledged is on the disk. The slower the disk,
//! the more requests share an fsync. A transaction that overtook the one before it waits in `early.rs`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Instant;

use alloy::consensus::proofs::{calculate_receipt_root, calculate_transaction_root};
use alloy::consensus::{
    Header, Receipt, ReceiptEnvelope, TxEnvelope, constants::EMPTY_WITHDRAWALS,
};
use alloy::eips::eip7685::EMPTY_REQUESTS_HASH;
use alloy::primitives::{Address, B256, U64};
use revm::context::result::ExecutionResult;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::clock::{self, Clock};
use super::early::Early;
use super::error::RpcError;
use super::execute::{self, Surroundings};
use super::genesis::{self, BLOCK_GAS_LIMIT};
use super::state::{self, Cache, Codes, State};
use super::store::{self, BlockRow, Head, Mined};

/// Requests that wait at most.
pub(super) const WAITING: usize = 1_024;
/// Requests that share a commit at most: bounds how long the first of them waits.
const BATCH: usize = 512;
/// Blocks that `evm_mine` makes at once.
pub(super) const MINE_MAX: u64 = 1_000;
/// Seconds that the clock is turned on at once: a hundred years.
const INCREASE_MAX_S: u64 = 100 * 365 * 24 * 60 * 60;

/// A transaction that is well formed and signed.
#[derive(Debug, Clone)]
pub(super) struct Incoming {
    pub(super) hash: B256,
    pub(super) sender: Address,
    pub(super) envelope: TxEnvelope,
}

/// What changes the chain.
#[derive(Debug)]
pub(super) enum Change {
    Transaction(Box<Incoming>),
    IncreaseTime { seconds: u64 },
    SetNextTimestamp(u64),
    Mine { blocks: u64, timestamp: Option<u64> },
    Snapshot,
    Revert { id: u64 },
}

/// A change and who waits for its answer.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) change: Change,
    pub(super) answer: oneshot::Sender<Result<Value, RpcError>>,
}

/// Owns the connection that writes.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    conn: Connection,
    codes: Arc<Codes>,
    cache: Cache,
    clock: Clock,
    head: Head,
}

impl Writer {
    /// Begins a chain in an empty file.
    pub(super) fn create(
        conn: &Connection,
        codes: &Codes,
        transactions: Vec<TxEnvelope>,
    ) -> Result<(), RpcError> {
        let transaction = conn.unchecked_transaction()?;
        store::create_tables(conn)?;
        let fingerprint = genesis::fingerprint(&transactions);
        store::set_meta(conn, "genesis", fingerprint.as_slice())?;
        let (account, balance) = genesis::alloc();
        let info = revm::state::AccountInfo {
            balance,
            ..Default::default()
        };
        state::write_account(conn, account, 0, &info)?;
        let mut head = Head {
            number: 0,
            hash: B256::ZERO,
            timestamp: genesis::GENESIS_TIMESTAMP,
        };
        let first = header(0, B256::ZERO, head.timestamp);
        head.hash = insert(conn, first, None, &[])?;
        let mut cache = Cache::default();
        for envelope in transactions {
            let incoming = Incoming {
                hash: *envelope.tx_hash(),
                sender: genesis::DEVELOPMENT_ACCOUNT,
                envelope,
            };
            let chain = Chain {
                conn,
                codes,
                cache: &mut cache,
                head: &mut head,
            };
            if !chain.transact(&incoming, genesis::GENESIS_TIMESTAMP)?? {
                let reason = format!("the first transaction {} fails", incoming.hash);
                return Err(RpcError::Internal(reason));
            }
        }
        transaction.commit()?;
        Ok(())
    }

    pub(super) fn new(
        path: PathBuf,
        conn: Connection,
        codes: Arc<Codes>,
        clock: Clock,
    ) -> rusqlite::Result<Self> {
        Ok(Self {
            head: store::head(&conn)?,
            path,
            conn,
            codes,
            cache: Cache::default(),
            clock,
        })
    }

    /// Works until all senders are gone.
    pub(super) fn run(mut self, jobs: mpsc::Receiver<Job>) {
        let mut early = Early::default();
        loop {
            let first = match early.patience(Instant::now()) {
                Some(patience) => jobs.recv_timeout(patience),
                None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let mut batch = match first {
                Ok(first) => vec![first],
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            while batch.len() < BATCH
                && let Ok(next) = jobs.try_recv()
            {
                batch.push(next);
            }
            while !batch.is_empty() {
                batch = self.work(batch, &mut early);
            }
            early.refuse_old(Instant::now());
            if let Err(error) = store::bound_wal(&self.conn, &self.path) {
                tracing::warn!(%error, "the ledger's write-ahead log cannot be shortened");
            }
        }
    }

    /// Carries out a batch; answers the transactions that waited for one of it.
    fn work(&mut self, batch: Vec<Job>, early: &mut Early) -> Vec<Job> {
        let mut ripe = Vec::new();
        let (changes, waiting): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|job| (job.change, job.answer))
            .unzip();
        match self.commit(&changes) {
            Ok(answers) => {
                let done = changes.into_iter().zip(waiting).zip(answers);
                for ((change, waiting), answer) in done {
                    let answer = match (change, answer) {
                        (
                            Change::Transaction(incoming),
                            Err(RpcError::NonceTooHigh { next, .. }),
                        ) => {
                            early.keep(incoming, next, waiting, Instant::now());
                            continue;
                        }
                        (Change::Transaction(incoming), Ok(answer)) => {
                            ripe.extend(early.take_after(&incoming));
                            Ok(answer)
                        }
                        (_, answer) => answer,
                    };
                    // Whoever no longer waits does not need it.
                    let _ = waiting.send(answer);
                }
            }
            Err(error) => {
                self.cache.clear();
                if let Ok(head) = store::head(&self.conn) {
                    self.head = head;
                }
                for waiting in waiting {
                    let _ = waiting.send(Err(RpcError::Internal(error.to_string())));
                }
            }
        }
        self.cache.bound();
        ripe
    }

    /// All or nothing; an error is the file's.
    fn commit(&mut self, changes: &[Change]) -> rusqlite::Result<Vec<Result<Value, RpcError>>> {
        // Immediate: SQLite waits for another connection's lock only at the begin.
        let transaction = Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate)?;
        let now = self.clock.unix_seconds();
        let mut answers = Vec::with_capacity(changes.len());
        for change in changes {
            let chain = Chain {
                conn: &self.conn,
                codes: &self.codes,
                cache: &mut self.cache,
                head: &mut self.head,
            };
            answers.push(chain.apply(change, now)?);
        }
        transaction.commit()?;
        Ok(answers)
    }
}

/// The chain within an open SQLite transaction. Outer results are the file's errors and end all of
/// the batch; inner ones are the answer to one request.
struct Chain<'a> {
    conn: &'a Connection,
    codes: &'a Codes,
    cache: &'a mut Cache,
    head: &'a mut Head,
}

impl Chain<'_> {
    fn apply(self, change: &Change, now: u64) -> rusqlite::Result<Result<Value, RpcError>> {
        match change {
            Change::Transaction(incoming) => {
                let mined = self.transact(incoming, now)?;
                Ok(mined.map(|_| json!(incoming.hash)))
            }
            Change::IncreaseTime { seconds } => self.increase_time(*seconds),
            Change::SetNextTimestamp(timestamp) => self.set_next_timestamp(*timestamp),
            Change::Mine { blocks, timestamp } => self.mine(*blocks, *timestamp, now),
            Change::Snapshot => self.snapshot(),
            Change::Revert { id } => self.revert(*id),
        }
    }

    /// Mines a transaction; tells whether it succeeded.
    fn transact(self, incoming: &Incoming, now: u64) -> rusqlite::Result<Result<bool, RpcError>> {
        if store::is_mined(self.conn, incoming.hash)? {
            return Ok(Err(RpcError::Refused("already known".to_owned())));
        }
        let number = self.head.number + 1;
        let timestamp = clock::next_timestamp(self.conn, self.head, now)?;
        let mut state = State {
            conn: self.conn,
            block: self.head.number,
            codes: self.codes,
            cache: self.cache,
            deadline: None,
        };
        let surroundings = Surroundings { number, timestamp };
        let Incoming {
            hash,
            sender,
            envelope,
        } = incoming;
        let done = match execute::transaction(&mut state, surroundings, envelope, *sender) {
            Ok(done) => done,
            Err(error) => return Ok(Err(error)),
        };
        state.write(number, done.state)?;
        let gas_used = done.result.tx_gas_used();
        let succeeded = done.result.is_success();
        let logs = match done.result {
            ExecutionResult::Success { logs, .. } => logs,
            _ => Vec::new(),
        };
        let receipt = Receipt {
            status: succeeded.into(),
            cumulative_gas_used: gas_used,
            logs,
        };
        let receipt = ReceiptEnvelope::from_typed(envelope.tx_type(), receipt.with_bloom());
        let header = Header {
            gas_used,
            logs_bloom: *receipt.logs_bloom(),
            transactions_root: calculate_transaction_root(std::slice::from_ref(envelope)),
            receipts_root: calculate_receipt_root(std::slice::from_ref(&receipt)),
            ..header(number, self.head.hash, timestamp)
        };
        let mined = Mined {
            hash: *hash,
            sender: *sender,
            succeeded,
            envelope: envelope.clone(),
        };
        let hash = insert(self.conn, header, Some(mined), receipt.logs())?;
        *self.head = Head {
            number,
            hash,
            timestamp,
        };
        clock::mined(self.conn, timestamp, now)?;
        Ok(Ok(succeeded))
    }

    fn increase_time(self, seconds: u64) -> rusqlite::Result<Result<Value, RpcError>> {
        if seconds > INCREASE_MAX_S {
            let error = format!("at most {INCREASE_MAX_S} seconds at once");
            return Ok(Err(RpcError::Params(error)));
        }
        let offset = clock::offset(self.conn)?.saturating_add_unsigned(seconds);
        clock::set_offset(self.conn, offset)?;
        Ok(Ok(json!(offset)))
    }

    fn set_next_timestamp(self, timestamp: u64) -> rusqlite::Result<Result<Value, RpcError>> {
        if let Err(error) = self.check_timestamp(timestamp) {
            return Ok(Err(error));
        }
        clock::set_next(self.conn, timestamp)?;
        Ok(Ok(Value::Null))
    }

    fn check_timestamp(&self, timestamp: u64) -> Result<(), RpcError> {
        let last = self.head.timestamp;
        if (last..=last.saturating_add(INCREASE_MAX_S)).contains(&timestamp) {
            return Ok(());
        }
        Err(RpcError::Params(format!(
            "timestamp {timestamp} is before the last block's, {last}, or too far after it"
        )))
    }

    fn mine(
        self,
        blocks: u64,
        timestamp: Option<u64>,
        now: u64,
    ) -> rusqlite::Result<Result<Value, RpcError>> {
        if let Some(timestamp) = timestamp {
            if let Err(error) = self.check_timestamp(timestamp) {
                return Ok(Err(error));
            }
            clock::set_next(self.conn, timestamp)?;
        }
        for _ in 0..blocks.min(MINE_MAX) {
            let number = self.head.number + 1;
            let timestamp = clock::next_timestamp(self.conn, self.head, now)?;
            let header = header(number, self.head.hash, timestamp);
            let hash = insert(self.conn, header, None, &[])?;
            *self.head = Head {
                number,
                hash,
                timestamp,
            };
            clock::mined(self.conn, timestamp, now)?;
        }
        Ok(Ok(json!("0x0")))
    }

    fn snapshot(self) -> rusqlite::Result<Result<Value, RpcError>> {
        let offset = clock::offset(self.conn)?;
        self.conn
            .prepare_cached("INSERT INTO snapshot (block, clock_offset_s) VALUES (?1, ?2)")?
            .execute(params![store::signed(self.head.number), offset])?;
        let id = self.conn.last_insert_rowid();
        Ok(Ok(json!(U64::from(id.cast_unsigned()))))
    }

    /// Back to a snapshot, which is used up with all later ones.
    fn revert(self, id: u64) -> rusqlite::Result<Result<Value, RpcError>> {
        let found = self
            .conn
            .prepare_cached("SELECT block, clock_offset_s FROM snapshot WHERE id = ?1")?
            .query_row([store::signed(id)], |row| {
                Ok((store::unsigned(row, 0)?, row.get::<_, i64>(1)?))
            })
            .optional()?;
        let Some((block, offset)) = found else {
            return Ok(Ok(json!(false)));
        };
        store::delete_above(self.conn, block)?;
        self.conn
            .execute("DELETE FROM snapshot WHERE id >= ?1", [store::signed(id)])?;
        clock::set_offset(self.conn, offset)?;
        clock::unset_next(self.conn)?;
        self.cache.clear();
        *self.head = store::head(self.conn)?;
        Ok(Ok(json!(true)))
    }
}

/// A header without a transaction. The state root is that of the empty state: a trie of the state
/// would cost more than all else and nobody proves anything against a chain that one process writes.
fn header(number: u64, parent_hash: B256, timestamp: u64) -> Header {
    Header {
        parent_hash,
        number,
        timestamp,
        gas_limit: BLOCK_GAS_LIMIT,
        base_fee_per_gas: Some(0),
        withdrawals_root: Some(EMPTY_WITHDRAWALS),
        blob_gas_used: Some(0),
        excess_blob_gas: Some(0),
        parent_beacon_block_root: Some(B256::ZERO),
        requests_hash: Some(EMPTY_REQUESTS_HASH),
        ..Header::default()
    }
}

/// Adds the block; answers its hash.
fn insert(
    conn: &Connection,
    header: Header,
    transaction: Option<Mined>,
    logs: &[alloy::primitives::Log],
) -> rusqlite::Result<B256> {
    let hash = header.hash_slow();
    let block = BlockRow {
        hash,
        header,
        transaction,
    };
    store::insert_block(conn, &block, logs)?;
    Ok(hash)
}
