//! A stand-in for the hub on loopback: an API host and a host for the bytes, on two ports, with
//! faults that a test turns on and a log of what was asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

/// Bytes of one piece of an answer; small, so that a held transfer stops where the test wants.
const PIECE_BYTES: usize = 16 << 10;

/// What the stand-in does wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Answer 401 unless this token is sent.
    pub token: Option<String>,
    /// Answer 403 as for a gated repository.
    pub gated: bool,
    /// Answer the next so many API requests with 429 and `Retry-After: 0`.
    pub rate_limited: u32,
    /// A signed address is good for so many requests.
    pub signature_uses: Option<u32>,
    /// Flip a bit in the middle of the file.
    pub bit_flip: bool,
    /// Break the next so many transfers off after half of their bytes.
    pub broken_off: u32,
    /// Send no byte of the next so many transfers and keep the connection open.
    pub stalled: u32,
    /// Give another entity tag from that transfer on.
    pub etag_changes_at: Option<u32>,
    /// Always send the whole file.
    pub ignores_ranges: bool,
    /// Send at most so many bytes in all until [`HubStandIn::release`].
    pub hold_at_bytes: Option<u64>,
}

/// One request that the stand-in saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Whether it came to the host of the bytes.
    pub is_transfer: bool,
    /// Path without query.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// Whether it carried `Authorization`.
    pub has_token: bool,
    /// The answer.
    pub status: u16,
}

/// A running stand-in; stops when dropped.
#[derive(Debug)]
pub struct HubStandIn {
    endpoint: String,
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
}

#[derive(Debug)]
struct Shared {
    files: Mutex<BTreeMap<(String, String), Bytes>>,
    faults: Mutex<Faults>,
    seen: Mutex<Vec<Seen>>,
    signatures: Mutex<Vec<u32>>,
    transfers: Mutex<u32>,
    sent: watch::Sender<u64>,
    held: watch::Sender<bool>,
    transfer_host: Mutex<String>,
}

impl Default for HubStandIn {
    fn default() -> Self {
        Self::start()
    }
}

impl HubStandIn {
    /// Starts both hosts on free ports.
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let shared = Arc::new(Shared {
            files: Mutex::default(),
            faults: Mutex::default(),
            seen: Mutex::default(),
            signatures: Mutex::default(),
            transfers: Mutex::default(),
            sent: watch::Sender::new(0),
            held: watch::Sender::new(true),
            transfer_host: Mutex::default(),
        });
        let api = serve(
            &runtime,
            Router::new().fallback(api).with_state(shared.clone()),
        );
        let transfer = Router::new().fallback(transfer).with_state(shared.clone());
        *lock(&shared.transfer_host) = serve(&runtime, transfer);
        Self {
            endpoint: api,
            shared,
            runtime: Some(runtime),
        }
    }

    /// What `HF_ENDPOINT` has to be.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Adds or replaces a file of a repository.
    pub fn put(&self, repo: &str, path: &str, content: Vec<u8>) {
        let key = (repo.to_owned(), path.to_owned());
        lock(&self.shared.files).insert(key, content.into());
    }

    /// Changes the faults.
    pub fn set(&self, faults: Faults) {
        *lock(&self.shared.faults) = faults;
    }

    /// Everything that was asked so far.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }

    /// Forgets what was asked.
    pub fn forget(&self) {
        lock(&self.shared.seen).clear();
    }

    /// Bytes of files sent so far.
    pub fn sent_bytes(&self) -> u64 {
        *self.shared.sent.borrow()
    }

    /// Blocks until so many bytes of files were sent.
    pub fn wait_for_sent(&self, bytes: u64) {
        let mut sent = self.shared.sent.subscribe();
        let runtime = self.runtime.as_ref().expect("running");
        runtime.block_on(async {
            let enough = sent.wait_for(|sent| *sent >= bytes);
            tokio::time::timeout(Duration::from_secs(60), enough)
                .await
                .expect("the transfer goes on")
                .expect("the stand-in runs");
        });
    }

    /// Lets a held transfer go on.
    pub fn release(&self) {
        self.shared.held.send_replace(false);
    }
}

