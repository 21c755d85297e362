//! Charges one request.
//!
//! ```text
//!           charged          granted            order
//!  ├──────────┼─────────────────┼─────────────────┤  output tokens
//!   delivered   paid for, held    to be paid for
//!                at most a window
//! ```
//!
//! Money is set aside before a token is computed (`granted`), and spent on the disk before it leaves
//! (`charged`). When what is granted runs low the payer is asked for as much more as makes it a window
//! again, early enough that the stream need not wait.

use std::fmt;
use std::time::Duration;

use alloy::primitives::B256;
use tenzro_protocol::amount::Wei;
use tenzro_protocol::inference::TokenBudget;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Purse, RUNNING_MAX, unix_seconds};
use crate::books::{BooksError, Change, Served};
use crate::challenge::random;
use crate::price::Tokens;
use crate::refusal::Refusal;
use crate::voucher::Usage;
use crate::wire::{NeedVoucher, Receipt, UsageReceipt};

/// How often, within its patience, a waiting stream looks whether its engine has used up what was granted.
const LOOKS: u32 = 20;

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
    /// They are paid for, and written down.
    Paid,
    /// Not yet.
    Short,
}

/// What a stream that waits learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// There is more money.
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
    /// Wei set aside for the prompt until it is charged.
    prompt: u128,
    charged: Tokens,
    cost: u128,
    /// Output tokens that were granted so far.
    granted: u32,
    /// Amount that the payer was asked for last.
    asked: u128,
    /// Since when nothing is left to compute with.
    empty_since: Option<Instant>,
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
            cost: 0,
            granted: first,
            asked: 0,
            empty_since: None,
            order,
        })
    }

    /// As [`Self::start`], with the refusal in the terms of HTTP.
    pub fn begin(&self, order: Order) -> Result<Meter, Box<super::Refused>> {
        let id = self.cell.lock().channel.id;
        let started = self.start(order);
        started.map_err(|refusal| Box::new(self.payee.refuse(&refusal, Some(id))))
    }
}

impl Meter {
    /// Charges tokens right before they leave. When it is done the charge is on the disk.
    pub async fn charge(&mut self, tokens: Tokens) -> Result<Charge, BooksError> {
        // Never more for the prompt than was set aside for it.
        let input = match tokens.input {
            0 => 0,
            input => input.min(self.order.input_tokens),
        };
        let next = Tokens {
            input: self.charged.input.max(input),
            output: self.charged.output.saturating_add(tokens.output),
        };
        // An engine that computes more than was granted: wait for the money.
        while next.output > self.granted {
            let missing = next.output - self.granted;
            if !self.grant(missing) {
                return Ok(Charge::Short);
            }
        }
        let cost = self.purse.pricing.cost(next).unwrap_or(u128::MAX);
        let due = cost.saturating_sub(self.cost);
        let spent = {
            let mut state = self.purse.cell.lock();
            if input > 0 {
                // What the prompt did not need is free again.
                let unused = self
                    .prompt
                    .saturating_sub(due_of_prompt(&self.purse, next.input));
                state.channel.release(unused);
                self.prompt = 0;
            }
            state.channel.spend(due);
            state.unsettled_since.get_or_insert_with(Instant::now);
            state.channel.spent
        };
        (self.charged, self.cost) = (next, cost);
        self.first_token.get_or_insert_with(Instant::now);
        self.empty_since = None;
        self.extend();
        self.write(spent, "").await?;
        Ok(Charge::Paid)
    }

    /// What has to be told to the payer now, if anything. Each is told once.
    pub fn ask(&mut self) -> Option<NeedVoucher> {
        self.extend();
        let ahead = self.granted.saturating_sub(self.charged.output);
        let window = self.window();
        if !self.order.is_stream || self.granted >= self.order.output_tokens || ahead > window / 2 {
            return None;
        }
        let target = self.target();
        let missing = Tokens::output(target.saturating_sub(self.granted));
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
        if required < self.asked.checked_add(news)? {
            return None;
        }
        self.asked = required;
        Some(NeedVoucher {
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
            if self.granted > before {
                self.empty_since = None;
                return Shortage::Over;
            }
            let is_complete = self.granted >= self.order.output_tokens;
            if is_complete || self.order.budget.left() > 0 {
                self.empty_since = None;
            } else {
                let since = *self.empty_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= patience {
                    return Shortage::TooLate;
                }
            }
            // A closed channel of news would mean that the cell is gone, and it is held here.
            let _ = tokio::time::timeout(patience / LOOKS, self.changed.changed()).await;
        }
    }

    /// Ends the request. What was held is free again.
    pub async fn finish(mut self, outcome: Outcome) -> Receipt {
        let spent = self.release();
        if self.charged != Tokens::default()
            && let Err(error) = self.write(spent, &outcome.finish).await
        {
            // All charges are written down; only how the request ended is not.
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

    async fn write(&self, spent: u128, finish: &str) -> Result<(), BooksError> {
        let inner = &self.purse.payee.0;
        let channel_id = self.purse.cell.lock().channel.id;
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
        inner.books.write(Change::Spent { spent, served }).await
    }

    fn ttft_ms(&self) -> u64 {
        let first = self.first_token.map(|at| at.duration_since(self.began));
        milliseconds(first.unwrap_or_default())
    }

    fn window(&self) -> u32 {
        self.purse.pricing.window_tokens.max(1)
    }

    /// Up to where it may be granted now: one window ahead of what was delivered.
    fn target(&self) -> u32 {
        let ahead = self.charged.output.saturating_add(self.window());
        ahead.min(self.order.output_tokens)
    }

    /// Grants what the money at hand allows, up to one window ahead.
    fn extend(&mut self) {
        if self.order.is_stream {
            let wanted = self.target().saturating_sub(self.granted);
            self.grant(wanted);
        }
    }

    /// Grants up to so many more tokens; whether it was any.
    fn grant(&mut self, wanted: u32) -> bool {
        if wanted == 0 {
            return false;
        }
        let pricing = &self.purse.pricing;
        let mut state = self.purse.cell.lock();
        let affordable = pricing.output_tokens(state.channel.available());
        let tokens = u32::try_from(affordable).unwrap_or(u32::MAX).min(wanted);
        let cost = pricing.cost(Tokens::output(tokens)).unwrap_or(u128::MAX);
        if tokens == 0 || !state.channel.hold(cost) {
            return false;
        }
        drop(state);
        self.granted += tokens;
        self.order.budget.add(u64::from(tokens));
        true
    }

    /// Gives back what is held, once; wei spent on the channel.
    fn release(&mut self) -> u128 {
        let uncharged = self.granted.saturating_sub(self.charged.output);
        let held = self.purse.pricing.cost(Tokens::output(uncharged));
        let held = held.unwrap_or_default().saturating_add(self.prompt);
        let mut state = self.purse.cell.lock();
        state.channel.release(held);
        let spent = state.channel.spent;
        let settles = state.unsettled_since.is_some();
        drop(state);
        (self.granted, self.prompt) = (self.charged.output, 0);
        // Another request of the channel may use it.
        self.purse.cell.wake();
        if settles {
            self.purse.payee.0.settle.notify_one();
        }
        spent
    }
}

/// Gives back what was held when a client leaves.
impl Drop for Meter {
    fn drop(&mut self) {
        self.release();
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

fn due_of_prompt(purse: &Purse, input: u32) -> u128 {
    let tokens = Tokens { input, output: 0 };
    purse.pricing.cost(tokens).unwrap_or(u128::MAX)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
