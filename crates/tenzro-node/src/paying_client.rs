//! A client of one provider's endpoint that pays for what it gets.
//!
//! ```text
//! request ─▶ 402 + challenge ─▶ Terms (against the registry) ─▶ Payer::prepare
//!    └─ with a credential ─▶ 402 again: what it needs ─▶ PaidRequest::retry     at most ROUNDS
//!                         ├▶ 410: not this server's channel ─▶ another one
//!                         └▶ 200 ─▶ stream.rs: text, vouchers on another connection, the receipt
//! ```
//!
//! The address and all that comes from it are somebody else's text.

mod order;
mod stream;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use reqwest::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tenzro_engine::Tokenizer;
use tenzro_payments::payer::audit::{PromptTokens, Recount};
use tenzro_payments::payer::terms::{Expected, Terms};
use tenzro_payments::payer::{Credential, Order, PaidRequest, PayError, Payer, unix_now};
use tenzro_payments::voucher::request_hash;
use tenzro_payments::wire::{NeedVoucher, Problem};
use tenzro_protocol::openai::StreamOptions;
use tenzro_protocol::openai::chat::{ChatChunk, ChatRequest};
use tenzro_protocol::openai::completions::{Completion, CompletionRequest};
use tenzro_protocol::openai::embeddings::{EmbeddingList, EmbeddingRequest};

use crate::openai_client::{Answered, Chunks, ClientError, OpenAiServer, check, connection, read};
use crate::probe::Prober;
use order::{Purchase, chat_order, completion_order, embedding_order};
use stream::{Visible, paid_chunks};

/// Requests for one answer at most: without payment, with the voucher that is known, with a new one, after a
/// deposit, with the prompt as the provider counts it, and one more.
const ROUNDS: u32 = 6;
/// A challenge that ends sooner is not answered any more.
const MARGIN_SECONDS: u64 = 15;
/// Largest body of a refusal.
const PROBLEM_BYTES_MAX: usize = 64 << 10;
/// Time for a voucher to be taken.
const VOUCHER: Duration = Duration::from_secs(10);
/// How long a voucher waits at most where the server has no time for it, and how long where it does not say.
const BUSY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(1));
/// How often, and how long each time, text of other answers is waited for.
const BEHIND: (u32, Duration) = (5, Duration::from_millis(100));
/// Time to read why a server refuses.
const REFUSAL: Duration = Duration::from_secs(10);
/// Where vouchers go that belong to a running stream, below `/v1`.
pub(crate) const VOUCHERS: &str = "payments/voucher";

/// One endpoint and who pays for it; cheap to clone.
#[derive(Debug, Clone)]
pub struct PayingClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    http: Client,
    /// Ends in `/v1`.
    base_url: Arc<str>,
    payer: Payer,
    expected: Expected,
    tokenizer: Option<Tokenizer>,
    patience: Patience,
    /// The last challenge, which saves a round while it holds.
    terms: Mutex<Option<Terms>>,
}

/// How long an answer may take.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Until it begins, which may be after a deposit and in a queue, and then without any text.
    text: Duration,
    /// In all.
    answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            text: Duration::from_secs(600),
            answer: Duration::from_secs(4 * 3_600),
        }
    }
}

/// An answer, and who pays for it; nobody where the server asks for nothing.
struct Paid {
    response: Response,
    request: Option<PaidRequest>,
}

impl PayingClient {
    /// `base_url` ends in `/v1`; `allow_private` allows addresses of this machine and of private networks.
    /// What is asked for is held against `expected`, which comes from the registry.
    pub fn new(
        base_url: &str,
        allow_private: bool,
        payer: Payer,
        expected: Expected,
        tokenizer: Option<Tokenizer>,
    ) -> Result<Self, ClientError> {
        let prober = Prober::new(allow_private).map_err(|error| connection(&error))?;
        let base_url = prober.check(base_url);
        let base_url = base_url.map_err(|error| ClientError::Connection(error.to_string()))?;
        let http = prober.client().map_err(|error| connection(&error))?;
        Ok(Self {
            inner: Arc::new(Inner {
                http,
                base_url: base_url.into(),
                payer,
                expected,
                tokenizer,
                patience: Patience::default(),
                terms: Mutex::new(None),
            }),
        })
    }

