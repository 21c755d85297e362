//! A paid stream: text is counted as it comes, demands are answered beside it, and the receipt is audited.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use reqwest::Response;
use serde::de::DeserializeOwned;
use tenzro_payments::payer::{PaidRequest, PayError, Verdict};
use tenzro_payments::wire::{NeedVoucher, Receipt};
use tenzro_protocol::openai::Usage;
use tenzro_protocol::openai::chat::ChatChunk;
use tenzro_protocol::openai::completions::Completion;
use tenzro_protocol::sse::{SseEvent, SseParser};
use tokio::sync::watch;
use tokio::time::Instant;

use super::PayingClient;
use crate::openai_client::{ClientError, connection, parse_chunk};

/// Largest stream in bytes.
const STREAM_BYTES_MAX: u64 = 256 << 20;
/// Events in a row without any text.
const SILENT_EVENTS_MAX: u32 = 1_024;
/// Longest event about a payment, in bytes.
const PAYMENT_BYTES_MAX: usize = 64 << 10;
/// How long a provider that gets no more has to send what is paid.
const GRACE: Duration = Duration::from_secs(2);

/// What of a chunk reaches the reader: nothing else is paid for.
pub(super) trait Visible {
    /// Calls `each` with every piece of text.
    fn visit(&self, each: &mut dyn FnMut(&str));

    /// The usage, in the chunk that has one.
    fn usage(&mut self) -> Option<&mut Usage>;
}

impl Visible for ChatChunk {
    fn visit(&self, each: &mut dyn FnMut(&str)) {
        let deltas = self
            .choices
            .iter()
            .map(|choice| choice.delta.content.as_deref());
        deltas.flatten().for_each(each);
    }

    fn usage(&mut self) -> Option<&mut Usage> {
        self.usage.as_mut()?.as_mut()
    }
}

impl Visible for Completion {
    fn visit(&self, each: &mut dyn FnMut(&str)) {
        self.choices
            .iter()
            .map(|choice| choice.text.as_str())
            .for_each(each);
    }

    fn usage(&mut self) -> Option<&mut Usage> {
        self.usage.as_mut()
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
            is_signed: false, ..
        }) => tracing::warn!(base_url, "a provider does not sign its receipts"),
        Ok(_) => {}
        Err(error) => tracing::warn!(base_url, %error, "a provider's receipt was not taken"),
    }
}

struct Paid<T> {
    client: PayingClient,
    request: Option<Arc<PaidRequest>>,
    response: Response,
    received: u64,
    parser: SseParser,
    ready: VecDeque<SseEvent>,
    silent_events: u32,
    /// The latest demand, for whoever pays beside the stream.
    demand: watch::Sender<Option<NeedVoucher>>,
    /// Why nothing more is paid.
    stopped: watch::Receiver<Option<ClientError>>,
    last_text: Instant,
    /// The chunk with the usage, which comes before the receipt: it waits for what the answer cost.
    last: Option<T>,
    is_over: bool,
}

/// Chunks up to `[DONE]`. Dropping the stream ends the request.
pub(super) fn paid_chunks<T: DeserializeOwned + Visible + Send + 'static>(
    client: PayingClient,
    response: Response,
    request: Option<Arc<PaidRequest>>,
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
    let paid = Paid {
        client,
        request,
        response,
        received: 0,
        parser: SseParser::default(),
        ready: VecDeque::new(),
        silent_events: 0,
        demand,
        stopped,
        last_text: Instant::now(),
        last: None,
        is_over: false,
    };
    futures::stream::unfold(paid, async |mut paid| {
        let next = paid.next().await.transpose()?;
        paid.is_over |= next.is_err();
        Some((next, paid))
    })
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
        tracing::warn!(base_url = &*client.inner.base_url, %error, "a stream is not paid any further");
        stop.send_replace(Some(error));
        return;
    }
}

impl<T: DeserializeOwned + Visible> Paid<T> {
    /// The next chunk; none at the end.
    async fn next(&mut self) -> Result<Option<T>, ClientError> {
        while !self.is_over {
            let Some(event) = self.ready.pop_front() else {
                self.read().await?;
                continue;
            };
            self.silent_events += 1;
            if self.silent_events > SILENT_EVENTS_MAX {
                return Err(protocol("it streams events without any text"));
            }
            match event.name.as_str() {
                "" | "message" if event.data == "[DONE]" => {
                    self.is_over = true;
                    return Ok(self.last.take());
                }
                "" | "message" => {
                    let mut chunk = self.chunk(&event.data)?;
                    if self.request.is_none() || chunk.usage().is_none() {
                        return Ok(Some(chunk));
                    }
                    self.last = Some(chunk);
                }
                "payment-need-voucher" => {
                    let need = payment(&event.data)?;
                    self.demand.send_replace(Some(need));
                }
                "payment-receipt" => self.receipt(&payment(&event.data)?).await,
                // Other servers have other events, and none of them is for sale.
                _ => {}
            }
        }
        Ok(None)
    }

    fn chunk(&mut self, data: &str) -> Result<T, ClientError> {
        let chunk: T = parse_chunk(data)?;
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
        Ok(chunk)
    }

    async fn receipt(&mut self, receipt: &Receipt) {
        if let Some(request) = self.request.take() {
            let verdict = request.on_receipt(receipt).await;
            note(&self.client.inner.base_url, &verdict);
            let usage = self.last.as_mut().and_then(Visible::usage);
            if let (Some(usage), Ok(verdict)) = (usage, verdict) {
                usage.cost = Some(verdict.agreed.charged);
            }
        }
    }

    /// Reads more events. Once nothing is paid any more, only what is paid already is waited for.
    async fn read(&mut self) -> Result<(), ClientError> {
        let mut next = std::pin::pin!(self.response.chunk());
        let read = loop {
            let stopped = self.stopped.borrow_and_update().clone();
            tokio::select! {
                biased;
                read = &mut next => break read,
                Ok(()) = self.stopped.changed(), if stopped.is_none() => {}
                () = tokio::time::sleep_until(self.last_text + GRACE), if stopped.is_some() => {
                    return Err(stopped.unwrap_or_else(|| protocol("it is not paid any further")));
                }
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
