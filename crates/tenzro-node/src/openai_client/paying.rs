//! Pays for requests: answers challenges, raises vouchers while a stream runs, and checks the bill.
//!
//! ```text
//! challenge ─▶ Terms::check ─▶ Payer::prepare ─▶ POST ┬ 200 ─▶ Running ┬ payment-need-voucher ─▶ HEAD with a voucher
//!                                    ▲                │                └ payment-receipt ─▶ audited and written down
//!                                    └── retry ◀── 402, 409, 410
//! ```

use std::sync::Arc;
use std::time::Duration;

use mpp::protocol::core::{PaymentChallenge, parse_receipt, parse_www_authenticate};
use reqwest::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, Method, Response};
use serde_json::Value;
use tenzro_payments::payer::audit::{AnswerKind, AnswerShape, PromptTokens};
use tenzro_payments::payer::terms::{Expected, Terms};
use tenzro_payments::payer::{Credential, Order, PaidRequest, PayError, Payer, unix_now};
use tenzro_payments::voucher::request_hash;
use tenzro_payments::wire::{NeedVoucher, Problem, Receipt};
use tenzro_protocol::amount::Wei;
use tenzro_protocol::openai::ErrorObject;
use tenzro_protocol::openai::chat::{ChatRequest, Content};
use tenzro_protocol::openai::completions::{CompletionRequest, Input};
use tenzro_protocol::openai::embeddings::EmbeddingRequest;
use tokio::sync::Mutex;

use super::{ClientError, bytes_of, check, connection, protocol};

/// Name of the header with a receipt.
pub(super) const PAYMENT_RECEIPT: &str = "payment-receipt";

/// Answers to refusals in a row: a challenge that has expired, a deposit, a voucher that is counted anew.
const ROUNDS: u32 = 5;
/// Vouchers that one stream may ask for in a second: more is a nuisance, and no provider needs it.
const ASKS_PER_SECOND: f64 = 25.0;
/// Seconds that a challenge must still hold when it is answered.
const SPARE_SECONDS: u64 = 20;
/// Time for a voucher to be taken. Opening a channel waits for the ledger.
const VOUCHER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest challenge.
const CHALLENGE_BYTES_MAX: usize = 16 << 10;

/// A payer and what it knows of one endpoint; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Wallet {
    payer: Payer,
    expected: Arc<Expected>,
    /// The last challenge, to be answered as long as it holds.
    terms: Arc<Mutex<Option<Terms>>>,
}

/// What a request buys, as far as its prompt and answer cost something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Purchase {
    prompt: PromptTokens,
    shape: AnswerShape,
}

/// A request that was taken and is being answered.
pub(super) struct Running {
    wallet: Wallet,
    http: Client,
    url: String,
    request: PaidRequest,
    /// How many more vouchers may be asked for now, and since when.
    asks: (f64, tokio::time::Instant),
    is_settled: bool,
}

impl Purchase {
    pub(super) fn of_chat(request: &ChatRequest) -> Self {
        let bytes = request.messages.iter().map(|message| {
            let content = match &message.content {
                Some(Content::Text(text)) => text.len(),
                Some(Content::Parts(parts)) => {
                    let texts = parts.iter().filter_map(|part| part.text.as_ref());
                    texts.map(String::len).sum()
                }
                None => 0,
            };
            content + message.role.len() + message.name.as_ref().map_or(0, String::len)
        });
        let kwargs = request.chat_template_kwargs.as_ref();
        let kwargs = kwargs.map_or(0, |kwargs| Value::Object(kwargs.clone()).to_string().len());
        let bytes = bytes.sum::<usize>() + kwargs;
        let limit = request.max_completion_tokens.or(request.parameters.max_tokens);
        Self {
            prompt: PromptTokens::of_text(bytes, request.messages.len()),
            shape: Self::streamed(limit, request.parameters.stop.clone().map(|stop| stop.into_vec())),
        }
    }

    pub(super) fn of_completion(request: &CompletionRequest) -> Self {
        let parameters = &request.parameters;
        Self {
            prompt: prompt_of(&request.prompt),
            shape: Self::streamed(
                parameters.max_tokens,
                parameters.stop.clone().map(|stop| stop.into_vec()),
            ),
        }
    }

    pub(super) fn of_embedding(request: &EmbeddingRequest) -> Self {
        Self {
            prompt: prompt_of(&request.input),
            shape: AnswerShape {
                kind: AnswerKind::Vectors,
                answers: 1,
                tokens_max: None,
                stop_bytes: 0,
            },
        }
    }

    fn streamed(tokens_max: Option<u32>, stop: Option<Vec<String>>) -> AnswerShape {
        let longest = stop.iter().flatten().map(String::len).max().unwrap_or(0);
        AnswerShape {
            stop_bytes: u32::try_from(longest).unwrap_or(u32::MAX),
            ..AnswerShape::stream(tokens_max)
        }
    }
}

