//! A request that is being paid for: its credentials, what arrived of its answer, and its bill.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use alloy::primitives::{Address, B256};
use mpp::{PaymentCredential, format_authorization, parse_receipt};

use super::audit::{Bill, Heard, Overbill};
use super::books::{Books, Ending, Purchase, SharedHeard};
use super::pay::{Payment, SignedDeposit, random};
use super::store::Deposit;
use super::terms::Terms;
use super::worker::Worker;
use super::{Inner, Order, PayError};
use crate::price::Tokens;
use crate::signature::Signature;
use crate::sync::lock;
use crate::voucher::Usage;
use crate::wire::{
    Authorization, ChannelState, DepositAction, DepositKind, MergedDeposit, NeedVoucher, Open,
    OpenDeposit, Payload, Problem, Receipt, UsageReceipt, VoucherUpdate,
};

/// Longest receipt that is kept, in bytes of JSON.
const RECEIPT_BYTES_MAX: usize = 8 << 10;
/// How the type of a problem with a deposit ends. Source: MPP draft-ryan-httpauth-payment, "Problem Types".
const DEPOSIT_TOO_SMALL: &str = "/payment-insufficient";
/// Longest base URL, in bytes.
const PLACE_BYTES_MAX: usize = 256;

/// A header that pays. Say when the payee took it: a deposit in it counts only then, and until then or until
/// this is dropped no other deposit is made to the payee.
#[must_use]
pub struct Credential {
    inner: Arc<Inner>,
    header: String,
    value: String,
    deposit: Option<SignedDeposit>,
    /// A channel that is nobody's yet, and the server that is asked whether it is its own.
    stray: Option<(B256, Arc<str>)>,
}

/// Whoever has the value can take what it pays.
impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Credential");
        shown
            .field("header", &self.header)
            .field("deposit", &self.deposit);
        shown.field("stray", &self.stray).finish_non_exhaustive()
    }
}

impl Credential {
    pub(super) fn new(
        inner: &Arc<Inner>,
        terms: &Terms,
        payload: &Payload,
        deposit: Option<SignedDeposit>,
    ) -> Self {
        let credential = PaymentCredential::new(terms.challenge.to_echo(), payload);
        // Only types without a JSON form fail, and these have one.
        let value = format_authorization(&credential).unwrap_or_default();
        Self {
            inner: Arc::clone(inner),
            header: terms.challenge.credential_header().to_owned(),
            value,
            deposit,
            stray: None,
        }
    }

    /// Name of the header: `Authorization`, or another one that the challenge wants.
    pub fn header(&self) -> &str {
        &self.header
    }

    /// Its value. Whoever has it can take what it pays.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// The payee answered with a status that means success.
    pub async fn accepted(self) -> Result<(), PayError> {
        let Self { deposit, stray, .. } = &self;
        if deposit.is_none() && stray.is_none() {
            return Ok(());
        }
        let deposit = deposit.as_ref().map(|signed| signed.deposit);
        let stray = stray.clone();
        let accept = move |books: &mut Books| {
            if let Some((channel, place)) = stray {
                books.settle_down(channel, &place)?;
            }
            match deposit {
                Some(Deposit { channel, salt, .. }) => books.accept(channel, salt),
                None => Ok(()),
            }
        };
        self.inner.worker.call(accept).await
    }
}

/// What comes of a payee's wish for a voucher.
#[derive(Debug)]
pub struct Answer {
    /// To be sent on another connection; none where there is nothing more to give.
    pub credential: Option<Credential>,
    /// Wei since the channel was opened that are signed now.
    pub signed: u128,
    /// The payee asks for more than it may: the stream should be ended once what is paid has come.
    pub is_overbill: bool,
}

/// What comes of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// What is paid of the bill.
    pub agreed: Bill,
    /// The bill, where it was higher.
    pub overbill: Option<Overbill>,
    /// Why the receipt proves nothing to others; none where the payee signed what this request used.
    pub flaw: Option<&'static str>,
}

/// A request in the books, which ends with this.
#[derive(Debug)]
pub(super) struct Entry {
    worker: Worker,
    clock: fn() -> u64,
    id: i64,
    heard: SharedHeard,
    /// A credential exists, so that the payee may have served.
    is_sent: AtomicBool,
    is_over: AtomicBool,
}

