//! What one paid request may use, has used and is charged.
//!
//! ```text
//! count prompts ─▶ Purse::start (money set aside) ─▶ Inference ─▶ Tally ─▶ Meter::charge ─▶ client
//! ```
//!
//! Charged are the tokens of text that leaves, and the prompts once some of it does. Of a prompt that only
//! the engine can count that is at first as much as it has at least.

mod tally;

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use tenzro_protocol::inference::{
    CONTEXT_TOKENS_DEFAULT, EmbedRequest, GenerateEvent, GenerateRequest, ModelCard, PromptSize,
    TokenBudget,
};

use crate::billing::{Change, Charge, FinalReceipt, Meter, Order, Outcome, Purse, Refusal, Tokens};
use crate::error::{ApiError, Failure};
use crate::gate::with_receipt;
use crate::metrics::{Metrics, Waiting};
use crate::state::AppState;
use tally::{Tally, tokens_of};

/// Who pays for a request; the gate puts it there. A request without one is free.
#[derive(Debug, Clone)]
pub(crate) struct Payer {
    pub(crate) purse: Arc<dyn Purse>,
    pub(crate) request_id: String,
}

/// An event of the answer with that number.
pub(crate) type Numbered = (u32, GenerateEvent);

/// The running bill of one request. Dropping it gives back what was set aside and not charged.
#[derive(Debug)]
pub(crate) struct Bill {
    purse: Arc<dyn Purse>,
    meter: Box<dyn Meter>,
    metrics: Arc<Metrics>,
    /// All prompts together, as they were counted before.
    prompts: PromptSize,
    /// Tokens of them that were charged.
    input_charged: u32,
    budget: TokenBudget,
    tally: Tally,
}

impl Bill {
    /// Sets money aside for generations: `n` answers to each prompt, one after the other. They then
    /// share a budget of the tokens that are paid for.
    pub(crate) async fn for_answers(
        state: &AppState,
        payer: Payer,
        model: &ModelCard,
        requests: &mut [GenerateRequest],
        terms: Terms,
    ) -> Result<Self, Failure> {
        allow_count(state, payer.purse.as_ref())?;
        let mut prompts = PromptSize::exact(0);
        let mut output_tokens = 0u32;
        for answers in requests.chunks(terms.n.max(1) as usize) {
            let count = state.inference.count_prompt(&model.id, &answers[0]).await;
            let count = count.map_err(|error| ApiError::from_engine(&error, terms.prompt))?;
            prompts = prompts.plus(count);
            for answer in answers {
                let most = answer_tokens_max(answer, count, model);
                output_tokens = output_tokens.saturating_add(most);
            }
        }
        let budget = TokenBudget::new(0);
        for request in &mut *requests {
            request.budget = Some(budget.clone());
        }
        let order = Order {
            request_id: payer.request_id,
            input_tokens: prompts.tokens,
            output_tokens,
            is_stream: terms.is_stream,
            budget,
        };
        let tally = Tally::new(requests.len(), terms.n);
        Self::open(state, payer.purse, order, prompts, tally)
    }

    /// Sets money aside for embeddings.
    pub(crate) async fn for_inputs(
        state: &AppState,
        payer: Payer,
        model: &ModelCard,
        request: &EmbedRequest,
    ) -> Result<Self, Failure> {
        allow_count(state, payer.purse.as_ref())?;
        let inputs = state.inference.count_inputs(&model.id, request).await;
        let inputs = inputs.map_err(|error| ApiError::from_engine(&error, "input"))?;
        let order = Order {
            request_id: payer.request_id,
            input_tokens: inputs.tokens,
            output_tokens: 0,
            is_stream: false,
            budget: TokenBudget::new(0),
        };
        Self::open(state, payer.purse, order, inputs, Tally::new(0, 1))
    }

    fn open(
        state: &AppState,
        purse: Arc<dyn Purse>,
        order: Order,
        prompts: PromptSize,
        tally: Tally,
    ) -> Result<Self, Failure> {
        let payments = &state.metrics.payments;
        let budget = order.budget.clone();
        let meter = purse.start(order);
        let meter = meter.inspect_err(|refusal| payments.refused(refusal))?;
        payments.paid();
        Ok(Self {
            purse,
            meter,
            metrics: Arc::clone(&state.metrics),
            prompts,
            input_charged: 0,
            budget,
            tally,
        })
    }

    /// Value of `Payment-Receipt` as things stand.
    pub(crate) fn receipt(&self) -> String {
        self.purse.receipt()
    }

    /// Notes an event that is delivered.
    pub(crate) fn note(&mut self, event: &Numbered) {
        self.tally.note(event);
    }

    /// What was delivered.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Text that comes at once costs no more than a window: nobody pays more of it ahead, and waiting
    /// for more would wait for ever. Such text was held back because of a stop string.
    pub(crate) fn bound(&self, (_, event): &mut Numbered) {
        if let GenerateEvent::Delta(delta) = event {
            let most = self.meter.window();
            let given = delta.token_count.saturating_sub(most);
            if given > 0 {
                delta.token_count = most;
                self.budget.add(u64::from(given));
            }
        }
    }

