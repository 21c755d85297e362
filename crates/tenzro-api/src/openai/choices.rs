//! The generations of one request, side by side.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use tenzro_protocol::inference::{GenerateError, GenerateEvent, GenerateRequest};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::error::ApiError;
use crate::metrics::Observer;
use crate::state::{Admission, AppState};

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
    read_ahead: Option<ChoiceEvent>,
    /// Names the request in the log also when its answer is streamed.
    span: Span,
    _admission: Admission,
}

impl Choices {
    /// Admits all requests or none.
    pub(crate) async fn start(
        state: &AppState,
        admission: Admission,
        requests: Vec<GenerateRequest>,
        prompt: &'static str,
    ) -> Result<Self, ApiError> {
        let mut events = SelectAll::new();
        let unfinished = requests.len();
        for (index, request) in (0u32..).zip(requests) {
            let mut observer = Observer::new(state.metrics.clone());
            let stream = state
                .inference
                .generate(&admission.model.id, request)
                .await
                .map_err(|error| ApiError::from_engine(&error, prompt))?;
            events.push(
                stream
                    .map(move |event| {
                        if let Ok(event) = &event {
                            observer.observe(event);
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
            read_ahead: None,
            span: Span::current(),
            _admission: admission,
        })
    }

    /// Waits for the first event, so that an early error still becomes an HTTP status, but not
    /// longer than `patience`: then the stream begins without.
    pub(crate) async fn wait_for_first(&mut self, patience: Duration) -> Result<(), ApiError> {
        if let Ok(Some(first)) = tokio::time::timeout(patience, self.next()).await {
            self.read_ahead = Some(Ok(first?));
        }
        Ok(())
    }

    /// The next event of any answer; `None` when all are finished. Nothing follows an error.
    pub(crate) async fn next(&mut self) -> Option<ChoiceEvent> {
        if let Some(event) = self.read_ahead.take() {
            return Some(event);
        }
        if self.has_failed {
            return None;
        }
        let next = tokio::select! {
            biased;
            () = self.cut.cancelled() => Some((0, Err(GenerateError::Unavailable {
                message: "the server was stopped".to_owned(),
            }))),
            next = self.events.next() => next,
        };
        let event = match next {
            Some((index, Ok(event))) => {
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
