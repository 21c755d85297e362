//! The payee: takes payments in, and charges requests for what they deliver.
//!
//! ```text
//! header ─▶ credential ─▶ challenge known? ─▶ deposit ─▶ voucher ─▶ books ─▶ Purse
//!                                                                             │ start: money set aside
//! tokens ─▶ Meter::charge ─▶ tokens leave, books follow                      Meter
//! ```

mod cell;
mod meter;
mod open;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use alloy::primitives::{Address, B256};
use jiff::Timestamp;
use mpp::protocol::core::{PaymentCredential, parse_authorization};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::books::{Books, BooksError, Change};
use crate::challenge::Challenges;
use crate::channel::{Channel, Status, VoucherRefusal};
use crate::escrow::{Escrow, EscrowError};
use crate::price::{Pricing, Tokens};
use crate::refusal::Refusal;
use crate::signature::Signer;
use crate::sync::lock;
use crate::voucher::{Domain, RequestAuth, Voucher, request_hash};
use crate::wire::{
    BY_AUTHORIZATION, BY_HASH, Close, INTENT, METHOD, MethodDetails, ModelTerms, OpenDeposit,
    Payload, Problem, Receipt, SessionRequest, UNIT,
};

pub(crate) use cell::Cell;
use cell::State;
pub use meter::{Charge, Meter, Order, Outcome, Shortage};

/// Requests that one channel pays for at the same time.
const RUNNING_MAX: u32 = 16;
/// Tokens in both directions that the suggested deposit pays for.
const SUGGESTED_TOKENS: u32 = 50_000;
/// Tokens in both directions that a channel's deposit, and each that is signed, has to pay for: a smaller one
/// is not worth its gas.
const MINIMUM_TOKENS: u32 = 500;

/// How long a stream that ran out of money waits for a voucher. Source: design, payments.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What is sold, by whom and where.
#[derive(Debug, Clone)]
pub struct Sale {
    /// The escrow on its chain.
    pub domain: Domain,
    /// The token contract.
    pub token: Address,
    /// Model.
    pub model: ModelTerms,
    /// Host that clients connect to.
    pub realm: String,
    /// How long a stream that ran out of money waits for a voucher; see [`PATIENCE`].
    pub patience: Duration,
}

/// A request that brings a payment.
#[derive(Clone, Copy)]
pub struct Paid<'a> {
    /// HTTP method.
    pub method: &'a str,
    /// Path without a query.
    pub path: &'a str,
    /// Value of the header.
    pub credential: &'a str,
    /// Body.
    pub body: &'a [u8],
}

/// What a payment was.
#[derive(Debug)]
pub enum Accepted {
    /// The means to be served.
    Purse(Purse),
    /// A top-up or the end of the channel: nothing to be served with.
    Done(Box<Receipt>),
}

/// A refusal with what an answer to it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Value of `WWW-Authenticate`, for all that another payment could mend.
    pub challenge: Option<String>,
    /// Whole seconds of `Retry-After`.
    pub retry_after: Option<u64>,
    /// The body.
    pub problem: Problem,
}

/// See the module header; cheap to clone.
#[derive(Debug, Clone)]
pub struct Payee(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sale: Sale,
    /// Whose signature is on receipts; the payee.
    signer: Signer,
    pricing: watch::Receiver<Option<Pricing>>,
    challenges: Challenges,
    books: Books,
    escrow: Arc<dyn Escrow>,
    channels: Mutex<HashMap<B256, Arc<Cell>>>,
    /// Channels that are being looked up or opened, each by one request at a time.
    opening: open::Opening,
    /// Channels that the ledger has news of, until they are taken in.
    news: Mutex<BTreeSet<B256>>,
    /// Something is to be settled.
    settle: Notify,
}

/// A voucher as it came, with what else its credential says.
#[derive(Clone, Copy)]
struct Given<'a> {
    voucher: Voucher,
    auth: Option<&'a RequestAuth>,
    challenge_id: &'a str,
    paid: Paid<'a>,
}

