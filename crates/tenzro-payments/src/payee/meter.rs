//! Charges one request.
//!
//! ```text
//!           charged          granted            order
//!  ├──────────┼─────────────────┼─────────────────┤  output tokens
//!   delivered   paid for, held    to be paid for
//!                at most a window
//! ```
//!
//! Money is set aside before a token is computed (`granted`), and spent before it leaves (`charged`). The disk
//! follows while tokens leave: it is written to with the first ones and for every quarter of a window, one write
//! at a time, so that less than half a window (or one token) is not there, and everything is at the end. So
//! much, and the prompt of an answer that has just begun, is what a crash costs the payee; the payer it costs
//! nothing.
//!
//! When what is granted runs low the payer is asked for as much more as makes it a window again, early enough
//! that the stream need not wait. Less than half a window is not worth going on for: who pays token by token
//! would have a place in the engine for next to nothing.

use std::fmt;
use std::time::Duration;

use alloy::primitives::B256;
use tenzro_protocol::amount::Wei;
use tenzro_protocol::inference::TokenBudget;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Purse, RUNNING_MAX, unix_seconds};
use crate::books::{BooksError, Change, Served, Writing};
use crate::challenge::random;
use crate::price::Tokens;
use crate::refusal::Refusal;
use crate::voucher::Usage;
use crate::wire::{NeedVoucher, Receipt, UsageReceipt};

/// How often, within its patience, a waiting stream looks whether its engine has used up what was granted.
const LOOKS: u32 = 20;

/// The part of a window after which what was charged is written down again. For a write of no more than that
/// nobody waits until the next one is due: tokens take less time than most disks.
const WRITES_PER_WINDOW: u32 = 4;

/// A stream waits in all as long as its patience, and for each window that it delivered this part of it.
/// Source: our choice; a payer that is asked half a window ahead hardly ever lets a stream wait.
const PATIENCE_PER_WINDOW: u32 = 4;

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
    /// Filled with the output tokens that are granted.
    pub budget: TokenBudget,
}

/// Whether tokens may be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charge {
    /// They are paid for, and charged.
    Paid,
    /// Not yet.
    Short,
}

/// What a stream that waits learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// There is more money, or another request of the channel had what was paid and the payer has to be
    /// asked again.
    Over,
    /// The payer did not pay in time.
    TooLate,
}

/// How a request ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Prompt tokens that had been computed before.
    pub cached_tokens: u32,
    /// OpenAI's `finish_reason`, `payment_required`, `cancelled` or `error`.
    pub finish: String,
}

/// See the module header. Dropping it gives back what was held.
pub struct Meter {
    /// Names the request in the books.
    key: B256,
    purse: Purse,
    order: Order,
    changed: watch::Receiver<u64>,
    began: Instant,
    first_token: Option<Instant>,
    /// Wei set aside for the part of the prompt that is not charged.
    prompt: u128,
    charged: Tokens,
    /// Of them those that were given to the books.
    written: Tokens,
    /// The last time that they were, where it may not be done.
    writing: Option<Writing>,
    cost: u128,
    /// Output tokens that were granted so far.
    granted: u32,
    /// Output tokens that are to be delivered and are not granted, if any, with all before them.
    due: u32,
    /// Amount that the payer was asked for last.
    asked: u128,
    /// Since when the payer keeps the stream waiting.
    waits_since: Option<Instant>,
    /// How long it did before.
    waited: Duration,
}

