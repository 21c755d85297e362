//! Streams for money: charged as they go, no further than they are paid for.

use std::time::Duration;

use serde_json::json;
use tenzro_api::ServerConfig;
use tenzro_protocol::inference::GenerateError;
use tenzro_testkit::fake_inference::{FakeInference, Script};

use crate::reading::{ROLE, Reading, chunk, says};
use crate::till::Till;
use crate::wire::{Wire, head};
use crate::{CHAT, Setup, chat, config};

/// No comments between the events.
fn quiet() -> ServerConfig {
    let mut config = config();
    config.limits.keep_alive = Duration::from_secs(60);
    config
}

async fn open(script: Script, till: &Till) -> Setup {
    open_with(FakeInference::new(script), till).await
}

async fn open_with(engine: FakeInference, till: &Till) -> Setup {
    let billing = std::sync::Arc::new(till.clone());
    Setup::open(quiet(), engine, Some(billing)).await
}

#[tokio::test]
async fn a_paid_stream_has_these_bytes() {
    let till = Till::new(2);
    let setup = open(Script::Say(vec!["a", "b", "c"]), &till).await;
    let body = chat(json!({"stream": true, "max_tokens": 3}));
    let answer = setup.pay(CHAT, "voucher-7", &body).await;
    let headers = answer.headers();
    assert_eq!(headers["payment-receipt"], "spent-0");
    assert_eq!(headers["content-type"], "text/event-stream; charset=utf-8");
    let mut reading = Reading::of(answer).await;
    reading.until("payment-need-voucher").await;
    assert_eq!(till.books().spent, 7);
    setup.top_up("voucher-8").await;
    let text = reading.rest().await;
    let expected = [
        chunk(0, ROLE, "null", ""),
        says("a"),
        says("b"),
        "event: payment-need-voucher\ndata: {\"requiredCumulative\":8}\n\n".to_owned(),
        says("c"),
        chunk(0, "{}", "\"stop\"", ""),
        "event: payment-receipt\ndata: {\"finish\":\"stop\",\"spent\":8}\n\n".to_owned(),
        "data: [DONE]\n\n".to_owned(),
    ];
    assert_eq!(text, expected.concat());
    let books = till.books();
    let total = books
        .charges
        .iter()
        .fold((0, 0), |sum, charge| (sum.0 + charge.0, sum.1 + charge.1));
    assert_eq!(
        (total, books.charges[0].0),
        ((5, 3), 5),
        "the prompt with the first tokens"
    );
    assert_eq!(
        (books.spent, books.reserved, books.outcomes.len()),
        (8, 0, 1)
    );
    assert_eq!(
        (
            books.outcomes[0].finish.as_str(),
            books.outcomes[0].cached_tokens
        ),
        ("stop", 2)
    );
}