/// An open channel and the price at which it is used.
#[derive(Debug, Clone)]
pub struct Purse {
    payee: Payee,
    cell: Arc<Cell>,
    pricing: Pricing,
    challenge_id: String,
}

impl Payee {
    /// `channels` are those of the books. The price may come and go.
    pub fn new(
        sale: Sale,
        signer: Signer,
        pricing: watch::Receiver<Option<Pricing>>,
        escrow: Arc<dyn Escrow>,
        (books, channels): (Books, Vec<Channel>),
    ) -> Self {
        let cells = channels
            .into_iter()
            .map(|channel| (channel.id, Cell::new(channel)));
        Self(Arc::new(Inner {
            challenges: Challenges::new(sale.realm.clone()),
            sale,
            signer,
            pricing,
            books,
            escrow,
            channels: Mutex::new(cells.collect()),
            opening: open::Opening::default(),
            news: Mutex::default(),
            settle: Notify::new(),
        }))
    }

    /// What a request without a payment is answered.
    pub fn challenge(&self) -> Refused {
        self.refuse(&Refusal::Unpaid, None)
    }

    /// Whether a credential answers a challenge of this payee: no more is looked at.
    pub fn check(&self, credential: &str) -> Result<(), Box<Refused>> {
        let answers = |credential: PaymentCredential| {
            let terms = self.0.challenges.terms(&credential.challenge);
            terms.map(drop)
        };
        let checked = parse(credential).and_then(answers);
        checked.map_err(|refusal| Box::new(self.refuse(&refusal, None)))
    }

    /// Takes a payment in.
    pub async fn pay(&self, paid: Paid<'_>) -> Result<Accepted, Refused> {
        let credential = parse(paid.credential).map_err(|refusal| self.refuse(&refusal, None))?;
        let channel_id = channel_of(&credential);
        let taken = self.take(&credential, paid).await;
        taken.map_err(|refusal| self.refuse(&refusal, channel_id))
    }

    async fn take(
        &self,
        credential: &PaymentCredential,
        paid: Paid<'_>,
    ) -> Result<Accepted, Refusal> {
        let terms = self.0.challenges.terms(&credential.challenge)?;
        let pricing = terms.pricing.ok_or(Refusal::Challenge)?;
        let payload = serde_json::from_value(credential.payload.clone());
        let payload = payload.map_err(|error| Refusal::Invalid(error.to_string()))?;
        let purse = |cell| Purse {
            payee: self.clone(),
            cell,
            pricing,
            challenge_id: credential.challenge.id.clone(),
        };
        let given = |voucher, auth| Given {
            voucher,
            auth,
            challenge_id: &credential.challenge.id,
            paid,
        };
        match payload {
            Payload::Open(open) => {
                let (OpenDeposit::Authorization {
                    voucher_signature: signature,
                    ..
                }
                | OpenDeposit::Hash { signature, .. }) = &open.deposit;
                let voucher = Voucher {
                    channel_id: open.channel_id,
                    amount: open.cumulative_amount,
                    signature: *signature,
                };
                let given = given(voucher, open.request_auth.as_ref());
                let source = credential.source.as_deref();
                let cell = self.open(&open, source, &pricing, &given).await?;
                self.accept(&cell, &given).await?;
                Ok(Accepted::Purse(purse(cell)))
            }
            Payload::Voucher(update) => {
                let given = given(update.voucher, update.request_auth.as_ref());
                let cell = self.fund(&update, &pricing, &given).await?;
                self.accept(&cell, &given).await?;
                Ok(Accepted::Purse(purse(cell)))
            }
            Payload::TopUp(top_up) => {
                let cell = self.top_up(&top_up, &pricing).await?;
                Ok(Accepted::Done(Box::new(purse(cell).receipt_now(None))))
            }
            Payload::Close(close) => {
                let Close {
                    voucher,
                    request_auth,
                } = &*close;
                let cell = self.find(voucher.channel_id, &pricing).await?;
                let given = given(*voucher, request_auth.as_ref());
                let transaction = self.close(&cell, &given).await?;
                let receipt = purse(cell).receipt_now(Some(transaction));
                Ok(Accepted::Done(Box::new(receipt)))
            }
        }
    }

