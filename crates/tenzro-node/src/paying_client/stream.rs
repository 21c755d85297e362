//! A paid stream: text is counted as it comes, demands are answered beside it, and the receipt is audited.
//!
//! ```text
//! server ─▶ Paid::next ─ text ─────────▶ at most 1 MiB ahead ─▶ reader
//!              │ a task of its own: a reader that is slow leaves no demand unread
//!              ├ demand ─▶ pay_beside
//!              └ receipt ─▶ books ─▶ usage.cost
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use reqwest::Response;
use serde::de::DeserializeOwned;
use tenzro_payments::payer::{PaidRequest, PayError, Verdict};
use tenzro_payments::wire::{NeedVoucher, Receipt};
use tenzro_protocol::amount::Wei;
use tenzro_protocol::openai::Usage;
use tenzro_protocol::openai::chat::ChatChunk;
use tenzro_protocol::openai::completions::Completion;
use tenzro_protocol::sse::{SseEvent, SseParser};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::{Patience, PayingClient};
use crate::openai_client::{ClientError, connection, parse_chunk};

/// Largest stream in bytes.
const STREAM_BYTES_MAX: u64 = 256 << 20;
/// Bytes of events that are read, and paid for, before their reader takes them: some thousand tokens.
const AHEAD_BYTES_MAX: usize = 1 << 20;
/// Events in a row without any text.
const SILENT_EVENTS_MAX: u32 = 1_024;
/// Longest event about a payment, in bytes.
const PAYMENT_BYTES_MAX: usize = 64 << 10;
/// How long a provider that gets no more has to send what is paid, or one that failed its receipt.
const GRACE: Duration = Duration::from_secs(2);

/// What of a chunk reaches the reader: nothing else is paid for.
pub(super) trait Visible: Sized {
    /// Calls `each` with every piece of text.
    fn visit(&self, each: &mut dyn FnMut(&str));

    /// Numbers of the answers that it is of.
    fn answers(&self) -> impl Iterator<Item = u32>;

    /// Takes the usage out, into a chunk of its own.
    fn split_usage(&mut self) -> Option<(Self, Usage)>;

    /// Puts it back.
    fn set_usage(&mut self, usage: Usage);
}

impl Visible for ChatChunk {
    fn visit(&self, each: &mut dyn FnMut(&str)) {
        let deltas = self
            .choices
            .iter()
            .map(|choice| choice.delta.content.as_deref());
        deltas.flatten().for_each(each);
    }

    fn answers(&self) -> impl Iterator<Item = u32> {
        self.choices.iter().map(|choice| choice.index)
    }

    fn split_usage(&mut self) -> Option<(Self, Usage)> {
        let usage = self.usage.take()??;
        let bare = Self {
            choices: Vec::new(),
            ..self.clone()
        };
        Some((bare, usage))
    }

    fn set_usage(&mut self, usage: Usage) {
        self.usage = Some(Some(usage));
    }
}

impl Visible for Completion {
    fn visit(&self, each: &mut dyn FnMut(&str)) {
        self.choices
            .iter()
            .map(|choice| choice.text.as_str())
            .for_each(each);
    }

    fn answers(&self) -> impl Iterator<Item = u32> {
        self.choices.iter().map(|choice| choice.index)
    }

    fn split_usage(&mut self) -> Option<(Self, Usage)> {
        let usage = self.usage.take()?;
        let bare = Self {
            choices: Vec::new(),
            ..self.clone()
        };
        Some((bare, usage))
    }

    fn set_usage(&mut self, usage: Usage) {
        self.usage = Some(usage);
    }
}

/// Tells the operator about bills that were too high; the payer's books have the evidence.
pub(super) fn note(base_url: &str, verdict: &Result<Verdict, PayError>) {
    match verdict {
        Ok(Verdict {
            overbill: Some(overbill),
            ..
        }) => tracing::warn!(base_url, ?overbill, "a provider's bill is too high"),
        Ok(Verdict {
            flaw: Some(flaw), ..
        }) => tracing::warn!(base_url, "a provider's receipt {flaw}"),
        Ok(_) => {}
        Err(error) => tracing::warn!(base_url, %error, "a provider's receipt was not taken"),
    }
}