#[tokio::test]
async fn m17_a_client_that_stops_paying_frees_its_place() {
    let till = Till::new(2);
    let setup = open(Script::Say(vec!["a", "b", "c"]), &till).await;
    let body = chat(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let mut reading = Reading::of(setup.pay(CHAT, "voucher-7", &body).await).await;
    reading.until("payment-need-voucher").await;
    let waiting = async || {
        let metrics = setup.http.get(setup.url("/metrics")).send().await;
        let metrics = metrics.expect("an answer").text().await.expect("text");
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with("tenzro_streams_"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        waiting().await,
        [
            "tenzro_streams_waiting_for_voucher 1",
            "tenzro_streams_ended_unpaid_total 0"
        ]
    );
    till.change(|books| (books.is_over, books.is_slow) = (true, true));
    setup.engine.wait_for_dropped(1).await;
    till.change(|books| books.is_slow = false);
    let text = reading.rest().await;
    let none = ",\"usage\":null";
    let usage = "data: {\"id\":\"ID\",\"object\":\"chat.completion.chunk\",\"created\":0,\
        \"model\":\"fake\",\"system_fingerprint\":\"test\",\"choices\":[],\
        \"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7,";
    let (chunks, rest) = text
        .split_once(usage)
        .unwrap_or_else(|| panic!("no usage in {text}"));
    let expected = [
        chunk(0, ROLE, "null", none),
        chunk(0, "{\"content\":\"a\"}", "null", none),
        chunk(0, "{\"content\":\"b\"}", "null", none),
        "event: payment-need-voucher\ndata: {\"requiredCumulative\":8}\n\n".to_owned(),
        chunk(0, "{}", "\"payment_required\"", none),
    ];
    assert_eq!(chunks, expected.concat());
    let (_, rest) = rest.split_once("\n\n").expect("more");
    assert_eq!(
        rest,
        "event: payment-receipt\ndata: {\"finish\":\"payment_required\",\"spent\":7}\n\n\
         data: [DONE]\n\n"
    );
    assert_eq!(
        waiting().await,
        [
            "tenzro_streams_waiting_for_voucher 0",
            "tenzro_streams_ended_unpaid_total 1"
        ]
    );
    assert_eq!((till.books().spent, till.books().reserved), (7, 0));
}

#[tokio::test]
async fn m17_all_answers_of_a_request_end_when_its_client_stops_paying() {
    let till = Till::new(4);
    let setup = open(Script::Say(vec!["a", "b", "c"]), &till).await;
    let body = chat(json!({"stream": true, "n": 2, "max_tokens": 3}));
    let mut reading = Reading::of(setup.pay(CHAT, "voucher-9", &body).await).await;
    reading.until("payment-need-voucher").await;
    till.change(|books| books.is_over = true);
    let text = reading.rest().await;
    let ends: Vec<String> = (0..2)
        .map(|index| chunk(index, "{}", "\"payment_required\"", ""))
        .collect();
    let finished = text.matches("\"finish_reason\":\"").count();
    let unpaid: usize = ends.iter().map(|end| text.matches(end).count()).sum();
    assert_eq!((unpaid, finished), (2, 2), "{text}");
    assert_eq!(text.matches("{\"content\":\"").count(), 4, "{text}");
    assert_eq!((till.books().spent, till.books().reserved), (9, 0));
}

#[tokio::test]
async fn tokens_that_are_not_paid_for_do_not_leave() {
    for pays in [true, false] {
        let till = Till::new(2);
        // The engine computes further than anybody paid for.
        till.change(|books| books.overrun = 10);
        let setup = open(Script::Say(vec!["a", "b", "c", "d"]), &till).await;
        let body = chat(json!({"stream": true, "max_tokens": 4}));
        let mut reading = Reading::of(setup.pay(CHAT, "voucher-7", &body).await).await;
        reading.until("payment-need-voucher").await;
        assert!(reading.text.contains("\"a\"") && !reading.text.contains("\"c\""));
        match pays {
            true => setup.top_up("voucher-8").await,
            false => till.change(|books| books.is_over = true),
        }
        if pays {
            reading.until("\"requiredCumulative\":9").await;
            assert!(reading.text.contains("\"c\"") && !reading.text.contains("\"d\""));
            setup.top_up("voucher-9").await;
        }
        let text = reading.rest().await;
        assert_eq!(text.contains("\"d\""), pays, "{text}");
        assert_eq!(
            text.contains("\"finish_reason\":\"payment_required\""),
            !pays,
            "{text}"
        );
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        assert_eq!(till.books().spent, if pays { 9 } else { 7 });
        assert_eq!(till.books().reserved, 0);
    }
}

#[tokio::test]
async fn a_prompt_of_unknown_size_is_charged_within_its_bounds() {
    // Whoever leaves has paid for the least that it may be.
    for (least, at_most, input) in [(2, 40, 5), (2, 3, 3), (7, 40, 7)] {
        let till = Till::new(8);
        let engine = FakeInference::new(Script::Say(vec!["a", "b"])).guessing(least, at_most);
        let setup = open_with(engine, &till).await;
        let answer = setup
            .pay(CHAT, "voucher-100", &chat(json!({"stream": true})))
            .await;
        Reading::of(answer).await.rest().await;
        let charges = till.books().charges;
        assert_eq!(charges[0].0, least);
        let rest = (input > least).then_some((input - least, 0));
        assert_eq!(charges.iter().find(|charge| charge.1 == 0), rest.as_ref());
        assert_eq!((till.books().spent, till.books().reserved), (2 + input, 0));
    }
    // Nobody told the size of what was cut.
    let till = Till::new(2);
    let engine = FakeInference::new(Script::Say(vec!["a", "b", "c"])).guessing(2, 40);
    let setup = open_with(engine, &till).await;
    let answer = setup
        .pay(CHAT, "voucher-42", &chat(json!({"stream": true})))
        .await;
    let mut reading = Reading::of(answer).await;
    reading.until("payment-need-voucher").await;
    till.change(|books| books.is_over = true);
    reading.rest().await;
    assert_eq!((till.books().spent, till.books().reserved), (2 + 2, 0));
}

#[tokio::test]
async fn tokens_that_are_told_late_are_paid_for_before_the_end_of_the_stream() {
    for pays in [true, false] {
        let till = Till::new(2);
        let engine = FakeInference::new(Script::Say(vec!["a", "b"])).telling_late(3);
        let setup = open_with(engine, &till).await;
        let answer = setup
            .pay(CHAT, "voucher-7", &chat(json!({"stream": true})))
            .await;
        let mut reading = Reading::of(answer).await;
        reading.until("payment-need-voucher").await;
        match pays {
            true => setup.top_up("voucher-10").await,
            false => till.change(|books| books.is_over = true),
        }
        let text = reading.rest().await;
        let end = if pays { "stop" } else { "payment_required" };
        assert!(
            text.contains(&chunk(0, "{}", &format!("\"{end}\""), "")),
            "{text}"
        );
        let spent = if pays { 10 } else { 7 };
        assert_eq!((till.books().spent, till.books().reserved), (spent, 0));
    }
}

#[tokio::test]
async fn paid_answers_side_by_side_are_charged_together() {
    let till = Till::new(6);
    let engine = FakeInference::new(Script::Say(vec!["a", "b", "c"])).beginning_together(2);
    let setup = open_with(engine, &till).await;
    let body = chat(json!({"stream": true, "n": 2, "max_tokens": 3}));
    let text = setup.pay(CHAT, "voucher-11", &body).await.text().await;
    let text = text.expect("an answer");
    for index in 0..2 {
        let told = text
            .matches(&format!("\"choices\":[{{\"index\":{index},"))
            .count();
        assert_eq!(told, 5, "{text}");
    }
    assert_eq!(
        text.matches("\"finish_reason\":\"stop\"").count(),
        2,
        "{text}"
    );
    let receipt = "event: payment-receipt\ndata: {\"finish\":\"stop\",\"spent\":11}\n\n";
    assert_eq!(text.matches(receipt).count(), 1, "{text}");
    let books = till.books();
    assert_eq!(books.charges.iter().map(|charge| charge.0).sum::<u32>(), 5);
    assert_eq!((books.spent, books.reserved), (11, 0));
}

#[tokio::test]
async fn text_of_more_tokens_than_a_window_costs_a_window() {
    let till = Till::new(2);
    let setup = open(Script::SayTokens(vec![("abcde", 5), ("f", 1)]), &till).await;
    let answer = setup
        .pay(CHAT, "voucher-7", &chat(json!({"stream": true})))
        .await;
    let mut reading = Reading::of(answer).await;
    reading.until("payment-need-voucher").await;
    assert!(reading.text.contains("abcde"), "{}", reading.text);
    setup.top_up("voucher-8").await;
    let text = reading.rest().await;
    assert!(text.contains("{\"finish\":\"stop\",\"spent\":8}"), "{text}");
}

#[tokio::test]
async fn m17_who_does_not_read_frees_its_place_and_pays_for_what_was_sent() {
    let till = Till::new(2);
    let mut config = quiet();
    config.limits.write_timeout = Duration::from_millis(200);
    // More than the system keeps for a connection.
    let piece: &'static str = "x".repeat(16 << 20).leak();
    let engine = FakeInference::new(Script::Say(vec![piece; 8]));
    let billing = std::sync::Arc::new(till.clone());
    let setup = Setup::open(config, engine, Some(billing)).await;
    let mut deaf = Wire::open(&setup).await;
    let body = chat(json!({"stream": true})).to_string();
    let more = format!(
        "authorization: Payment voucher-100\r\ncontent-length: {}",
        body.len()
    );
    deaf.send(&(head(CHAT, &more) + &body)).await;
    let books = till
        .wait_for(|books| books.spent > 0 && books.reserved == 0)
        .await;
    assert_eq!((books.spent, books.outcomes), (7, vec![]));
}

#[tokio::test]
async fn m26_a_stream_that_fails_costs_what_it_delivered() {
    let broken = || GenerateError::Internal {
        message: "secret detail".to_owned(),
    };
    for (pieces, spent) in [(vec!["a"], 6), (vec!["a", "b", "c"], 8)] {
        let till = Till::new(8);
        let setup = open(Script::SayAndBreak(pieces.clone(), broken()), &till).await;
        let answer = setup
            .pay(CHAT, "voucher-99", &chat(json!({"stream": true})))
            .await;
        let text = Reading::of(answer).await.rest().await;
        let mut expected = vec![chunk(0, ROLE, "null", "")];
        expected.extend(pieces.iter().map(|piece| says(piece)));
        // m27: after the first token, an error in the stream and the receipt.
        expected.push(
            "data: {\"error\":{\"message\":\"the server failed to answer; its log has the details\",\
             \"type\":\"server_error\",\"param\":null,\"code\":null}}\n\n"
                .to_owned(),
        );
        expected.push(format!(
            "event: payment-receipt\ndata: {{\"finish\":\"error\",\"spent\":{spent}}}\n\n"
        ));
        assert_eq!(text, expected.concat());
        assert_eq!((till.books().spent, till.books().reserved), (spent, 0));
    }
    // Tokens without a text are no delivery.
    for (pieces, spent) in [(vec!["a", "", "b"], 7), (vec!["", ""], 0)] {
        let till = Till::new(8);
        let setup = open(Script::Say(pieces), &till).await;
        let answer = setup
            .pay(CHAT, "voucher-99", &chat(json!({"stream": true})))
            .await;
        Reading::of(answer).await.rest().await;
        assert_eq!((till.books().spent, till.books().reserved), (spent, 0));
    }
    let till = Till::new(8);
    let setup = open(Script::Say(vec![]), &till).await;
    let answer = setup
        .pay(CHAT, "voucher-99", &chat(json!({"stream": true})))
        .await;
    let text = Reading::of(answer).await.rest().await;
    assert!(text.contains("{\"finish\":\"stop\",\"spent\":0}"), "{text}");
    assert_eq!((till.books().charges, till.books().reserved), (vec![], 0));
}

#[tokio::test]
async fn m26_who_leaves_a_stream_paid_for_what_was_delivered() {
    let till = Till::new(8);
    let setup = open(Script::SayAndWait("x"), &till).await;
    let answer = setup
        .pay(
            CHAT,
            "voucher-99",
            &chat(json!({"stream": true, "max_tokens": 3})),
        )
        .await;
    let mut reading = Reading::of(answer).await;
    reading.until("\"x\"").await;
    assert_eq!(till.books().reserved, 2);
    drop(reading);
    setup.engine.wait_for_dropped(1).await;
    let books = till.wait_for(|books| books.reserved == 0).await;
    assert_eq!((books.charges, books.outcomes), (vec![(5, 1)], vec![]));
}

#[tokio::test]
async fn a_stream_that_waits_for_a_voucher_is_kept_alive() {
    let till = Till::new(1);
    let setup = Setup::paid(FakeInference::new(Script::Say(vec!["a", "b"])), &till).await;
    let answer = setup
        .pay(CHAT, "voucher-6", &chat(json!({"stream": true})))
        .await;
    let mut reading = Reading::of(answer).await;
    reading.until("payment-need-voucher").await;
    reading.until(": keep-alive\n\n").await;
    setup.top_up("voucher-99").await;
    assert!(
        reading
            .rest()
            .await
            .contains("{\"finish\":\"stop\",\"spent\":7}")
    );
}

#[tokio::test]
async fn a_server_that_stops_still_takes_vouchers_for_running_streams() {
    let till = Till::new(1);
    let setup = open(Script::Say(vec!["a", "b"]), &till).await;
    let answer = setup
        .pay(CHAT, "voucher-6", &chat(json!({"stream": true})))
        .await;
    let mut reading = Reading::of(answer).await;
    reading.until("payment-need-voucher").await;
    let url = setup.url(CHAT);
    let stopping = tokio::spawn(setup.server.shutdown(Duration::from_secs(10)));
    let refused = async || {
        let question = setup.http.post(&url).json(&chat(json!({})));
        let question = question.header("authorization", "Payment voucher-6");
        question.send().await.expect("an answer").status() == 503
    };
    while !refused().await {
        tokio::task::yield_now().await;
    }
    let voucher = setup
        .http
        .head(&url)
        .header("authorization", "Payment voucher-99");
    assert_eq!(voucher.send().await.expect("an answer").status(), 200);
    assert!(reading.rest().await.ends_with("data: [DONE]\n\n"));
    assert!(stopping.await.expect("no panic"), "nothing had to be cut");
}

#[tokio::test]
async fn a_stream_that_is_cut_while_it_waits_ends_with_an_error_and_its_receipt() {
    for overrun in [0, 10] {
        let till = Till::new(1);
        till.change(|books| books.overrun = overrun);
        let setup = open(Script::Say(vec!["a", "b"]), &till).await;
        let answer = setup
            .pay(CHAT, "voucher-6", &chat(json!({"stream": true})))
            .await;
        let mut reading = Reading::of(answer).await;
        reading.until("payment-need-voucher").await;
        assert!(!setup.server.shutdown(Duration::from_millis(50)).await);
        let text = reading.rest().await;
        let (_, end) = text.rsplit_once("data: {\"error\"").expect("an error");
        assert!(end.contains("the server was stopped"), "{text}");
        assert!(
            end.ends_with("data: {\"finish\":\"error\",\"spent\":6}\n\n"),
            "{text}"
        );
        assert_eq!((till.books().spent, till.books().reserved), (6, 0));
    }
}

#[tokio::test]
async fn m26_log_probabilities_come_with_text_that_is_paid_for_or_not_at_all() {
    for (is_stream, pieces, told, spent) in [
        (true, vec!["", ""], 0, 0),
        (false, vec!["", ""], 0, 0),
        (true, vec!["a", "", "b"], 2, 7),
        (false, vec!["a", "", "b"], 2, 7),
    ] {
        let till = Till::new(8);
        let setup = open(Script::Say(pieces), &till).await;
        let body = json!({"stream": is_stream, "logprobs": true, "top_logprobs": 2});
        let answer = setup.pay(CHAT, "voucher-99", &chat(body)).await;
        let text = answer.text().await.expect("an answer");
        assert_eq!(text.matches("\"top_logprobs\":").count(), told, "{text}");
        assert_eq!(till.books().spent, spent, "{text}");
    }
}
