//! The paying client against the real payee, and against servers that lie.

mod hostile;
mod market;
mod upstream;

use futures::StreamExt;
use serde_json::json;
use tenzro_engine::Tokenizer;
use tenzro_payments::payer::PayError;
use tenzro_payments::price::Tokens;
use tenzro_protocol::amount::Wei;
use tenzro_protocol::openai::chat::{ChatChunk, ChatRequest};
use tenzro_protocol::openai::completions::CompletionRequest;
use tenzro_protocol::openai::embeddings::EmbeddingRequest;
use tenzro_testkit::fake_inference::{FakeInference, INPUT_TOKENS, PROMPT_TOKENS, Script};
use tenzro_testkit::model_path;

use super::order::chat_order;
use crate::openai_client::{Chunks, ClientError};
use market::{Market, PRICING, Shop};

fn chat() -> ChatRequest {
    let request = json!({ "model": "fake", "messages": [{ "role": "user", "content": "hi" }] });
    serde_json::from_value(request).expect("a request")
}

/// The text of an answer, and how it ended.
async fn text(mut chunks: Chunks<ChatChunk>) -> (String, Option<ClientError>) {
    let mut text = String::new();
    while let Some(chunk) = chunks.next().await {
        match chunk {
            Ok(chunk) => {
                let deltas = chunk
                    .choices
                    .into_iter()
                    .filter_map(|choice| choice.delta.content);
                text.extend(deltas);
            }
            Err(error) => return (text, Some(error)),
        }
    }
    (text, None)
}

fn cost(input: u32, output: u32) -> u128 {
    PRICING.cost(Tokens { input, output }).expect("small")
}

/// Wei that the payer's books say were spent.
async fn spent(market: &Market) -> u128 {
    let rows = market.payer.spending(0).await.expect("read");
    rows.iter().map(|row| row.charged).sum()
}

#[tokio::test]
async fn a_chat_longer_than_many_windows_is_paid_token_by_token() {
    let market = Market::new();
    let shop = Shop::open(&market, FakeInference::new(Script::Say(vec!["word "; 50]))).await;
    let client = shop.client(&market);
    let chunks = client.chat(&chat()).await.expect("paid");
    let (answer, error) = text(chunks).await;
    assert_eq!(
        (answer, error.map(|error| error.to_string())),
        ("word ".repeat(50), None)
    );
    assert_eq!(spent(&market).await, cost(PROMPT_TOKENS, 50));
    let channels = market.payer.channels().await.expect("read");
    assert_eq!(channels.len(), 1);
    assert_eq!(
        (channels[0].due, channels[0].doubt),
        (cost(PROMPT_TOKENS, 50), 0)
    );
    assert!(market.payer.evidence(9).await.expect("read").is_empty());

    let (answer, _) = text(client.chat(&chat()).await.expect("paid")).await;
    assert_eq!(answer, "word ".repeat(50));
    assert_eq!(spent(&market).await, 2 * cost(PROMPT_TOKENS, 50));
    assert_eq!(market.vault.deposits(), 1, "the channel is used again");
}

#[tokio::test]
async fn a_prompt_that_the_provider_counts_higher_takes_another_round() {
    let market = Market::new();
    let engine = FakeInference::new(Script::Say(vec!["a", "b"])).guessing(1, 200);
    let shop = Shop::open(&market, engine).await;
    let (answer, error) = text(shop.client(&market).chat(&chat()).await.expect("paid")).await;
    assert_eq!((answer.as_str(), error.is_none()), ("ab", true));
    assert_eq!(spent(&market).await, cost(PROMPT_TOKENS, 2));
}

#[tokio::test]
async fn m19_a_prompt_costs_no_more_than_the_models_own_tokenizer_counts() {
    let market = Market::new();
    let tokenizer = Tokenizer::open(&model_path()).expect("a vocabulary");
    let purchase = chat_order(&chat(), 1_000);
    let counted = purchase.prompt(Some(&tokenizer));
    assert!(counted.likely > 5 && counted.most < purchase.prompt(None).most / 2);
    for (tokens, is_paid) in [(counted.most, true), (counted.most + 1, false)] {
        let engine = FakeInference::new(Script::Say(vec!["a", "b"])).guessing(1, tokens);
        let shop = Shop::open(&market, engine).await;
        let client = market.counting_client(&shop.base_url(), 30, Some(tokenizer.clone()));
        match client.chat(&chat()).await {
            Ok(chunks) => assert!(is_paid && text(chunks).await.1.is_none()),
            Err(error) => {
                let is_overbilled =
                    matches!(error, ClientError::Payment(PayError::Overbilled { .. }));
                assert!(!is_paid && is_overbilled, "{tokens}: {error:?}");
            }
        }
        assert_eq!(spent(&market).await, cost(PROMPT_TOKENS, 2));
    }
}

