//! Whole answers and embeddings for money: what is set aside, what is charged, and what is not.

use std::time::Duration;

use serde_json::{Value, json};
use tenzro_protocol::inference::GenerateError;
use tenzro_testkit::fake_inference::{FakeInference, Script};

use crate::till::Till;
use crate::{CHAT, Setup, chat};

/// Enough for everything here.
const RICH: &str = "voucher-10000";

fn internal() -> GenerateError {
    GenerateError::Internal {
        message: "secret detail".to_owned(),
    }
}

#[tokio::test]
async fn a_whole_answer_is_charged_once_for_what_it_has() {
    let till = Till::new(1);
    let engine = FakeInference::new(Script::Say(vec!["Hel", "lo"]));
    let setup = Setup::paid(engine, &till).await;
    let request = setup
        .http
        .post(setup.url(CHAT))
        .json(&chat(json!({"max_tokens": 9})));
    let request = request.header("authorization", "Payment voucher-14");
    let request = request.header("x-request-id", "mine-7");
    let answer = request.send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["payment-receipt"], "final-7");
    let answer: Value = answer.json().await.expect("JSON");
    assert_eq!(answer["choices"][0]["message"]["content"], "Hello");
    assert_eq!(answer["usage"]["total_tokens"], 7);
    let books = till.books();
    assert_eq!(books.orders, [("mine-7".to_owned(), 5, 9, false)]);
    assert_eq!(books.charges, [(5, 2)]);
    assert_eq!((books.spent, books.reserved), (7, 0));
    let [outcome] = &books.outcomes[..] else {
        panic!("{books:?}");
    };
    assert_eq!(
        (outcome.finish.as_str(), outcome.cached_tokens),
        ("stop", 2)
    );
    let metrics = setup.http.get(setup.url("/metrics")).send().await;
    let metrics = metrics.expect("an answer").text().await.expect("text");
    for line in [
        "tenzro_payments_total{outcome=\"paid\"} 1\n",
        "tenzro_tokens_charged_total{direction=\"input\"} 5\n",
        "tenzro_tokens_charged_total{direction=\"output\"} 2\n",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
}

#[tokio::test]
async fn what_is_set_aside_is_what_a_request_can_use_at_most() {
    let till = Till::new(1);
    let engine = FakeInference::new(Script::Say(vec!["x"]));
    let setup = Setup::paid(engine, &till).await;
    let completions = "/v1/completions";
    let two = json!(["a", "b"]);
    for (path, body, order) in [
        (CHAT, chat(json!({})), (5, 59, false)),
        (
            CHAT,
            chat(json!({"n": 3, "max_tokens": 100})),
            (5, 177, false),
        ),
        (
            CHAT,
            chat(json!({"n": 3, "max_tokens": 4, "stream": true})),
            (5, 12, true),
        ),
        (
            completions,
            json!({"model": "fake", "prompt": two, "n": 2}),
            (10, 64, false),
        ),
        (
            completions,
            json!({"model": "fake", "prompt": two, "max_tokens": 3}),
            (10, 6, false),
        ),
        (
            "/v1/embeddings",
            json!({"model": "fake", "input": two}),
            (3, 0, false),
        ),
    ] {
        let answer = setup.pay(path, RICH, &body).await;
        assert_eq!(answer.status(), 200, "{body}");
        answer.bytes().await.expect("the whole answer");
        let (_, input, output, is_stream) = till.books().orders.pop().expect("an order");
        assert_eq!((input, output, is_stream), order, "{body}");
    }
    // All answers of a request live on one budget.
    let requests = setup.engine.requests();
    let budgets: Vec<_> = requests[1..4]
        .iter()
        .map(|request| &request.budget)
        .collect();
    assert!(budgets[0].is_some() && budgets[0] == budgets[1] && budgets[1] == budgets[2]);
    assert_ne!(budgets[0], &requests[0].budget);
    let books = till.books();
    let answers = [(5, 1), (5, 3), (5, 3), (10, 4), (10, 2), (3, 0)];
    let spent: u32 = answers.iter().map(|(input, output)| input + output).sum();
    assert_eq!((books.spent, books.reserved), (spent, 0));

    // A prompt of unknown size leaves to the answer what it does not need at least.
    let till = Till::new(1);
    let engine = FakeInference::new(Script::Say(vec!["x"])).guessing(2, 40);
    let setup = Setup::paid(engine, &till).await;
    assert_eq!(setup.pay(CHAT, RICH, &chat(json!({}))).await.status(), 200);
    let books = till.books();
    assert_eq!((books.orders[0].1, books.orders[0].2), (40, 62));
    assert_eq!(books.charges, [(5, 1)]);
}