fn prompt_of(input: &Input) -> PromptTokens {
    match input {
        Input::Text(text) => PromptTokens::of_text(text.len(), 0),
        Input::Texts(texts) => PromptTokens::of_text(texts.iter().map(String::len).sum(), 0),
        Input::Tokens(tokens) => counted(tokens.len()),
        Input::TokenLists(lists) => counted(lists.iter().map(Vec::len).sum()),
    }
}

/// Tokens that were counted already; the server may add BOS, EOS and a separator.
fn counted(tokens: usize) -> PromptTokens {
    let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
    PromptTokens::counted(tokens.saturating_add(4))
}

impl Wallet {
    pub(crate) fn new(payer: Payer, expected: Expected) -> Self {
        Self {
            payer,
            expected: Arc::new(expected),
            terms: Arc::default(),
        }
    }

    /// Sends a request with its payment; what refuses it for another reason is an error as without one.
    pub(super) async fn buy(
        &self,
        http: &Client,
        url: &str,
        body: Vec<u8>,
        purchase: Purchase,
    ) -> Result<(Response, Running), ClientError> {
        let path = path_of(url);
        let order = Order {
            request_hash: request_hash("POST", &path, &body),
            model: self.expected.model.clone(),
            prompt: purchase.prompt,
            shape: purchase.shape,
            recount: None,
        };
        let terms = self.terms(http, url).await?;
        let prepared = self.payer.prepare(terms, order).await;
        let (request, mut credential) = prepared.map_err(|error| unpaid(&error))?;
        for _ in 0..ROUNDS {
            let sent = http
                .post(url)
                .header(CONTENT_TYPE, "application/json")
                .header(credential.header(), secret(credential.value()))
                .body(body.clone())
                .send()
                .await;
            let response = sent.map_err(|error| connection(&error))?;
            let status = response.status().as_u16();
            if response.status().is_success() {
                credential.accepted().await.map_err(|error| unpaid(&error))?;
                let running = Running {
                    wallet: self.clone(),
                    http: http.clone(),
                    url: url.to_owned(),
                    request,
                    asks: (ASKS_PER_SECOND, tokio::time::Instant::now()),
                    is_settled: false,
                };
                return Ok((response, running));
            }
            if !matches!(status, 402 | 409 | 410) {
                let error = check(response).await.map(drop);
                // Nothing was served; if that cannot be written down it stays in doubt.
                let _ = request.not_served().await;
                return Err(error.err().unwrap_or_else(|| refused(status, "it was refused")));
            }
            let (terms, problem) = self.refusal(http, url, response).await?;
            let again = request.retry(credential, terms, &problem).await;
            credential = again.map_err(|error| refused(402, &format!("{error} ({})", problem.detail)))?;
        }
        Err(refused(402, "the provider refuses every payment"))
    }

    /// The terms to answer: the last ones while they hold, else new ones.
    async fn terms(&self, http: &Client, url: &str) -> Result<Terms, ClientError> {
        let mut known = self.terms.lock().await;
        if let Some(terms) = &*known
            && terms.holds_at(unix_now(), SPARE_SECONDS)
        {
            return Ok(terms.clone());
        }
        let asked = http.head(url).timeout(VOUCHER_TIMEOUT).send().await;
        let response = asked.map_err(|error| connection(&error))?;
        let status = response.status().as_u16();
        if status != 402 {
            return Err(refused(status, "the provider asks for no payment, though it has a price"));
        }
        let terms = self.check(&challenge(&response)?)?;
        *known = Some(terms.clone());
        Ok(terms)
    }

    fn check(&self, challenge: &PaymentChallenge) -> Result<Terms, ClientError> {
        let market = self.payer.market();
        let checked = Terms::check(challenge.clone(), market, &self.expected, unix_now());
        checked.map_err(|error| refused(402, &error.to_string()))
    }

    /// Why a payment was refused, and what to answer now.
    async fn refusal(
        &self,
        http: &Client,
        url: &str,
        response: Response,
    ) -> Result<(Terms, Problem), ClientError> {
        let new = challenge(&response).ok();
        let bytes = bytes_of(response).await?;
        let problem: Problem = serde_json::from_slice(&bytes).map_err(|error| protocol(&error))?;
        let terms = match new {
            Some(challenge) => {
                let terms = self.check(&challenge)?;
                *self.terms.lock().await = Some(terms.clone());
                terms
            }
            None => self.terms(http, url).await?,
        };
        Ok((terms, problem))
    }
}

