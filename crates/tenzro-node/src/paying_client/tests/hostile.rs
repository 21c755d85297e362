//! Servers that lie, flood or never end.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::{Value, json};
use tenzro_payments::payer::PayError;
use tenzro_payments::payer::terms::TermsError;
use tenzro_payments::signature::Signature;
use tenzro_protocol::amount::Wei;
use tokio::sync::watch;

use super::market::{Market, PRICING, place, signer};
use super::{chat, cost, text};
use crate::openai_client::ClientError;
use crate::paying_client::{Patience, PayingClient};

/// What a server answers to a request that pays; the id of the channel is put in for `CHANNEL`.
type Answer = Arc<dyn Fn() -> Response + Send + Sync>;

/// A server that asks for payment and then does as it likes. Vouchers that it gets are noted.
struct Liar {
    base_url: String,
    vouchers: Arc<Mutex<Vec<Value>>>,
    /// How many came.
    count: watch::Receiver<usize>,
    /// Vouchers that it has no time for.
    busy: Arc<AtomicU32>,
}

impl Liar {
    async fn start(answer: Answer) -> Self {
        let vouchers = Arc::new(Mutex::new(Vec::new()));
        let busy = Arc::new(AtomicU32::new(0));
        let (noted, left) = (Arc::clone(&vouchers), Arc::clone(&busy));
        let (counted, count) = watch::channel(0);
        let counted = Arc::new(counted);
        let app = Router::new().fallback(move |request: Request| {
            let (answer, noted, left) = (answer.clone(), noted.clone(), left.clone());
            let counted = Arc::clone(&counted);
            async move {
                let response = respond(&request, &answer, &noted, &left);
                counted.send_replace(noted.lock().expect("unpoisoned").len());
                response
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self {
            base_url: format!("http://{address}/v1"),
            vouchers,
            count,
            busy,
        }
    }

    async fn streaming(events: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self::start(Arc::new(move || Body::from(events()).into_response())).await
    }

    fn client(&self, market: &Market) -> PayingClient {
        market.client(&self.base_url, 30)
    }

    /// Amounts of the vouchers, in the order in which they came.
    fn amounts(&self) -> Vec<String> {
        let vouchers = self.vouchers.lock().expect("unpoisoned");
        let amount = |voucher: &Value| voucher["cumulativeAmount"].as_str().map(str::to_owned);
        vouchers.iter().filter_map(amount).collect()
    }
}

fn respond(
    request: &Request,
    answer: &Answer,
    noted: &Mutex<Vec<Value>>,
    busy: &AtomicU32,
) -> Response {
    let credential = request.headers().get("authorization");
    let Some(credential) = credential.and_then(|value| value.to_str().ok()) else {
        return challenge();
    };
    let credential = mpp::parse_authorization(credential).expect("a credential");
    let channel = credential.payload["channelId"].clone();
    noted.lock().expect("unpoisoned").push(credential.payload);
    if request.uri().path() == "/v1/payments/voucher" {
        let less = |left: u32| left.checked_sub(1);
        if busy.fetch_update(SeqCst, SeqCst, less).is_ok() {
            return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")]).into_response();
        }
        return StatusCode::OK.into_response();
    }
    let (parts, body) = answer().into_parts();
    let channel = channel.as_str().unwrap_or_default().to_owned();
    let pieces = body.into_data_stream().map(move |piece| {
        let text = String::from_utf8_lossy(&piece?).replace("CHANNEL", &channel);
        Ok::<_, axum::Error>(text)
    });
    Response::from_parts(parts, Body::from_stream(pieces))
}

fn challenge() -> Response {
    let request = json!({
        "amount": "30",
        "currency": place().token,
        "recipient": signer(9).address(),
        "methodDetails": {
            "chainId": 1337,
            "escrowContract": place().domain.escrow,
            "feePayer": true,
            "credentialTypes": ["authorization"],
        },
        "pricing": PRICING,
    });
    let request = mpp::protocol::core::Base64UrlJson::from_value(&request).expect("JSON");
    let challenge = mpp::PaymentChallenge::new("id", "liar", "evm", "session", request);
    let header = challenge.to_header().expect("a header");
    (StatusCode::PAYMENT_REQUIRED, [("www-authenticate", header)]).into_response()
}

fn chunk(text: &str) -> String {
    let chunk = json!({
        "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "fake",
        "choices": [{ "index": 0, "delta": { "content": text } }],
    });
    format!("data: {chunk}\n\n")
}

fn need(required: u128) -> String {
    let need = json!({
        "channelId": "CHANNEL", "requiredCumulative": required.to_string(),
        "acceptedCumulative": "0", "deposit": "1000000",
    });
    format!("event: payment-need-voucher\ndata: {need}\n\n")
}

fn receipt(output: u32, charged: u128) -> String {
    let receipt = json!({
        "method": "evm", "intent": "session", "status": "success",
        "timestamp": "2027-01-15T08:00:00Z", "reference": "CHANNEL", "challengeId": "id",
        "channelId": "CHANNEL", "acceptedCumulative": "0", "spent": charged.to_string(),
        "chainId": 1337,
        "usage": {
            "requestId": "r", "inputTokens": 5, "outputTokens": output, "cachedTokens": 0,
            "charged": Wei(charged), "priceVersion": 3, "ttftMs": 1, "durationMs": 2,
            "finish": "stop", "signature": Signature([1; 65]),
        },
    });
    format!("event: payment-receipt\ndata: {receipt}\n\n")
}

/// Asks for too much, and never ends by itself.
fn greedy() -> Answer {
    Arc::new(|| {
        let events =
            futures::stream::once(async { Ok::<_, axum::Error>(chunk("four") + &need(999_999)) });
        let endless = events.chain(futures::stream::pending());
        Response::new(Body::from_stream(endless))
    })
}

/// The words of the error that ends a chat with that stream, and the text before it.
async fn end_of(events: impl Fn() -> String + Send + Sync + 'static) -> (String, String) {
    let market = Market::new();
    let liar = Liar::streaming(events).await;
    let chunks = liar.client(&market).chat(&chat()).await.expect("it begins");
    let (text, error) = text(chunks).await;
    (
        text,
        error.map(|error| error.to_string()).unwrap_or_default(),
    )
}

#[tokio::test]
async fn m18_a_price_above_the_registered_one_is_not_paid() {
    let market = Market::new();
    let liar = Liar::streaming(String::new).await;
    let refused = market
        .client(&liar.base_url, 29)
        .chat(&chat())
        .await
        .map(drop);
    let what = "output";
    let (asked, registered) = (30, 29);
    let dearer = TermsError::Dearer {
        what,
        asked,
        registered,
    };
    match refused {
        Err(ClientError::Payment(PayError::Terms(error))) => assert_eq!(error, dearer),
        other => panic!("{other:?}"),
    }
    assert_eq!(liar.amounts(), Vec::<String>::new());
}

#[tokio::test]
async fn m08_a_demand_beyond_the_limit_gets_the_limit_and_ends_the_stream() {
    let market = Market::new();
    let liar = Liar::start(greedy()).await;
    let chunks = liar.client(&market).chat(&chat()).await.expect("it begins");
    let (text, error) = text(chunks).await;
    assert_eq!(text, "four");
    // "user" and "hi", with what a template may add; four bytes and two ends of text; a window.
    let prompt = 6 + 16 + 512;
    let limit = cost(prompt, 4 + 2 + 4);
    match error {
        Some(ClientError::Payment(PayError::Overbilled { required, signed })) => {
            assert_eq!((required, signed), (999_999, limit));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(liar.amounts().last(), Some(&limit.to_string()));
}

#[tokio::test]
async fn a_voucher_that_a_server_has_no_time_for_is_sent_once_more() {
    for (busy, is_taken) in [(1, true), (2, false)] {
        let market = Market::new();
        let liar = Liar::start(greedy()).await;
        liar.busy.store(busy, SeqCst);
        let chunks = liar.client(&market).chat(&chat()).await.expect("it begins");
        let (_, error) = text(chunks).await;
        match error {
            Some(ClientError::Payment(PayError::Overbilled { .. })) => assert!(is_taken),
            Some(ClientError::Server { status, .. }) => {
                assert_eq!((status, is_taken), (429, false));
            }
            other => panic!("{other:?}"),
        }
        let amounts = liar.amounts();
        assert_eq!((amounts.len(), &amounts[1]), (3, &amounts[2]));
    }
}

#[tokio::test]
async fn m19_a_bill_for_more_than_arrived_is_kept_as_evidence() {
    let market = Market::new();
    let events = || chunk("four") + &receipt(60, cost(5, 60)) + "data: [DONE]\n\n";
    let liar = Liar::streaming(events).await;
    let chunks = liar.client(&market).chat(&chat()).await.expect("it begins");
    assert_eq!(text(chunks).await.0, "four");
    let spending = market.payer.spending(0).await.expect("read");
    assert_eq!(
        (spending[0].charged, spending[0].overbills),
        (cost(5, 4 + 2), 1)
    );
    assert_eq!(market.payer.evidence(9).await.expect("read").len(), 1);
}

#[tokio::test]
async fn m26_m27_the_receipt_of_an_answer_that_failed_is_read() {
    let market = Market::new();
    let events = || {
        let error = json!({ "error": { "message": "out of luck", "type": "server_error" } });
        format!(
            "{}data: {error}\n\n{}",
            chunk("four"),
            receipt(4, cost(5, 4))
        )
    };
    let liar = Liar::streaming(events).await;
    let chunks = liar.client(&market).chat(&chat()).await.expect("it begins");
    let (answer, error) = text(chunks).await;
    assert_eq!(answer, "four");
    assert_eq!(error.expect("it failed").to_string(), "out of luck");
    let channels = market.payer.channels().await.expect("read");
    assert_eq!((channels[0].due, channels[0].doubt), (cost(5, 4), 0));
}

#[tokio::test]
async fn m19_what_an_answer_cost_is_what_the_books_say_and_not_what_the_server_says() {
    for (last, expected) in [
        (receipt(60, cost(5, 60)), Some(Wei(cost(5, 4 + 2)))),
        (String::new(), None),
    ] {
        let market = Market::new();
        let with_usage = |text: &str, cost: u32| {
            let chunk = json!({
                "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "fake",
                "choices": [{ "index": 0, "delta": { "content": text } }],
                "usage": {
                    "prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9,
                    "cost": cost.to_string(),
                },
            });
            format!("data: {chunk}\n\n")
        };
        let events = with_usage("fo", 1) + &with_usage("ur", 999) + &last + "data: [DONE]\n\n";
        let liar = Liar::streaming(move || events.clone()).await;
        let chunks = liar.client(&market).chat(&chat()).await.expect("it begins");
        let chunks: Vec<_> = chunks.map(|chunk| chunk.expect("a chunk")).collect().await;
        let texts = chunks.iter().flat_map(|chunk| &chunk.choices);
        let texts = texts.filter_map(|choice| choice.delta.content.as_deref());
        assert_eq!(texts.collect::<String>(), "four");
        let usages: Vec<_> = chunks.iter().filter_map(|chunk| chunk.usage?).collect();
        assert_eq!(usages.len(), 1);
        assert_eq!((usages[0].completion_tokens, usages[0].cost), (4, expected));
    }
}

#[tokio::test]
async fn m20_answers_that_nobody_asked_for_are_not_paid() {
    let (text, error) =
        end_of(|| chunk("four") + &chunk("five").replace("\"index\":0", "\"index\":1")).await;
    assert_eq!(text, "four");
    assert!(error.contains("answers that nobody asked for"), "{error}");
}

#[tokio::test]
async fn a_reader_that_does_not_read_leaves_no_demand_unanswered() {
    let market = Market::new();
    let liar = Liar::start(greedy()).await;
    let unread = liar.client(&market).chat(&chat()).await.expect("it begins");
    let mut count = liar.count.clone();
    let paid = count.wait_for(|count| *count == 2);
    tokio::time::timeout(Duration::from_secs(10), paid)
        .await
        .expect("a voucher comes")
        .expect("the server lives");
    drop(unread);
}

#[tokio::test]
async fn m23_an_answer_that_drips_is_ended() {
    let (none, long) = (Duration::ZERO, Duration::from_secs(60));
    for (text_, answer) in [(none, long), (long, none)] {
        let market = Market::new();
        let liar = Liar::start(Arc::new(|| {
            let endless = futures::stream::pending::<Result<String, axum::Error>>();
            Response::new(Body::from_stream(endless))
        }))
        .await;
        let patience = Patience {
            text: text_,
            answer,
        };
        let client = liar.client(&market).with_patience(patience);
        let ended = match client.chat(&chat()).await {
            Ok(chunks) => text(chunks).await.1.expect("ended"),
            Err(error) => error,
        };
        let words = ended.to_string();
        assert!(
            words.contains("too long") || words.contains("too slowly"),
            "{words}"
        );
    }
}

#[tokio::test]
async fn m23_streams_that_never_end_or_make_no_sense_are_ended() {
    type Events = fn() -> String;
    let cases: [(Events, &str); 5] = [
        (|| need(1).repeat(2_000), "events without any text"),
        (|| chunk("").repeat(2_000), "events without any text"),
        (
            || format!("data: {}", "x".repeat(5 << 20)),
            "longer than 4 MiB",
        ),
        (
            || format!("event: payment-receipt\ndata: {}\n\n", "x".repeat(70 << 10)),
            "too long",
        ),
        (|| chunk("four"), "broke the answer off"),
    ];
    for (events, reason) in cases {
        let (_, error) = end_of(events).await;
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_takes_no_payment_is_given_up() {
    let market = Market::new();
    let liar = Liar::start(Arc::new(challenge)).await;
    let refused = liar.client(&market).chat(&chat()).await.map(drop);
    let error = refused.expect_err("refused").to_string();
    assert!(error.contains("refuses every payment"), "{error}");
    assert_eq!(liar.amounts().len(), 5);
    let channels = market.payer.channels().await.expect("read");
    assert_eq!((channels[0].due, channels[0].doubt), (0, 0));
}

#[tokio::test]
async fn errors_and_redirects_cost_nothing() {
    let answers: [fn() -> Response; 2] = [
        || StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        || (StatusCode::FOUND, [("location", "http://127.0.0.1:1/")]).into_response(),
    ];
    for (answer, status) in answers.into_iter().zip([500, 302]) {
        let market = Market::new();
        let liar = Liar::start(Arc::new(answer)).await;
        match liar.client(&market).chat(&chat()).await.map(drop) {
            Err(ClientError::Server { status: found, .. }) => assert_eq!(found, status),
            other => panic!("{other:?}"),
        }
        let channels = market.payer.channels().await.expect("read");
        assert_eq!((channels[0].due, channels[0].doubt), (0, 0));
        assert_eq!(market.payer.spending(0).await.expect("read"), []);
    }
}

#[tokio::test]
async fn m15_addresses_of_private_networks_are_not_paid() {
    let market = Market::new();
    let expected = tenzro_payments::payer::terms::Expected {
        payee: signer(9).address(),
        model: "fake".to_owned(),
        model_hash: None,
        input_price_max: 10,
        output_price_max: 30,
        window_tokens_max: 32,
        answer_tokens_max: 1_000,
    };
    for url in ["http://127.0.0.1:1/v1", "http://169.254.169.254/v1"] {
        let payer = market.payer.clone();
        let client = PayingClient::new(url, false, payer, expected.clone(), None).map(drop);
        let error = client.expect_err(url).to_string();
        assert!(error.contains("private network"), "{error}");
    }
    let payer = market.payer.clone();
    let named = PayingClient::new("http://localhost:1/v1", false, payer, expected, None);
    let refused = named.expect("a name").chat(&chat()).await.map(drop);
    let error = refused.expect_err("private").to_string();
    assert!(error.contains("private network"), "{error}");
}