#[tokio::test]
async fn too_little_money_is_refused_before_anything_is_computed() {
    let till = Till::new(4);
    let engine = FakeInference::new(Script::Say(vec!["x"]));
    let setup = Setup::paid(engine, &till).await;
    let embed = json!({"model": "fake", "input": "x"});
    for (path, payment, body) in [
        (CHAT, "voucher-13", chat(json!({"max_tokens": 9}))),
        (
            CHAT,
            "voucher-8",
            chat(json!({"max_tokens": 9, "stream": true})),
        ),
        ("/v1/embeddings", "voucher-2", embed),
    ] {
        let till = Till::new(4);
        let engine = FakeInference::new(Script::Say(vec!["x"]));
        let setup = Setup::paid(engine, &till).await;
        let answer = setup.pay(path, payment, &body).await;
        assert_eq!(answer.status(), 402);
        assert!(answer.headers().contains_key("www-authenticate"));
        let problem: Value = answer.json().await.expect("JSON");
        assert_eq!(
            problem["type"],
            "https://paymentauth.org/problems/session/insufficient-balance"
        );
        assert!(setup.engine.requests().is_empty());
        assert_eq!((till.books().spent, till.books().reserved), (0, 0));
    }
    let enough = setup
        .pay(CHAT, "voucher-14", &chat(json!({"max_tokens": 9})))
        .await;
    assert_eq!(enough.status(), 200);
}

#[tokio::test]
async fn m26_a_whole_answer_that_fails_or_is_empty_costs_nothing() {
    for pieces in [vec![], vec!["a"], vec!["a", "b", "c"]] {
        let till = Till::new(1);
        let engine = FakeInference::new(Script::SayAndBreak(pieces, internal()));
        let setup = Setup::paid(engine, &till).await;
        for n in [1, 3] {
            let answer = setup.pay(CHAT, RICH, &chat(json!({"n": n}))).await;
            assert_eq!(answer.status(), 500);
            assert!(!answer.headers().contains_key("payment-receipt"));
        }
        let books = till.books();
        assert_eq!(
            (&books.charges[..], books.spent, books.reserved),
            (&[][..], 0, 0)
        );
    }
    let till = Till::new(1);
    let setup = Setup::paid(FakeInference::new(Script::Say(vec![])), &till).await;
    let answer = setup.pay(CHAT, RICH, &chat(json!({}))).await;
    assert_eq!(
        (
            answer.status().as_u16(),
            &answer.headers()["payment-receipt"]
        ),
        (200, &"final-0".parse().expect("a header"))
    );
    assert_eq!((till.books().charges, till.books().reserved), (vec![], 0));
}

#[tokio::test]
async fn m26_who_leaves_before_a_whole_answer_pays_nothing() {
    let till = Till::new(1);
    let engine = FakeInference::new(Script::SayAndWait("x"));
    let setup = Setup::paid(engine, &till).await;
    let request = setup.http.post(setup.url(CHAT)).json(&chat(json!({})));
    let request = request.header("authorization", format!("Payment {RICH}"));
    let request = tokio::spawn(request.send());
    setup.engine.wait_for_requests(1).await;
    assert_eq!(till.books().reserved, 64);
    request.abort();
    setup.engine.wait_for_dropped(1).await;
    let books = till.wait_for(|books| books.reserved == 0).await;
    assert_eq!((books.spent, books.outcomes), (0, vec![]));
}