    /// Waits no longer than that.
    #[cfg(test)]
    fn with_patience(mut self, patience: Patience) -> Self {
        let inner = Arc::get_mut(&mut self.inner);
        inner.expect("nobody else has it").patience = patience;
        self
    }

    /// Streams an answer, whether or not `stream` is set.
    pub async fn chat(&self, request: &ChatRequest) -> Result<Chunks<ChatChunk>, ClientError> {
        let mut request = request.clone();
        request.parameters.stream = Some(true);
        request.parameters.stream_options = Some(usage());
        let purchase = chat_order(&request, self.inner.expected.answer_tokens_max);
        self.stream("chat/completions", &request, purchase).await
    }

    /// Streams a continuation, whether or not `stream` is set.
    pub async fn complete(
        &self,
        request: &CompletionRequest,
    ) -> Result<Chunks<Completion>, ClientError> {
        let mut request = request.clone();
        request.parameters.stream = Some(true);
        request.parameters.stream_options = Some(usage());
        let purchase = completion_order(&request, self.inner.expected.answer_tokens_max);
        self.stream("completions", &request, purchase).await
    }

    /// Embeds texts.
    pub async fn embed(&self, request: &EmbeddingRequest) -> Result<EmbeddingList, ClientError> {
        let paid = self
            .open("embeddings", request, embedding_order(request))
            .await?;
        let receipt = paid.response.headers().get("payment-receipt").cloned();
        let mut answer: EmbeddingList =
            within(self.inner.patience.text, read(paid.response)).await??;
        // Its own word is no bill.
        answer.usage.cost = None;
        if let (Some(request), Some(receipt)) = (&paid.request, receipt) {
            let verdict = request
                .on_receipt_header(receipt.to_str().unwrap_or_default())
                .await;
            stream::note(&self.inner.base_url, &verdict);
            answer.usage.cost = verdict.ok().map(|verdict| verdict.agreed.charged);
        }
        Ok(answer)
    }