    /// What can be told of a payment without what is known of its channel: that `signer` signed the voucher,
    /// and that the credential is used for the request that it was signed for.
    fn prove(&self, signer: Address, given: &Given<'_>) -> Result<(), Refusal> {
        let Given {
            voucher,
            auth,
            challenge_id,
            paid,
        } = given;
        let domain = &self.0.sale.domain;
        if signer.is_zero() || domain.voucher_signer(voucher)? != signer {
            return Err(VoucherRefusal::Signer.into());
        }
        let Some(auth) = auth else {
            return Ok(());
        };
        let is_this = auth.request_hash == request_hash(paid.method, paid.path, paid.body);
        let by = domain.request_signer(voucher.channel_id, challenge_id, auth)?;
        match is_this && by == signer {
            true => Ok(()),
            false => Err(Refusal::OtherRequest),
        }
    }

    /// That a credential is used for the first time or, where it is bound to no request and something is done
    /// for it, that its channel's payer binds none.
    fn bind(state: &mut State, given: &Given<'_>, is_acted_on: bool) -> Result<(), Refusal> {
        let is_bound = match given.auth {
            Some(auth) => state.is_new(auth.nonce, Instant::now()),
            None => !(is_acted_on && state.channel.binds_requests),
        };
        match is_bound {
            true => Ok(()),
            false => Err(Refusal::OtherRequest),
        }
    }

    /// Takes a voucher in: signatures first, then the rules, then the disk, and only then it counts.
    async fn accept(&self, cell: &Cell, given: &Given<'_>) -> Result<(), Refusal> {
        let signer = cell.lock().channel.signer;
        self.prove(signer, given)?;
        let Given { voucher, auth, .. } = given;
        let (amount, binds_requests) = (voucher.amount.0, auth.is_some());
        let is_known = {
            let mut state = cell.lock();
            let serves = !given.paid.body.is_empty();
            Self::bind(&mut state, given, serves)?;
            let channel = &state.channel;
            // A payer that goes on sends its highest one, or a new one.
            let is_old = amount < channel.accepted() && channel.is_public(amount);
            if serves && !binds_requests && is_old {
                return Err(Refusal::Public);
            }
            let is_new = state.channel.check(amount, signer)?;
            // Only who may sign uses the rate up: else anybody could keep the payer from paying, also with a
            // voucher that was settled.
            let is_anybodys = !serves && !binds_requests && state.channel.is_public(amount);
            if !is_anybodys && !state.allows_voucher(Instant::now()) {
                return Err(Refusal::TooMany);
            }
            // A voucher that is no new money can still be the first that comes bound to a request.
            !is_new && (state.channel.binds_requests || !binds_requests)
        };
        if is_known {
            return Ok(());
        }
        let change = Change::Voucher {
            channel_id: voucher.channel_id,
            amount,
            signature: voucher.signature,
            binds_requests,
        };
        self.0.books.write(change).await?;
        let is_crowded = {
            let mut state = cell.lock();
            state.channel.binds_requests |= binds_requests;
            state.channel.accept(voucher)
        };
        cell.wake();
        if is_crowded {
            let channel_id = voucher.channel_id;
            self.0.books.write(Change::Crowded { channel_id }).await?;
        }
        Ok(())
    }

