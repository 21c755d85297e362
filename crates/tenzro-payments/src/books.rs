//! The payee's books: a SQLite file that says what was promised, delivered and settled.
//!
//! ```text
//! changes ─▶ bounded channel ─▶ all that wait ─▶ one SQLite transaction ─▶ commit (one fsync) ─▶ answers
//! ```
//!
//! A voucher counts when it is answered; charges, and what the ledger says, are ahead of the disk. One thread
//! writes; the more requests are served at once, the more of their changes share an fsync. Counters only
//! grow, so that changes may arrive in any order.
//!
//! Several model servers of one wallet may share a file. A channel belongs to one of them, its owner, which
//! finds it again after a restart. Another one takes it over only while its owner is gone, where its payer
//! turns there or leaves.

mod earnings;
mod schema;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use alloy::primitives::{Address, B256};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use tokio::sync::oneshot;

use crate::channel::{Channel, Status, VOUCHERS_MAX};
use crate::signature::Signature;

pub use earnings::{DayEarnings, Earnings, earnings};
pub use schema::BooksError;
pub(crate) use schema::make_private;
use schema::{amount, open, wei_blob, whole};

/// Changes that wait at most: with more, requests are refused.
const QUEUE: usize = 4_096;
/// Changes of one transaction.
const BATCH_MAX: usize = 1_024;

/// One request that was paid for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Unique in these books.
    pub key: B256,
    /// As in `x-request-id`, which clients may choose.
    pub request_id: String,
    /// The channel that paid.
    pub channel_id: B256,
    /// Model id.
    pub model: String,
    /// When it began, Unix seconds.
    pub at: u64,
    /// Tokens of the prompt that were charged.
    pub input_tokens: u32,
    /// Tokens of the answers that were charged.
    pub output_tokens: u32,
    /// Wei.
    pub charged: u128,
    /// Why it ended; empty while it runs, and where nobody saw its end: the client left, or the server died.
    pub finish: String,
    /// From the request to the first token.
    pub ttft_ms: u64,
    /// From the request to its end.
    pub duration_ms: u64,
}

/// One thing to write down.
#[derive(Debug, Clone)]
pub enum Change {
    /// The ledger has news of a channel of this owner.
    Channel(Box<Channel>),
    /// A voucher was checked.
    Voucher {
        /// The channel.
        channel_id: B256,
        /// Wei.
        amount: u128,
        /// By its signer.
        signature: Signature,
        /// Whether it came bound to a request.
        binds_requests: bool,
    },
    /// A channel has more vouchers than are kept.
    Crowded {
        /// The channel.
        channel_id: B256,
    },
    /// Tokens are being delivered, or a request is over.
    Spent {
        /// Wei since the channel was opened.
        spent: u128,
        /// The request with all that it was charged for.
        served: Box<Served>,
    },
    /// A settlement was mined.
    Settled {
        /// The channel.
        channel_id: B256,
        /// Wei that the channel had brought in all by then.
        total: u128,
        /// The transaction.
        transaction: B256,
        /// Unix seconds.
        at: u64,
    },
}

/// What the writing thread is asked for.
#[derive(Debug)]
enum Request {
    Write(Change, oneshot::Sender<Result<(), BooksError>>),
    /// See [`Books::claim`] and [`Books::inherit`].
    Claim {
        channel: Box<Channel>,
        may_be_new: bool,
        answer: oneshot::Sender<Result<Channel, BooksError>>,
    },
}

type IsAlive = Box<dyn Fn(&str) -> bool + Send>;

/// See the module header; cheap to clone.
#[derive(Debug, Clone)]
pub struct Books {
    changes: Arc<Writer>,
}

#[derive(Debug)]
struct Writer {
    sender: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl Books {
    /// Opens or makes the file; the channels are those of this owner that are not closed. `owner` names this
    /// model server among those of the wallet, and `is_alive` says whether one runs.
    pub fn open(
        path: &Path,
        owner: &str,
        is_alive: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<(Self, Vec<Channel>), BooksError> {
        let writer = Keeper {
            conn: open(path)?,
            owner: owner.to_owned(),
            is_alive: Box::new(is_alive),
        };
        let channels = read_channels(&writer.conn, Some(owner))?;
        let (sender, receiver) = sync_channel(QUEUE);
        let write = move || writer.keep(&receiver);
        let thread = std::thread::Builder::new()
            .name("payment-books".to_owned())
            .spawn(write)
            .map_err(|error| BooksError::Io(error.to_string()))?;
        let changes = Arc::new(Writer {
            sender: Some(sender),
            thread: Some(thread),
        });
        Ok((Self { changes }, channels))
    }

    /// Writes a change down; when it is done, the change is on the disk.
    pub async fn write(&self, change: Change) -> Result<(), BooksError> {
        self.post(change)?.done().await
    }

    /// Lets a change be written down, after all before it. It is, whether or not somebody waits for it.
    pub fn post(&self, change: Change) -> Result<Writing, BooksError> {
        let (answer, written) = oneshot::channel();
        self.send(Request::Write(change, answer))?;
        Ok(Writing(written))
    }

    /// Makes a channel this owner's; fails where another server has it. Where the books know it, they know
    /// better.
    pub async fn claim(&self, channel: Channel) -> Result<Channel, BooksError> {
        self.take(channel, true).await
    }

    /// The same for a channel that is in the books already.
    pub async fn inherit(&self, channel: Channel) -> Result<Channel, BooksError> {
        self.take(channel, false).await
    }

    async fn take(&self, channel: Channel, may_be_new: bool) -> Result<Channel, BooksError> {
        let (answer, taken) = oneshot::channel();
        self.send(Request::Claim {
            channel: Box::new(channel),
            may_be_new,
            answer,
        })?;
        taken.await.map_err(|_| BooksError::Closed)?
    }

    fn send(&self, request: Request) -> Result<(), BooksError> {
        let sender = self.changes.sender.as_ref().ok_or(BooksError::Closed)?;
        sender.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => BooksError::Busy,
            TrySendError::Disconnected(_) => BooksError::Closed,
        })
    }
}

