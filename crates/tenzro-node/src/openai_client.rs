//! A client of any OpenAI-compatible server: for `chat` and for `--upstream`.

use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use reqwest::{Client, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tenzro_payments::payer::PayError;
use tenzro_protocol::openai::chat::{ChatChunk, ChatRequest};
use tenzro_protocol::openai::completions::{Completion, CompletionRequest};
use tenzro_protocol::openai::embeddings::{EmbeddingList, EmbeddingRequest};
use tenzro_protocol::openai::{ErrorBody, ErrorObject, ModelList};
use tenzro_protocol::sse::SseParser;

use crate::http_client;

/// Time to open a connection.
const CONNECT: Duration = Duration::from_secs(10);

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
    /// It asks for more than is paid.
    #[error(transparent)]
    Payment(#[from] PayError),
}

/// Chunks of a streamed answer; dropping it ends the request.
pub type Chunks<T> = BoxStream<'static, Result<T, ClientError>>;

/// A streamed answer, and who gives it.
pub struct ChatAnswer {
    /// As a node says it: the wallet that is paid, or `local`. Model servers do not say it.
    pub provider: Option<String>,
    /// The answer.
    pub chunks: Chunks<ChatChunk>,
}

impl fmt::Debug for ChatAnswer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("ChatAnswer");
        shown.field("provider", &self.provider);
        shown.finish_non_exhaustive()
    }
}

/// A server of the OpenAI API, for free or for money.
pub(crate) trait OpenAiServer: Send + Sync + fmt::Debug + 'static {
    /// Streams an answer.
    fn chat(&self, request: ChatRequest) -> Answered<Chunks<ChatChunk>>;

    /// Streams a continuation.
    fn complete(&self, request: CompletionRequest) -> Answered<Chunks<Completion>>;

    /// Embeds texts.
    fn embed(&self, request: EmbeddingRequest) -> Answered<EmbeddingList>;
}

/// An answer that is on its way.
pub(crate) type Answered<T> = BoxFuture<'static, Result<T, ClientError>>;

impl OpenAiServer for OpenAiClient {
    fn chat(&self, request: ChatRequest) -> Answered<Chunks<ChatChunk>> {
        let client = self.clone();
        Box::pin(async move { Ok(client.chat(&request).await?.chunks) })
    }

    fn complete(&self, request: CompletionRequest) -> Answered<Chunks<Completion>> {
        let client = self.clone();
        Box::pin(async move { client.complete(&request).await })
    }

    fn embed(&self, request: EmbeddingRequest) -> Answered<EmbeddingList> {
        let client = self.clone();
        Box::pin(async move { client.embed(&request).await })
    }
}

/// A server and its connection pool.
#[derive(Debug, Clone)]
pub struct OpenAiClient {
    http: Client,
    base_url: String,
    token: Option<Token>,
}

/// A bearer token; logs do not show it.
#[derive(Clone)]
struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

impl OpenAiClient {
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
            token: None,
        })
    }

    /// Sends a bearer token with every request from now on.
    pub fn with_token(self, token: Option<String>) -> Self {
        Self {
            token: token.map(Token),
            ..self
        }
    }

    /// What it serves.
    pub async fn models(&self) -> Result<ModelList, ClientError> {
        let url = format!("{}/models", self.base_url);
        let sent = self.http.get(url).timeout(CONNECT).send().await;
        read(sent.map_err(|error| connection(&error))?).await
    }

    /// Streams an answer; `stream` is set by the caller.
    pub async fn chat(&self, request: &ChatRequest) -> Result<ChatAnswer, ClientError> {
        let response = self.post("chat/completions", request).await?;
        let provider = response.headers().get("x-tenzro-provider");
        let provider = provider.and_then(|value| value.to_str().ok());
        Ok(ChatAnswer {
            provider: provider.map(str::to_owned),
            chunks: chunks(response).boxed(),
        })
    }

    /// Streams a continuation; `stream` is set by the caller.
    pub async fn complete(
        &self,
        request: &CompletionRequest,
    ) -> Result<Chunks<Completion>, ClientError> {
        let response = self.post("completions", request).await?;
        Ok(chunks(response).boxed())
    }

    /// Embeds texts.
    pub async fn embed(&self, request: &EmbeddingRequest) -> Result<EmbeddingList, ClientError> {
        read(self.post("embeddings", request).await?).await
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> Result<Response, ClientError> {
        let url = format!("{}/{path}", self.base_url);
        let mut request = self.http.post(url).json(body);
        if let Some(Token(token)) = &self.token {
            request = request.bearer_auth(token);
        }
        let sent = request.send().await;
        check(sent.map_err(|error| connection(&error))?).await
    }
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

pub(crate) async fn read<T: DeserializeOwned>(response: Response) -> Result<T, ClientError> {
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

/// Parses the events up to `[DONE]`. A stream that ends without it is broken.
fn chunks<T: DeserializeOwned + Send + 'static>(
    response: Response,
) -> impl Stream<Item = Result<T, ClientError>> + Send {
    struct State<S> {
        bytes: S,
        parser: SseParser,
        ready: std::collections::VecDeque<String>,
        is_over: bool,
    }
    let state = State {
        bytes: Box::pin(response.bytes_stream()),
        parser: SseParser::default(),
        ready: std::collections::VecDeque::new(),
        is_over: false,
    };
    futures::stream::unfold(state, async |mut state| {
        loop {
            if state.is_over {
                return None;
            }
            if let Some(data) = state.ready.pop_front() {
                if data == "[DONE]" {
                    return None;
                }
                let parsed = parse_chunk(&data);
                state.is_over = parsed.is_err();
                return Some((parsed, state));
            }
            let next = match state.bytes.next().await {
                Some(Ok(bytes)) => state
                    .parser
                    .push(&bytes)
                    .map_err(|error| ClientError::Protocol(error.to_string())),
                Some(Err(error)) => Err(connection(&error)),
                None => Err(ClientError::Connection(
                    "the server broke the answer off".to_owned(),
                )),
            };
            match next {
                Ok(events) => state.ready.extend(events),
                Err(error) => {
                    state.is_over = true;
                    return Some((Err(error), state));
                }
            }
        }
    })
}

pub(crate) fn parse_chunk<T: DeserializeOwned>(data: &str) -> Result<T, ClientError> {
    let protocol = |error: serde_json::Error| ClientError::Protocol(error.to_string());
    let value: serde_json::Value = serde_json::from_str(data).map_err(protocol)?;
    if value.get("error").is_some_and(|error| !error.is_null()) {
        return Err(ClientError::Server {
            status: 200,
            error: error_object(StatusCode::OK, data.as_bytes()),
            retry_after: None,
        });
    }
    serde_json::from_value(value).map_err(protocol)
}