impl Purse {
    /// Sets money aside for a request: for its prompt and one window of output, or, where the answer comes in
    /// one piece, for all of it.
    pub fn start(&self, order: Order) -> Result<Meter, Refusal> {
        let pricing = &self.pricing;
        let first = match order.is_stream {
            true => order.output_tokens.min(pricing.window_tokens.max(1)),
            false => order.output_tokens,
        };
        let cost = |input, output| pricing.cost(Tokens { input, output }).ok_or(Refusal::Price);
        let prompt = cost(order.input_tokens, 0)?;
        let needed = cost(order.input_tokens, first)?;
        // All of it has to be an amount that a voucher can have.
        cost(order.input_tokens, order.output_tokens)?;
        let changed = self.cell.changed.subscribe();
        {
            let mut state = self.cell.lock();
            if state.running >= RUNNING_MAX {
                return Err(Refusal::TooMany);
            }
            if !state.channel.hold(needed) {
                let channel = &state.channel;
                let missing = needed.saturating_sub(channel.available());
                let required = channel.accepted().checked_add(missing);
                let required = required.ok_or(Refusal::Price)?;
                return Err(Refusal::Insufficient { required });
            }
            state.running += 1;
            state.count_is_paid();
        }
        order.budget.add(u64::from(first));
        Ok(Meter {
            key: random(),
            purse: self.clone(),
            changed,
            began: Instant::now(),
            first_token: None,
            prompt,
            charged: Tokens::default(),
            written: Tokens::default(),
            writing: None,
            cost: 0,
            granted: first,
            due: 0,
            asked: 0,
            waits_since: None,
            waited: Duration::ZERO,
            order,
        })
    }

    /// To be asked before each prompt is counted: those that are not paid for are limited.
    pub fn allows_count(&self) -> Result<(), Box<super::Refused>> {
        let mut state = self.cell.lock();
        if state.allows_count(Instant::now()) {
            return Ok(());
        }
        let id = state.channel.id;
        drop(state);
        Err(Box::new(self.payee.refuse(&Refusal::TooMany, Some(id))))
    }

    /// As [`Self::start`], with the refusal in the terms of HTTP.
    pub fn begin(&self, order: Order) -> Result<Meter, Box<super::Refused>> {
        let id = self.cell.lock().channel.id;
        let started = self.start(order);
        started.map_err(|refusal| Box::new(self.payee.refuse(&refusal, Some(id))))
    }
}

impl Meter {
    /// Charges tokens right before they leave. When it is done, less than half a window (or one token) is not on
    /// the disk, and of an answer that has just begun the prompt. After a failure the answer has to end.
    pub async fn charge(&mut self, tokens: Tokens) -> Result<Charge, BooksError> {
        // Never more than was ordered.
        let sum = |charged: u32, more, most| charged.saturating_add(more).min(most);
        let (charged, order) = (self.charged, &self.order);
        let next = Tokens {
            input: sum(charged.input, tokens.input, order.input_tokens),
            output: sum(charged.output, tokens.output, order.output_tokens),
        };
        // An engine that computes more than was granted: wait for the money.
        self.due = next.output;
        self.extend();
        if next.output > self.granted {
            return Ok(Charge::Short);
        }
        let lag = next.output - self.written.output;
        let step = (self.window() / WRITES_PER_WINDOW).max(1);
        let is_due = self.written == Tokens::default() || lag >= step;
        if is_due {
            // One write at a time, and no charge after one that failed.
            self.written_down().await?;
        }
        let cost = |tokens| self.purse.pricing.cost(tokens).unwrap_or(u128::MAX);
        let prompt = |input| cost(Tokens { input, output: 0 });
        let of_prompt = prompt(next.input).saturating_sub(prompt(charged.input));
        let cost = cost(next);
        let due = cost.saturating_sub(self.cost);
        self.prompt = self.prompt.saturating_sub(of_prompt);
        {
            let mut state = self.purse.cell.lock();
            state.channel.spend(due);
            state.unsettled_since.get_or_insert_with(Instant::now);
        }
        (self.charged, self.cost) = (next, cost);
        self.first_token.get_or_insert_with(Instant::now);
        self.go_on();
        self.extend();
        if is_due {
            self.write("")?;
        }
        if lag > step {
            self.written_down().await?;
        }
        Ok(Charge::Paid)
    }

    /// Output tokens that can be charged now.
    pub fn ahead(&mut self) -> u32 {
        self.extend();
        self.granted.saturating_sub(self.charged.output)
    }

    /// What has to be told to the payer now, if anything. Each is told once.
    pub fn ask(&mut self) -> Option<NeedVoucher> {
        self.extend();
        let need = self.need()?;
        self.asked = need.required_cumulative.0;
        Some(need)
    }

