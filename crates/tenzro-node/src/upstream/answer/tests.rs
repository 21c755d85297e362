//! How far an answer of another server is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::FutureExt;
use serde_json::{Value, json};

use super::*;

/// Chunks as a server sends them, and how many were read.
fn server(chunks: Vec<Value>) -> (Chunks<Completion>, Arc<AtomicU32>) {
    let read = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&read);
    let chunks = futures::stream::iter(chunks).map(move |chunk| {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(serde_json::from_value(chunk).expect("a chunk"))
    });
    (chunks.boxed(), read)
}

fn chunk(choice: Value) -> Value {
    json!({"id": "x", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]})
}

fn text(text: &str) -> Value {
    chunk(json!({"index": 0, "text": text, "logprobs": null, "finish_reason": null}))
}

/// Several tokens in one chunk: only their log probabilities tell.
fn tokens(tokens: &[&str]) -> Value {
    let logprobs = json!({
        "tokens": tokens,
        "token_logprobs": vec![-0.5; tokens.len()],
        "top_logprobs": [],
        "text_offset": [],
    });
    let text = tokens.concat();
    chunk(json!({"index": 0, "text": text, "logprobs": logprobs, "finish_reason": null}))
}

fn end() -> Value {
    chunk(json!({"index": 0, "text": "", "logprobs": null, "finish_reason": "stop"}))
}

fn allowance(budget: &TokenBudget, answer_tokens_max: Option<u32>) -> Allowance {
    Allowance {
        answer_tokens_max,
        budget: Some(budget.clone()),
    }
}

/// What comes without waiting: `>` is the start, `.` the end.
fn ready(
    stream: &mut (impl Stream<Item = Result<GenerateEvent, GenerateError>> + Unpin),
) -> String {
    let mut said = String::new();
    while let Some(Some(event)) = stream.next().now_or_never() {
        match event.expect("no error") {
            GenerateEvent::Started(_) => said.push('>'),
            GenerateEvent::Delta(delta) => said.push_str(&delta.text),
            GenerateEvent::Finished(_) => said.push('.'),
        }
    }
    said
}

#[test]
fn nothing_is_read_that_is_not_paid_for() {
    let (chunks, read) = server(vec![text("a"), text("b"), text("c"), end()]);
    let budget = TokenBudget::new(0);
    let mut stream = events(chunks, allowance(&budget, None)).boxed();
    assert_eq!(
        (ready(&mut stream).as_str(), read.load(Ordering::Relaxed)),
        (">", 0)
    );
    budget.add(2);
    assert_eq!(
        (ready(&mut stream).as_str(), read.load(Ordering::Relaxed)),
        ("ab", 2)
    );
    budget.add(3);
    // The token in hand at the end was not computed.
    assert_eq!((ready(&mut stream).as_str(), budget.left()), ("c.", 2));
}

#[test]
fn a_chunk_of_several_tokens_makes_a_debt_once() {
    let (chunks, read) = server(vec![tokens(&["a", "b", "c"]), text("d"), end()]);
    let budget = TokenBudget::new(1);
    let mut stream = events(chunks, allowance(&budget, None)).boxed();
    assert_eq!(ready(&mut stream), ">abc");
    budget.add(2);
    assert_eq!(
        (ready(&mut stream).as_str(), read.load(Ordering::Relaxed)),
        ("", 1)
    );
    budget.add(1);
    assert_eq!(ready(&mut stream), "d");
}

#[test]
fn the_end_of_a_full_answer_costs_nothing() {
    let (chunks, _) = server(vec![text("a"), text("b"), end()]);
    let budget = TokenBudget::new(2);
    let mut stream = events(chunks, allowance(&budget, Some(2))).boxed();
    assert_eq!((ready(&mut stream).as_str(), budget.left()), (">ab.", 0));
}

