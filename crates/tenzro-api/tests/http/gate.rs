//! Who has to pay, and what is answered before anything is computed.

use serde_json::{Value, json};
use tenzro_testkit::fake_inference::{FakeInference, Script};

use crate::till::{OPERATOR, Till};
use crate::wire::{Wire, head, steady};
use crate::{CHAT, Setup, chat, config};

const VOUCHERS: &str = "/v1/payments/voucher";
const PATHS: [&str; 4] = [CHAT, "/v1/completions", "/v1/embeddings", VOUCHERS];

fn saying(pieces: &[&'static str]) -> FakeInference {
    FakeInference::new(Script::Say(pieces.to_vec()))
}

#[tokio::test]
async fn m22_an_unpaid_request_is_answered_without_its_body() {
    let till = Till::new(8);
    let setup = Setup::paid(saying(&["x"]), &till).await;
    let never_sent = [
        "content-length: 104857600",
        "content-length: 9",
        "transfer-encoding: chunked",
        "content-length: 9\r\nexpect: 100-continue",
        "content-length: 9\r\nauthorization: Bearer sk-not-the-operators",
    ];
    for path in PATHS {
        for more in never_sent {
            let mut wire = Wire::open(&setup).await;
            wire.send(&head(path, more)).await;
            let (head, body) = wire.receive().await;
            let mut expected = vec![
                "HTTP/1.1 402 Payment Required",
                "content-type: application/problem+json",
                "www-authenticate: Payment id=\"1\", method=\"evm\"",
                "cache-control: no-store",
                "vary: authorization, payment-authorization",
                "content-length: 261",
            ];
            // Who will not get rid of the body has to come again.
            if more.contains("104857600") || more.contains("expect") {
                expected.insert(3, "connection: close");
            }
            assert_eq!(steady(&head), expected, "{path} {more}");
            let body: Value = serde_json::from_str(&body).expect("JSON");
            assert_eq!(
                body,
                json!({
                    "type": "https://paymentauth.org/problems/session/payment-required",
                    "title": "A problem",
                    "status": 402,
                    "detail": "because of payment-required",
                    "error": {
                        "message": "because of payment-required",
                        "type": "payment_required_error",
                        "param": null,
                        "code": "payment_required",
                    },
                })
            );
        }
    }
    for method in [reqwest::Method::HEAD, reqwest::Method::GET] {
        let answer = setup.http.request(method, setup.url(CHAT)).send().await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), 402);
        assert!(answer.headers().contains_key("www-authenticate"));
    }
    assert_eq!(
        (setup.engine.counted(), setup.engine.requests().len()),
        (0, 0)
    );
    assert!(till.books().requests.is_empty());
    let metrics = setup.http.get(setup.url("/metrics")).send().await;
    let metrics = metrics.expect("an answer").text().await.expect("text");
    let line = "tenzro_payments_total{outcome=\"unpaid\"} 22\n";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test]
async fn m22_a_payment_that_answers_no_challenge_is_refused_without_its_body() {
    let till = Till::new(8);
    let setup = Setup::paid(saying(&["x"]), &till).await;
    let mut wire = Wire::open(&setup).await;
    let never_sent = "content-length: 104857600\r\nauthorization: Payment forged";
    wire.send(&head(CHAT, never_sent)).await;
    let (head, body) = wire.receive().await;
    assert!(head.starts_with("HTTP/1.1 402 "), "{head}");
    assert!(body.contains("/session/challenge-not-found"), "{body}");
    let books = till.books();
    assert_eq!((books.checked, books.requests.len()), (1, 0));
}

#[tokio::test]
async fn m22_a_small_unpaid_body_is_thrown_away_and_a_large_one_closes_the_connection() {
    let setup = Setup::paid(saying(&["x"]), &Till::new(8)).await;
    let mut wire = Wire::open(&setup).await;
    let body = "x".repeat(20_000);
    // Before the answer, after it, and in one packet with the next request.
    for _ in 0..3 {
        wire.send(&(head(CHAT, "content-length: 20000") + &body))
            .await;
        assert!(wire.receive().await.0.starts_with("HTTP/1.1 402 "));
        wire.send(&head(CHAT, "content-length: 20000")).await;
        assert!(wire.receive().await.0.starts_with("HTTP/1.1 402 "));
        let health = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
        wire.send(&format!("{body}{health}")).await;
        assert_eq!(wire.receive().await.1, r#"{"status":"ok"}"#);
    }
    for length in ["content-length: 1000000", "transfer-encoding: chunked"] {
        let mut wire = Wire::open(&setup).await;
        wire.send(&head(CHAT, length)).await;
        assert!(wire.receive().await.0.starts_with("HTTP/1.1 402 "));
        let piece = format!("{:x}\r\n{body}\r\n", body.len());
        let mut rest = Vec::new();
        for _ in 0..10 {
            // Fails once the server has closed.
            if !wire.try_send(&piece).await {
                break;
            }
        }
        assert_eq!(wire.read(&mut rest).await, 0, "{length}");
    }
}

#[tokio::test]
async fn the_operator_serves_himself_for_free() {
    let till = Till::new(8);
    let setup = Setup::paid(saying(&["x"]), &till).await;
    for stream in [false, true] {
        let body = chat(json!({"stream": stream}));
        let request = setup.http.post(setup.url(CHAT)).json(&body);
        let answer = request
            .bearer_auth(OPERATOR)
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["cache-control"], "no-store");
        assert!(!answer.headers().contains_key("payment-receipt"));
        let text = answer.text().await.expect("text");
        assert!(!text.contains("payment"), "{text}");
    }
    let requests = setup.engine.requests();
    assert!(requests.iter().all(|request| request.budget.is_none()));
    assert_eq!((requests.len(), setup.engine.counted()), (2, 0));
    assert!(till.books().orders.is_empty());
    let nothing = setup.http.post(setup.url(VOUCHERS)).bearer_auth(OPERATOR);
    assert_eq!(nothing.send().await.expect("an answer").status(), 400);
}