impl Drop for HubStandIn {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// SHA-256 in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(runtime: &tokio::runtime::Runtime, router: Router) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket option");
    let address = listener.local_addr().expect("bound");
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        axum::serve(listener, router).await
    });
    format!("http://{address}")
}

async fn api(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let response = answer_api(&shared, &request);
    note(&shared, &request, false, response.status());
    response
}

fn note(shared: &Shared, request: &Request, is_transfer: bool, status: StatusCode) {
    let text = |name| {
        let value = request.headers().get(name)?;
        Some(value.to_str().unwrap_or_default().to_owned())
    };
    lock(&shared.seen).push(Seen {
        is_transfer,
        path: request.uri().path().to_owned(),
        range: text(header::RANGE),
        has_token: text(header::AUTHORIZATION).is_some(),
        status: status.as_u16(),
    });
}

fn answer_api(shared: &Shared, request: &Request) -> Response {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    {
        let mut faults = lock(&shared.faults);
        if faults.rate_limited > 0 {
            faults.rate_limited -= 1;
            return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "0")]).into_response();
        }
        if faults.gated {
            return (StatusCode::FORBIDDEN, [("x-error-code", "GatedRepo")]).into_response();
        }
        let sent = request.headers().get(header::AUTHORIZATION);
        let wanted = faults.token.as_ref().map(|token| format!("Bearer {token}"));
        if wanted.is_some_and(|wanted| sent.is_none_or(|sent| sent.as_bytes() != wanted.as_bytes()))
        {
            return StatusCode::UNAUTHORIZED.into_response();
        }
    }
    let segments: Vec<&str> = path.split('/').collect();
    let files = lock(&shared.files);
    match segments.as_slice() {
        [
            "api",
            "models",
            owner,
            name,
            kind @ ("revision" | "tree"),
            revision,
        ] => {
            let repo = format!("{owner}/{name}");
            let own: Vec<(&String, &Bytes)> = files
                .iter()
                .filter(|((known, _), _)| *known == repo)
                .map(|((_, path), content)| (path, content))
                .collect();
            let commit = commit_of(&own);
            if own.is_empty() || !["main", commit.as_str()].contains(revision) {
                return (StatusCode::NOT_FOUND, [("x-error-code", "RepoNotFound")]).into_response();
            }
            if *kind == "revision" {
                let card = json!({"license": "apache-2.0"});
                return axum::Json(json!({"sha": commit, "gated": false, "cardData": card}))
                    .into_response();
            }
            let tree: Vec<_> = own
                .iter()
                .map(|(path, content)| {
                    json!({
                        "type": "file", "path": path, "size": content.len(), "oid": "0",
                        "lfs": {"oid": sha256(content), "size": content.len()},
                    })
                })
                .collect();
            axum::Json(tree).into_response()
        }
        [owner, name, "resolve", _, rest @ ..] => {
            let key = (format!("{owner}/{name}"), rest.join("/"));
            let Some(content) = files.get(&key) else {
                return (StatusCode::NOT_FOUND, [("x-error-code", "EntryNotFound")])
                    .into_response();
            };
            let signature = {
                let mut signatures = lock(&shared.signatures);
                signatures.push(0);
                signatures.len() - 1
            };
            let host = lock(&shared.transfer_host).clone();
            let location = format!("{host}/{}/{}?signature={signature}", key.0, key.1);
            let headers = [
                ("location", location),
                ("x-linked-etag", format!("\"{}\"", sha256(content))),
                ("x-linked-size", content.len().to_string()),
            ];
            (StatusCode::FOUND, axum::response::AppendHeaders(headers)).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn commit_of(files: &[(&String, &Bytes)]) -> String {
    let mut all = Vec::new();
    for (path, content) in files {
        all.extend(path.as_bytes());
        all.extend(sha256(content).as_bytes());
    }
    sha256(&all)[..40].to_owned()
}

async fn transfer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let response = answer_transfer(&shared, &request);
    note(&shared, &request, true, response.status());
    response
}

fn answer_transfer(shared: &Arc<Shared>, request: &Request) -> Response {
    let mut faults = lock(&shared.faults);
    let signature = request
        .uri()
        .query()
        .and_then(|query| query.strip_prefix("signature="))
        .and_then(|number| number.parse::<usize>().ok());
    let uses = {
        let mut signatures = lock(&shared.signatures);
        match signature.and_then(|number| signatures.get_mut(number)) {
            Some(uses) => {
                *uses += 1;
                *uses
            }
            None => return StatusCode::FORBIDDEN.into_response(),
        }
    };
    if faults.signature_uses.is_some_and(|most| uses > most) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let mut path = request.uri().path().trim_start_matches('/').splitn(3, '/');
    let (owner, name, file) = (path.next(), path.next(), path.next());
    let key = (
        format!("{}/{}", owner.unwrap_or(""), name.unwrap_or("")),
        file.unwrap_or("").to_owned(),
    );
    let Some(mut content) = lock(&shared.files).get(&key).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if faults.bit_flip {
        let mut flipped = content.to_vec();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        content = flipped.into();
    }
    let number = {
        let mut transfers = lock(&shared.transfers);
        *transfers += 1;
        *transfers
    };
    let changed = faults.etag_changes_at.is_some_and(|at| number >= at);
    let etag = if changed { "\"new\"" } else { "\"old\"" };
    let size = content.len();
    let range = (!faults.ignores_ranges)
        .then(|| range_of(request.headers(), etag, size))
        .flatten();
    let (status, from, to) = match range {
        Some((from, to)) => (StatusCode::PARTIAL_CONTENT, from, to),
        None => (StatusCode::OK, 0, size),
    };
    let length = if faults.broken_off > 0 {
        faults.broken_off -= 1;
        (to - from) / 2
    } else if faults.stalled > 0 {
        faults.stalled -= 1;
        0
    } else {
        to - from
    };
    let part = content.slice(from..from + length);
    let is_stalled = length == 0;
    let state = Sending {
        shared: Arc::clone(shared),
        part,
        is_short: length < to - from,
        is_stalled,
    };
    let body = Body::from_stream(futures::stream::unfold(state, send));
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, (to - from).into());
    headers.insert(header::ETAG, etag.parse().expect("a header"));
    if status == StatusCode::PARTIAL_CONTENT {
        let value = format!("bytes {from}-{}/{size}", to - 1);
        headers.insert(header::CONTENT_RANGE, value.parse().expect("a header"));
    }
    response
}

