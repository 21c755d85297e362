//! The payer: which channel pays, how much may be signed, and what was bought.
//!
//! ```text
//! challenge ─ terms.rs ─▶ Terms ─┐
//! request ─────────────── Order ─┴▶ Payer::prepare ─▶ PaidRequest + Credential   request.rs
//!                                       │ pay.rs: with a deposit where one is needed
//!                                       │ one call after the other               worker.rs
//!                                    books.rs ─ decisions: channel.rs, audit.rs, budget.rs
//!                                       │ before anything is sent
//!                                    store.rs
//! ```
//!
//! A wallet pays each model server of a payee through a channel of its own: the servers of a provider keep
//! no common account. A channel that was found on the ledger may be any server's; the first one that takes a
//! new voucher on it has it. A server that does not take its channel gets another one. Deposits are
//! authorizations that the payee submits; a channel's id and the authorization follow from what is stored, so
//! that a deposit that was signed before a crash is sent again and not made twice.

pub mod audit;
mod books;
pub mod budget;
mod channel;
mod ledger;
mod pay;
mod request;
mod store;
pub mod terms;
mod worker;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use alloy::primitives::{Address, B256};
use tokio::sync::Mutex as AsyncMutex;

use self::audit::{AnswerShape, PromptTokens, Recount};
use self::books::Books;
use self::budget::{DepositRefused, Limits, Period};
use self::store::Store;
use self::terms::{Market, Terms, TermsError};
use self::worker::Worker;
use crate::escrow::EscrowError;
use crate::signature::Signer;
use crate::sync::lock;
use crate::wire::{Close, Payload};

pub use channel::{Channel, ChannelState};
pub use ledger::PayerLedger;
pub use request::{Answer, Credential, PaidRequest, Verdict};
pub use store::{Evidence, Spending, StoreError};

/// Whose money is spent, where, and how much of it.
#[derive(Clone)]
pub struct PayerConfig {
    /// The SQLite file.
    pub path: PathBuf,
    /// The escrow and the token.
    pub market: Market,
    /// The wallet, which is the ledger's as well. It signs vouchers itself.
    pub signer: Signer,
    /// What may be spent.
    pub limits: Limits,
    /// Unix seconds; see [`unix_now`].
    pub clock: fn() -> u64,
}

impl fmt::Debug for PayerConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("PayerConfig");
        shown
            .field("path", &self.path)
            .field("signer", &self.signer);
        shown.field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// The time of this machine in Unix seconds.
pub fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Why nothing is paid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayError {
    /// The challenge.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// The owner's limit for a time.
    #[error("the spending limit of the {period} is reached: {left} wei are left")]
    Budget {
        /// Which limit.
        period: Period,
        /// Wei.
        left: u128,
    },
    /// The limit of a channel, or the wallet.
    #[error(transparent)]
    Deposit(#[from] DepositRefused),
    /// A deposit is under way, and it is not enough.
    #[error("a deposit to this provider is still under way; try again in some minutes")]
    DepositPending,
    /// The payee does not submit deposits, and there is no channel to it.
    #[error("there is no channel to the provider, and it does not open any")]
    NoDeposits,
    /// More is asked for than was bought.
    #[error(
        "the provider asks for {required} wei; at most {signed} are due or may be paid ahead; if this goes on, close the channel to it"
    )]
    Overbilled {
        /// Wei since the channel was opened.
        required: u128,
        /// Wei since the channel was opened.
        signed: u128,
    },
    /// What the payee requires includes what other requests of the channel have not read yet: it may be
    /// right a moment later.
    #[error("other answers of the provider are still on their way; try again")]
    Behind,
    /// The message is for another channel or chain, or a text in it is too long.
    #[error("the provider's message about a payment makes no sense: {0}")]
    Message(&'static str),
    /// Amounts beyond 128 bits.
    #[error("the prices and limits of this request are too high")]
    TooMuch,
    /// No such channel, or it is closed.
    #[error("there is no open channel of that id")]
    NoChannel,
    /// The provider opened a channel, and then did not know it.
    #[error("the provider does not know the channel that it was asked to open")]
    TurnedAway,
    /// Money of ours is in many channels to this provider, and none of its servers is known to take them.
    #[error(
        "{0} channels to this provider hold money that none of its servers takes; close them first"
    )]
    Strays(usize),
    /// The server's address is too long.
    #[error("the model server's address is longer than 256 bytes")]
    Place,
    /// Requests run on the channel.
    #[error("requests are running on this channel")]
    Busy,
    /// The request has ended.
    #[error("the request has ended")]
    Ended,
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] EscrowError),
    /// The file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No randomness, or no thread.
    #[error("this machine gives no {0}")]
    Machine(&'static str),
    /// The payer was shut down, or its file broke.
    #[error("the payer has stopped")]
    Stopped,
}

