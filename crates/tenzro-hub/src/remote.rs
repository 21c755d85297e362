//! The hub's HTTP interface: what a repository holds and where a file's bytes are.
//!
//! Source: the behaviour of `huggingface_hub` 2.4 (`file_download.py`, `hf_api.py`).

use std::time::Duration;

use futures::StreamExt;
use reqwest::header::{AUTHORIZATION, HeaderMap, LINK, LOCATION, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use serde::Deserialize;

use crate::config::HubConfig;
use crate::hash::is_sha256;

/// Largest JSON answer: repositories with thousands of files stay far below.
const JSON_BYTES_MAX: usize = 16 << 20;

/// Pages of a listing.
const PAGES_MAX: usize = 50;

/// One file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    pub(crate) path: String,
    pub(crate) size: u64,
    /// The hub's hash; only files in large-file storage have one.
    pub(crate) sha256: Option<String>,
}

/// A revision of a repository.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) licence: Option<String>,
    pub(crate) gated: bool,
    pub(crate) files: Vec<RemoteFile>,
}

/// Where the bytes of a file can be had for a while.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    pub(crate) url: Url,
    /// What the hub says about the file now.
    pub(crate) sha256: Option<String>,
    pub(crate) size: Option<u64>,
}

/// Why the hub did not answer as hoped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error("the hub wants a valid token")]
    Unauthorized,
    #[error("access to this repository must be granted first")]
    Gated,
    #[error("the hub has no {what}")]
    NotFound { what: String },
    #[error("the hub asks to slow down")]
    RateLimited { retry_after: Option<Duration> },
    #[error("the hub answered {0}")]
    Status(StatusCode),
    #[error("{0}")]
    Network(String),
    #[error("the hub's answer is not understood: {0}")]
    BadAnswer(&'static str),
}

impl RemoteError {
    /// Whether the same request may succeed later.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Network(_) => true,
            Self::Status(status) => {
                status.is_server_error() || *status == StatusCode::REQUEST_TIMEOUT
            }
            Self::Unauthorized | Self::Gated | Self::NotFound { .. } | Self::BadAnswer(_) => false,
        }
    }

    /// When the hub said so.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } => *retry_after,
            _ => None,
        }
    }
}

/// A client of one hub.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    client: Client,
    endpoint: Url,
    token: Option<String>,
    stall: Duration,
}

#[derive(Deserialize)]
struct RevisionAnswer {
    sha: String,
    #[serde(default)]
    gated: serde_json::Value,
    #[serde(default, rename = "cardData")]
    card: Option<CardData>,
}

#[derive(Deserialize)]
struct CardData {
    #[serde(default)]
    license: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    #[serde(alias = "sha256")]
    oid: String,
    size: u64,
}

impl Remote {
    pub(crate) fn new(config: &HubConfig) -> Result<Self, RemoteError> {
        // Another part of the process may have installed it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            // Redirects lead to other hosts, which must not see the token.
            .redirect(redirect::Policy::none())
            .connect_timeout(config.tuning.stall)
            .user_agent(concat!("tenzro/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| RemoteError::Network(chain(&error)))?;
        let endpoint = Url::parse(&config.endpoint)
            .map_err(|_| RemoteError::BadAnswer("HF_ENDPOINT is not an address"))?;
        Ok(Self {
            client,
            endpoint,
            token: config.token.clone(),
            stall: config.tuning.stall,
        })
    }

    /// The commit behind a revision, and its files.
    pub(crate) async fn listing(&self, repo: &str, revision: &str) -> Result<Listing, RemoteError> {
        let revision = revision.replace('/', "%2F");
        let url = self.url(&format!("api/models/{repo}/revision/{revision}"))?;
        let response = self
            .get_json_response(url, &format!("repository {repo}"))
            .await?;
        let answer: RevisionAnswer = read_json(response, self.stall).await?;
        if answer.sha.len() != 40 || !answer.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(RemoteError::BadAnswer("the commit is no SHA-1"));
        }
        let mut files = Vec::new();
        let mut next = Some(self.url(&format!(
            "api/models/{repo}/tree/{}?recursive=true",
            answer.sha
        ))?);
        for _ in 0..PAGES_MAX {
            let Some(url) = next.take() else { break };
            let response = self
                .get_json_response(url, &format!("repository {repo}"))
                .await?;
            next = next_page(response.headers()).filter(|url| self.is_own(url));
            let page: Vec<TreeEntry> = read_json(response, self.stall).await?;
            files.extend(page.into_iter().filter_map(remote_file));
        }
        Ok(Listing {
            commit: answer.sha,
            licence: answer
                .card
                .and_then(|card| Some(card.license?.as_str()?.to_owned())),
            gated: !matches!(
                answer.gated,
                serde_json::Value::Null | serde_json::Value::Bool(false)
            ),
            files,
        })
    }

    /// Asks for a fresh address of a file's bytes.
    pub(crate) async fn locate(
        &self,
        repo: &str,
        commit: &str,
        path: &str,
    ) -> Result<Located, RemoteError> {
        let url = self.url(&format!("{repo}/resolve/{commit}/{path}"))?;
        let response = self.send(Method::HEAD, url.clone(), None).await?;
        check_status(&response, &format!("file {path}"))?;
        let header = |name: &str| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(value.trim_start_matches("W/").trim_matches('"').to_owned())
        };
        let sha256 = header("x-linked-etag").filter(|etag| is_sha256(etag));
        let size = header("x-linked-size").and_then(|size| size.parse().ok());
        let target = match response.headers().get(LOCATION) {
            Some(location) => {
                let location = location
                    .to_str()
                    .map_err(|_| RemoteError::BadAnswer("the redirect is no text"))?;
                url.join(location)
                    .map_err(|_| RemoteError::BadAnswer("the redirect is no address"))?
            }
            None => url,
        };
        if !matches!(target.scheme(), "http" | "https") {
            return Err(RemoteError::BadAnswer("the redirect leaves HTTP"));
        }
        Ok(Located {
            url: target,
            sha256,
            size,
        })
    }

