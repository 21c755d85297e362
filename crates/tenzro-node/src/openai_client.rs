//! A client of any OpenAI-compatible server: for `chat`, for `--upstream`, and for providers that are paid.

mod paying;

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use reqwest::{Client, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tenzro_protocol::amount::Wei;
use tenzro_protocol::openai::chat::{ChatChunk, ChatRequest};
use tenzro_protocol::openai::completions::{Completion, CompletionRequest};
use tenzro_protocol::openai::embeddings::{EmbeddingList, EmbeddingRequest};
use tenzro_protocol::openai::{ErrorBody, ErrorObject, ModelList};
use tenzro_protocol::sse::{SseEvent, SseParser};

use crate::http_client;
use paying::{PAYMENT_RECEIPT, Purchase, Running};
pub(crate) use paying::Wallet;

/// Time to open a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// The events of a paid stream. Source: MPP draft-evm-session-00.
const NEED_VOUCHER: &str = "payment-need-voucher";
const RECEIPT: &str = "payment-receipt";

/// Largest answer that is not a stream.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why a server did not answer as hoped.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// No connection, or it broke.
    #[error("{0}")]
    Connection(String),
    /// An error of the server.
    #[error("{}", error.message)]
    Server {
        /// HTTP status; 200 when the error came inside a stream.
        status: u16,
        /// What it said.
        error: ErrorObject,
        /// `Retry-After`, when it gave one.
        retry_after: Option<Duration>,
    },
    /// Not the OpenAI API.
    #[error("the server does not speak the OpenAI API: {0}")]
    Protocol(String),
}

/// Chunks of a streamed answer; dropping it ends the request.
pub type Chunks<T> = BoxStream<'static, Result<T, ClientError>>;

/// What comes of a stream that may have to be paid for.
#[derive(Debug)]
pub(crate) enum Piece<T> {
    /// A chunk of the answer.
    Chunk(T),
    /// The answer is complete and cost that much.
    Charged(Wei),
}

/// See [`Piece`]; dropping it ends the request.
pub(crate) type Pieces<T> = BoxStream<'static, Result<Piece<T>, ClientError>>;

/// How a server is asked.
#[derive(Debug, Clone)]
enum Means {
    /// For nothing, with a bearer token where there is one.
    Free(Option<Token>),
    /// Against vouchers.
    Paid(Wallet),
}

/// Logs do not show it.
#[derive(Clone)]
struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

/// A server and its connection pool.
#[derive(Debug, Clone)]
pub struct OpenAiClient {
    http: Client,
    base_url: String,
    means: Means,
}

impl OpenAiClient {
    /// Asks with a bearer token from now on.
    pub fn with_token(self, token: Option<String>) -> Self {
        Self {
            means: Means::Free(token.map(Token)),
            ..self
        }
    }

    /// Pays a provider that is reached with that client.
    pub(crate) fn paying(http: Client, base_url: &str, wallet: Wallet) -> Self {
        Self {
            http,
            base_url: base_url.trim_end_matches('/').to_owned(),
            means: Means::Paid(wallet),
        }
    }

    /// `base_url` ends in `/v1`.
    pub fn new(base_url: &str) -> Result<Self, ClientError> {
        let http = http_client::builder()
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .build()
            .map_err(|error| connection(&error))?;
        Ok(Self {
            http,
            base_url: base_url.trim_end_matches('/').to_owned(),
            means: Means::Free(None),
        })
    }

    /// What it serves.
    pub async fn models(&self) -> Result<ModelList, ClientError> {
        let url = format!("{}/models", self.base_url);
        let sent = self.http.get(url).timeout(CONNECT).send().await;
        read(sent.map_err(|error| connection(&error))?).await
    }

    /// Streams an answer; `stream` is set by the caller.
    pub async fn chat(&self, request: &ChatRequest) -> Result<Chunks<ChatChunk>, ClientError> {
        Ok(without_bill(self.chat_pieces(request).await?))
    }

    /// Streams an answer and what it cost.
    pub(crate) async fn chat_pieces(
        &self,
        request: &ChatRequest,
    ) -> Result<Pieces<ChatChunk>, ClientError> {
        let purchase = Purchase::of_chat(request);
        self.stream("chat/completions", request, purchase).await
    }

    /// Streams a continuation and what it cost; `stream` is set by the caller.
    pub(crate) async fn complete_pieces(
        &self,
        request: &CompletionRequest,
    ) -> Result<Pieces<Completion>, ClientError> {
        let purchase = Purchase::of_completion(request);
        self.stream("completions", request, purchase).await
    }

    /// Embeds texts; with what it cost.
    pub(crate) async fn embed(
        &self,
        request: &EmbeddingRequest,
    ) -> Result<(EmbeddingList, Option<Wei>), ClientError> {
        let purchase = Purchase::of_embedding(request);
        let (response, running) = self.post("embeddings", request, purchase).await?;
        let receipt = response.headers().get(PAYMENT_RECEIPT).cloned();
        let answer = read(response).await?;
        let cost = match running {
            Some(running) => Some(running.settle_header(receipt.as_ref()).await?),
            None => None,
        };
        Ok((answer, cost))
    }

    async fn stream<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &str,
        body: &impl Serialize,
        purchase: Purchase,
    ) -> Result<Pieces<T>, ClientError> {
        let (response, running) = self.post(path, body, purchase).await?;
        Ok(pieces(response, running).boxed())
    }

    async fn post(
        &self,
        path: &str,
        body: &impl Serialize,
        purchase: Purchase,
    ) -> Result<(Response, Option<Running>), ClientError> {
        let url = format!("{}/{path}", self.base_url);
        let wallet = match &self.means {
            Means::Paid(wallet) => wallet,
            Means::Free(token) => {
                let mut request = self.http.post(url).json(body);
                if let Some(Token(token)) = token {
                    request = request.bearer_auth(token);
                }
                let sent = request.send().await;
                let response = check(sent.map_err(|error| connection(&error))?).await?;
                return Ok((response, None));
            }
        };
        let body = serde_json::to_vec(body).map_err(|error| protocol(&error))?;
        let (response, running) = wallet.buy(&self.http, &url, body, purchase).await?;
        Ok((response, Some(running)))
    }
}

