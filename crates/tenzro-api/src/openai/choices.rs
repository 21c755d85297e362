//! The generations of one request, side by side.

use std::collections::VecDeque;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use tenzro_protocol::inference::{GenerateError, GenerateEvent, GenerateRequest};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::bill::{Bill, Payer, Terms};
use crate::error::{ApiError, Failure};
use crate::metrics::Observer;
use crate::provider::Provider;
use crate::state::{Admission, AppState};

/// What a client is told whose answer the end of the server cuts.
pub(crate) const STOPPED: &str = "the server was stopped";

type Numbered = (u32, Result<GenerateEvent, GenerateError>);

/// An event of the answer with that number.
pub(crate) type ChoiceEvent = Result<(u32, GenerateEvent), ApiError>;

/// All answers of one request. Dropping it cancels them.
pub(crate) struct Choices {
    events: SelectAll<BoxStream<'static, Numbered>>,
    unfinished: usize,
    has_failed: bool,
    /// What the request calls its prompt, for errors.
    prompt: &'static str,
    cut: CancellationToken,
    read_ahead: VecDeque<ChoiceEvent>,
    provider: Provider,
    /// `None` when they are free.
    bill: Option<Bill>,
    /// Names the request in the log also when its answer is streamed.
    span: Span,
    _admission: Admission,
}

impl Choices {
    /// Admits all requests or none. Where somebody pays, the money is set aside first.
    pub(crate) async fn start(
        state: &AppState,
        admission: Admission,
        payer: Option<Payer>,
        mut requests: Vec<GenerateRequest>,
        terms: Terms,
    ) -> Result<Self, Failure> {
        let prompt = terms.prompt;
        let bill = match payer {
            Some(payer) => {
                let requests = &mut requests;
                Some(Bill::for_answers(state, payer, &admission.model, requests, terms).await?)
            }
            None => None,
        };
        let unfinished = requests.len();
        // Side by side: behind another server each of them takes as long as its answer needs to begin.
        let model = &admission.model.id;
        let observers: Vec<Observer> = requests
            .iter()
            .map(|_| Observer::new(state.metrics.clone()))
            .collect();
        let opening = requests
            .into_iter()
            .map(|request| state.inference.generate(model, request));
        let streams = futures::future::try_join_all(opening).await;
        let streams = streams.map_err(|error| ApiError::from_engine(&error, prompt))?;
        let mut events = SelectAll::new();
        let is_paid = bill.is_some();
        for ((index, stream), mut observer) in (0u32..).zip(streams).zip(observers) {
            events.push(
                stream
                    .map(move |mut event| {
                        if let Ok(event) = &mut event {
                            observer.observe(event);
                            if is_paid {
                                without_free_logprobs(event);
                            }
                        }
                        (index, event)
                    })
                    .boxed(),
            );
        }
        Ok(Self {
            events,
            unfinished,
            has_failed: false,
            prompt,
            cut: state.cut.clone(),
            read_ahead: VecDeque::new(),
            provider: Provider::default(),
            bill,
            span: Span::current(),
            _admission: admission,
        })
    }

    /// Waits for the first text, so that an early error still becomes an HTTP status, but not longer
    /// than `patience`: then the stream begins without.
    pub(crate) async fn wait_for_first(&mut self, patience: Duration) -> Result<(), ApiError> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let Ok(Some(event)) = tokio::time::timeout_at(deadline, self.read()).await else {
                return Ok(());
            };
            let event = event?;
            let is_start = matches!(event.1, GenerateEvent::Started(_));
            self.read_ahead.push_back(Ok(event));
            if !is_start {
                return Ok(());
            }
        }
    }

    /// The next event of any answer; `None` when all are finished. Nothing follows an error.
    pub(crate) async fn next(&mut self) -> Option<ChoiceEvent> {
        let event = match self.read_ahead.pop_front() {
            Some(event) => event,
            None => self.read().await?,
        };
        if let (Some(bill), Ok(event)) = (&mut self.bill, &event) {
            bill.note(event);
        }
        Some(event)
    }

    /// Who delivers the events from now on has to charge for them.
    pub(crate) fn take_bill(&mut self) -> Option<Bill> {
        self.bill.take()
    }

    /// Charges what was read, where somebody pays, before it leaves as one answer.
    pub(crate) async fn settle(self, answer: impl IntoResponse) -> Result<Response, ApiError> {
        let answer = self.provider.head(answer.into_response());
        match self.bill {
            Some(bill) => bill.settle(answer).await,
            None => Ok(answer),
        }
    }

    /// Who answers, as far as that is known.
    pub(crate) fn take_provider(&mut self) -> Provider {
        std::mem::take(&mut self.provider)
    }

    /// Cancelled when the server stops.
    pub(crate) fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// Gives all generations up; the server still waits for this answer when it stops.
    pub(crate) fn cancel(&mut self) {
        self.events.clear();
        self.read_ahead.clear();
        self.unfinished = 0;
    }

    async fn read(&mut self) -> Option<ChoiceEvent> {
        if self.has_failed {
            return None;
        }
        let next = tokio::select! {
            biased;
            () = self.cut.cancelled() => Some((0, Err(GenerateError::Unavailable {
                message: STOPPED.to_owned(),
            }))),
            next = self.events.next() => next,
        };
        let event = match next {
            Some((index, Ok(event))) => {
                self.provider.note(&event);
                if matches!(event, GenerateEvent::Finished(_)) {
                    self.unfinished -= 1;
                }
                Ok((index, event))
            }
            Some((_, Err(error))) => Err(self.failed(&error)),
            None if self.unfinished == 0 => return None,
            None => Err(self.failed(&GenerateError::Internal {
                message: "the engine ended a stream without its last event".to_owned(),
            })),
        };
        self.has_failed = event.is_err();
        Some(event)
    }

    fn failed(&self, error: &GenerateError) -> ApiError {
        let map = || ApiError::from_engine(error, self.prompt);
        self.span.in_scope(map)
    }
}

/// Log probabilities spell tokens: without text, which is what is paid for, none leave.
fn without_free_logprobs(event: &mut GenerateEvent) {
    if let GenerateEvent::Delta(delta) = event
        && delta.text.is_empty()
    {
        delta.logprobs.clear();
    }
}
