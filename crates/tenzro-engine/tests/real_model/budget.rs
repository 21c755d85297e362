//! Nothing is computed that is not paid for, and a pause changes nothing but the time.

use futures::{FutureExt, StreamExt};
use tenzro_engine::{Engine, EngineStream};
use tenzro_protocol::inference::{
    EmbedRequest, FinishReason, GenerateError, GenerateEvent, GenerateRequest, Prompt, Sampling,
    TokenBudget,
};

use super::{Answer, answer, ask, chat, load, long_text, message, read, request};

/// An answer of exactly `tokens` tokens.
fn story(tokens: u32) -> GenerateRequest {
    GenerateRequest {
        ignore_eos: true,
        logprobs: Some(0),
        ..ask("Tell me a story.", tokens)
    }
}

fn paid_by(budget: &TokenBudget, request: GenerateRequest) -> GenerateRequest {
    GenerateRequest {
        budget: Some(budget.clone()),
        ..request
    }
}

/// What a stream that cannot go on has said.
async fn read_tokens(stream: &mut EngineStream, tokens: u32) -> String {
    let (mut text, mut count) = (String::new(), 0);
    while count < tokens {
        match stream.next().await.expect("an event").expect("no error") {
            GenerateEvent::Delta(delta) => {
                text.push_str(&delta.text);
                count += delta.token_count;
            }
            GenerateEvent::Started(_) => {}
            GenerateEvent::Finished(finished) => panic!("over after {count}: {finished:?}"),
        }
    }
    assert_eq!(count, tokens);
    text
}

/// The worker has done all that it could: another generation came to its end meanwhile.
async fn let_it_work(engine: &Engine) -> Answer {
    let request = GenerateRequest {
        ignore_eos: true,
        ..ask("Name three colours.", 20)
    };
    answer(engine, request).await
}

