//! Who pays for a request: decided before its body is read.
//!
//! ```text
//! request ┬ operator's token ─────────────────────▶ handler, for free
//!         ├ no payment ───────────────────────────▶ 402; the body is not read for it
//!         └ payment ─▶ Billing::check ┬ no answer to a challenge ─▶ 402, as without a payment
//!                                     └ body ─▶ Billing::pay ┬ Purse ▶ handler, which finds a Payer
//!                                                            └ Done, or no body ▶ 200 with a receipt
//! ```

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;

use crate::bill::Payer;
use crate::billing::{Billing, Credential, PaidRequest, Payment, Refusal};
use crate::error::ApiError;
use crate::extract;
use crate::request_id::RequestId;
use crate::state::AppState;

/// Where payments come without a request for anything else.
pub(crate) const VOUCHERS: &str = "/v1/payments/voucher";

/// A payment besides another `Authorization`, as OpenAI clients send one.
const PAYMENT_AUTHORIZATION: &str = "payment-authorization";

/// Largest payment header.
const CREDENTIAL_BYTES_MAX: usize = 16 << 10;

/// How much of the body of an unpaid request is thrown away so that its connection lives on. Larger
/// ones cost their client the connection.
const DRAIN_BYTES_MAX: u64 = 64 << 10;

/// How long the connection of an unpaid request waits for the rest of the body.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Middleware around every path that costs money.
pub(crate) async fn layer(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let Some(billing) = state.billing.clone() else {
        return next.run(request).await;
    };
    let mut response = admit(&state, billing.as_ref(), request, next).await;
    let is_receipt = response.headers().contains_key(PAYMENT_RECEIPT);
    let headers = response.headers_mut();
    // Source: draft-httpauth-payment, "Caching": `private` with receipts.
    let cache = if is_receipt {
        "no-store, private"
    } else {
        "no-store"
    };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    let vary = HeaderValue::from_static("authorization, payment-authorization");
    headers.append(header::VARY, vary);
    response
}

/// Name of the header with a receipt.
pub(crate) const PAYMENT_RECEIPT: &str = "payment-receipt";

/// Puts a receipt on an answer.
pub(crate) fn with_receipt(receipt: String, mut response: Response) -> Response {
    match HeaderValue::try_from(receipt) {
        Ok(receipt) => drop(response.headers_mut().insert(PAYMENT_RECEIPT, receipt)),
        Err(error) => tracing::error!(%error, "a receipt that is no header"),
    }
    response
}

/// `POST` [`VOUCHERS`] without a payment: only the operator gets here.
pub(crate) async fn no_payment() -> ApiError {
    ApiError::not_json("there is no payment in this request")
}

async fn admit(state: &AppState, billing: &dyn Billing, request: Request, next: Next) -> Response {
    let is_paid_method = [Method::POST, Method::GET, Method::HEAD].contains(request.method());
    if !is_paid_method || is_operator(billing, request.headers()) {
        return next.run(request).await;
    }
    let credential = match credential(request.headers()) {
        Ok(Some(credential)) => credential,
        Ok(None) => {
            state.metrics.payments.unpaid();
            return unread(request, billing.challenge().into_response());
        }
        Err(detail) => return unread(request, refuse(state, Refusal::malformed(detail))),
    };
    if let Err(refusal) = billing.check(&credential) {
        return unread(request, refuse(state, refusal));
    }
    let (mut parts, body) = request.into_parts();
    let body = match extract::body_bytes(body, &state.limits).await {
        Ok(body) => Bytes::from(body),
        Err(error) => return error.into_response(),
    };
    let paid = PaidRequest {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        credential,
        body: body.clone(),
    };
    let is_service =
        parts.method == Method::POST && !body.is_empty() && parts.uri.path() != VOUCHERS;
    let receipt = match billing.pay(paid).await {
        Ok(Payment::Purse(purse)) if is_service => {
            let id = parts.extensions.get::<RequestId>();
            let payer = Payer {
                purse: Arc::from(purse),
                request_id: id.map(|RequestId(id)| id.clone()).unwrap_or_default(),
            };
            parts.extensions.insert(payer);
            return next.run(Request::from_parts(parts, Body::from(body))).await;
        }
        Ok(Payment::Purse(purse)) => purse.receipt(),
        Ok(Payment::Done(receipt)) => receipt,
        Err(refusal) => return refuse(state, refusal),
    };
    state.metrics.payments.paid();
    with_receipt(receipt, StatusCode::OK.into_response())
}

/// An answer to a request whose body is not read for it.
fn unread(request: Request, mut response: Response) -> Response {
    if !drain(request) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

fn refuse(state: &AppState, refusal: Refusal) -> Response {
    state.metrics.payments.refused(&refusal);
    refusal.into_response()
}

fn is_operator(billing: &dyn Billing, headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::AUTHORIZATION).into_iter();
    values
        .filter_map(|value| after_scheme(value, "bearer"))
        .any(|token| billing.is_operator(token.trim()))
}

/// The payment of a request, or what is wrong with it.
fn credential(headers: &HeaderMap) -> Result<Option<Credential>, &'static str> {
    let authorizations = headers.get_all(header::AUTHORIZATION).into_iter();
    let payments = authorizations
        .filter(|value| is_payment(value))
        .chain(headers.get_all(PAYMENT_AUTHORIZATION));
    let mut found = None;
    for value in payments {
        if value.len() > CREDENTIAL_BYTES_MAX {
            return Err("the payment is too long");
        }
        // No payment has a comma: that would be two in one header.
        if found.is_some() || value.as_bytes().contains(&b',') {
            return Err("a request brings one payment");
        }
        if after_scheme(value, "payment").is_none_or(|token| token.trim().is_empty()) {
            return Err("a payment header is \"Payment\" and a token");
        }
        found = value.to_str().ok();
    }
    Ok(found.map(|value| Credential(value.to_owned())))
}

fn is_payment(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    let scheme = bytes.split(|byte| *byte == b' ').next();
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"payment"))
}

fn after_scheme<'a>(value: &'a HeaderValue, wanted: &str) -> Option<&'a str> {
    let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case(wanted).then_some(rest)
}

/// Throws a small body away beside the answer, which does not wait for it. False when the connection
/// has to close instead.
fn drain(request: Request) -> bool {
    // Who expects "100 Continue" may not send the body now.
    let is_held_back = request.headers().contains_key(header::EXPECT);
    let body = request.into_body();
    if body.is_end_stream() {
        return true;
    }
    if is_held_back || body.size_hint().lower() > DRAIN_BYTES_MAX {
        return false;
    }
    let all = async move {
        let mut left = DRAIN_BYTES_MAX;
        let mut pieces = body.into_data_stream();
        while let Some(Ok(piece)) = pieces.next().await {
            match left.checked_sub(piece.len() as u64) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    tokio::spawn(tokio::time::timeout(DRAIN_TIME, all));
    true
}