    /// How many of these events are paid for together; at least one, which may not be.
    pub(crate) fn paid_for<'a>(&mut self, events: impl Iterator<Item = &'a Numbered>) -> usize {
        let mut left = self.meter.ahead();
        let paid = events.take_while(|(_, event)| match left.checked_sub(tokens_of(event)) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        });
        paid.count().max(1)
    }

    /// Charges for events that are about to leave, and with the first of them for the prompts, as far as
    /// their size is known. False when they are not paid for; nothing was charged then.
    pub(crate) async fn charge<'a>(&mut self, events: impl Iterator<Item = &'a Numbered>) -> bool {
        let output = events.map(|(_, event)| tokens_of(event));
        let output = output.fold(0, u32::saturating_add);
        if output == 0 {
            return true;
        }
        let input = self.prompts.least.saturating_sub(self.input_charged);
        self.pay(Tokens { input, output }).await
    }

    /// Charges for the rest of prompts whose size the engine tells at its end; to be called after the
    /// last tokens. False as in [`Self::charge`].
    pub(crate) async fn charge_rest(&mut self) -> bool {
        let input = self.input_tokens().saturating_sub(self.input_charged);
        if input == 0 || self.tally.output_tokens() == 0 {
            return true;
        }
        self.pay(Tokens { input, output: 0 }).await
    }

    /// Tokens of the prompts as the engine told them, within what was known before.
    fn input_tokens(&self) -> u32 {
        let told = self.tally.prompt_tokens().min(self.prompts.tokens);
        told.max(self.prompts.least)
    }

    async fn pay(&mut self, tokens: Tokens) -> bool {
        let is_paid = self.meter.charge(tokens).await == Charge::Paid;
        if is_paid {
            self.input_charged = self.input_charged.saturating_add(tokens.input);
            self.metrics.payments.charged(tokens);
        }
        is_paid
    }

    /// A request for a voucher that is due.
    pub(crate) fn ask(&mut self) -> Option<String> {
        self.meter.ask()
    }

    /// Waits for the client to pay; may be dropped at any time.
    pub(crate) async fn changed(&mut self) -> Change {
        self.meter.changed().await
    }

    /// Shows in the metrics that the client has to pay.
    pub(crate) fn waiting(&self) -> Waiting {
        self.metrics.payments.waiting()
    }

    /// Shows in the metrics that the client did not.
    pub(crate) fn ended_unpaid(&self) {
        self.metrics.payments.ended_unpaid();
    }

    /// Ends the request. `finish` as in [`Outcome`].
    pub(crate) async fn finish(self, finish: &str) -> FinalReceipt {
        let outcome = Outcome {
            cached_tokens: self.tally.cached_tokens(),
            finish: finish.to_owned(),
        };
        self.meter.finish(outcome).await
    }

    /// Charges a whole answer that the tally has noted, and puts the receipt on it.
    pub(crate) async fn settle(mut self, answer: impl IntoResponse) -> Result<Response, ApiError> {
        let tokens = Tokens {
            input: self.input_tokens(),
            output: self.tally.output_tokens(),
        };
        if tokens.output > 0 {
            self.settle_tokens(tokens).await?;
        }
        let finish = self.tally.finish();
        let receipt = self.finish(finish).await;
        Ok(with_receipt(receipt.header, answer.into_response()))
    }

    /// Charges embeddings of so many tokens, and puts the receipt on them.
    pub(crate) async fn settle_inputs(
        mut self,
        tokens: u32,
        answer: impl IntoResponse,
    ) -> Result<Response, ApiError> {
        let input = tokens.clamp(self.prompts.least, self.prompts.tokens);
        self.settle_tokens(Tokens { input, output: 0 }).await?;
        let receipt = self.finish("stop").await;
        Ok(with_receipt(receipt.header, answer.into_response()))
    }

    async fn settle_tokens(&mut self, tokens: Tokens) -> Result<(), ApiError> {
        while !self.pay(tokens).await {
            // All of it was set aside: only a book that cannot be written gets here.
            if self.meter.changed().await == Change::TooLate {
                return Err(ApiError::unavailable("the answer could not be charged"));
            }
        }
        Ok(())
    }
}

/// What [`Bill::for_answers`] has to know of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Answers per prompt.
    pub(crate) n: u32,
    /// Whether more can be paid while it runs.
    pub(crate) is_stream: bool,
    /// What the request calls its prompt, for errors.
    pub(crate) prompt: &'static str,
}

fn allow_count(state: &AppState, purse: &dyn Purse) -> Result<(), Failure> {
    let refused = |refusal: &Refusal| state.metrics.payments.refused(refusal);
    Ok(purse.allows_count().inspect_err(refused)?)
}

/// Most tokens of an answer: what was asked for, and what the context has room for.
fn answer_tokens_max(request: &GenerateRequest, prompt: PromptSize, model: &ModelCard) -> u32 {
    // Where the prompt may turn out smaller there is more room.
    let context = model.context_length.unwrap_or(CONTEXT_TOKENS_DEFAULT);
    let room = context.saturating_sub(prompt.least);
    request.max_tokens.unwrap_or(u32::MAX).min(room)
}