struct Paid<T> {
    client: PayingClient,
    request: Option<Arc<PaidRequest>>,
    /// Number of answers that were asked for.
    answers: u32,
    response: Response,
    received: u64,
    parser: SseParser,
    ready: VecDeque<SseEvent>,
    silent_events: u32,
    /// The latest demand, for whoever pays beside the stream.
    demand: watch::Sender<Option<NeedVoucher>>,
    /// Why nothing more is paid.
    stopped: watch::Receiver<Option<ClientError>>,
    started: Instant,
    /// When text came, or the failure.
    last_text: Instant,
    /// What the server says why it gave up: its receipt may follow.
    failed: Option<ClientError>,
    /// The usage, which comes before the receipt: it waits for what the answer cost.
    usage: Option<(T, Usage)>,
    /// What the answer cost by our own books.
    cost: Option<Wei>,
    is_over: bool,
}

/// A chunk, and its share of what may be read ahead.
type Ahead<T> = (Result<T, ClientError>, OwnedSemaphorePermit);

/// Chunks up to `[DONE]`. Dropping the stream ends the request.
pub(super) fn paid_chunks<T: DeserializeOwned + Visible + Send + 'static>(
    client: PayingClient,
    response: Response,
    request: Option<Arc<PaidRequest>>,
    answers: u32,
) -> impl Stream<Item = Result<T, ClientError>> + Send {
    let (demand, demands) = watch::channel(None);
    let (stop, stopped) = watch::channel(None);
    if let Some(request) = &request {
        // Ends when the stream drops the other end.
        tokio::spawn(pay_beside(
            client.clone(),
            Arc::clone(request),
            demands,
            stop,
        ));
    }
    let now = Instant::now();
    let paid = Paid {
        client,
        request,
        answers,
        response,
        received: 0,
        parser: SseParser::default(),
        ready: VecDeque::new(),
        silent_events: 0,
        demand,
        stopped,
        started: now,
        last_text: now,
        failed: None,
        usage: None,
        cost: None,
        is_over: false,
    };
    let (ahead, chunks) = mpsc::unbounded_channel();
    // Ends when the reader drops the other end.
    tokio::spawn(read_ahead(paid, ahead));
    futures::stream::unfold(chunks, async |mut chunks| {
        let (chunk, _room): Ahead<T> = chunks.recv().await?;
        Some((chunk, chunks))
    })
}