/// A change on its way to the disk.
#[derive(Debug)]
pub struct Writing(oneshot::Receiver<Result<(), BooksError>>);

impl Writing {
    /// Waits until it is there; may be dropped before, but not called again after.
    pub async fn done(&mut self) -> Result<(), BooksError> {
        (&mut self.0).await.map_err(|_| BooksError::Closed)?
    }
}

/// The last handle waits until everything is written.
impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The writing thread.
struct Keeper {
    conn: Connection,
    owner: String,
    is_alive: IsAlive,
}

impl Keeper {
    fn keep(mut self, requests: &Receiver<Request>) {
        while let Ok(first) = requests.recv() {
            let mut changes = Vec::new();
            let mut claims = Vec::new();
            for request in std::iter::once(first).chain(requests.try_iter().take(BATCH_MAX - 1)) {
                match request {
                    Request::Write(change, answer) => changes.push((change, answer)),
                    Request::Claim {
                        channel,
                        may_be_new,
                        answer,
                    } => claims.push((channel, may_be_new, answer)),
                }
            }
            let result = self.write_all(changes.iter().map(|(change, _)| change));
            if let Err(error) = &result {
                tracing::error!(%error, changes = changes.len(), "the payment books cannot be written");
            }
            for (_, answer) in changes {
                let _ = answer.send(result.clone());
            }
            for (channel, may_be_new, answer) in claims {
                let _ = answer.send(self.claim(*channel, may_be_new));
            }
        }
    }

    fn write_all<'a>(
        &mut self,
        changes: impl Iterator<Item = &'a Change>,
    ) -> Result<(), BooksError> {
        let transaction = self.conn.transaction()?;
        for change in changes {
            apply(&transaction, &self.owner, change)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn claim(&mut self, channel: Channel, may_be_new: bool) -> Result<Channel, BooksError> {
        let transaction = begin(&mut self.conn)?;
        let sql = "SELECT owner FROM channel WHERE id = ?1";
        let owner: Option<String> = transaction
            .query_row(sql, [channel.id.as_slice()], |row| row.get(0))
            .optional()?;
        let is_free = match owner {
            None => may_be_new,
            Some(owner) => owner == self.owner || !(self.is_alive)(&owner),
        };
        if !is_free {
            return Err(BooksError::Elsewhere);
        }
        let id = channel.id;
        let change = Change::Channel(Box::new(channel));
        apply(&transaction, &self.owner, &change)?;
        let found = read_channels(&transaction, Some(&self.owner))?;
        let found = found.into_iter().find(|channel| channel.id == id);
        transaction.commit()?;
        found.ok_or(BooksError::Elsewhere)
    }
}

/// Takes the right to write at once: what is read is what is changed.
fn begin(conn: &mut Connection) -> Result<Transaction<'_>, BooksError> {
    Ok(conn.transaction_with_behavior(TransactionBehavior::Immediate)?)
}