impl Entry {
    pub(super) fn new(worker: Worker, clock: fn() -> u64, id: i64, heard: SharedHeard) -> Self {
        Self {
            worker,
            clock,
            id,
            heard,
            is_sent: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.is_over.load(Ordering::Acquire) {
            return;
        }
        let (id, now) = (self.id, (self.clock)());
        match self.is_sent.load(Ordering::Acquire) {
            true => self.worker.tell(move |books| books.lose(id, now)),
            false => self.worker.tell(move |books| books.refuse(id, now)),
        }
    }
}

/// A running request. Dropped without a receipt, it counts as lost: what may have been charged for it stays
/// in doubt until the payee says what it was.
#[derive(Debug)]
pub struct PaidRequest {
    inner: Arc<Inner>,
    entry: Entry,
    channel: B256,
    payee: Address,
    place: Arc<str>,
    request_hash: B256,
    /// One of its credentials opened the channel.
    is_opening: AtomicBool,
    terms: Mutex<Arc<Terms>>,
    /// Of the challenge that the request answers; later ones are for vouchers.
    price_version: AtomicU64,
    /// What the payee calls the request.
    name: OnceLock<String>,
}

impl PaidRequest {
    pub(super) async fn begin(
        inner: &Arc<Inner>,
        terms: Terms,
        order: Order,
    ) -> Result<(Self, Credential), PayError> {
        if order.place.len() > PLACE_BYTES_MAX {
            return Err(PayError::Place);
        }
        let purchase = Purchase::New {
            model: order.model,
            prompt: order.prompt,
            shape: order.shape,
            heard: Arc::new(Mutex::new(Heard::new(order.shape, order.recount))),
        };
        let mut payment = inner.pay(&terms, &order.place, purchase, None).await?;
        let request = Self {
            inner: Arc::clone(inner),
            entry: payment.entry.take().ok_or(PayError::Ended)?,
            channel: payment.channel,
            payee: terms.payee,
            place: order.place,
            request_hash: order.request_hash,
            is_opening: AtomicBool::new(false),
            price_version: AtomicU64::new(terms.pricing.price_version),
            name: OnceLock::new(),
            terms: Mutex::new(Arc::new(terms)),
        };
        let credential = request.credential(payment, order.request_hash)?;
        Ok((request, credential))
    }

    /// The channel that pays.
    pub fn channel(&self) -> B256 {
        self.channel
    }

    /// The payee refused the credential, with a new challenge where the status is 402: pays what it says it
    /// needs, if that can be right. Where it shows a voucher of ours that the books have lost, they learn
    /// it. Where it does not take the channel (410), the ledger is asked, and the error is
    /// [`PayError::NoChannel`]: another request is to be prepared, which another channel pays. The refused
    /// credential must have been dropped: what it holds may have to be sent again.
    pub async fn retry(&self, terms: Terms, problem: &Problem) -> Result<Credential, PayError> {
        let price_version = terms.pricing.price_version;
        self.renew(terms)?;
        self.price_version.store(price_version, Ordering::Release);
        if matches!(problem.status, 409 | 410) {
            self.inner.reconcile(self.channel).await?;
        }
        if problem.status == 410 {
            return Err(self.turned_away().await?);
        }
        if let Some(state) = &problem.channel {
            self.remember(state).await?;
        }
        if problem.kind.ends_with(DEPOSIT_TOO_SMALL) {
            let (id, place) = (self.channel, Arc::clone(&self.place));
            let suggested = lock(&self.terms).suggested_deposit;
            let refuse = move |books: &mut Books| books.refuse_deposit(id, &place, suggested);
            self.inner.worker.call(refuse).await?;
        }
        let required = problem.required_cumulative.map(|required| required.0);
        let id = self.entry.id;
        let terms = Arc::clone(&lock(&self.terms));
        let purchase = Purchase::Refused { id };
        let pay = self.inner.pay(&terms, &self.place, purchase, required);
        let paid = pay.await;
        if let Err(PayError::Overbilled { required, signed }) = paid {
            let accuse = move |books: &mut Books| books.accuse(id, required, signed);
            self.inner.worker.call(accuse).await?;
        }
        self.credential(paid?, self.request_hash)
    }