    async fn stream<T: DeserializeOwned + Visible + Send + 'static>(
        &self,
        path: &'static str,
        body: &impl Serialize,
        purchase: Purchase,
    ) -> Result<Chunks<T>, ClientError> {
        let answers = purchase.shape.answers;
        let paid = self.open(path, body, purchase).await?;
        let request = paid.request.map(Arc::new);
        Ok(paid_chunks(self.clone(), paid.response, request, answers).boxed())
    }

    /// Sends the request until it is paid for.
    async fn open(
        &self,
        path: &'static str,
        body: &impl Serialize,
        purchase: Purchase,
    ) -> Result<Paid, ClientError> {
        let inner = &self.inner;
        let body = serde_json::to_vec(body);
        let body = body.map_err(|error| ClientError::Protocol(error.to_string()))?;
        let order = Order {
            request_hash: request_hash("POST", &format!("/v1/{path}"), &body),
            place: Arc::clone(&inner.base_url),
            model: inner.expected.model.clone(),
            shape: purchase.shape,
            prompt: self.count(purchase).await?,
            recount: inner.tokenizer.clone().map(recount),
        };
        let post = |credential: Option<&Credential>| {
            let request = inner.http.post(format!("{}/{path}", inner.base_url));
            let request = request
                .header(CONTENT_TYPE, "application/json")
                .body(body.clone());
            with(request, credential)
        };
        let (mut request, mut credential) = (None, None);
        if let Some(terms) = self.known_terms() {
            let prepared = inner.payer.prepare(terms, order.clone()).await?;
            (request, credential) = (Some(prepared.0), Some(prepared.1));
        }
        let mut rounds = 0;
        while rounds < ROUNDS {
            rounds += 1;
            let sent = within(inner.patience.text, post(credential.as_ref()).send()).await?;
            let response = sent.map_err(|error| connection(&error))?;
            let status = response.status();
            if status.is_success() {
                let id = response.headers().get("x-request-id");
                if let (Some(request), Some(id)) = (&request, id) {
                    request.answered(id.to_str().unwrap_or_default());
                }
                if let Some(credential) = credential {
                    credential.accepted().await?;
                }
                return Ok(Paid { response, request });
            }
            // What it holds may have to be sent again.
            drop(credential.take());
            let is_payment = matches!(status.as_u16(), 402 | 409 | 410);
            if !is_payment || (status != StatusCode::PAYMENT_REQUIRED && request.is_none()) {
                not_served(request).await;
                return Err(within(REFUSAL, check(response))
                    .await
                    .map_or_else(|late| late, refusal));
            }
            let offered = self.offered(&response);
            let problem = within(REFUSAL, problem(response)).await;
            let problem = problem.unwrap_or_else(|_| unsaid(status.as_u16()));
            let terms = match (offered, self.known_terms()) {
                (Ok(terms), _) => terms,
                (Err(_), Some(terms)) if status != StatusCode::PAYMENT_REQUIRED => terms,
                (Err(error), _) => {
                    not_served(request).await;
                    return Err(error.into());
                }
            };
            let paid = match &request {
                Some(request) => retry(request, &terms, &problem).await,
                None => Err(PayError::NoChannel),
            };
            match paid {
                Ok(paid) => credential = Some(paid),
                // There is no request yet, or its channel is closed or another server's: another one pays.
                Err(PayError::NoChannel) => {
                    if status == StatusCode::GONE {
                        // Channels that may be this server's are few, and none is tried twice; one that was
                        // opened for it is the last one.
                        rounds -= 1;
                    }
                    not_served(request.take()).await;
                    let prepared = inner.payer.prepare(terms, order.clone()).await?;
                    (request, credential) = (Some(prepared.0), Some(prepared.1));
                }
                Err(error) => {
                    not_served(request).await;
                    return Err(error.into());
                }
            }
        }
        not_served(request).await;
        let reason = "it refuses every payment that it asks for";
        Err(ClientError::Protocol(reason.to_owned()))
    }

    /// Tokens of what is bought; a long prompt takes a while.
    async fn count(&self, purchase: Purchase) -> Result<PromptTokens, ClientError> {
        let tokenizer = self.inner.tokenizer.clone();
        let counting = move || purchase.prompt(tokenizer.as_ref());
        let counted = tokio::task::spawn_blocking(counting).await;
        counted.map_err(|error| ClientError::Protocol(error.to_string()))
    }

    /// The terms that a refusal offers; they are kept for the next request.
    fn offered(&self, response: &Response) -> Result<Terms, PayError> {
        let inner = &self.inner;
        let values = response.headers().get_all(WWW_AUTHENTICATE);
        let values = values.iter().filter_map(|value| value.to_str().ok());
        let terms = Terms::offered(values, inner.payer.market(), &inner.expected, unix_now())?;
        *lock(&inner.terms) = Some(terms.clone());
        Ok(terms)
    }

    fn known_terms(&self) -> Option<Terms> {
        let terms = lock(&self.inner.terms).clone();
        terms.filter(|terms| terms.holds_at(unix_now(), MARGIN_SECONDS))
    }

    /// Answers a stream's demand on another connection. A demand that is too high gets what it may have, and
    /// an error says that it was too high.
    async fn pay(&self, request: &PaidRequest, need: &NeedVoucher) -> Result<(), ClientError> {
        let inner = &self.inner;
        let path = format!("/v1/{VOUCHERS}");
        let hash = request_hash("POST", &path, b"");
        // Once more with a new challenge: a stream may last longer than the first one.
        let (mut is_renewed, mut has_waited) = (false, false);
        loop {
            let answer = request.on_need_voucher(need, hash).await?;
            let end = match answer.is_overbill {
                true => Err(PayError::Overbilled {
                    required: need.required_cumulative.0,
                    signed: answer.signed,
                }),
                false => Ok(()),
            };
            let Some(credential) = answer.credential else {
                return Ok(end?);
            };
            let url = format!("{}/{VOUCHERS}", inner.base_url);
            let post = inner.http.request(Method::POST, url).timeout(VOUCHER);
            let sent = with(post, Some(&credential)).send().await;
            let response = sent.map_err(|error| connection(&error))?;
            if response.status().is_success() {
                credential.accepted().await?;
                return Ok(end?);
            }
            drop(credential);
            if response.status() == StatusCode::PAYMENT_REQUIRED {
                if is_renewed {
                    let reason = "it does not take the voucher that it asks for";
                    return Err(ClientError::Protocol(reason.to_owned()));
                }
                request.renew(self.offered(&response)?)?;
                is_renewed = true;
                continue;
            }
            let error = refusal(check(response).await);
            match error {
                ClientError::Server {
                    status: 429,
                    retry_after,
                    ..
                } if !has_waited => {
                    let (most, unsaid) = BUSY;
                    tokio::time::sleep(retry_after.unwrap_or(unsaid).min(most)).await;
                    has_waited = true;
                }
                error => return Err(error),
            }
        }
    }
}