#[tokio::test]
async fn a_request_brings_one_payment_of_a_fair_size() {
    let till = Till::new(8);
    let setup = Setup::paid(saying(&["x"]), &till).await;
    let long = format!("Payment {}", "x".repeat(16 << 10));
    let one = "a request brings one payment";
    let form = "a payment header is \"Payment\" and a token";
    let cases: [(&[(&str, &str)], &str); 8] = [
        (
            &[
                ("authorization", "Payment done"),
                ("authorization", "Payment done"),
            ],
            one,
        ),
        (
            &[
                ("authorization", "Payment done"),
                ("payment-authorization", "Payment done"),
            ],
            one,
        ),
        (&[("authorization", "Payment done, Payment done")], one),
        (
            &[("payment-authorization", &long)],
            "the payment is too long",
        ),
        (&[("authorization", "Payment")], form),
        (&[("authorization", "payment ")], form),
        (&[("payment-authorization", "Bearer x")], form),
        (&[("payment-authorization", "done")], form),
    ];
    for (headers, detail) in cases {
        let mut request = setup.http.post(setup.url(CHAT)).json(&chat(json!({})));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), 400, "{headers:?}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let body: Value = answer.json().await.expect("JSON");
        assert_eq!(
            body,
            json!({
                "type": "https://paymentauth.org/problems/malformed-credential",
                "title": "Malformed Credential",
                "status": 400,
                "detail": detail,
                "error": {
                    "message": detail,
                    "type": "invalid_request_error",
                    "param": null,
                    "code": "malformed_credential",
                },
            })
        );
    }
    assert!(till.books().requests.is_empty() && setup.engine.requests().is_empty());
    // A key for the model beside the payment is fine, and so is any way to write the scheme.
    let both = setup
        .http
        .post(setup.url(CHAT))
        .json(&chat(json!({"max_tokens": 1})));
    let both = both
        .bearer_auth("sk-any")
        .header("payment-authorization", "PAYMENT voucher-6");
    assert_eq!(both.send().await.expect("an answer").status(), 200);
}

#[tokio::test]
async fn a_payment_without_a_question_is_taken_in() {
    let till = Till::new(8);
    let setup = Setup::paid(saying(&["x"]), &till).await;
    for path in PATHS {
        for method in ["HEAD", "GET", "POST"] {
            for (payment, receipt) in [("voucher-9", "spent-0"), ("done", "all-done")] {
                let method = method.parse().expect("a method");
                let request = setup.http.request(method, setup.url(path));
                let request = request.header("authorization", format!("Payment {payment}"));
                let answer = request.send().await.expect("an answer");
                assert_eq!(answer.status(), 200, "{path}");
                assert_eq!(answer.headers()["payment-receipt"], receipt);
                assert_eq!(answer.headers()["cache-control"], "no-store, private");
                assert_eq!(answer.text().await.expect("text"), "");
            }
        }
    }
    // With a body: a question where one is answered, unless the payment leaves nothing to ask for.
    let body = chat(json!({}));
    for (path, payment) in [(VOUCHERS, "voucher-9"), (CHAT, "done")] {
        let answer = setup.pay(path, payment, &body).await;
        assert_eq!(
            (answer.status().as_u16(), answer.content_length()),
            (200, Some(0))
        );
    }
    let books = till.books();
    assert_eq!((books.accepted, books.requests.len()), (9, 26));
    assert_eq!(books.requests[0], ("HEAD".to_owned(), CHAT.to_owned(), 0));
    assert_eq!(
        books.requests[24],
        ("POST".to_owned(), VOUCHERS.to_owned(), 60)
    );
    assert_eq!(
        (setup.engine.counted(), setup.engine.requests().len()),
        (0, 0)
    );
    // Other methods are as wrong as ever.
    let put = setup
        .http
        .put(setup.url(CHAT))
        .header("authorization", "Payment done");
    assert_eq!(put.send().await.expect("an answer").status(), 405);
}