    /// Closes with the lowest voucher that covers what was delivered, the payer's last one among them.
    async fn close(&self, cell: &Cell, given: &Given<'_>) -> Result<B256, Refusal> {
        let signer = cell.lock().channel.signer;
        self.prove(signer, given)?;
        let _one = cell.closing.lock().await;
        {
            let mut state = cell.lock();
            match state.channel.status {
                Status::Final => return Err(VoucherRefusal::Final.into()),
                Status::Ending => return Err(VoucherRefusal::Closing.into()),
                Status::Open | Status::Closing => {}
            }
            Self::bind(&mut state, given, true)?;
            let channel = &state.channel;
            let amount = given.voucher.amount.0;
            // Not what anybody can read on the ledger, unless it says what its payer had.
            let is_old = amount < channel.spent && channel.is_public(amount);
            if given.auth.is_none() && is_old {
                return Err(Refusal::Public);
            }
            if state.running > 0 {
                return Err(Refusal::Running);
            }
            if channel.spent == 0 {
                return Err(Refusal::Unused);
            }
            state.end_with(&given.voucher);
        }
        self.end(cell).await
    }

    /// Sends the closing transaction of a channel that is ending; whoever calls holds `closing`.
    async fn end(&self, cell: &Cell) -> Result<B256, Refusal> {
        let (id, voucher) = cell.ending();
        let closed = self.0.escrow.close(id, voucher).await;
        let is_over = matches!(closed, Err(EscrowError::Reverted { .. }));
        // Where nobody answers it may have been mined all the same, or still be.
        let synced = self.sync_after(cell, is_over).await;
        let transaction = closed?;
        synced?;
        if let Some(voucher) = voucher {
            self.note_settlement(id, voucher.amount.0, transaction)
                .await?;
        }
        Ok(transaction)
    }

    /// Goes on with closings that came to no end: nobody answered, or the transaction was not mined in time.
    pub async fn finish_closings(&self) {
        let ending = self.all_cells().into_iter().filter(|cell| cell.is_ending());
        let finished = ending.map(|cell| async move {
            // Whoever asked for it may still wait.
            let Ok(_one) = cell.closing.try_lock() else {
                return;
            };
            let result = match self.sync(&cell).await {
                Ok(()) if cell.is_ending() => self.end(&cell).await.map(drop),
                synced => synced,
            };
            if let Err(error) = result {
                tracing::warn!(%error, "a channel cannot be closed yet");
            }
        });
        futures::future::join_all(finished).await;
    }

    /// Takes in what the ledger says about a channel now.
    pub(crate) async fn sync(&self, cell: &Cell) -> Result<(), Refusal> {
        self.sync_after(cell, false).await
    }

    /// The same; `has_failed` says that a closing transaction did for good.
    async fn sync_after(&self, cell: &Cell, has_failed: bool) -> Result<(), Refusal> {
        let id = cell.lock().channel.id;
        let found = self.0.escrow.channel(id).await?;
        let channel = {
            let mut state = cell.lock();
            let before = state.channel.settled;
            match has_failed {
                true => state.channel.resume(found.as_ref()),
                false => state.channel.sync(found.as_ref()),
            }
            if state.channel.settled > before {
                let rest = state.channel.unsettled() > 0;
                state.unsettled_since = rest.then(Instant::now);
            }
            state.channel.clone()
        };
        cell.wake();
        Ok(self
            .0
            .books
            .write(Change::Channel(Box::new(channel)))
            .await?)
    }

    pub(crate) async fn note_settlement(
        &self,
        channel_id: B256,
        total: u128,
        transaction: B256,
    ) -> Result<(), BooksError> {
        let change = Change::Settled {
            channel_id,
            total,
            transaction,
            at: unix_seconds(),
        };
        self.0.books.write(change).await
    }

    /// Waits until a request that was charged is over.
    pub(crate) async fn something_to_settle(&self) {
        self.0.settle.notified().await;
    }

    /// Channels that the ledger has news of, until [`Self::has_heard`].
    pub(crate) async fn news(&self) -> Result<BTreeSet<B256>, Refusal> {
        let told = self.0.escrow.news().await?;
        let mut news = lock(&self.0.news);
        news.extend(told);
        Ok(news.clone())
    }

    pub(crate) fn has_heard(&self, id: B256) {
        lock(&self.0.news).remove(&id);
    }

    pub(crate) fn all_cells(&self) -> Vec<Arc<Cell>> {
        self.cells().values().cloned().collect()
    }