impl OpenAiServer for PayingClient {
    fn chat(&self, request: ChatRequest) -> Answered<Chunks<ChatChunk>> {
        let client = self.clone();
        Box::pin(async move { client.chat(&request).await })
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

/// Counts answers.
fn recount(tokenizer: Tokenizer) -> Recount {
    Recount::new(move |text| tokenizer.count(text))
}

fn usage() -> StreamOptions {
    StreamOptions {
        include_usage: Some(true),
    }
}

fn with(request: RequestBuilder, credential: Option<&Credential>) -> RequestBuilder {
    match credential {
        Some(credential) => request.header(credential.header(), credential.value()),
        None => request,
    }
}

/// Text of other answers that is still on its way makes the provider's demand look too high.
async fn retry(
    request: &PaidRequest,
    terms: &Terms,
    problem: &Problem,
) -> Result<Credential, PayError> {
    let (times, wait) = BEHIND;
    for _ in 1..times {
        match request.retry(terms.clone(), problem).await {
            Err(PayError::Behind) => tokio::time::sleep(wait).await,
            other => return other,
        }
    }
    request.retry(terms.clone(), problem).await
}

/// Errors cost nothing, so what could not be written is no loss.
async fn not_served(request: Option<PaidRequest>) {
    if let Some(request) = request
        && let Err(error) = request.not_served().await
    {
        tracing::warn!(%error, "a refused request stays in the books");
    }
}

fn refusal(checked: Result<Response, ClientError>) -> ClientError {
    match checked {
        Err(error) => error,
        Ok(_) => ClientError::Protocol("a refusal became a success".to_owned()),
    }
}

/// What a refusal says; only its status where that cannot be read.
async fn problem(mut response: Response) -> Problem {
    let status = response.status().as_u16();
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        if bytes.len() + chunk.len() > PROBLEM_BYTES_MAX {
            break;
        }
        bytes.extend_from_slice(&chunk);
    }
    let problem = serde_json::from_slice(&bytes).unwrap_or_else(|_| unsaid(status));
    Problem { status, ..problem }
}

fn unsaid(status: u16) -> Problem {
    Problem {
        kind: "about:blank".to_owned(),
        title: String::new(),
        status,
        detail: String::new(),
        channel_id: None,
        required_cumulative: None,
        channel: None,
    }
}

async fn within<T>(time: Duration, work: impl Future<Output = T>) -> Result<T, ClientError> {
    let late = |_| ClientError::Connection("the server answers too slowly".to_owned());
    tokio::time::timeout(time, work).await.map_err(late)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