/// Reads a stream to its end, as far ahead of its reader as there is room.
async fn read_ahead<T: DeserializeOwned + Visible>(
    mut paid: Paid<T>,
    ahead: mpsc::UnboundedSender<Ahead<T>>,
) {
    let room = Arc::new(Semaphore::new(AHEAD_BYTES_MAX));
    let reading = async {
        while let Some(next) = paid.next().await.transpose() {
            let is_over = next.is_err();
            let (chunk, bytes) = match next {
                Ok((chunk, bytes)) => (Ok(chunk), bytes.min(AHEAD_BYTES_MAX)),
                Err(error) => (Err(error), 0),
            };
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            let Ok(share) = Arc::clone(&room).acquire_many_owned(bytes).await else {
                return;
            };
            if ahead.send((chunk, share)).is_err() || is_over {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        () = ahead.closed() => {}
        () = reading => {}
    }
}

/// Answers the latest demand, one at a time, however many come.
async fn pay_beside(
    client: PayingClient,
    request: Arc<PaidRequest>,
    mut demands: watch::Receiver<Option<NeedVoucher>>,
    stop: watch::Sender<Option<ClientError>>,
) {
    while demands.changed().await.is_ok() {
        let Some(need) = demands.borrow_and_update().clone() else {
            continue;
        };
        let error = match client.pay(&request, &need).await {
            Ok(()) => continue,
            Err(error) => error,
        };
        tracing::warn!(base_url = %client.inner.base_url, %error, "a stream is not paid any further");
        stop.send_replace(Some(error));
        return;
    }
}

impl<T: DeserializeOwned + Visible> Paid<T> {
    /// The next chunk and the bytes that it came in; none at the end.
    async fn next(&mut self) -> Result<Option<(T, usize)>, ClientError> {
        while !self.is_over {
            let Some(event) = self.ready.pop_front() else {
                match self.read().await {
                    Ok(()) => continue,
                    Err(error) => return Err(self.failed.take().unwrap_or(error)),
                }
            };
            self.silent_events += 1;
            if self.silent_events > SILENT_EVENTS_MAX {
                return Err(protocol("it streams events without any text"));
            }
            match event.name.as_str() {
                "payment-receipt" => {
                    self.receipt(&payment(&event.data)?).await;
                    if let Some(error) = self.failed.take() {
                        return Err(error);
                    }
                }
                // What comes after a failure is no part of an answer.
                _ if self.failed.is_some() => {}
                "" | "message" if event.data == "[DONE]" => {
                    self.is_over = true;
                    return Ok(self.last());
                }
                "" | "message" => match self.chunk(&event.data) {
                    Ok(Some(chunk)) => return Ok(Some((chunk, event.data.len()))),
                    Ok(None) => {}
                    Err(error @ ClientError::Server { .. }) if self.request.is_some() => {
                        self.failed = Some(error);
                        self.last_text = Instant::now();
                    }
                    Err(error) => return Err(error),
                },
                "payment-need-voucher" => {
                    let need = payment(&event.data)?;
                    self.demand.send_replace(Some(need));
                }
                // Other servers have other events, and none of them is for sale.
                _ => {}
            }
        }
        Ok(None)
    }

    /// A chunk without its usage, which waits; none where it had nothing else.
    fn chunk(&mut self, data: &str) -> Result<Option<T>, ClientError> {
        let mut chunk: T = parse_chunk(data)?;
        let mut seen = 0;
        for answer in chunk.answers() {
            seen += 1;
            // Whoever reads one answer sees no other one.
            if answer >= self.answers || seen > self.answers {
                return Err(protocol("it sends answers that nobody asked for"));
            }
        }
        let mut has_text = false;
        chunk.visit(&mut |text| {
            has_text |= !text.is_empty();
            if let Some(request) = &self.request {
                request.on_text(text);
            }
        });
        if has_text {
            self.silent_events = 0;
            self.last_text = Instant::now();
        }
        self.usage = chunk.split_usage().or(self.usage.take());
        Ok((seen > 0).then_some(chunk))
    }

    /// The usage, with what our own books say that it cost: what the server says of that is nothing to us.
    fn last(&mut self) -> Option<(T, usize)> {
        let (mut chunk, usage) = self.usage.take()?;
        chunk.set_usage(Usage {
            cost: self.cost,
            ..usage
        });
        Some((chunk, 0))
    }

    async fn receipt(&mut self, receipt: &Receipt) {
        if let Some(request) = self.request.take() {
            let verdict = request.on_receipt(receipt).await;
            note(&self.client.inner.base_url, &verdict);
            self.cost = verdict.ok().map(|verdict| verdict.agreed.charged);
        }
    }

    /// Reads more events. Once nothing is paid any more, only what is paid already is waited for.
    async fn read(&mut self) -> Result<(), ClientError> {
        let Patience { text, answer } = self.client.inner.patience;
        let late = || ClientError::Connection("the server's answer takes too long".to_owned());
        if self.started.elapsed() >= answer {
            return Err(late());
        }
        let has_failed = self.failed.is_some();
        let mut next = std::pin::pin!(self.response.chunk());
        let read = loop {
            let stopped = self.stopped.borrow_and_update().clone();
            let end = match stopped.is_some() || has_failed {
                true => self.last_text + GRACE,
                false => (self.last_text + text).min(self.started + answer),
            };
            tokio::select! {
                biased;
                read = &mut next => break read,
                Ok(()) = self.stopped.changed(), if stopped.is_none() => {}
                () = tokio::time::sleep_until(end) => return Err(stopped.unwrap_or_else(late)),
            }
        };
        let bytes = match read {
            Ok(Some(bytes)) => bytes,
            Err(error) => return Err(connection(&error)),
            Ok(None) => {
                let reason = "the server broke the answer off";
                return Err(ClientError::Connection(reason.to_owned()));
            }
        };
        self.received += bytes.len() as u64;
        if self.received > STREAM_BYTES_MAX {
            return Err(protocol("its answer is too large"));
        }
        let events = self.parser.push_named(&bytes);
        self.ready
            .extend(events.map_err(|error| protocol(&error.to_string()))?);
        Ok(())
    }
}

fn payment<T: DeserializeOwned>(data: &str) -> Result<T, ClientError> {
    if data.len() > PAYMENT_BYTES_MAX {
        return Err(protocol("an event about a payment is too long"));
    }
    serde_json::from_str(data).map_err(|error| protocol(&error.to_string()))
}

fn protocol(reason: &str) -> ClientError {
    ClientError::Protocol(reason.to_owned())
}
