//! Gives every request an id, in the answer and in the log, counts it and says how long it took
//! until its first byte.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use crate::metrics::RequestCounter;

const HEADER: &str = "x-request-id";

/// Longest id taken from a client.
const ID_BYTES_MAX: usize = 128;

/// The id of a request, for its handler.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// Unique among all requests of this process and, by its time, among restarts.
pub(crate) fn unique(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanoseconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{nanoseconds:x}{count:04x}")
}

/// Middleware around every route.
pub(crate) async fn layer(
    State(counter): State<RequestCounter>,
    endpoint: Option<MatchedPath>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let given = request.headers().get(HEADER).filter(|value| {
        let bytes = value.as_bytes();
        !bytes.is_empty() && bytes.len() <= ID_BYTES_MAX && bytes.iter().all(u8::is_ascii_graphic)
    });
    let id = given.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&unique("req-")).expect("hexadecimal digits are a valid header")
    });
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let text = id.to_str().unwrap_or("").to_owned();
    request.extensions_mut().insert(RequestId(text));
    // Of the highest level, so that no filter takes the id from an error's line.
    let span = tracing::error_span!("request", id = id.to_str().unwrap_or(""));
    let mut response = next.run(request).instrument(span).await;
    // Paths that clients make up must not become labels.
    let endpoint = endpoint.as_ref().map_or("other", MatchedPath::as_str);
    counter.count(endpoint, response.status());
    let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::debug!(
        id = id.to_str().unwrap_or(""),
        %method,
        path,
        status = response.status().as_u16(),
        milliseconds,
        "request"
    );
    let headers = response.headers_mut();
    headers.insert(HEADER, id);
    headers.insert("openai-processing-ms", HeaderValue::from(milliseconds));
    response
}