    /// Asks for a range of bytes, ends included. The answer is not checked.
    pub(crate) async fn get_range(
        &self,
        url: Url,
        range: (u64, u64),
        etag: Option<&str>,
    ) -> Result<Response, RemoteError> {
        let mut headers = vec![("range", format!("bytes={}-{}", range.0, range.1))];
        if let Some(etag) = etag {
            headers.push(("if-range", etag.to_owned()));
        }
        self.send(Method::GET, url, Some(headers)).await
    }

    async fn get_json_response(&self, url: Url, what: &str) -> Result<Response, RemoteError> {
        let response = self.send(Method::GET, url, None).await?;
        // A renamed repository: follow within the hub, once.
        if response.status().is_redirection()
            && let Some(target) = response
                .headers()
                .get(LOCATION)
                .and_then(|value| value.to_str().ok())
                .and_then(|location| response.url().join(location).ok())
                .filter(|url| self.is_own(url))
        {
            let response = self.send(Method::GET, target, None).await?;
            check_status(&response, what)?;
            return Ok(response);
        }
        check_status(&response, what)?;
        Ok(response)
    }

    async fn send(
        &self,
        method: Method,
        url: Url,
        headers: Option<Vec<(&'static str, String)>>,
    ) -> Result<Response, RemoteError> {
        let mut request = self.client.request(method, url.clone());
        for (name, value) in headers.into_iter().flatten() {
            request = request.header(name, value);
        }
        if let Some(token) = &self.token
            && self.is_own(&url)
        {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        tokio::time::timeout(self.stall, request.send())
            .await
            .map_err(|_| RemoteError::Network("no answer in time".to_owned()))?
            .map_err(|error| RemoteError::Network(chain(&error)))
    }

    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    fn url(&self, path: &str) -> Result<Url, RemoteError> {
        let base = self.endpoint.as_str().trim_end_matches('/');
        Url::parse(&format!("{base}/{path}"))
            .map_err(|_| RemoteError::BadAnswer("HF_ENDPOINT is not an address"))
    }
}

/// The text of an error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Errors by status; the hub names the kind of a 401, 403 or 404 in a header.
fn check_status(response: &Response, what: &str) -> Result<(), RemoteError> {
    let status = response.status();
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    let code = response
        .headers()
        .get("x-error-code")
        .and_then(|value| value.to_str().ok());
    Err(match (status, code) {
        (_, Some("GatedRepo")) => RemoteError::Gated,
        (_, Some("RepoNotFound" | "RevisionNotFound" | "EntryNotFound"))
        | (StatusCode::NOT_FOUND, _) => RemoteError::NotFound {
            what: what.to_owned(),
        },
        (StatusCode::UNAUTHORIZED, _) => RemoteError::Unauthorized,
        (StatusCode::FORBIDDEN, _) => RemoteError::Gated,
        (StatusCode::TOO_MANY_REQUESTS, _) => RemoteError::RateLimited {
            retry_after: retry_after(response.headers()),
        },
        _ => RemoteError::Status(status),
    })
}

/// `Retry-After` in seconds, at most five minutes.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds.min(300)))
}

/// The address in a `Link` header with `rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<Url> {
    let links = headers.get(LINK)?.to_str().ok()?;
    let link = links
        .split(',')
        .find(|link| link.contains("rel=\"next\""))?;
    let (_, rest) = link.split_once('<')?;
    Url::parse(rest.split_once('>')?.0).ok()
}

fn remote_file(entry: TreeEntry) -> Option<RemoteFile> {
    let is_safe = |part: &str| !part.is_empty() && part != "." && part != "..";
    let path = entry.path;
    if entry.kind != "file" || path.contains(['\\', '\0']) || !path.split('/').all(is_safe) {
        return None;
    }
    let (size, sha256) = match entry.lfs {
        Some(large) => (large.size, Some(large.oid).filter(|oid| is_sha256(oid))),
        None => (entry.size, None),
    };
    Some(RemoteFile { path, size, sha256 })
}

async fn read_json<T: serde::de::DeserializeOwned>(
    response: Response,
    stall: Duration,
) -> Result<T, RemoteError> {
    let mut bytes = Vec::new();
    let mut stream = response.bytes_stream();
    loop {
        let chunk = tokio::time::timeout(stall, stream.next())
            .await
            .map_err(|_| RemoteError::Network("no answer in time".to_owned()))?;
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(|error| RemoteError::Network(chain(&error)))?;
        if bytes.len() + chunk.len() > JSON_BYTES_MAX {
            return Err(RemoteError::BadAnswer("the listing is too large"));
        }
        bytes.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&bytes).map_err(|_| RemoteError::BadAnswer("unexpected JSON"))
}