    /// Why the request cannot go on, now that the server does not take its channel. A server that opens
    /// channels and takes none gets one for each request, and not as many as it likes.
    async fn turned_away(&self) -> Result<PayError, PayError> {
        let (id, place) = (self.channel, Arc::clone(&self.place));
        let turn_away = move |books: &mut Books| books.turn_away(id, &place);
        self.inner.worker.call(turn_away).await?;
        Ok(match self.is_opening.load(Ordering::Acquire) {
            true => PayError::TurnedAway,
            false => PayError::NoChannel,
        })
    }

    /// A newer challenge for the same payee, to be answered from now on. Prices stay as they were.
    pub fn renew(&self, terms: Terms) -> Result<(), PayError> {
        if terms.payee != self.payee {
            return Err(PayError::Message("another payee"));
        }
        *lock(&self.terms) = Arc::new(terms);
        Ok(())
    }

    /// The answer began, with that `x-request-id`.
    pub fn answered(&self, name: &str) {
        // The first one counts, and there is only one.
        let _ = self.name.set(name.to_owned());
    }

    /// Text of the answer arrived.
    pub fn on_text(&self, text: &str) {
        lock(&self.entry.heard).push(text);
    }

    /// The payee wants a higher voucher for the stream to go on. Signed is at most what is due, the prompt
    /// and a window. `request_hash` is that of the request that will carry the credential.
    pub async fn on_need_voucher(
        &self,
        need: &NeedVoucher,
        request_hash: B256,
    ) -> Result<Answer, PayError> {
        if need.channel_id != self.channel {
            return Err(PayError::Message("another channel"));
        }
        let terms = Arc::clone(&lock(&self.terms));
        let purchase = Purchase::Running { id: self.entry.id };
        let required = Some(need.required_cumulative.0);
        let pay = self.inner.pay(&terms, &self.place, purchase, required);
        let payment = pay.await?;
        let (signed, is_overbill) = (payment.amount, payment.is_overbill);
        let is_higher = payment.amount > need.accepted_cumulative.0;
        let credential = is_higher.then(|| self.credential(payment, request_hash));
        Ok(Answer {
            credential: credential.transpose()?,
            signed,
            is_overbill,
        })
    }

    /// The last receipt: the answer is complete, or has ended for a reason that the receipt names.
    pub async fn on_receipt(&self, receipt: &Receipt) -> Result<Verdict, PayError> {
        if receipt.channel_id != self.channel {
            return Err(PayError::Message("a receipt for another channel"));
        }
        if receipt.chain_id != self.inner.market.domain.chain_id {
            return Err(PayError::Message("a receipt for another chain"));
        }
        let text = serde_json::to_string(receipt).unwrap_or_default();
        if text.len() > RECEIPT_BYTES_MAX {
            return Err(PayError::Message("a receipt of more than 8 KiB"));
        }
        let flaw = self.flaw(receipt);
        let (id, now) = (self.entry.id, (self.inner.clock)());
        let heard = lock(&self.entry.heard).most();
        let bill = receipt.usage.as_ref().map(|usage| Bill {
            tokens: Tokens {
                input: usage.input_tokens,
                output: usage.output_tokens,
            },
            charged: usage.charged,
        });
        let spent = receipt.spent.0;
        let finish = move |books: &mut Books| {
            let ending = Ending {
                id,
                heard,
                bill,
                spent,
                receipt: &text,
            };
            books.finish(&ending, now)
        };
        let (agreed, overbill) = self.inner.worker.call(finish).await?;
        self.entry.is_over.store(true, Ordering::Release);
        Ok(Verdict {
            agreed,
            overbill,
            flaw,
        })
    }

    /// As [`PaidRequest::on_receipt`], from the header `Payment-Receipt` of an answer in one piece.
    pub async fn on_receipt_header(&self, value: &str) -> Result<Verdict, PayError> {
        let unreadable = PayError::Message("a receipt that cannot be read");
        let envelope = parse_receipt(value).map_err(|_| unreadable.clone())?;
        let receipt = serde_json::to_value(envelope).and_then(serde_json::from_value);
        self.on_receipt(&receipt.map_err(|_| unreadable)?).await
    }

    /// The payee answered with an error, and so charged nothing.
    pub async fn not_served(self) -> Result<(), PayError> {
        let (id, now) = (self.entry.id, (self.inner.clock)());
        let refuse = move |books: &mut Books| books.refuse(id, now);
        self.inner.worker.call(refuse).await?;
        self.entry.is_over.store(true, Ordering::Release);
        Ok(())
    }

