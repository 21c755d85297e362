//! The HTTP edge's view of the payee: the same values in the edge's terms.

use std::fmt;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use mpp::protocol::core::{Receipt as Envelope, format_receipt};
use serde::Serialize;
use serde_json::{Value, json};
use tenzro_api::billing::{
    Billing, Change, Charge, Credential, FinalReceipt, Meter, Order, Outcome, PaidRequest, Payment,
    Purse, Refusal, Tokens,
};
use tenzro_api::token_hash;
use tenzro_payments::payee::{self, Accepted, Paid, Payee, Refused, Shortage};
use tenzro_payments::price;
use tenzro_payments::wire::Receipt;

/// A model server's till.
#[derive(Debug)]
pub(crate) struct Till {
    payee: Payee,
    operator_hash: [u8; 32],
}

impl Till {
    /// Whoever has the operator token is served for free.
    pub(crate) fn shared(payee: Payee, operator_token: &str) -> Arc<dyn Billing> {
        let operator_hash = token_hash(operator_token);
        Arc::new(Self {
            payee,
            operator_hash,
        })
    }
}

impl Billing for Till {
    fn challenge(&self) -> Refusal {
        refusal(self.payee.challenge())
    }

    fn check(&self, credential: &Credential) -> Result<(), Refusal> {
        let checked = self.payee.check(&credential.0);
        checked.map_err(|refused| refusal(*refused))
    }

    fn pay(&self, request: PaidRequest) -> BoxFuture<'_, Result<Payment, Refusal>> {
        async move {
            let paid = Paid {
                method: &request.method,
                path: &request.path,
                credential: &request.credential.0,
                body: &request.body,
            };
            match self.payee.pay(paid).await.map_err(refusal)? {
                Accepted::Purse(purse) => Ok(Payment::Purse(Box::new(OpenPurse(purse)))),
                Accepted::Done(receipt) => Ok(Payment::Done(header(&receipt))),
            }
        }
        .boxed()
    }

    fn is_operator(&self, token: &str) -> bool {
        token_hash(token) == self.operator_hash
    }
}

#[derive(Debug)]
struct OpenPurse(payee::Purse);

impl Purse for OpenPurse {
    fn receipt(&self) -> String {
        header(&self.0.receipt())
    }

    fn allows_count(&self) -> Result<(), Refusal> {
        let allowed = self.0.allows_count();
        allowed.map_err(|refused| refusal(*refused))
    }

    fn start(&self, order: Order) -> Result<Box<dyn Meter>, Refusal> {
        let order = payee::Order {
            request_id: order.request_id,
            input_tokens: order.input_tokens,
            output_tokens: order.output_tokens,
            is_stream: order.is_stream,
            budget: order.budget,
        };
        let meter = self.0.begin(order).map_err(|refused| refusal(*refused))?;
        Ok(Box::new(RunningMeter {
            meter,
            has_failed: false,
        }))
    }
}

struct RunningMeter {
    meter: payee::Meter,
    /// The books cannot be written: nothing more may leave.
    has_failed: bool,
}

impl Meter for RunningMeter {
    fn charge(&mut self, tokens: Tokens) -> BoxFuture<'_, Charge> {
        async move {
            let tokens = price::Tokens {
                input: tokens.input,
                output: tokens.output,
            };
            match self.meter.charge(tokens).await {
                Ok(payee::Charge::Paid) => Charge::Paid,
                Ok(payee::Charge::Short) => Charge::Short,
                Err(error) => {
                    tracing::error!(%error, "a charge cannot be written down: the answer ends");
                    self.has_failed = true;
                    Charge::Short
                }
            }
        }
        .boxed()
    }

    fn ahead(&mut self) -> u32 {
        self.meter.ahead()
    }

    fn window(&self) -> u32 {
        self.meter.window()
    }

    fn ask(&mut self) -> Option<String> {
        self.meter.ask().map(|need| text(&need))
    }

    fn changed(&mut self) -> BoxFuture<'_, Change> {
        async move {
            if self.has_failed {
                return Change::TooLate;
            }
            match self.meter.shortage().await {
                Shortage::Over => Change::More,
                Shortage::TooLate => Change::TooLate,
            }
        }
        .boxed()
    }

    fn finish(self: Box<Self>, outcome: Outcome) -> BoxFuture<'static, FinalReceipt> {
        async move {
            let outcome = payee::Outcome {
                cached_tokens: outcome.cached_tokens,
                finish: outcome.finish,
            };
            let receipt = self.meter.finish(outcome).await;
            FinalReceipt {
                header: header(&receipt),
                event: text(&receipt),
            }
        }
        .boxed()
    }
}

impl fmt::Debug for RunningMeter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.meter.fmt(formatter)
    }
}

/// Value of `Payment-Receipt`.
fn header(receipt: &Receipt) -> String {
    let plain = "a receipt is plain data";
    let envelope: Envelope = serde_json::from_value(json!(receipt)).expect(plain);
    format_receipt(&envelope).expect(plain)
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data is always JSON")
}

fn refusal(refused: Refused) -> Refusal {
    Refusal {
        status: refused.problem.status,
        challenge: refused.challenge,
        retry_after: refused.retry_after,
        problem: serde_json::to_value(&refused.problem).unwrap_or(Value::Null),
    }
}