#[tokio::test]
async fn m27_what_fails_before_the_first_token_has_its_own_status() {
    let full = GenerateError::QueueFull {
        waiting_max: 2,
        retry_after: Duration::from_millis(1500),
    };
    let context = GenerateError::ContextLength {
        prompt_tokens: 99,
        context_tokens: 64,
    };
    let upstream = GenerateError::Upstream {
        status: Some(500),
        message: "x".to_owned(),
    };
    let unavailable = GenerateError::Unavailable {
        message: "x".to_owned(),
    };
    let invalid = GenerateError::Invalid {
        param: "logit_bias",
        message: "x".to_owned(),
    };
    let cases = [
        (full, 429),
        (context, 400),
        (upstream, 502),
        (unavailable, 503),
        (invalid, 400),
        (internal(), 500),
    ];
    for (error, status) in cases {
        let refuse = Script::Refuse(error.clone());
        for script in [refuse, Script::SayAndBreak(vec![], error)] {
            let till = Till::new(8);
            let setup = Setup::paid(FakeInference::new(script.clone()), &till).await;
            for stream in [false, true] {
                let answer = setup
                    .pay(CHAT, RICH, &chat(json!({"stream": stream})))
                    .await;
                assert_eq!(answer.status(), status, "{script:?}");
                assert!(!answer.headers().contains_key("payment-receipt"));
                let body: Value = answer.json().await.expect("JSON");
                assert!(body["error"]["message"].is_string(), "{body}");
            }
            let books = till.books();
            assert_eq!((&books.charges[..], books.reserved), (&[][..], 0));
        }
    }
}

#[tokio::test]
async fn embeddings_are_charged_for_their_inputs_and_only_when_they_are_sent() {
    let till = Till::new(1);
    let setup = Setup::paid(FakeInference::new(Script::Say(vec![])), &till).await;
    let path = "/v1/embeddings";
    let wrong = json!({"model": "fake", "input": "x", "dimensions": 7});
    assert_eq!(setup.pay(path, "voucher-3", &wrong).await.status(), 400);
    assert_eq!((till.books().spent, till.books().reserved), (0, 0));
    let body = json!({"model": "fake", "input": ["x", "y"]});
    let answer = setup.pay(path, "voucher-3", &body).await;
    assert_eq!(answer.headers()["payment-receipt"], "final-3");
    let answer: Value = answer.json().await.expect("JSON");
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
    assert_eq!(till.books().charges, [(3, 0)]);
    assert_eq!(setup.pay(path, "voucher-3", &body).await.status(), 402);
}

#[tokio::test]
async fn an_answer_whose_charge_cannot_be_written_does_not_leave() {
    let till = Till::new(1);
    till.change(|books| (books.is_broken, books.is_over) = (true, true));
    let setup = Setup::paid(FakeInference::new(Script::Say(vec!["x"])), &till).await;
    let embed = json!({"model": "fake", "input": "x"});
    for (path, body) in [(CHAT, chat(json!({}))), ("/v1/embeddings", embed)] {
        let answer = setup.pay(path, RICH, &body).await;
        assert_eq!(answer.status(), 503);
        let answer: Value = answer.json().await.expect("JSON");
        assert_eq!(
            answer["error"]["message"],
            "the answer could not be charged"
        );
    }
    assert_eq!((till.books().spent, till.books().reserved), (0, 0));
}

#[tokio::test]
async fn tokens_of_a_whole_answer_that_are_told_late_are_charged_with_it() {
    let till = Till::new(1);
    let engine = FakeInference::new(Script::Say(vec!["a", "b"])).telling_late(3);
    let setup = Setup::paid(engine, &till).await;
    let answer = setup.pay(CHAT, RICH, &chat(json!({"n": 2}))).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(till.books().charges, [(5, 2 * (2 + 3))]);
}

#[tokio::test]
async fn all_answers_of_a_request_are_begun_at_the_same_time() {
    let till = Till::new(1);
    let engine = FakeInference::new(Script::Say(vec!["a"])).beginning_together(3);
    let setup = Setup::paid(engine, &till).await;
    let answer = setup.pay(CHAT, RICH, &chat(json!({"n": 3}))).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(till.books().charges, [(5, 3)]);
}

#[tokio::test]
async fn m17_a_prompt_is_not_counted_for_who_has_others_counted_and_does_not_pay() {
    let till = Till::new(1);
    let setup = Setup::paid(FakeInference::new(Script::Say(vec!["a"])), &till).await;
    till.change(|books| books.counts_no_more = true);
    let embed = json!({"model": "fake", "input": "x"});
    for (path, body) in [(CHAT, chat(json!({}))), ("/v1/embeddings", embed)] {
        let answer = setup.pay(path, RICH, &body).await;
        assert_eq!(answer.status(), 429);
        assert_eq!(answer.headers()["retry-after"], "7");
    }
    assert_eq!(setup.engine.counted(), 0);
}
