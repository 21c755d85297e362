//! What is counted about payments.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::billing::{Refusal, Tokens};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

/// Counters of the payment gate.
#[derive(Debug)]
pub(crate) struct PaymentMetrics {
    outcomes: Family<Outcome, Counter>,
    tokens: Family<Direction, Counter>,
    waiting: Gauge,
    unpaid_streams: Counter,
}

impl PaymentMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            outcomes: Family::default(),
            tokens: Family::default(),
            waiting: Gauge::default(),
            unpaid_streams: Counter::default(),
        };
        registry.register(
            "payments",
            "Requests to what costs money: unpaid, paid, or the problem with their payment",
            metrics.outcomes.clone(),
        );
        registry.register(
            "tokens_charged",
            "Tokens that were charged",
            metrics.tokens.clone(),
        );
        registry.register(
            "streams_waiting_for_voucher",
            "Streams that asked for a voucher and have not got it",
            metrics.waiting.clone(),
        );
        registry.register(
            "streams_ended_unpaid",
            "Streams that ended because their client stopped paying",
            metrics.unpaid_streams.clone(),
        );
        metrics
    }

    /// A request without a payment.
    pub(crate) fn unpaid(&self) {
        self.outcome("unpaid");
    }

    /// A payment was taken in.
    pub(crate) fn paid(&self) {
        self.outcome("paid");
    }

    /// A payment was refused.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.outcome(refusal.problem_name());
    }

    /// Tokens were charged.
    pub(crate) fn charged(&self, tokens: Tokens) {
        for (direction, count) in [("input", tokens.input), ("output", tokens.output)] {
            let counter = self.tokens.get_or_create(&Direction { direction });
            counter.inc_by(count.into());
        }
    }

    /// A stream waits for a voucher until the guard is dropped.
    pub(crate) fn waiting(&self) -> Waiting {
        self.waiting.inc();
        Waiting(self.waiting.clone())
    }

    /// A stream ended because its client stopped paying.
    pub(crate) fn ended_unpaid(&self) {
        self.unpaid_streams.inc();
    }

    fn outcome(&self, outcome: &str) {
        let outcome = Outcome {
            outcome: outcome.to_owned(),
        };
        self.outcomes.get_or_create(&outcome).inc();
    }
}

/// A stream that waits for a voucher.
#[derive(Debug)]
pub(crate) struct Waiting(Gauge);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}