    /// What the payer has to be told and was not.
    fn need(&self) -> Option<NeedVoucher> {
        let ahead = self.granted.saturating_sub(self.charged.output);
        let window = self.window();
        let is_enough = ahead > window / 2 && self.due <= self.granted;
        if !self.order.is_stream || self.granted >= self.order.output_tokens || is_enough {
            return None;
        }
        let missing = Tokens::output(self.target().saturating_sub(self.granted));
        let missing = self.purse.pricing.cost(missing)?;
        let state = self.purse.cell.lock();
        let channel = &state.channel;
        let required = channel
            .accepted()
            .checked_add(missing.saturating_sub(channel.available()))?;
        // While the payer has not answered, a token more is no news: who answers one request after the other
        // would fall behind.
        let is_answered = channel.accepted() >= self.asked;
        let news = match is_answered {
            true => 1,
            false => self.purse.pricing.cost(Tokens::output(window / 2))?.max(1),
        };
        (required >= self.asked.checked_add(news)?).then(|| NeedVoucher {
            channel_id: channel.id,
            required_cumulative: Wei(required),
            accepted_cumulative: Wei(channel.accepted()),
            deposit: Wei(channel.deposit),
            spent: Some(Wei(channel.spent)),
            charged_tokens: Some(self.charged),
        })
    }

    /// Waits until the payer pays, or too long. While something is left to compute with it only waits.
    pub async fn shortage(&mut self) -> Shortage {
        let patience = self.purse.payee.0.sale.patience;
        loop {
            let before = self.granted;
            self.extend();
            if self.granted > before || self.need().is_some() {
                self.go_on();
                return Shortage::Over;
            }
            if self.is_kept_waiting() {
                let now = Instant::now();
                let waits = now - *self.waits_since.get_or_insert(now);
                if waits >= patience || self.waited + waits >= self.patience_in_all() {
                    return Shortage::TooLate;
                }
            } else {
                self.go_on();
            }
            // A closed channel of news would mean that the cell is gone, and it is held here.
            let _ = tokio::time::timeout(patience / LOOKS, self.changed.changed()).await;
        }
    }

    /// Ends the request. What was held is free again.
    pub async fn finish(mut self, outcome: Outcome) -> Receipt {
        self.release();
        if self.charged != Tokens::default()
            && let Err(error) = self.write_last(&outcome.finish).await
        {
            tracing::warn!(%error, "the end of a request cannot be written down");
        }
        self.receipt(&outcome)
    }

    fn receipt(&self, outcome: &Outcome) -> Receipt {
        let purse = &self.purse;
        let sale = &purse.payee.0.sale;
        let mut receipt = purse.receipt();
        let usage = Usage {
            channel_id: receipt.channel_id,
            request_id: &self.order.request_id,
            model_hash: sale.model.hash.unwrap_or_default(),
            input_tokens: self.charged.input,
            output_tokens: self.charged.output,
            charged: self.cost,
            spent: receipt.spent.0,
            price_version: purse.pricing.price_version,
        };
        let signature = sale.domain.sign_usage(&purse.payee.0.signer, &usage);
        receipt.units = Some(u64::from(self.charged.input) + u64::from(self.charged.output));
        receipt.usage = Some(UsageReceipt {
            request_id: self.order.request_id.clone(),
            model_hash: sale.model.hash,
            input_tokens: self.charged.input,
            output_tokens: self.charged.output,
            cached_tokens: outcome.cached_tokens,
            charged: Wei(self.cost),
            price_version: purse.pricing.price_version,
            ttft_ms: self.ttft_ms(),
            duration_ms: milliseconds(self.began.elapsed()),
            finish: outcome.finish.clone(),
            signature,
        });
        receipt
    }

    /// Lets what was charged be written down. What is written before it is there when this is.
    fn write(&mut self, finish: &str) -> Result<(), BooksError> {
        let change = self.change(finish);
        self.writing = Some(self.purse.payee.0.books.post(change)?);
        self.written = self.charged;
        Ok(())
    }

    async fn write_last(&mut self, finish: &str) -> Result<(), BooksError> {
        self.write(finish)?;
        self.written_down().await
    }

    /// Waits until what was given to the books is on the disk; may be dropped and called again. After a failure
    /// all of it is to be written again.
    async fn written_down(&mut self) -> Result<(), BooksError> {
        let Some(writing) = &mut self.writing else {
            return Ok(());
        };
        let result = writing.done().await;
        self.writing = None;
        if result.is_err() {
            self.written = Tokens::default();
        }
        result
    }

