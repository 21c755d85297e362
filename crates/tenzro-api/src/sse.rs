//! Writes answers as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use tenzro_protocol::inference::GenerateEvent;

use crate::openai::Choices;
use crate::paid_stream;

/// Turns events into the chunks of one endpoint.
pub(crate) trait ChunkWriter: Send + 'static {
    /// Appends what an event adds to the stream; may be nothing.
    fn event(&mut self, index: u32, event: GenerateEvent, out: &mut Events);

    /// Appends what comes after the last event, before `[DONE]`.
    fn end(&mut self, out: &mut Events);
}

/// Encoded events that are not sent yet.
#[derive(Debug, Default)]
pub(crate) struct Events(Vec<u8>);

impl Events {
    /// Appends one `data` event.
    pub(crate) fn push(&mut self, value: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut self.0, value).expect("plain data is always JSON");
        self.0.extend_from_slice(b"\n\n");
    }

    /// Appends an event of that name. `json` has no line breaks.
    pub(crate) fn push_named(&mut self, name: &str, json: &str) {
        for part in ["event: ", name, "\ndata: ", json, "\n\n"] {
            self.0.extend_from_slice(part.as_bytes());
        }
    }

    /// Appends what says that the answer is complete.
    pub(crate) fn push_done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of it, to be sent.
    pub(crate) fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.0))
    }
}

struct State<W> {
    choices: Choices,
    writer: W,
    keep_alive: Duration,
    is_over: bool,
}

/// Streams all answers. A stream that fails ends with an error event and without `[DONE]`.
pub(crate) fn respond(
    mut choices: Choices,
    writer: impl ChunkWriter,
    keep_alive: Duration,
) -> Response {
    if let Some(bill) = choices.take_bill() {
        return paid_stream::respond(choices, bill, writer, keep_alive);
    }
    let provider = choices.take_provider();
    let state = State {
        choices,
        writer,
        keep_alive,
        is_over: false,
    };
    provider.head(response(Body::from_stream(futures::stream::unfold(
        state, advance,
    ))))
}

/// An answer with a body of events.
pub(crate) fn response(body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // Asks nginx not to collect the tokens.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, body).into_response()
}

/// Keeps proxies from closing a silent stream.
pub(crate) const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");

async fn advance<W: ChunkWriter>(
    mut state: State<W>,
) -> Option<(Result<Bytes, Infallible>, State<W>)> {
    let mut out = Events::default();
    while !state.is_over && out.is_empty() {
        match tokio::time::timeout(state.keep_alive, state.choices.next()).await {
            Err(_) => return Some((Ok(KEEP_ALIVE), state)),
            Ok(Some(Ok((index, event)))) => state.writer.event(index, event, &mut out),
            Ok(Some(Err(error))) => {
                out.push(&error.body());
                state.is_over = true;
            }
            Ok(None) => {
                state.writer.end(&mut out);
                out.push_done();
                state.is_over = true;
            }
        }
    }
    (!out.is_empty()).then(|| (Ok(out.take()), state))
}
