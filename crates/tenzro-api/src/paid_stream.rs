//! Streams an answer no further than it is paid for.
//!
//! ```text
//! Choices ─▶ queue ─▶ Bill::charge ─▶ chunk            what is due is charged before it leaves
//!                        │ not paid     payment-need-voucher ─▶ client pays elsewhere ─▶ go on
//!                        ▼
//!                  too late: finish_reason "payment_required", the generation is dropped
//! end: usage, payment-receipt, [DONE]        failure: error, payment-receipt
//! ```

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::FutureExt;
use tenzro_protocol::inference::{FinishReason, Finished, GenerateEvent};
use tokio_util::sync::CancellationToken;

use crate::bill::{Bill, Numbered};
use crate::billing::Change;
use crate::error::ApiError;
use crate::gate::with_receipt;
use crate::metrics::Waiting;
use crate::openai::{ChoiceEvent, Choices, STOPPED};
use crate::sse::{self, ChunkWriter, Events, KEEP_ALIVE};

/// Events that are charged together when they are there together: one write for all of them.
const TOGETHER_MAX: usize = 64;

/// Streams all answers.
pub(crate) fn respond(
    choices: Choices,
    bill: Bill,
    writer: impl ChunkWriter,
    keep_alive: Duration,
) -> Response {
    let receipt = bill.receipt();
    let stream = PaidStream {
        cut: choices.cut(),
        choices,
        writer,
        keep_alive,
        queue: VecDeque::new(),
        end: None,
        is_short: false,
        waiting: None,
        bill: Some(bill),
    };
    let body = futures::stream::unfold(stream, PaidStream::advance);
    with_receipt(receipt, sse::response(Body::from_stream(body)))
}

struct PaidStream<W> {
    choices: Choices,
    writer: W,
    keep_alive: Duration,
    /// Cancelled when the server stops.
    cut: CancellationToken,
    /// Read and not delivered, oldest first.
    queue: VecDeque<Numbered>,
    /// How reading ended.
    end: Option<Result<(), ApiError>>,
    /// The first event of the queue is not paid for.
    is_short: bool,
    /// There while the client was asked to pay.
    waiting: Option<Waiting>,
    /// `None` once the stream is over.
    bill: Option<Bill>,
}

impl<W: ChunkWriter> PaidStream<W> {
    async fn advance(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        let mut out = Events::default();
        while let Some(mut bill) = self.bill.take() {
            self.deliver(&mut bill, &mut out).await;
            if self.is_at_end() {
                self.finish(bill, &mut out).await;
                break;
            }
            if let Some(request) = bill.ask() {
                out.push_named("payment-need-voucher", &request);
                self.waiting.get_or_insert_with(|| bill.waiting());
            }
            if out.is_empty() {
                match self.wait(&mut bill).await {
                    Wake::Event(event) => self.read(event, &bill),
                    Wake::Payment(Change::More) => {
                        self.is_short = false;
                        self.waiting = None;
                    }
                    Wake::Payment(Change::TooLate) => {
                        self.cut_short(bill, &mut out).await;
                        break;
                    }
                    Wake::Silence => {
                        self.bill = Some(bill);
                        return Some((Ok(KEEP_ALIVE), self));
                    }
                }
            }
            self.bill = Some(bill);
            if !out.is_empty() {
                break;
            }
        }
        (!out.is_empty()).then(|| (Ok(out.take()), self))
    }

    /// Writes what is paid for.
    async fn deliver(&mut self, bill: &mut Bill, out: &mut Events) {
        while !self.queue.is_empty() && !self.is_short {
            let count = bill.paid_for(self.queue.iter());
            if !bill.charge(self.queue.iter().take(count)).await {
                self.is_short = true;
                self.waiting.get_or_insert_with(|| bill.waiting());
                break;
            }
            for event in self.queue.drain(..count) {
                bill.note(&event);
                self.writer.event(event.0, event.1, out);
            }
        }
    }

    /// Whether nothing is left to deliver. What comes before a failure and is not paid for is lost
    /// with it.
    fn is_at_end(&self) -> bool {
        match self.end {
            Some(Ok(())) => self.queue.is_empty(),
            Some(Err(_)) => true,
            None => false,
        }
    }

    async fn wait(&mut self, bill: &mut Bill) -> Wake {
        let is_reading = self.end.is_none();
        tokio::select! {
            biased;
            event = self.choices.next(), if is_reading => Wake::Event(event),
            () = self.cut.cancelled(), if !is_reading => Wake::Event(Some(Err(ApiError::unavailable(STOPPED)))),
            change = bill.changed() => Wake::Payment(change),
            () = tokio::time::sleep(self.keep_alive) => Wake::Silence,
        }
    }

    /// Takes an event, and those that are there already.
    fn read(&mut self, event: Option<ChoiceEvent>, bill: &Bill) {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            match event {
                Some(Ok(mut event)) => {
                    bill.bound(&mut event);
                    self.queue.push_back(event);
                }
                Some(Err(error)) => self.end = Some(Err(error)),
                None => self.end = Some(Ok(())),
            }
            if self.end.is_none() && self.queue.len() < TOGETHER_MAX {
                next = self.choices.next().now_or_never();
            }
        }
    }

    /// After the last event: the rest of the charge and the receipt.
    async fn finish(&mut self, mut bill: Bill, out: &mut Events) {
        self.waiting = None;
        match self.end.take() {
            Some(Err(error)) => {
                out.push(&error.body());
                self.choices.cancel();
                let receipt = bill.finish("error").await;
                out.push_named("payment-receipt", &receipt.event);
            }
            Some(Ok(())) | None => {
                if !bill.charge_rest().await {
                    tracing::warn!("a prompt could not be charged");
                }
                self.writer.end(out);
                let finish = bill.tally().finish();
                let receipt = bill.finish(finish).await;
                out.push_named("payment-receipt", &receipt.event);
                out.push_done();
            }
        }
    }

    /// The client did not pay: what is not paid for does not leave.
    async fn cut_short(&mut self, mut bill: Bill, out: &mut Events) {
        self.choices.cancel();
        self.queue.clear();
        for (index, usage) in bill.tally().unfinished() {
            let finished = Finished {
                reason: FinishReason::PaymentRequired,
                usage,
                late_tokens: 0,
            };
            let event = (index, GenerateEvent::Finished(finished));
            bill.note(&event);
            self.writer.event(index, event.1, out);
        }
        bill.ended_unpaid();
        self.end = Some(Ok(()));
        self.finish(bill, out).await;
    }
}

/// Why a stream goes on.
enum Wake {
    /// As [`Choices::next`] has it.
    Event(Option<ChoiceEvent>),
    /// The client paid, or will not.
    Payment(Change),
    /// A proxy may think that nobody is there.
    Silence,
}