/// The chunks alone.
fn without_bill<T: Send + 'static>(pieces: Pieces<T>) -> Chunks<T> {
    let chunks = pieces.filter_map(async |piece| match piece {
        Ok(Piece::Chunk(chunk)) => Some(Ok(chunk)),
        Ok(Piece::Charged(_)) => None,
        Err(error) => Some(Err(error)),
    });
    chunks.boxed()
}

pub(crate) fn connection(error: &reqwest::Error) -> ClientError {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    ClientError::Connection(text)
}

pub(crate) async fn check(response: Response) -> Result<Response, ClientError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response
        .headers()
        .get("retry-after")
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let bytes = bytes_of(response).await.unwrap_or_default();
    Err(ClientError::Server {
        status: status.as_u16(),
        error: error_object(status, &bytes),
        retry_after,
    })
}

/// Servers differ in how strictly they keep to the shape of an error.
fn error_object(status: StatusCode, bytes: &[u8]) -> ErrorObject {
    if let Ok(body) = serde_json::from_slice::<ErrorBody>(bytes) {
        return body.error;
    }
    let value: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let error = value.get("error").unwrap_or(&value);
    let field = |name: &str| Some(error.get(name)?.as_str()?.to_owned());
    let message = field("message").or_else(|| error.as_str().map(str::to_owned));
    ErrorObject {
        message: message.unwrap_or_else(|| format!("the server answered {status}")),
        // llama-server puts its machine-readable name here and a number into `code`.
        code: field("code").or_else(|| field("type")),
        kind: field("type").unwrap_or_default(),
        param: field("param"),
    }
}

async fn read<T: DeserializeOwned>(response: Response) -> Result<T, ClientError> {
    let bytes = bytes_of(check(response).await?).await?;
    serde_json::from_slice(&bytes).map_err(|error| ClientError::Protocol(error.to_string()))
}

pub(crate) async fn bytes_of(response: Response) -> Result<Vec<u8>, ClientError> {
    let mut bytes = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| connection(&error))?;
        if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(ClientError::Protocol("the answer is too large".to_owned()));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Parses the events up to `[DONE]`. A stream that ends without it is broken. Events that ask for payment are
/// answered on the way.
fn pieces<T: DeserializeOwned + Send + 'static>(
    response: Response,
    running: Option<Running>,
) -> impl Stream<Item = Result<Piece<T>, ClientError>> + Send {
    let state = Reading {
        bytes: response.bytes_stream().boxed(),
        parser: SseParser::default(),
        ready: VecDeque::new(),
        running,
        is_over: false,
    };
    futures::stream::unfold(state, async |mut state| {
        if state.is_over {
            return None;
        }
        let next = state.next().await;
        state.is_over = !matches!(next, Ok(Some(Piece::Chunk(_) | Piece::Charged(_))));
        next.transpose().map(|piece| (piece, state))
    })
}

struct Reading {
    bytes: BoxStream<'static, reqwest::Result<Bytes>>,
    parser: SseParser,
    ready: VecDeque<SseEvent>,
    running: Option<Running>,
    is_over: bool,
}

impl Reading {
    async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<Piece<T>>, ClientError> {
        loop {
            let Some(event) = self.ready.pop_front() else {
                self.read().await?;
                continue;
            };
            if event.data == "[DONE]" {
                return Ok(None);
            }
            match (&mut self.running, event.name.as_str()) {
                (Some(running), NEED_VOUCHER) => running.pay_more(&event.data).await?,
                (Some(running), RECEIPT) => {
                    let charged = running.settle(&event.data).await?;
                    return Ok(Some(Piece::Charged(charged)));
                }
                // Anything else by a name is not for us.
                (_, name) if !name.is_empty() => {}
                (running, _) => {
                    let chunk: serde_json::Value = parse_chunk(&event.data)?;
                    if let Some(running) = running {
                        running.hear(&chunk);
                    }
                    let chunk = serde_json::from_value(chunk).map_err(|error| protocol(&error))?;
                    return Ok(Some(Piece::Chunk(chunk)));
                }
            }
        }
    }

    async fn read(&mut self) -> Result<(), ClientError> {
        let bytes = match self.bytes.next().await {
            Some(Ok(bytes)) => bytes,
            Some(Err(error)) => return Err(connection(&error)),
            None => {
                let broken = "the server broke the answer off".to_owned();
                return Err(ClientError::Connection(broken));
            }
        };
        let events = self.parser.push(&bytes);
        let events = events.map_err(|error| ClientError::Protocol(error.to_string()))?;
        self.ready.extend(events);
        Ok(())
    }
}

fn protocol(error: &serde_json::Error) -> ClientError {
    ClientError::Protocol(error.to_string())
}

fn parse_chunk<T: DeserializeOwned>(data: &str) -> Result<T, ClientError> {
    let value: serde_json::Value = serde_json::from_str(data).map_err(|error| protocol(&error))?;
    if value.get("error").is_some_and(|error| !error.is_null()) {
        return Err(ClientError::Server {
            status: 200,
            error: error_object(StatusCode::OK, data.as_bytes()),
            retry_after: None,
        });
    }
    serde_json::from_value(value).map_err(|error| protocol(&error))
}