    /// Only a voucher that we signed says how much we signed; what else the payee tells is its own affair.
    async fn remember(&self, state: &ChannelState) -> Result<(), PayError> {
        let Some(voucher) = &state.voucher else {
            return Ok(());
        };
        let signer = self.inner.market.domain.voucher_signer(voucher);
        if voucher.channel_id != self.channel || signer != Ok(self.inner.signer.address()) {
            return Err(PayError::Message("a voucher that is not ours"));
        }
        let (id, amount, spent) = (self.channel, voucher.amount.0, state.spent.0);
        let remember = move |books: &mut Books| books.remember(id, amount, spent);
        self.inner.worker.call(remember).await
    }

    fn flaw(&self, receipt: &Receipt) -> Option<&'static str> {
        let Some(usage) = &receipt.usage else {
            return Some("does not say what was used");
        };
        let is_for_another = |name: &String| *name != usage.request_id;
        let model = lock(&self.terms).model_hash;
        let is_other_model = model.is_some_and(|hash| usage.model_hash != Some(hash));
        if !self.is_signed(receipt, usage) {
            Some("is not signed by the provider")
        } else if self.name.get().is_some_and(is_for_another) {
            Some("is for another request")
        } else if is_other_model {
            Some("is for another model file")
        } else if usage.price_version != self.price_version.load(Ordering::Acquire) {
            Some("is for another price")
        } else {
            None
        }
    }

    fn is_signed(&self, receipt: &Receipt, usage: &UsageReceipt) -> bool {
        let signed = Usage {
            channel_id: receipt.channel_id,
            request_id: &usage.request_id,
            model_hash: usage.model_hash.unwrap_or_default(),
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            charged: usage.charged.0,
            spent: receipt.spent.0,
            price_version: usage.price_version,
        };
        let domain = &self.inner.market.domain;
        domain.usage_signer(&signed, &usage.signature) == Ok(self.payee)
    }

    /// Signs what was decided, and what was written before.
    fn credential(&self, payment: Payment, request_hash: B256) -> Result<Credential, PayError> {
        let (inner, terms) = (&self.inner, Arc::clone(&lock(&self.terms)));
        let (domain, signer) = (&inner.market.domain, &inner.signer);
        let voucher = domain.sign_voucher(signer, payment.channel, payment.amount);
        let challenge = &terms.challenge.id;
        let nonce = random()?;
        let auth = domain.sign_request(signer, payment.channel, challenge, request_hash, nonce);
        let signed = payment.deposit.as_ref().map(|signed| signed.deposit);
        let payload = match signed.map(|deposit| (deposit, self.authorize(&deposit))) {
            Some((deposit, (authorization, signature))) if deposit.is_open => {
                Payload::Open(Box::new(Open {
                    channel_id: payment.channel,
                    deposit: OpenDeposit::Authorization {
                        authorization,
                        signature,
                        voucher_signature: voucher.signature,
                    },
                    cumulative_amount: voucher.amount,
                    authorized_signer: None,
                    salt: deposit.salt,
                    request_auth: Some(auth),
                }))
            }
            merged => Payload::Voucher(Box::new(VoucherUpdate {
                voucher,
                deposit: merged.map(|(deposit, (authorization, signature))| MergedDeposit {
                    action: DepositAction::TopUp,
                    kind: DepositKind::Authorization,
                    authorization,
                    signature,
                    salt: deposit.salt,
                    authorized_signer: None,
                }),
                request_auth: Some(auth),
            })),
        };
        self.entry.is_sent.store(true, Ordering::Release);
        if matches!(payload, Payload::Open(_)) {
            self.is_opening.store(true, Ordering::Release);
        }
        let mut credential = Credential::new(inner, &terms, &payload, payment.deposit);
        let stray = (payment.channel, Arc::clone(&self.place));
        credential.stray = payment.is_stray.then_some(stray);
        Ok(credential)
    }

    fn authorize(&self, deposit: &Deposit) -> (Authorization, Signature) {
        let Deposit {
            channel,
            is_open,
            salt,
            amount,
            valid_before,
        } = *deposit;
        let ledger = &self.inner.ledger;
        match is_open {
            true => ledger.sign_open(self.payee, salt, amount, valid_before),
            false => ledger.sign_top_up(channel, salt, amount, valid_before),
        }
    }
}
