//! Repeats calls to a chain over HTTP that did not get an answer: pauses double, or are what the
//! server asks for.
//!
//! A transaction is repeated only where the server certainly did not take it; `transaction.rs` knows
//! how to find out about the rest. Logs are left to `logs.rs` soon: whoever does not
//! answer may have been asked for too many.

use std::task::{Context, Poll};
use std::time::Duration;

use alloy::rpc::json_rpc::{ErrorPayload, RequestPacket, ResponsePacket, RpcError};
use alloy::transports::http::reqwest;
use alloy::transports::{TransportError, TransportErrorKind, TransportFut};
use tower::{Layer, Service};

/// First pause; doubles up to the longest.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// What a server may ask for at most.
const PAUSE_ASKED_MAX: Duration = Duration::from_secs(30);
/// Repetitions of one call: about 16 s of pauses.
const REPETITIONS: u32 = 6;
/// Repetitions where a smaller question may be what helps.
const REPETITIONS_OF_LOGS: u32 = 2;

/// Wraps a transport.
#[derive(Debug, Clone)]
pub(crate) struct Repeat;

/// A transport that repeats.
#[derive(Debug, Clone)]
pub(crate) struct Repeating<S> {
    inner: S,
}

impl<S> Layer<S> for Repeat {
    type Service = Repeating<S>;

    fn layer(&self, inner: S) -> Repeating<S> {
        Repeating { inner }
    }
}

impl<S> Service<RequestPacket> for Repeating<S>
where
    S: Service<
            RequestPacket,
            Response = ResponsePacket,
            Error = TransportError,
            Future = TransportFut<'static>,
        > + Clone
        + Send
        + 'static,
{
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: RequestPacket) -> Self::Future {
        // The one that was asked whether it is ready is the one to call.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let kind = Kind::of(&request);
        Box::pin(async move {
            let mut earlier = 0;
            loop {
                let answer = inner.call(request.clone()).await;
                let Some(pause) = pause(kind, &answer, earlier) else {
                    return answer;
                };
                tokio::time::sleep(pause).await;
                earlier += 1;
            }
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Transaction,
    Logs,
    Other,
}

impl Kind {
    fn of(request: &RequestPacket) -> Self {
        let has = |method: &str| request.method_names().any(|name| name == method);
        if has("eth_sendRawTransaction") {
            Self::Transaction
        } else if has("eth_getLogs") {
            Self::Logs
        } else {
            Self::Other
        }
    }
}

/// How long to wait until the call is repeated, after so many earlier repetitions; `None` where the
/// answer stands.
fn pause(
    kind: Kind,
    answer: &Result<ResponsePacket, TransportError>,
    earlier: u32,
) -> Option<Duration> {
    let (repetitions, asked) = match answer {
        Ok(packet) => {
            let is_refusal = is_too_often(packet.as_error()?, kind);
            (is_refusal.then_some(REPETITIONS)?, None)
        }
        Err(RpcError::Transport(error)) => {
            let repetitions = match error.as_http_error().map(|error| error.status) {
                Some(429) => Some(REPETITIONS),
                Some(status) if status < 500 => None,
                None if is_never_sent(error) => None,
                _ => repetitions_of_doubt(kind),
            };
            (repetitions?, error.retry_after())
        }
        // Something that is no JSON-RPC: an error page of whoever stands between.
        Err(RpcError::DeserError { .. }) => (repetitions_of_doubt(kind)?, None),
        Err(_) => return None,
    };
    let doubled = PAUSE.saturating_mul(1 << earlier.min(16)).min(PAUSE_MAX);
    let pause = asked.map_or(doubled, |asked| asked.min(PAUSE_ASKED_MAX));
    (earlier < repetitions).then_some(pause)
}

/// Where nobody knows whether the server did what was asked.
fn repetitions_of_doubt(kind: Kind) -> Option<u32> {
    match kind {
        Kind::Transaction => None,
        Kind::Logs => Some(REPETITIONS_OF_LOGS),
        Kind::Other => Some(REPETITIONS),
    }
}

/// Whether the server refuses because it is asked too often.
fn is_too_often(error: &ErrorPayload, kind: Kind) -> bool {
    match kind {
        Kind::Logs => is_too_often_for_logs(error),
        Kind::Transaction | Kind::Other => error.is_retry_err(),
    }
}

/// Refused ranges of logs share codes with that: -32005 is both "request rate limited" and "query
/// returned more than 10000 results" (Infura).
pub(crate) fn is_too_often_for_logs(error: &ErrorPayload) -> bool {
    const WORDS: [&str; 5] = [
        "rate limit",
        "rate exceeded",
        "too many requests",
        "request limit",
        "concurrent requests",
    ];
    let message = error.message.to_lowercase();
    error.code == 429 || WORDS.iter().any(|words| message.contains(words))
}

/// Whether the call never left: nobody listens there, or the name is unknown. Asking again at once
/// seldom helps, and whoever asked knows better what to do meanwhile.
pub(crate) fn is_never_sent(error: &TransportErrorKind) -> bool {
    let error = error
        .as_custom()
        .and_then(|error| error.downcast_ref::<reqwest::Error>());
    error.is_some_and(|error| error.is_connect() || error.is_builder())
}