fn apply(conn: &Transaction<'_>, owner: &str, change: &Change) -> Result<(), BooksError> {
    match change {
        Change::Channel(channel) => {
            let sql = "INSERT INTO channel (id, owner, payer, signer, deposit, settled, spent, status, binds_requests)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                 ON CONFLICT (id) DO UPDATE SET owner = ?2, deposit = ?5, settled = ?6, status = ?8";
            conn.prepare_cached(sql)?.execute(params![
                channel.id.as_slice(),
                owner,
                channel.payer.as_slice(),
                channel.signer.as_slice(),
                wei_blob(channel.deposit),
                wei_blob(channel.settled),
                wei_blob(channel.spent),
                status_number(channel.status),
                channel.binds_requests,
            ])?;
        }
        Change::Voucher {
            channel_id,
            amount,
            signature,
            binds_requests,
        } => {
            let sql =
                "INSERT OR IGNORE INTO voucher (channel, amount, signature) VALUES (?1, ?2, ?3)";
            conn.prepare_cached(sql)?.execute(params![
                channel_id.as_slice(),
                wei_blob(*amount),
                signature.0.as_slice()
            ])?;
            if *binds_requests {
                let sql =
                    "UPDATE channel SET binds_requests = 1 WHERE id = ?1 AND NOT binds_requests";
                conn.prepare_cached(sql)?.execute([channel_id.as_slice()])?;
            }
        }
        Change::Crowded { channel_id } => {
            forget_vouchers(conn, *channel_id)?;
            // As in memory: the newest stays, and those that are needed first.
            let sql = "DELETE FROM voucher WHERE channel = ?1
                 AND amount < (SELECT max(amount) FROM voucher WHERE channel = ?1)
                 AND amount >= (SELECT amount FROM voucher WHERE channel = ?1
                                ORDER BY amount LIMIT 1 OFFSET ?2)";
            let kept = whole(VOUCHERS_MAX as u64 - 1);
            conn.prepare_cached(sql)?
                .execute(params![channel_id.as_slice(), kept])?;
        }
        Change::Spent { spent, served } => {
            let sql = "UPDATE channel SET spent = max(spent, ?2) WHERE id = ?1";
            conn.prepare_cached(sql)?
                .execute(params![served.channel_id.as_slice(), wei_blob(*spent)])?;
            let sql = "INSERT INTO request (key, request_id, channel, model, at, input_tokens, output_tokens,
                                      charged, finish, ttft_ms, duration_ms)
                 VALUES (?11, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                 ON CONFLICT (key) DO UPDATE SET
                   input_tokens = max(input_tokens, ?5), output_tokens = max(output_tokens, ?6),
                   charged = max(charged, ?7), finish = ?8, ttft_ms = ?9, duration_ms = ?10";
            conn.prepare_cached(sql)?.execute(params![
                served.request_id,
                served.channel_id.as_slice(),
                served.model,
                whole(served.at),
                served.input_tokens,
                served.output_tokens,
                wei_blob(served.charged),
                served.finish,
                whole(served.ttft_ms),
                whole(served.duration_ms),
                served.key.as_slice(),
            ])?;
            if !served.finish.is_empty() {
                forget_vouchers(conn, served.channel_id)?;
            }
        }
        Change::Settled {
            channel_id,
            total,
            transaction,
            at,
        } => {
            let sql =
                "INSERT OR IGNORE INTO settlement (tx, channel, total, at) VALUES (?1, ?2, ?3, ?4)";
            conn.prepare_cached(sql)?.execute(params![
                transaction.as_slice(),
                channel_id.as_slice(),
                wei_blob(*total),
                whole(*at)
            ])?;
        }
    }
    Ok(())
}

/// Of the vouchers that are earned only the highest is worth keeping.
fn forget_vouchers(conn: &Transaction<'_>, channel_id: B256) -> Result<(), BooksError> {
    let sql = "DELETE FROM voucher WHERE channel = ?1 AND amount < (
        SELECT max(amount) FROM voucher WHERE channel = ?1 AND amount <= (
            SELECT spent FROM channel WHERE id = ?1))";
    conn.prepare_cached(sql)?.execute([channel_id.as_slice()])?;
    Ok(())
}

/// Channels that are not closed, of one owner or of all.
fn read_channels(conn: &Connection, owner: Option<&str>) -> Result<Vec<Channel>, BooksError> {
    let mut statement = conn.prepare(
        "SELECT id, payer, signer, deposit, settled, spent, status, binds_requests FROM channel
         WHERE status < 2 AND (?1 IS NULL OR owner = ?1)",
    )?;
    let mut rows = statement.query([owner])?;
    let mut channels = Vec::new();
    while let Some(row) = rows.next()? {
        let id = B256::from(row.get::<_, [u8; 32]>(0)?);
        let found = crate::escrow::EscrowChannel {
            payer: Address::from(row.get::<_, [u8; 20]>(1)?),
            payee: Address::ZERO,
            signer: Address::from(row.get::<_, [u8; 20]>(2)?),
            deposit: amount(row, 3)?,
            settled: amount(row, 4)?,
            is_closing: row.get::<_, u8>(6)? == status_number(Status::Closing),
            is_final: false,
        };
        let mut channel = Channel::new(id, &found);
        channel.spent = amount(row, 5)?;
        channel.binds_requests = row.get(7)?;
        channels.push(channel);
    }
    let mut vouchers =
        conn.prepare("SELECT amount, signature FROM voucher WHERE channel = ?1 ORDER BY amount")?;
    let mut restored = Vec::with_capacity(channels.len());
    for channel in channels {
        let kept = vouchers.query_map([channel.id.as_slice()], |row| {
            Ok((amount(row, 0)?, Signature(row.get::<_, [u8; 65]>(1)?)))
        })?;
        let kept = kept.collect::<Result<Vec<_>, _>>()?;
        restored.push(channel.restore(kept));
    }
    Ok(restored)
}

fn status_number(status: Status) -> u8 {
    match status {
        Status::Open => 0,
        // Whether its transaction is under way has to be asked after a crash.
        Status::Closing | Status::Ending => 1,
        Status::Final => 2,
    }
}

#[cfg(test)]
#[path = "books/tests.rs"]
mod tests;