impl Running {
    /// Text of the answer, for the count.
    pub(super) fn hear(&self, chunk: &Value) {
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            for text in [&choice["delta"]["content"], &choice["text"]] {
                if let Some(text) = text.as_str() {
                    self.request.on_text(text);
                }
            }
        }
    }

    /// The provider wants a higher voucher for the stream to go on: what is due and a window is signed, and
    /// sent beside the stream.
    pub(super) async fn pay_more(&mut self, event: &str) -> Result<(), ClientError> {
        self.may_ask()?;
        let need: NeedVoucher = serde_json::from_str(event).map_err(|error| protocol(&error))?;
        let hash = request_hash("HEAD", &path_of(&self.url), b"");
        let answer = self.request.on_need_voucher(&need, hash).await;
        let answer = answer.map_err(|error| unpaid(&error))?;
        if answer.is_overbill {
            tracing::warn!(url = self.url, "a provider asks for more than it delivered");
        }
        let Some(credential) = answer.credential else {
            return Ok(());
        };
        let (wallet, http, url) = (self.wallet.clone(), self.http.clone(), self.url.clone());
        // The stream is read on meanwhile.
        tokio::spawn(async move {
            if let Err(error) = send_voucher(&wallet, &http, &url, credential).await {
                tracing::warn!(url, %error, "a voucher was not taken");
            }
        });
        Ok(())
    }

    /// The bill: what is paid of it, by our own count.
    pub(super) async fn settle(&mut self, event: &str) -> Result<Wei, ClientError> {
        let receipt: Receipt = serde_json::from_str(event).map_err(|error| protocol(&error))?;
        self.audit(&receipt).await
    }

    /// The same, of an answer in one piece.
    pub(super) async fn settle_header(
        mut self,
        header: Option<&HeaderValue>,
    ) -> Result<Wei, ClientError> {
        let text = header.and_then(|header| header.to_str().ok());
        let missing = || ClientError::Protocol("the provider gave no receipt".to_owned());
        let envelope = parse_receipt(text.ok_or_else(missing)?);
        let envelope = envelope.map_err(|error| ClientError::Protocol(error.to_string()))?;
        let receipt = serde_json::to_value(envelope).and_then(serde_json::from_value);
        self.audit(&receipt.map_err(|error| protocol(&error))?).await
    }

    async fn audit(&mut self, receipt: &Receipt) -> Result<Wei, ClientError> {
        if std::mem::replace(&mut self.is_settled, true) {
            return Err(ClientError::Protocol("the provider gave two receipts".to_owned()));
        }
        let verdict = self.request.on_receipt(receipt).await;
        let verdict = verdict.map_err(|error| unpaid(&error))?;
        if verdict.overbill.is_some() {
            tracing::warn!(url = self.url, "a provider's bill is too high: it is paid by our count");
        }
        Ok(verdict.agreed.charged)
    }

    /// A stream that asks and asks is no stream.
    fn may_ask(&mut self) -> Result<(), ClientError> {
        let now = tokio::time::Instant::now();
        let (left, since) = self.asks;
        let more = now.duration_since(since).as_secs_f64() * ASKS_PER_SECOND;
        let left = (left + more).min(ASKS_PER_SECOND);
        self.asks = (left - 1.0, now);
        if left < 1.0 {
            let text = "the provider asks for payment too often".to_owned();
            return Err(ClientError::Protocol(text));
        }
        Ok(())
    }
}

async fn send_voucher(
    wallet: &Wallet,
    http: &Client,
    url: &str,
    credential: Credential,
) -> Result<(), ClientError> {
    let request = http
        .request(Method::HEAD, url)
        .timeout(VOUCHER_TIMEOUT)
        .header(credential.header(), secret(credential.value()));
    let response = request.send().await.map_err(|error| connection(&error))?;
    let status = response.status().as_u16();
    if response.status().is_success() {
        return credential.accepted().await.map_err(|error| unpaid(&error));
    }
    // A challenge that has expired meanwhile: the next voucher answers the new one.
    if let Ok(challenge) = challenge(&response) {
        *wallet.terms.lock().await = Some(wallet.check(&challenge)?);
    }
    Err(refused(status, "the voucher was refused"))
}

fn challenge(response: &Response) -> Result<PaymentChallenge, ClientError> {
    let none = || ClientError::Protocol("the provider gave no payment challenge".to_owned());
    let header = response.headers().get(WWW_AUTHENTICATE).ok_or_else(none)?;
    let text = header.to_str().map_err(|_| none())?;
    if text.len() > CHALLENGE_BYTES_MAX {
        return Err(none());
    }
    parse_www_authenticate(text).map_err(|error| ClientError::Protocol(error.to_string()))
}

/// A header that no log shows.
fn secret(value: &str) -> HeaderValue {
    let mut value = HeaderValue::from_str(value).expect("base64 is a header");
    value.set_sensitive(true);
    value
}

fn path_of(url: &str) -> String {
    let parsed = reqwest::Url::parse(url);
    parsed.map_or_else(|_| url.to_owned(), |url| url.path().to_owned())
}

fn unpaid(error: &PayError) -> ClientError {
    refused(402, &error.to_string())
}

fn refused(status: u16, message: &str) -> ClientError {
    ClientError::Server {
        status,
        error: ErrorObject {
            message: format!("payment: {message}"),
            kind: "payment_error".to_owned(),
            param: None,
            code: Some("payment_required".to_owned()),
        },
        retry_after: None,
    }
}