#[tokio::test]
async fn completions_and_embeddings_are_paid_as_well() {
    let market = Market::new();
    let shop = Shop::open(&market, FakeInference::new(Script::Say(vec!["a", "b"]))).await;
    let client = shop.client(&market);
    let request: CompletionRequest =
        serde_json::from_value(json!({ "model": "fake", "prompt": "hello there" }))
            .expect("a request");
    let chunks = client.complete(&request).await.expect("paid");
    let parts: Vec<_> = chunks.map(|chunk| chunk.expect("a chunk")).collect().await;
    let text: String = parts
        .iter()
        .flat_map(|part| &part.choices)
        .map(|choice| choice.text.as_str())
        .collect();
    assert_eq!(text, "ab");
    assert_eq!(spent(&market).await, cost(PROMPT_TOKENS, 2));

    let request: EmbeddingRequest =
        serde_json::from_value(json!({ "model": "fake", "input": "hi" })).expect("a request");
    let answer = client.embed(&request).await.expect("paid");
    assert_eq!(answer.data.len(), 1);
    assert_eq!(answer.usage.cost, Some(Wei(cost(INPUT_TOKENS, 0))));
    assert_eq!(spent(&market).await, cost(PROMPT_TOKENS + INPUT_TOKENS, 2));
}

#[tokio::test]
async fn an_answer_that_is_dropped_leaves_a_doubt_that_the_next_one_settles() {
    let market = Market::new();
    let engine = FakeInference::new(Script::SayAndWait("word "));
    let shop = Shop::open(&market, engine).await;
    let client = shop.client(&market);
    let mut chunks = client.chat(&chat()).await.expect("paid");
    while let Some(chunk) = chunks.next().await {
        let is_text = |chunk: ChatChunk| {
            chunk
                .choices
                .iter()
                .any(|choice| choice.delta.content.as_deref() == Some("word "))
        };
        if is_text(chunk.expect("a chunk")) {
            break;
        }
    }
    drop(chunks);
    shop.engine.wait_for_dropped(1).await;
    shop.engine.release();
    let (answer, _) = text(client.chat(&chat()).await.expect("paid")).await;
    assert_eq!(answer, "word ");
    assert_eq!(spent(&market).await, 2 * cost(PROMPT_TOKENS, 1));
    assert_eq!(market.payer.channels().await.expect("read")[0].doubt, 0);
}

/// Asks each shop once; the channels' places and what is due on them, by place.
async fn ask_all(market: &Market, shops: &[Shop]) -> Vec<(Option<String>, u128)> {
    for shop in shops {
        let chunks = shop.client(market).chat(&chat()).await.expect("paid");
        let (answer, error) = text(chunks).await;
        assert_eq!((answer.as_str(), error.is_none()), ("ab", true));
    }
    let channels = market.payer.channels().await.expect("read");
    let mut rows: Vec<_> = channels
        .into_iter()
        .map(|channel| (channel.place.map(|place| place.to_string()), channel.due))
        .collect();
    rows.sort();
    rows
}

#[tokio::test]
async fn the_servers_of_one_provider_are_paid_through_a_channel_each_also_after_the_books_are_lost()
{
    let mut market = Market::new();
    let mut shops = Vec::new();
    for name in ["one", "two", "three"] {
        let engine = FakeInference::new(Script::Say(vec!["a", "b"]));
        shops.push(Shop::named(name, &market, engine).await);
    }
    let expected = |answers: u128| {
        let due = answers * cost(PROMPT_TOKENS, 2);
        let mut rows: Vec<_> = shops
            .iter()
            .map(|shop| (Some(shop.base_url()), due))
            .collect();
        rows.sort();
        rows
    };
    assert_eq!(ask_all(&market, &shops).await, expected(1));
    assert_eq!(ask_all(&market, &shops).await, expected(2));
    market.wipe().await;
    // As long as they serve for what was paid ahead, they show nothing; then all that they got before.
    let mut answers = 2;
    let rows = loop {
        answers += 1;
        let rows = ask_all(&market, &shops).await;
        if rows.iter().all(|(place, _)| place.is_some()) {
            break rows;
        }
        assert!(answers < 9, "{rows:?}");
    };
    assert_eq!(rows, expected(answers));
    assert_eq!(market.vault.deposits(), 3, "no other channel was opened");
}