    /// What there is to be written down.
    fn change(&self, finish: &str) -> Change {
        let inner = &self.purse.payee.0;
        let (channel_id, spent) = {
            let state = self.purse.cell.lock();
            (state.channel.id, state.channel.spent)
        };
        let duration = self.began.elapsed();
        let served = Served {
            key: self.key,
            request_id: self.order.request_id.clone(),
            channel_id,
            model: inner.sale.model.id.clone(),
            at: unix_seconds().saturating_sub(duration.as_secs()),
            input_tokens: self.charged.input,
            output_tokens: self.charged.output,
            charged: self.cost,
            finish: finish.to_owned(),
            ttft_ms: self.ttft_ms(),
            duration_ms: milliseconds(duration),
        };
        let served = Box::new(served);
        Change::Spent { spent, served }
    }

    fn ttft_ms(&self) -> u64 {
        let first = self.first_token.map(|at| at.duration_since(self.began));
        milliseconds(first.unwrap_or_default())
    }

    /// Whether the payer's money is what is missing: nothing can be computed, or delivered.
    fn is_kept_waiting(&self) -> bool {
        let is_complete = !self.order.is_stream || self.granted >= self.order.output_tokens;
        !is_complete && (self.due > self.granted || self.order.budget.is_dry())
    }

    /// The payer keeps the stream waiting no more.
    fn go_on(&mut self) {
        if let Some(since) = self.waits_since.take() {
            self.waited += since.elapsed();
        }
    }

    fn patience_in_all(&self) -> Duration {
        let patience = self.purse.payee.0.sale.patience;
        let windows = self.charged.output / self.window();
        patience + (patience / PATIENCE_PER_WINDOW).saturating_mul(windows)
    }

    /// Output tokens that are paid ahead at most.
    pub fn window(&self) -> u32 {
        self.purse.pricing.window_tokens.max(1)
    }

    /// Up to where it may be granted now: one window ahead of what was delivered, and what waits to be.
    fn target(&self) -> u32 {
        let ahead = self.charged.output.saturating_add(self.window());
        ahead.max(self.due).min(self.order.output_tokens)
    }

    /// Grants what the money at hand allows, up to the target, where it allows enough to go on for.
    fn extend(&mut self) {
        let wanted = self.target().saturating_sub(self.granted);
        if !self.order.is_stream || wanted == 0 {
            return;
        }
        let least = wanted.min((self.window() / 2).max(1));
        let pricing = &self.purse.pricing;
        let mut state = self.purse.cell.lock();
        let affordable = pricing.output_tokens(state.channel.available());
        let tokens = u32::try_from(affordable).unwrap_or(u32::MAX).min(wanted);
        let cost = pricing.cost(Tokens::output(tokens)).unwrap_or(u128::MAX);
        if tokens < least || !state.channel.hold(cost) {
            return;
        }
        drop(state);
        self.granted += tokens;
        self.order.budget.add(u64::from(tokens));
    }

    /// Gives back what is held, once.
    fn release(&mut self) {
        let uncharged = self.granted.saturating_sub(self.charged.output);
        let held = self.purse.pricing.cost(Tokens::output(uncharged));
        let held = held.unwrap_or_default().saturating_add(self.prompt);
        let mut state = self.purse.cell.lock();
        state.channel.release(held);
        let settles = state.unsettled_since.is_some();
        drop(state);
        (self.granted, self.prompt) = (self.charged.output, 0);
        // Another request of the channel may use it.
        self.purse.cell.wake();
        if settles {
            self.purse.payee.0.settle.notify_one();
        }
    }
}

/// Gives back what was held when a client leaves, and lets what was charged be written down.
impl Drop for Meter {
    fn drop(&mut self) {
        self.release();
        if self.charged != self.written
            && let Err(error) = self.write("")
        {
            tracing::warn!(%error, "the last charge of a request cannot be written down");
        }
        let mut state = self.purse.cell.lock();
        state.running = state.running.saturating_sub(1);
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Meter")
            .field("request_id", &self.order.request_id)
            .field("charged", &self.charged)
            .field("granted", &self.granted)
            .finish_non_exhaustive()
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