/// What is bought.
#[derive(Debug, Clone)]
pub struct Order {
    /// [`crate::voucher::request_hash`] of the request that carries the credential.
    pub request_hash: B256,
    /// Base URL of the model server, at most 256 bytes: each server of a payee has its own channel.
    pub place: Arc<str>,
    /// The model's id, for the books.
    pub model: String,
    /// Tokens of the prompt.
    pub prompt: PromptTokens,
    /// What comes back.
    pub shape: AnswerShape,
    /// Counts tokens of the answer, where the caller has the model's tokenizer.
    pub recount: Option<Recount>,
}

/// A wallet that pays; cheap to clone.
#[derive(Debug, Clone)]
pub struct Payer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    worker: Worker,
    market: Market,
    signer: Signer,
    limits: Limits,
    ledger: Arc<dyn PayerLedger>,
    clock: fn() -> u64,
    /// By payee and server: who has it may make a deposit, until the payee has answered.
    deposits: Mutex<HashMap<Server, Arc<AsyncMutex<()>>>>,
    /// Channels that the ledger says are over, since this was opened.
    finals: Mutex<BTreeSet<B256>>,
}

/// A payee, and the base URL of one of its model servers.
type Server = (Address, Arc<str>);

impl Payer {
    /// Opens the books. Requests that ran when they were closed count as lost.
    pub fn open(config: PayerConfig, ledger: Arc<dyn PayerLedger>) -> Result<Self, PayError> {
        let PayerConfig {
            path,
            market,
            signer,
            limits,
            clock,
        } = config;
        let domain = &market.domain;
        let store = Store::open(&path, signer.address(), domain.chain_id, domain.escrow)?;
        let books = Books::open(store, limits, clock())?;
        let worker = Worker::start(books, clock).map_err(|_| PayError::Machine("thread"))?;
        let inner = Inner {
            worker,
            market,
            signer,
            limits,
            ledger,
            clock,
            deposits: Mutex::default(),
            finals: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The escrow and the token, to check challenges against.
    pub fn market(&self) -> &Market {
        &self.inner.market
    }

    /// Holds the books against the ledger: finds channels that they lost, and deposits that came or did
    /// not. To be called after a start, and now and then. What was over the last time is not asked for again.
    pub async fn recover(&self) -> Result<(), PayError> {
        let inner = &self.inner;
        let own = inner.signer.address();
        let mut ids: BTreeSet<_> = inner.ledger.channels_of(own).await?.into_iter().collect();
        let mut known = self.channels().await?;
        known.retain(|channel| channel.state != ChannelState::Closed);
        ids.extend(known.iter().map(|channel| channel.id));
        let finals = lock(&inner.finals).clone();
        for id in ids.difference(&finals) {
            inner.reconcile(*id).await?;
        }
        Ok(())
    }

    /// Pays for the beginning of a request: through the channel to the model server, which is opened or
    /// topped up where it has to be. The credential goes with the request; what comes back goes to the
    /// [`PaidRequest`].
    pub async fn prepare(
        &self,
        terms: Terms,
        order: Order,
    ) -> Result<(PaidRequest, Credential), PayError> {
        PaidRequest::begin(&self.inner, terms, order).await
    }

    /// Ends a channel: the credential holds a voucher of exactly what is due, for the payee to settle and to
    /// give the rest back. No request pays through the channel any more. `request_hash` is of the request
    /// that carries the credential.
    pub async fn close(
        &self,
        channel: B256,
        terms: &Terms,
        request_hash: B256,
    ) -> Result<Credential, PayError> {
        let inner = &self.inner;
        let due = inner.worker.call(move |books| books.close(channel)).await?;
        let (domain, signer) = (&inner.market.domain, &inner.signer);
        let challenge = &terms.challenge.id;
        let nonce = pay::random()?;
        let close = Close {
            voucher: domain.sign_voucher(signer, channel, due),
            request_auth: Some(domain.sign_request(
                signer,
                channel,
                challenge,
                request_hash,
                nonce,
            )),
        };
        let payload = Payload::Close(Box::new(close));
        Ok(Credential::new(inner, terms, &payload, None))
    }

    /// All channels, closed ones included.
    pub async fn channels(&self) -> Result<Vec<Channel>, PayError> {
        let list = |books: &mut Books| Ok(books.channels().cloned().collect());
        self.inner.worker.call(list).await
    }

    /// What was bought since a time (Unix seconds), by provider and model.
    pub async fn spending(&self, since: u64) -> Result<Vec<Spending>, PayError> {
        let sums = move |books: &mut Books| Ok(books.store.spending(since)?);
        self.inner.worker.call(sums).await
    }

    /// The last bills that were too high, the latest first.
    pub async fn evidence(&self, count: u32) -> Result<Vec<Evidence>, PayError> {
        let list = move |books: &mut Books| Ok(books.store.evidence(count)?);
        self.inner.worker.call(list).await
    }

    /// Closes the file. Requests that still run count as lost at the next start.
    pub async fn shutdown(self) {
        self.inner.worker.stop().await;
    }
}