    pub(crate) fn escrow(&self) -> &dyn Escrow {
        &*self.0.escrow
    }

    /// The terms of challenges from now on; `None` while no price is set.
    fn terms(&self) -> Option<SessionRequest> {
        let inner = &self.0;
        let pricing = (*inner.pricing.borrow())?;
        Some(SessionRequest {
            amount: pricing.output_per_token,
            unit_type: Some(UNIT.to_owned()),
            suggested_deposit: both_ways(&pricing, SUGGESTED_TOKENS)
                .map(tenzro_protocol::amount::Wei),
            currency: inner.sale.token,
            recipient: inner.signer.address(),
            method_details: MethodDetails {
                chain_id: inner.sale.domain.chain_id,
                escrow_contract: inner.sale.domain.escrow,
                channel_id: None,
                min_voucher_delta: None,
                fee_payer: Some(true),
                credential_types: Some(vec![BY_AUTHORIZATION.to_owned(), BY_HASH.to_owned()]),
            },
            pricing: Some(pricing),
            model: Some(inner.sale.model.clone()),
        })
    }

    fn refuse(&self, refusal: &Refusal, channel_id: Option<B256>) -> Refused {
        let known = channel_id.and_then(|id| self.known(id));
        // Only to who could sign for the channel, which is checked before any of these: with the highest
        // voucher somebody else could spend what it pays for. Whoever has only a voucher that stands on the
        // ledger gets neither.
        let is_signer = matches!(
            refusal,
            Refusal::Insufficient { .. } | Refusal::Voucher(VoucherRefusal::AboveDeposit { .. })
        );
        let channel = known
            .filter(|_| is_signer)
            .map(|cell| cell.lock().channel.state());
        let mut problem = refusal.problem(channel_id, channel);
        let challenge = match (problem.status, self.terms()) {
            (402 | 410, Some(terms)) => Some(self.0.challenges.header(&terms)),
            (402, None) => {
                problem = Refusal::NoPrice.problem(channel_id, None);
                None
            }
            _ => None,
        };
        Refused {
            challenge,
            retry_after: refusal.retry_after(),
            problem,
        }
    }

    fn known(&self, id: B256) -> Option<Arc<Cell>> {
        self.cells().get(&id).cloned()
    }

    fn cells(&self) -> MutexGuard<'_, HashMap<B256, Arc<Cell>>> {
        lock(&self.0.channels)
    }
}

impl Purse {
    /// How things stand.
    pub fn receipt(&self) -> Receipt {
        self.receipt_now(None)
    }

    fn receipt_now(&self, tx_hash: Option<B256>) -> Receipt {
        let state = self.cell.lock();
        let channel = &state.channel;
        Receipt {
            method: METHOD.to_owned(),
            intent: INTENT.to_owned(),
            status: "success".to_owned(),
            timestamp: format!("{:.0}", Timestamp::now()),
            reference: channel.id,
            challenge_id: self.challenge_id.clone(),
            channel_id: channel.id,
            accepted_cumulative: tenzro_protocol::amount::Wei(channel.accepted()),
            spent: tenzro_protocol::amount::Wei(channel.spent),
            chain_id: self.payee.0.sale.domain.chain_id,
            units: None,
            tx_hash,
            usage: None,
        }
    }
}

fn parse(credential: &str) -> Result<PaymentCredential, Refusal> {
    parse_authorization(credential).map_err(|error| Refusal::Malformed(error.to_string()))
}

/// The channel that a credential names.
fn channel_of(credential: &PaymentCredential) -> Option<B256> {
    credential.payload.get("channelId")?.as_str()?.parse().ok()
}

/// Wei for so many tokens of prompt and as many of answer.
fn both_ways(pricing: &Pricing, tokens: u32) -> Option<u128> {
    pricing.cost(Tokens {
        input: tokens,
        output: tokens,
    })
}

fn unix_seconds() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or_default()
}

/// Without the credential: it is money.
impl fmt::Debug for Paid<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Paid")
            .field("method", &self.method)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
