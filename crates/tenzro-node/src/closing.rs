//! Asks a provider for its terms and to close a channel. What it answers is not believed: the ledger says
//! whether the channel is closed.

use std::time::Duration;

use reqwest::header::WWW_AUTHENTICATE;
use reqwest::{Client, Method, StatusCode};
use tenzro_ledger::{Address, B256, Ledger};
use tenzro_payments::payer::terms::{Expected, Market, Terms, TermsError};
use tenzro_payments::payer::{PayError, Payer, unix_now};
use tenzro_payments::voucher::{Domain, request_hash};

use crate::http_client::innermost;
use crate::paying_client::VOUCHERS;
use crate::probe::Prober;

/// Time for a challenge.
const CHALLENGE: Duration = Duration::from_secs(10);
/// Time for closing: the provider waits for its transaction.
const CLOSE: Duration = Duration::from_secs(90);

/// Why no terms came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AskError {
    #[error("it does not answer: {0}")]
    Unreachable(String),
    /// It does not close the channel now.
    #[error(
        "it answers 409: answers still run on the channel, or nothing was spent on it, so that it would not be \
         paid for closing it"
    )]
    Conflict,
    /// Something else than was asked for.
    #[error("it answers {0}")]
    Status(StatusCode),
    #[error(transparent)]
    Terms(#[from] TermsError),
}

/// Whom to ask, for what.
#[derive(Debug, Clone)]
pub(crate) struct Seller {
    /// Ends in `/v1`.
    pub(crate) base_url: String,
    /// Model id.
    pub(crate) model: String,
    /// The provider.
    pub(crate) payee: Address,
}

/// The escrow and the token of a ledger.
pub(crate) fn market(ledger: &Ledger) -> Market {
    let place = ledger.escrow();
    Market {
        domain: Domain::new(place.chain_id, place.address),
        token: place.token,
    }
}

/// The challenge for an unpaid request: for that payee on that ledger, whatever its price.
pub(crate) async fn terms(
    prober: &Prober,
    seller: &Seller,
    market: &Market,
) -> Result<Terms, AskError> {
    let client = client(prober, &seller.base_url)?;
    let url = format!("{}/chat/completions", seller.base_url);
    // Without a body and without a payment nothing is computed.
    let sent = client.request(Method::HEAD, url).timeout(CHALLENGE).send();
    let response = sent.await.map_err(|error| unreachable(&error))?;
    if response.status() != StatusCode::PAYMENT_REQUIRED {
        return Err(AskError::Status(response.status()));
    }
    let expected = Expected {
        payee: seller.payee,
        model: seller.model.clone(),
        model_hash: None,
        // The registry's price binds whoever buys, and nothing is bought.
        input_price_max: u128::MAX,
        output_price_max: u128::MAX,
        window_tokens_max: u32::MAX,
        answer_tokens_max: 0,
    };
    let values = response.headers().get_all(WWW_AUTHENTICATE);
    let values = values.iter().filter_map(|value| value.to_str().ok());
    Ok(Terms::offered(values, market, &expected, unix_now())?)
}

/// Gives the provider the last voucher. Ok says that it answered, and nothing more.
pub(crate) async fn ask(
    prober: &Prober,
    seller: &Seller,
    payer: &Payer,
    channel: B256,
) -> Result<Result<(), PayError>, AskError> {
    let terms = terms(prober, seller, payer.market()).await?;
    let hash = request_hash("POST", &format!("/v1/{VOUCHERS}"), b"");
    let credential = match payer.close(channel, &terms, hash).await {
        Ok(credential) => credential,
        Err(error) => return Ok(Err(error)),
    };
    let client = client(prober, &seller.base_url)?;
    let url = format!("{}/{VOUCHERS}", seller.base_url);
    let request = client.request(Method::POST, url).timeout(CLOSE);
    let sent = request
        .header(credential.header(), credential.value())
        .send();
    let response = sent.await.map_err(|error| unreachable(&error))?;
    match response.status() {
        status if status.is_success() => Ok(Ok(())),
        StatusCode::CONFLICT => Err(AskError::Conflict),
        status => Err(AskError::Status(status)),
    }
}

fn client(prober: &Prober, base_url: &str) -> Result<Client, AskError> {
    let checked = prober.check(base_url);
    checked.map_err(|error| AskError::Unreachable(error.to_string()))?;
    prober.client().map_err(|error| unreachable(&error))
}

fn unreachable(error: &reqwest::Error) -> AskError {
    AskError::Unreachable(innermost(error))
}
