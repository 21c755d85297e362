//! Billing that does as it is told, with books that tests read: every token costs 1, and a payment is
//! `Payment voucher-N` (N in all), `Payment done`, `Payment refuse-STATUS-PROBLEM`, or `Payment forged`, which
//! answers no challenge.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::json;
use tenzro_api::billing::{
    Billing, Change, Charge, Credential, FinalReceipt, Meter, Order, Outcome, PaidRequest, Payment,
    Purse, Refusal, Tokens,
};
use tokio::sync::watch;

pub(crate) const OPERATOR: &str = "the-operator";

#[derive(Debug, Clone, Default)]
pub(crate) struct Till(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    books: Mutex<Books>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Books {
    pub(crate) accepted: u32,
    pub(crate) spent: u32,
    pub(crate) reserved: u32,
    /// Output tokens set aside for a stream at its start.
    pub(crate) window: u32,
    /// Tokens of the budget that nobody paid for.
    pub(crate) overrun: u64,
    /// Payments that were looked at before their request was read.
    pub(crate) checked: u32,
    /// No more prompts are counted.
    pub(crate) counts_no_more: bool,
    pub(crate) requests: Vec<(String, String, usize)>,
    /// Request ids, input and output tokens, whether it is a stream.
    pub(crate) orders: Vec<(String, u32, u32, bool)>,
    pub(crate) charges: Vec<(u32, u32)>,
    pub(crate) outcomes: Vec<Outcome>,
    /// Nobody will pay any more.
    pub(crate) is_over: bool,
    /// No receipt is written.
    pub(crate) is_slow: bool,
    /// Charges fail.
    pub(crate) is_broken: bool,
}

impl Till {
    pub(crate) fn new(window: u32) -> Self {
        let till = Self::default();
        till.change(|books| books.window = window);
        till
    }

    pub(crate) fn books(&self) -> Books {
        self.lock().clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Books)) {
        change(&mut self.lock());
        self.0.changes.send_modify(|count| *count += 1);
    }

    /// Waits for books like that.
    pub(crate) async fn wait_for(&self, is_so: impl Fn(&Books) -> bool) -> Books {
        let mut changes = self.0.changes.subscribe();
        let soon = changes.wait_for(|_| is_so(&self.lock()));
        let soon = tokio::time::timeout(std::time::Duration::from_secs(10), soon).await;
        let changed = soon.unwrap_or_else(|_| panic!("never so: {:?}", self.books()));
        drop(changed.expect("the till lives"));
        self.books()
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.0.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn challenge(problem: &str, status: u16) -> Refusal {
    Refusal {
        status,
        challenge: (status == 402).then(|| "Payment id=\"1\", method=\"evm\"".to_owned()),
        retry_after: (status >= 429).then_some(7),
        problem: json!({
            "type": format!("https://paymentauth.org/problems/session/{problem}"),
            "title": "A problem",
            "status": status,
            "detail": format!("because of {problem}"),
        }),
    }
}

impl Billing for Till {
    fn challenge(&self) -> Refusal {
        challenge("payment-required", 402)
    }

    fn check(&self, credential: &Credential) -> Result<(), Refusal> {
        self.change(|books| books.checked += 1);
        match credential.0.ends_with(" forged") {
            true => Err(challenge("challenge-not-found", 402)),
            false => Ok(()),
        }
    }

    fn pay(&self, request: PaidRequest) -> BoxFuture<'_, Result<Payment, Refusal>> {
        let PaidRequest {
            method,
            path,
            credential,
            body,
        } = request;
        self.change(|books| books.requests.push((method, path, body.len())));
        let words: Vec<&str> = credential.0.split([' ', '-']).collect();
        let payment = match words[..] {
            [_, "voucher", amount] => {
                let amount: u32 = amount.parse().expect("a number");
                self.change(|books| books.accepted = books.accepted.max(amount));
                Ok(Payment::Purse(Box::new(self.clone())))
            }
            [_, "done"] => Ok(Payment::Done("all-done".to_owned())),
            [_, "refuse", status, ref problem @ ..] => Err(challenge(
                &problem.join("-"),
                status.parse().expect("a status"),
            )),
            _ => panic!("{credential:?}"),
        };
        async { payment }.boxed()
    }

    fn is_operator(&self, token: &str) -> bool {
        token == OPERATOR
    }
}

impl Purse for Till {
    fn receipt(&self) -> String {
        format!("spent-{}", self.lock().spent)
    }

    fn allows_count(&self) -> Result<(), Refusal> {
        match self.lock().counts_no_more {
            true => Err(challenge("too-many", 429)),
            false => Ok(()),
        }
    }

    fn start(&self, order: Order) -> Result<Box<dyn Meter>, Refusal> {
        let mut books = self.lock();
        let output = match order.is_stream {
            true => order.output_tokens.min(books.window),
            false => order.output_tokens,
        };
        let cost = order.input_tokens.saturating_add(output);
        books.orders.push((
            order.request_id.clone(),
            order.input_tokens,
            order.output_tokens,
            order.is_stream,
        ));
        if cost > books.accepted - books.spent - books.reserved {
            return Err(challenge("insufficient-balance", 402));
        }
        books.reserved += cost;
        order.budget.add(u64::from(output) + books.overrun);
        let till = self.clone();
        Ok(Box::new(TestMeter {
            changes: till.0.changes.subscribe(),
            till,
            granted: output,
            used: 0,
            reserved: cost,
            asked_at: None,
            order,
        }))
    }
}

#[derive(Debug)]
struct TestMeter {
    till: Till,
    changes: watch::Receiver<u64>,
    order: Order,
    /// Output tokens that are paid for.
    granted: u32,
    /// Output tokens charged.
    used: u32,
    reserved: u32,
    asked_at: Option<u32>,
}

impl TestMeter {
    /// Takes what there is now for more tokens.
    fn extend(&mut self) -> bool {
        let mut books = self.till.lock();
        let free = books.accepted - books.spent - books.reserved;
        let more = free.min(self.order.output_tokens - self.granted);
        books.reserved += more;
        self.reserved += more;
        self.granted += more;
        self.order.budget.add(more.into());
        more > 0
    }
}

impl Meter for TestMeter {
    fn charge(&mut self, tokens: Tokens) -> BoxFuture<'_, Charge> {
        let cost = tokens.input + tokens.output;
        let mut books = self.till.lock();
        if cost > self.reserved || books.is_broken {
            return async { Charge::Short }.boxed();
        }
        books.reserved -= cost;
        books.spent += cost;
        books.charges.push((tokens.input, tokens.output));
        self.reserved -= cost;
        self.used += tokens.output;
        async { Charge::Paid }.boxed()
    }

    fn ahead(&mut self) -> u32 {
        self.granted - self.used
    }

    fn window(&self) -> u32 {
        self.till.books().window
    }

    fn ask(&mut self) -> Option<String> {
        let is_due = self.used == self.granted && self.granted < self.order.output_tokens;
        if !is_due || self.asked_at == Some(self.granted) {
            return None;
        }
        self.asked_at = Some(self.granted);
        let accepted = self.till.books().accepted;
        Some(json!({"requiredCumulative": accepted + 1}).to_string())
    }

    fn changed(&mut self) -> BoxFuture<'_, Change> {
        async move {
            loop {
                self.changes.mark_unchanged();
                if self.extend() {
                    return Change::More;
                }
                if self.till.books().is_over {
                    return Change::TooLate;
                }
                self.changes.changed().await.expect("the till lives");
            }
        }
        .boxed()
    }

    fn finish(self: Box<Self>, outcome: Outcome) -> BoxFuture<'static, FinalReceipt> {
        let finish = outcome.finish.clone();
        self.till.change(|books| books.outcomes.push(outcome));
        let spent = self.till.books().spent;
        async move {
            self.till.wait_for(|books| !books.is_slow).await;
            FinalReceipt {
                header: format!("final-{spent}"),
                event: json!({"finish": finish, "spent": spent}).to_string(),
            }
        }
        .boxed()
    }
}

impl Drop for TestMeter {
    fn drop(&mut self) {
        let reserved = self.reserved;
        self.till.change(|books| books.reserved -= reserved);
    }
}