#[test]
fn a_stream_that_is_dropped_gives_its_token_back_and_closes_the_connection() {
    struct Connection(Arc<AtomicU32>);
    impl Drop for Connection {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let closed = Arc::new(AtomicU32::new(0));
    let connection = Connection(Arc::clone(&closed));
    let silent = futures::stream::poll_fn(move |_| {
        let _open = &connection;
        std::task::Poll::Pending
    });
    let chunks: Chunks<Completion> = silent.boxed();
    let budget = TokenBudget::new(1);
    let mut stream = events(chunks, allowance(&budget, None)).boxed();
    assert_eq!((ready(&mut stream).as_str(), budget.left()), (">", 0));
    drop(stream);
    assert_eq!((closed.load(Ordering::Relaxed), budget.left()), (1, 1));
}

#[test]
fn without_a_budget_all_is_read() {
    let (chunks, _) = server(vec![text("a"), tokens(&["b", "c"]), end()]);
    let unlimited = Allowance {
        answer_tokens_max: None,
        budget: None,
    };
    let mut stream = events(chunks, unlimited).boxed();
    assert_eq!(ready(&mut stream), ">abc.");
}

fn last(chunks: Chunks<Completion>, answer_tokens_max: Option<u32>) -> Finished {
    let budget = TokenBudget::new(100);
    let events = events(chunks, allowance(&budget, answer_tokens_max));
    let events: Vec<_> = events.collect().now_or_never().expect("at once");
    match events.into_iter().last() {
        Some(Ok(GenerateEvent::Finished(finished))) => finished,
        other => panic!("{other:?}"),
    }
}

fn with_usage(completion_tokens: u32, finish: &str) -> Value {
    let mut end = chunk(json!({"index": 0, "text": "", "logprobs": null, "finish_reason": finish}));
    end["usage"] = json!({
        "prompt_tokens": 9, "completion_tokens": completion_tokens, "total_tokens": 9,
    });
    end
}

#[test]
fn tokens_that_only_the_usage_tells_are_late_up_to_the_limit() {
    for (told, finish, most, late) in [
        (7, "length", None, 5),
        (7, "stop", None, 4),
        (3, "stop", None, 0),
        (0, "stop", None, 0),
        (7, "length", Some(4), 2),
    ] {
        let (chunks, _) = server(vec![text("ab"), text("cd"), with_usage(told, finish)]);
        let finished = last(chunks, most);
        assert_eq!(finished.late_tokens, late, "{told} {finish} {most:?}");
        assert_eq!(finished.usage.completion_tokens, told);
    }
}

#[test]
fn an_engine_that_goes_on_beyond_the_limit_is_cut_off() {
    let (chunks, read) = server(vec![text("a"), text("b"), text("c"), text("d"), end()]);
    let budget = TokenBudget::new(9);
    let mut stream = events(chunks, allowance(&budget, Some(2))).boxed();
    assert_eq!(ready(&mut stream), ">ab.");
    assert_eq!(read.load(Ordering::Relaxed), 3);
    let (chunks, _) = server(vec![text("a"), text("b"), text("c")]);
    assert_eq!(last(chunks, Some(2)).reason, FinishReason::Length);
}

#[test]
fn m26_log_probabilities_of_no_text_are_not_passed_on() {
    let silent = chunk(json!({
        "index": 0, "text": "", "finish_reason": null,
        "logprobs": {"tokens": ["<s>"], "token_logprobs": [-0.5], "top_logprobs": [], "text_offset": []},
    }));
    let (chunks, _) = server(vec![silent, text("a"), end()]);
    let budget = TokenBudget::new(1);
    let events = events(chunks, allowance(&budget, Some(1)));
    let events: Vec<_> = events.collect().now_or_never().expect("at once");
    assert_eq!(events.len(), 3, "{events:?}");
}

#[test]
fn an_answer_that_was_cut_for_want_of_payment_says_so() {
    let (chunks, _) = server(vec![text("a"), with_usage(1, "payment_required")]);
    assert_eq!(last(chunks, None).reason, FinishReason::PaymentRequired);
}