#[tokio::test]
async fn a_refused_payment_says_why_and_what_to_do() {
    let setup = Setup::paid(saying(&["x"]), &Till::new(8)).await;
    for (status, problem, kind, code) in [
        (
            402,
            "invalid-signature",
            "payment_required_error",
            "payment_required",
        ),
        (
            409,
            "transaction-reverted",
            "invalid_request_error",
            "transaction_reverted",
        ),
        (
            410,
            "channel-finalized",
            "invalid_request_error",
            "channel_finalized",
        ),
        (
            429,
            "too-many-vouchers",
            "rate_limit_error",
            "too_many_vouchers",
        ),
        (
            503,
            "ledger-unreachable",
            "service_unavailable_error",
            "ledger_unreachable",
        ),
    ] {
        let payment = format!("refuse-{status}-{problem}");
        let answer = setup.pay(CHAT, &payment, &chat(json!({}))).await;
        assert_eq!(answer.status(), status);
        let headers = answer.headers();
        assert_eq!(headers.contains_key("www-authenticate"), status == 402);
        assert_eq!(headers.contains_key("retry-after"), status >= 429);
        assert!(!headers.contains_key("payment-receipt"));
        let body: Value = answer.json().await.expect("JSON");
        assert_eq!(
            body["error"],
            json!({
                "message": format!("because of {problem}"),
                "type": kind,
                "param": null,
                "code": code,
            })
        );
    }
    let metrics = setup.http.get(setup.url("/metrics")).send().await;
    let metrics = metrics.expect("an answer").text().await.expect("text");
    let line = "tenzro_payments_total{outcome=\"channel-finalized\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    assert!(setup.engine.requests().is_empty());
}

#[tokio::test]
async fn m25_no_answer_that_costs_money_may_be_kept_by_a_cache() {
    let mut config = config();
    config.cors = true;
    let question = |more: Value| {
        let mut body = chat(json!({"prompt": "x", "input": "x", "max_tokens": 2}));
        let fields = body.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        body
    };
    for path in &PATHS[..3] {
        let billing = std::sync::Arc::new(Till::new(8));
        let setup = Setup::open(config.clone(), saying(&["x"]), Some(billing)).await;
        let large = question(json!({"user": "x".repeat(3 << 20)}));
        let cases = [
            ("", question(json!({})), 402),
            ("voucher-0", question(json!({})), 402),
            ("refuse-410-channel-finalized", question(json!({})), 410),
            ("x, y", question(json!({})), 400),
            ("voucher-99", json!({"model": "fake"}), 400),
            ("voucher-99", question(json!({"model": "other"})), 404),
            ("voucher-99", large, 413),
            ("done", question(json!({})), 200),
            ("voucher-99", question(json!({})), 200),
            ("voucher-99", question(json!({"stream": true})), 200),
        ];
        for (payment, body, status) in cases {
            let mut request = setup.http.post(setup.url(path)).json(&body);
            if !payment.is_empty() {
                request = request.header("payment-authorization", format!("Payment {payment}"));
            }
            let request = request.header("origin", "https://page.example");
            let answer = request.send().await.expect("an answer");
            assert_eq!(answer.status(), status, "{path} {payment}");
            let headers = answer.headers();
            let is_receipt = headers.contains_key("payment-receipt");
            assert_eq!(is_receipt, status == 200, "{path} {payment}");
            let kept = if is_receipt {
                "no-store, private"
            } else {
                "no-store"
            };
            assert_eq!(headers.get_all("cache-control").iter().count(), 1);
            assert_eq!(headers["cache-control"], kept, "{path} {payment}");
            let mut vary = headers.get_all("vary").iter();
            assert!(vary.any(|names| names == "authorization, payment-authorization"));
            assert!(!headers.contains_key("set-cookie"));
            assert_eq!(headers["access-control-expose-headers"], "*");
            answer.bytes().await.expect("the whole answer");
        }
    }
    let setup = Setup::paid(saying(&["x"]), &Till::new(8)).await;
    for path in ["/v1/models", "/v1/models/fake", "/health", "/metrics"] {
        let answer = setup
            .http
            .get(setup.url(path))
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 200, "{path}");
        assert!(!answer.headers().contains_key("cache-control"), "{path}");
    }
}

#[tokio::test]
async fn a_server_that_is_free_knows_no_payments() {
    let setup = Setup::saying(&["x"]).await;
    assert_eq!(setup.error(VOUCHERS, &json!({})).await.0, 404);
    let answer = setup
        .pay(CHAT, "anything", &chat(json!({"stream": true})))
        .await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["cache-control"], "no-cache");
    assert!(!answer.headers().contains_key("payment-receipt"));
    assert_eq!(
        setup
            .http
            .get(setup.url(CHAT))
            .send()
            .await
            .expect("an answer")
            .status(),
        405
    );
}
