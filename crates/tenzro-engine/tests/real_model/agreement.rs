//! At temperature 0 the text does not depend on the cache or on what else is in the batch. Sums of
//! floats in another order may turn a near-tie; nothing else may differ.

use tenzro_protocol::inference::GenerateRequest;

use super::{Answer, answer, ask, load, read};

/// Log probability by which two candidates may differ to count as a near-tie. Four-bit weights with
/// eight-bit activations move a logit by some tenths when sums are made in another order; a wrong
/// position or a foreign KV cell moves it by whole units.
const NEAR_TIE: f32 = 0.5;

const QUESTIONS: [&str; 8] = [
    "What is the capital of France?",
    "Name three colours.",
    "Why is the sky blue? Answer in two sentences.",
    "Write a short poem about the sea.",
    "How many days does a week have?",
    "Explain what a compiler does.",
    "Give me a recipe for pancakes.",
    "Who wrote Romeo and Juliet?",
];

fn greedy(question: &str) -> GenerateRequest {
    GenerateRequest {
        logprobs: Some(5),
        ..ask(question, 40)
    }
}

fn assert_same_but_for_near_ties(reference: &Answer, other: &Answer, what: &str) {
    for (index, (left, right)) in reference.tokens.iter().zip(&other.tokens).enumerate() {
        if left.chosen.bytes == right.chosen.bytes {
            continue;
        }
        let rival = left
            .top
            .iter()
            .find(|candidate| candidate.bytes == right.chosen.bytes);
        let gap = rival.map_or(f32::INFINITY, |rival| left.chosen.logprob - rival.logprob);
        assert!(
            gap < NEAR_TIE,
            "{what}: token {index} differs although it is no near-tie ({gap}):\n{}\n{}",
            reference.text,
            other.text
        );
        return;
    }
    assert_eq!(reference.tokens.len(), other.tokens.len(), "{what}");
}

#[tokio::test]
async fn alone_cached_and_in_a_batch_of_eight() {
    let engine = load(512, 8);
    let mut alone = Vec::new();
    for question in QUESTIONS {
        alone.push(answer(&engine, greedy(question)).await);
    }
    for (question, reference) in QUESTIONS.iter().zip(&alone) {
        let again = answer(&engine, greedy(question)).await;
        assert_eq!(
            again.started.cached_tokens,
            again.started.prompt_tokens - 1,
            "all but the last token is cached"
        );
        assert_same_but_for_near_ties(reference, &again, "cached");
    }

    let fresh = load(512, 8);
    let streams: Vec<_> = QUESTIONS
        .iter()
        .map(|question| fresh.generate(greedy(question)).expect("admitted"))
        .collect();
    for (stream, reference) in streams.into_iter().zip(&alone) {
        let batched = read(stream).await.expect("an answer");
        assert_same_but_for_near_ties(reference, &batched, "batched");
    }
}

#[tokio::test]
async fn one_of_eight_clients_leaves_and_the_others_do_not_notice() {
    use futures::StreamExt;

    let engine = load(512, 8);
    let mut alone = Vec::new();
    for question in QUESTIONS {
        alone.push(answer(&engine, greedy(question)).await);
    }
    let engine = load(512, 8);
    let mut streams: Vec<_> = QUESTIONS
        .iter()
        .map(|question| engine.generate(greedy(question)).expect("admitted"))
        .collect();
    let mut leaving = streams.remove(3);
    for _ in 0..3 {
        leaving.next().await.expect("an event").expect("no error");
    }
    drop(leaving);
    alone.remove(3);
    for (stream, reference) in streams.into_iter().zip(&alone) {
        let batched = read(stream).await.expect("an answer");
        assert_same_but_for_near_ties(reference, &batched, "beside one that left");
    }
    let gauges = engine.gauges();
    assert_eq!(gauges.cancelled_total, 1);
    assert!(
        gauges.generated_tokens_total < 8 * 40,
        "its compute went on: {gauges:?}"
    );
}