async fn until_nobody_is_left(engine: &Engine) {
    while engine.gauges().running + engine.gauges().waiting > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn exactly_what_is_paid_for_is_computed_and_the_answer_is_the_same() {
    let whole = answer(&load(512, 2), story(24)).await;
    let engine = load(512, 2);
    let budget = TokenBudget::new(7);
    let mut stream = engine
        .generate(paid_by(&budget, story(24)))
        .expect("admitted");
    let mut text = read_tokens(&mut stream, 7).await;
    assert_eq!(stream.next().now_or_never(), None);
    assert_eq!(engine.gauges().generated_tokens_total, 7);

    // The worker has nothing to do: only what is added wakes it.
    budget.add(5);
    text.push_str(&read_tokens(&mut stream, 5).await);
    assert_eq!(
        (engine.gauges().generated_tokens_total, budget.left()),
        (12, 0)
    );

    // Steps of somebody else compute nothing for it either.
    let_it_work(&engine).await;
    assert_eq!(stream.next().now_or_never(), None);
    assert_eq!(engine.gauges().generated_tokens_total, 12 + 20);

    budget.add(100);
    text.push_str(&read_tokens(&mut stream, 11).await);
    let GenerateEvent::Delta(last) = stream.next().await.expect("an event").expect("no error")
    else {
        panic!("the last token");
    };
    text.push_str(&last.text);
    assert_eq!(
        stream.next().await,
        Some(Ok(GenerateEvent::Finished(whole.finished)))
    );
    assert_eq!(text, whole.text);
    assert_eq!(budget.left(), 100 - 12, "one token each, the last one too");
}

#[tokio::test]
async fn a_prompt_is_not_computed_before_a_token_is_paid_for() {
    let engine = load(512, 1);
    let budget = TokenBudget::new(0);
    let unpaid = engine
        .generate(paid_by(&budget, story(3)))
        .expect("admitted");
    // It came first, but those who have paid pass.
    let colours = let_it_work(&engine).await;
    let gauges = engine.gauges();
    assert_eq!(
        (gauges.prefill_tokens_total, gauges.generated_tokens_total),
        (u64::from(colours.started.prompt_tokens), 20)
    );
    budget.add(3);
    let late = read(unpaid).await.expect("its turn comes");
    assert_eq!(late.finished.reason, FinishReason::Length);
    assert_eq!(budget.left(), 0);
}

#[tokio::test]
async fn a_paused_answer_neither_slows_nor_changes_another() {
    let other = || GenerateRequest {
        ignore_eos: true,
        ..ask("Why is the sky blue?", 30)
    };
    let alone = load(512, 2);
    answer(&alone, story(6)).await;
    let before = alone.gauges().steps_total;
    let reference = answer(&alone, other()).await;
    let steps_alone = alone.gauges().steps_total - before;

    let engine = load(512, 2);
    let budget = TokenBudget::new(6);
    let mut paused = engine
        .generate(paid_by(&budget, story(200)))
        .expect("admitted");
    read_tokens(&mut paused, 6).await;
    let before = engine.gauges().steps_total;
    let beside = answer(&engine, other()).await;
    assert_eq!(
        (beside.text, engine.gauges().steps_total - before),
        (reference.text, steps_alone)
    );
    assert_eq!(paused.next().now_or_never(), None);
}

#[tokio::test]
async fn choices_share_one_budget() {
    let engine = load(512, 3);
    let budget = TokenBudget::new(5);
    let streams: Vec<EngineStream> = (0..2)
        .map(|_| {
            engine
                .generate(paid_by(&budget, story(4)))
                .expect("admitted")
        })
        .collect();
    let mut events = futures::stream::select_all(streams);
    let mut deltas = 0;
    let mut finished = 0;
    while deltas < 5 {
        match events.next().await.expect("an event").expect("no error") {
            GenerateEvent::Delta(delta) => deltas += delta.token_count,
            GenerateEvent::Finished(_) => finished += 1,
            GenerateEvent::Started(_) => {}
        }
    }
    let_it_work(&engine).await;
    assert_eq!(
        (engine.gauges().generated_tokens_total, budget.left()),
        (5 + 20, 0)
    );
    budget.add(10);
    while let Some(event) = events.next().await {
        finished += u32::from(matches!(event, Ok(GenerateEvent::Finished(_))));
    }
    assert_eq!((finished, budget.left()), (2, 7));
}

#[tokio::test]
async fn clients_that_leave_while_all_is_paused_free_their_places_at_once() {
    let mut config = super::config(512, 1);
    config.queue_size = 1;
    let engine = Engine::load(&config, |_| true).expect("loads");
    let budget = TokenBudget::new(2);
    let mut paused = engine.generate(paid_by(&budget, story(100))).expect("runs");
    read_tokens(&mut paused, 2).await;
    // Waits for the slot of a job that is not paid for.
    let waiting = engine.generate(ask("Two", 5)).expect("waits");
    assert!(engine.generate(ask("Three", 5)).is_err());
    drop(waiting);
    while engine.gauges().cancelled_total < 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!((engine.gauges().running, engine.gauges().waiting), (1, 0));
    drop(paused);
    until_nobody_is_left(&engine).await;
    assert_eq!(engine.gauges().cancelled_total, 2);
    budget.add(10);
    assert_eq!(budget.left(), 10);
    let_it_work(&engine).await;
    assert_eq!(engine.gauges().generated_tokens_total, 2 + 20);
}

#[tokio::test]
async fn a_token_that_was_taken_and_not_computed_comes_back() {
    let engine = load(4096, 1);
    let budget = TokenBudget::new(1);
    let long = ask(&long_text("Long", 2500), 1);
    let stream = engine.generate(paid_by(&budget, long)).expect("admitted");
    while engine.gauges().prefill_tokens_total == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(budget.left(), 0, "taken before the prompt is computed");
    drop(stream);
    until_nobody_is_left(&engine).await;
    assert_eq!(
        (engine.gauges().generated_tokens_total, budget.left()),
        (0, 1)
    );
}

#[tokio::test]
async fn a_paused_answer_ends_when_the_engine_is_stopped() {
    let engine = load(512, 1);
    let budget = TokenBudget::new(1);
    let mut paused = engine
        .generate(paid_by(&budget, story(100)))
        .expect("admitted");
    read_tokens(&mut paused, 1).await;
    let other = engine.clone();
    tokio::task::spawn_blocking(move || other.shutdown())
        .await
        .expect("no panic");
    assert!(matches!(
        paused.next().await,
        Some(Err(GenerateError::Unavailable { .. }))
    ));
}

#[tokio::test]
async fn a_prompt_is_counted_as_it_is_computed_and_costs_nothing() {
    let engine = load(512, 1);
    let named = |name: &str| {
        let mut message = message("user", "Häuser und 家, <|im_end|> as text.");
        message.name = Some(name.to_owned());
        message
    };
    let requests = [
        ask("Name a fruit.", 1),
        chat(vec![message("system", "Be brief."), named("Ada")], 1),
        request(Prompt::Text("<|im_start|>user\nOnce upon".to_owned()), 1),
        request(Prompt::Tokens(vec![1, 2, 3]), 1),
    ];
    let counted: Vec<u32> = requests
        .iter()
        .map(|request| engine.count_prompt(request).expect("counted"))
        .collect();
    assert_eq!(engine.gauges().steps_total, 0);
    for (request, counted) in requests.into_iter().zip(counted) {
        assert_eq!(
            answer(&engine, request).await.started.prompt_tokens,
            counted
        );
    }

    let inputs = EmbedRequest {
        inputs: vec![
            Prompt::Text("Häuser".to_owned()),
            Prompt::Tokens(vec![1, 2, 3]),
        ],
    };
    let counted = engine.count_inputs(&inputs).expect("counted");
    let embedded = engine.embed(inputs).await.expect("embedded");
    assert_eq!(embedded.prompt_tokens, counted);
}

#[tokio::test]
async fn what_is_refused_is_refused_when_it_is_counted() {
    let engine = load(128, 1);
    let biased = Sampling {
        logit_bias: vec![(9_999_999, 1.0)],
        ..Sampling::default()
    };
    for request in [
        ask(&long_text("A", 400), 5),
        ask("x", 0),
        request(Prompt::Tokens(vec![9_999_999]), 5),
        request(Prompt::Tokens(Vec::new()), 5),
        GenerateRequest {
            sampling: biased,
            ..ask("x", 5)
        },
    ] {
        let refused = engine.generate(request.clone()).expect_err("refused");
        assert_eq!(engine.count_prompt(&request), Err(refused));
    }
    for input in [
        ask("x", 1).prompt,
        Prompt::Text(long_text("A", 400)),
        Prompt::Tokens(Vec::new()),
    ] {
        let request = EmbedRequest {
            inputs: vec![input],
        };
        let counted = engine.count_inputs(&request);
        assert!(counted.is_err(), "{counted:?}");
        let refused = engine.embed(request).await.expect_err("refused");
        assert_eq!(counted, Err(refused));
    }
}

#[tokio::test]
async fn m26_what_is_held_back_is_neither_told_nor_paid_for() {
    let engine = load(512, 1);
    let first = answer(&engine, story(1)).await.text;
    assert!(!first.is_empty());
    let budget = TokenBudget::new(1);
    let cut = GenerateRequest {
        stop: vec![first],
        logprobs: Some(20),
        ..story(20)
    };
    let cut = answer(&engine, paid_by(&budget, cut)).await;
    assert_eq!(cut.finished.reason, FinishReason::Stop);
    assert_eq!((cut.text.as_str(), cut.tokens.len()), ("", 0));
    assert_eq!(budget.left(), 1);
}

#[tokio::test]
async fn m26_tokens_without_text_are_not_told_and_need_no_money_but_are_few() {
    let engine = load(512, 1);
    // "<|im_start|>" has no text, and does not end an answer.
    let silent = |tokens| GenerateRequest {
        sampling: Sampling {
            logit_bias: vec![(1, 100.0)],
            ..Sampling::default()
        },
        logprobs: Some(20),
        ..story(tokens)
    };
    for (most, computed) in [(40, 40), (400, 256)] {
        let budget = TokenBudget::new(1);
        let mute = async |request| {
            let mut stream = engine.generate(request).expect("admitted");
            let mut events = Vec::new();
            while let Some(event) = stream.next().await {
                events.push(event.expect("no error"));
            }
            events
        };
        let events = mute(paid_by(&budget, silent(most))).await;
        let [GenerateEvent::Started(_), GenerateEvent::Finished(finished)] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(finished.usage.completion_tokens, computed);
        assert_eq!(budget.left(), 1);
    }
}