struct Sending {
    shared: Arc<Shared>,
    part: Bytes,
    is_short: bool,
    is_stalled: bool,
}

async fn send(mut state: Sending) -> Option<(Result<Bytes, std::io::Error>, Sending)> {
    if state.is_stalled {
        std::future::pending::<()>().await;
    }
    let hold_at = lock(&state.shared.faults).hold_at_bytes;
    if let Some(hold_at) = hold_at
        && *state.shared.sent.borrow() >= hold_at
    {
        let mut held = state.shared.held.subscribe();
        let _ = held.wait_for(|held| !held).await;
    }
    if state.part.is_empty() {
        let broken = std::io::Error::other("broken off on purpose");
        return std::mem::take(&mut state.is_short).then_some((Err(broken), state));
    }
    let piece = state.part.split_to(PIECE_BYTES.min(state.part.len()));
    state
        .shared
        .sent
        .send_modify(|sent| *sent += piece.len() as u64);
    Some((Ok(piece), state))
}

/// The wanted half-open range, unless `If-Range` names another entity.
fn range_of(headers: &HeaderMap, etag: &str, size: usize) -> Option<(usize, usize)> {
    let if_range = headers.get(header::IF_RANGE);
    if if_range.is_some_and(|wanted| wanted.as_bytes() != etag.as_bytes()) {
        return None;
    }
    let range = headers.get(header::RANGE)?.to_str().ok()?;
    let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
    (from <= to && to < size).then_some((from, to + 1))
}
