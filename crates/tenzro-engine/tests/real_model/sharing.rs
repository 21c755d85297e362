//! What is computed once, and what is not computed at all.

use tenzro_engine::Engine;

use super::{answer, ask, chat, load, long_text, message, read};

async fn until_idle(engine: &Engine) {
    while engine.gauges().running + engine.gauges().waiting > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn simultaneous_arrivals_prefill_their_common_prompt_once() {
    let engine = load(1024, 4);
    let system = long_text("Rules", 500);
    let streams: Vec<_> = (0..4)
        .map(|index| {
            let question = format!("Question number {index}: how many apples?");
            let messages = vec![message("system", &system), message("user", &question)];
            engine.generate(chat(messages, 4)).expect("admitted")
        })
        .collect();
    let mut prompt_tokens = 0;
    for stream in streams {
        prompt_tokens += u64::from(read(stream).await.expect("an answer").started.prompt_tokens);
    }
    let gauges = engine.gauges();
    assert_eq!(
        gauges.prefill_tokens_total + gauges.cached_tokens_total,
        prompt_tokens
    );
    assert!(
        gauges.prefill_tokens_total < prompt_tokens / 4 + 100,
        "computed {} of {prompt_tokens}",
        gauges.prefill_tokens_total
    );
}

#[tokio::test]
async fn each_turn_of_a_chat_computes_only_what_is_new() {
    let engine = load(1024, 1);
    let mut messages = vec![message("system", &long_text("Rules", 200))];
    for turn in 0..4 {
        messages.push(message("user", &format!("Turn {turn}: name an animal.")));
        let before = engine.gauges().prefill_tokens_total;
        let reply = answer(&engine, chat(messages.clone(), 24)).await;
        let computed = engine.gauges().prefill_tokens_total - before;
        if turn > 0 {
            assert!(
                computed < 40,
                "turn {turn} computed {computed} prompt tokens"
            );
        }
        messages.push(message("assistant", &reply.text));
    }
}

#[tokio::test]
async fn more_conversations_than_the_buffer_holds_still_get_their_answers() {
    let engine = load(256, 2);
    for round in 0..2 {
        for conversation in 0..6 {
            let name = format!("Conversation {conversation}");
            let reply = answer(&engine, ask(&long_text(&name, 150), 8)).await;
            assert!(reply.finished.usage.completion_tokens > 0, "round {round}");
        }
    }
    let gauges = engine.gauges();
    assert!(gauges.kv_cells_used <= gauges.kv_cells_total);
}

#[tokio::test]
async fn a_client_that_leaves_in_a_long_prompt_stops_its_computation() {
    let engine = load(4096, 1);
    let text = long_text("Long", 2500);
    let length = u64::from(answer(&engine, ask(&text, 1)).await.started.prompt_tokens);
    let engine = load(4096, 1);
    let stream = engine.generate(ask(&text, 1)).expect("admitted");
    while engine.gauges().prefill_tokens_total == 0 {
        tokio::task::yield_now().await;
    }
    drop(stream);
    until_idle(&engine).await;
    let gauges = engine.gauges();
    assert_eq!(gauges.cancelled_total, 1);
    assert!(
        gauges.prefill_tokens_total < length / 2,
        "computed {} of {length} tokens for nobody",
        gauges.prefill_tokens_total
    );
}

#[tokio::test]
async fn a_long_prompt_does_not_stop_a_running_answer() {
    use futures::StreamExt;
    use tenzro_protocol::inference::{GenerateEvent, GenerateRequest};

    let engine = load(4096, 2);
    // Measures the cost of a prompt token first.
    answer(&engine, ask(&long_text("First", 300), 2)).await;
    let mut running = engine
        .generate(GenerateRequest {
            ignore_eos: true,
            ..ask("Tell me a story.", 400)
        })
        .expect("admitted");
    running.next().await.expect("started").expect("no error");
    let long = engine
        .generate(ask(&long_text("Second", 1500), 1))
        .expect("admitted");
    let reading = tokio::spawn(read(long));
    let mut tokens_meanwhile = 0;
    while !reading.is_finished() {
        match running.next().await.expect("an event").expect("no error") {
            GenerateEvent::Delta(delta) => tokens_meanwhile += delta.token_count,
            GenerateEvent::Finished(_) => break,
            GenerateEvent::Started(_) => {}
        }
    }
    assert!(
        tokens_meanwhile >= 4,
        "only {tokens_meanwhile} tokens while a long prompt was prefilled"
    );
}
