//! The seam between the HTTP edge and whoever keeps the money.
//!
//! ```text
//! headers ─▶ Billing::check
//! request ─▶ Billing::pay ─▶ Purse::start ─▶ Meter ┬ charge   before tokens leave
//!               │ Refusal        │ Refusal         ├ ask      what the client has to pay next
//!               ▼                ▼                 ├ changed  it paid, or did not in time
//!            402 …            402 …                └ finish   the receipt
//! ```
//!
//! A server without it serves for free.

use std::fmt;

use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::Value;
use tenzro_protocol::inference::TokenBudget;

/// Takes payments. Implemented by `tenzro-node`.
pub trait Billing: Send + Sync + fmt::Debug + 'static {
    /// What a request without a payment is answered. Touches neither disk nor model.
    fn challenge(&self) -> Refusal;

    /// Whether a payment answers a challenge of this server, before anything else is looked at. Touches
    /// neither disk nor model.
    fn check(&self, credential: &Credential) -> Result<(), Refusal>;

    /// Takes the payment of a request in: money is on the disk before it counts.
    fn pay(&self, request: PaidRequest) -> BoxFuture<'_, Result<Payment, Refusal>>;

    /// Whether this bearer token is the operator's, who serves himself for free.
    fn is_operator(&self, token: &str) -> bool;
}

/// A request that brings a payment.
#[derive(Debug, Clone)]
pub struct PaidRequest {
    /// HTTP method.
    pub method: String,
    /// Path, without a query.
    pub path: String,
    /// Value of the header with the payment.
    pub credential: Credential,
    /// Body; empty where there is none.
    pub body: Bytes,
}

/// A payment header; logs do not show it.
#[derive(Clone)]
pub struct Credential(pub String);

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Credential(…)")
    }
}

/// What a payment was.
#[derive(Debug)]
pub enum Payment {
    /// The means to be served.
    Purse(Box<dyn Purse>),
    /// Nothing to be served with: a top-up, or the end of the channel. Value of `Payment-Receipt`.
    Done(String),
}

/// A refusal in the terms of HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Status.
    pub status: u16,
    /// Value of `WWW-Authenticate`; always there with status 402.
    pub challenge: Option<String>,
    /// Whole seconds of `Retry-After`.
    pub retry_after: Option<u64>,
    /// Body, `application/problem+json`.
    pub problem: Value,
}

/// An open channel with what is left in it.
pub trait Purse: Send + Sync + fmt::Debug {
    /// Value of `Payment-Receipt` as things stand.
    fn receipt(&self) -> String;

    /// To be asked before a prompt is counted: who has prompts counted, time after time, and does not pay
    /// for them has to wait.
    fn allows_count(&self) -> Result<(), Refusal>;

    /// Sets money aside for a request: for its prompt and one window of output, or, where the answer comes
    /// in one piece, for all of it.
    fn start(&self, order: Order) -> Result<Box<dyn Meter>, Refusal>;
}

/// What a request may use.
#[derive(Debug, Clone)]
pub struct Order {
    /// As in `x-request-id`.
    pub request_id: String,
    /// Tokens of all prompts, at most.
    pub input_tokens: u32,
    /// Tokens of all answers, at most.
    pub output_tokens: u32,
    /// Whether more can be paid while it runs.
    pub is_stream: bool,
    /// Filled with the output tokens that are paid for.
    pub budget: TokenBudget,
}

/// Tokens that are about to be delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of the prompts: with the first tokens of the answer, and what is known of them only at its end
    /// after the last ones.
    pub input: u32,
    /// Of the answers.
    pub output: u32,
}

/// Whether tokens may be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charge {
    /// They are paid for, and charged.
    Paid,
    /// Not yet: nothing was charged. Wait for [`Meter::changed`] and charge again.
    Short,
}

/// What happened while a stream waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// There is more money, or more to ask for.
    More,
    /// The client did not pay in time: the stream has to end.
    TooLate,
}

/// How a paid request ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Prompt tokens that had been computed before.
    pub cached_tokens: u32,
    /// OpenAI's `finish_reason`, `payment_required`, `cancelled` or `error`.
    pub finish: String,
}

/// The receipt of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinalReceipt {
    /// Value of `Payment-Receipt`.
    pub header: String,
    /// The same as the JSON of a `payment-receipt` event.
    pub event: String,
}

/// Charges one request. Dropping it gives back what was set aside and not charged.
pub trait Meter: Send + fmt::Debug {
    /// Charges tokens right before they leave. A charge that is dropped before it is done may or may not
    /// have been made; the client has gone then.
    fn charge(&mut self, tokens: Tokens) -> BoxFuture<'_, Charge>;

    /// Output tokens that can be charged now.
    fn ahead(&mut self) -> u32;

    /// Output tokens that a stream's client pays ahead at most.
    fn window(&self) -> u32;

    /// JSON of a `payment-need-voucher` event that is due; each is given once.
    fn ask(&mut self) -> Option<String>;

    /// Waits for the client to pay; may be dropped and called again at any time. The client has its time
    /// only while the engine cannot go on: the budget is dry with less than the whole order paid for, or
    /// a charge was [`Charge::Short`]. Otherwise it waits without a limit. Where something is to be told
    /// to the client meanwhile, this is [`Change::More`], and [`Meter::ask`] has it.
    fn changed(&mut self) -> BoxFuture<'_, Change>;

    /// Ends the request.
    fn finish(self: Box<Self>, outcome: Outcome) -> BoxFuture<'static, FinalReceipt>;
}
