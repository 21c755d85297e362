//! The payee: takes payments in, and charges requests for what they deliver.
//!
//! ```text
//! header ─▶ credential ─▶ challenge known? ─▶ deposit ─▶ voucher ─▶ books ─▶ Purse
//!                                                                             │ start: money set aside
//! tokens ─▶ Meter::charge ─▶ books ─▶ tokens leave                           Meter
//! ```

mod cell;
mod meter;
mod open;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256};
use jiff::Timestamp;
use mpp::protocol::core::{PaymentCredential, parse_authorization};
use tokio::sync::{Notify, watch};

use crate::books::{Books, BooksError, Change};
use crate::challenge::Challenges;
use crate::channel::{Channel, Status, VoucherRefusal};
use crate::escrow::Escrow;
use crate::price::{Pricing, Tokens};
use crate::refusal::Refusal;
use crate::signature::Signer;
use crate::voucher::{Domain, RequestAuth, Voucher, request_hash};
use crate::wire::{
    BY_AUTHORIZATION, BY_HASH, INTENT, METHOD, MethodDetails, ModelTerms, Payload, Problem,
    Receipt, SessionRequest, UNIT,
};

pub(crate) use cell::Cell;
pub use meter::{Charge, Meter, Order, Outcome, Shortage};

/// Requests that one channel pays for at the same time.
const RUNNING_MAX: u32 = 16;
/// Tokens in both directions that the suggested deposit pays for.
const SUGGESTED_TOKENS: u32 = 50_000;
/// Tokens in both directions that a deposit has to pay for: a smaller one is not worth its gas.
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
    /// Something is to be settled.
    settle: Notify,
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
        match payload {
            Payload::Open(open) => {
                let (cell, voucher) = self
                    .open(&open, credential.source.as_deref(), &pricing)
                    .await?;
                let auth = open.request_auth.as_ref();
                self.bind(&cell, &credential.challenge.id, auth, paid)?;
                self.accept(&cell, &voucher, &pricing, auth.is_some())
                    .await?;
                Ok(Accepted::Purse(purse(cell)))
            }
            Payload::Voucher(update) => {
                let cell = self.fund(&update, &pricing).await?;
                let auth = update.request_auth.as_ref();
                self.bind(&cell, &credential.challenge.id, auth, paid)?;
                self.accept(&cell, &update.voucher, &pricing, auth.is_some())
                    .await?;
                Ok(Accepted::Purse(purse(cell)))
            }
            Payload::TopUp(top_up) => {
                let cell = self.top_up(&top_up, &pricing).await?;
                Ok(Accepted::Done(Box::new(purse(cell).receipt_now(None))))
            }
            Payload::Close(voucher) => {
                let cell = self.find(voucher.channel_id).await?;
                let transaction = self.close(&cell, &voucher).await?;
                Ok(Accepted::Done(Box::new(
                    purse(cell).receipt_now(transaction),
                )))
            }
        }
    }

    /// Checks that a credential is used for the request that it was signed for, and for the first time.
    fn bind(
        &self,
        cell: &Cell,
        challenge_id: &str,
        auth: Option<&RequestAuth>,
        paid: Paid<'_>,
    ) -> Result<(), Refusal> {
        let mut state = cell.lock();
        let Some(auth) = auth else {
            return match state.channel.binds_requests && !paid.body.is_empty() {
                true => Err(Refusal::OtherRequest),
                false => Ok(()),
            };
        };
        let is_this = auth.request_hash == request_hash(paid.method, paid.path, paid.body);
        let signer = self
            .0
            .sale
            .domain
            .request_signer(state.channel.id, challenge_id, auth)?;
        if !is_this || signer != state.channel.signer || !state.is_new(auth.nonce, Instant::now()) {
            return Err(Refusal::OtherRequest);
        }
        Ok(())
    }

    /// Takes a voucher in: signature first, then the rules, then the disk, and only then it counts.
    async fn accept(
        &self,
        cell: &Cell,
        voucher: &Voucher,
        pricing: &Pricing,
        binds_requests: bool,
    ) -> Result<(), Refusal> {
        let inner = &self.0;
        let signer = inner.sale.domain.voucher_signer(voucher)?;
        let is_known = {
            let mut state = cell.lock();
            // Only who may sign uses the rate up: else anybody could keep the payer from paying.
            if signer == state.channel.signer && !state.allows_voucher(Instant::now()) {
                return Err(Refusal::TooMany);
            }
            let minimum = pricing.output_per_token.0.min(1);
            let is_new = state.channel.check(voucher.amount.0, signer, minimum)?;
            // A voucher that is no new money can still be the first that comes bound to a request.
            !is_new && (state.channel.binds_requests || !binds_requests)
        };
        if is_known {
            return Ok(());
        }
        let change = Change::Voucher {
            channel_id: voucher.channel_id,
            amount: voucher.amount.0,
            signature: voucher.signature,
            binds_requests,
        };
        inner.books.write(change).await?;
        {
            let mut state = cell.lock();
            state.channel.accept(voucher);
            state.channel.binds_requests |= binds_requests;
        }
        cell.wake();
        Ok(())
    }

    /// Closes with the payer's last voucher, where that covers what was delivered, else with the highest.
    async fn close(&self, cell: &Cell, last: &Voucher) -> Result<Option<B256>, Refusal> {
        let signer = self.0.sale.domain.voucher_signer(last)?;
        let (id, voucher) = {
            let mut state = cell.lock();
            if signer != state.channel.signer {
                return Err(VoucherRefusal::Signer.into());
            }
            if state.channel.status == Status::Final {
                return Err(VoucherRefusal::Final.into());
            }
            if state.running > 0 {
                return Err(Refusal::Running);
            }
            let covers =
                last.amount.0 >= state.channel.spent && last.amount.0 <= state.channel.deposit;
            let voucher = match covers {
                true => Some(*last).filter(|last| last.amount.0 > state.channel.settled),
                false => state.channel.highest(),
            };
            // Nothing new begins while the transaction is on its way.
            state.channel.status = Status::Closing;
            (state.channel.id, voucher)
        };
        let closed = self.0.escrow.close(id, voucher).await;
        let synced = self.sync(cell).await;
        let transaction = closed?;
        synced?;
        if let Some(voucher) = voucher {
            self.note_settlement(id, voucher.amount.0, transaction)
                .await?;
        }
        Ok(Some(transaction))
    }

    /// Takes in what the ledger says about a channel now.
    pub(crate) async fn sync(&self, cell: &Cell) -> Result<(), Refusal> {
        let id = cell.lock().channel.id;
        let found = self.0.escrow.channel(id).await?;
        let channel = {
            let mut state = cell.lock();
            let before = state.channel.settled;
            state.channel.sync(found.as_ref());
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

    /// Channels that the ledger has news of.
    pub(crate) async fn news(&self) -> Result<Vec<B256>, Refusal> {
        Ok(self.0.escrow.news().await?)
    }

    pub(crate) fn closing(&self) -> Vec<B256> {
        let cells = self.all_cells();
        let states = cells.iter().map(|cell| cell.lock());
        let closing = states.filter(|state| state.channel.status == Status::Closing);
        closing.map(|state| state.channel.id).collect()
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
        // voucher somebody else could spend what it pays for.
        let is_signer = match refusal {
            Refusal::Insufficient { .. } => true,
            Refusal::Voucher(refusal) => *refusal != VoucherRefusal::Signer,
            _ => false,
        };
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
        self.0
            .channels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
