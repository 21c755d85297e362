//! The paying client against a seller whose engine is another server, over real HTTP.

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use futures::StreamExt;
use serde_json::{Value, json};
use tenzro_payments::books::earnings;
use tenzro_protocol::inference::ModelCard;
use tenzro_protocol::openai::chat::ChatRequest;

use super::market::{Market, Shop};
use super::{chat, cost, spent, text};
use crate::openai_client::OpenAiClient;
use crate::upstream::Upstream;

fn chunk(choices: &Value, usage: &Value) -> String {
    let chunk = json!({
        "id": "x", "object": "chat.completion.chunk", "created": 1, "model": "up",
        "choices": choices, "usage": usage,
    });
    format!("data: {chunk}\n\n")
}

fn says(text: &str) -> String {
    let choice = json!([{"index": 0, "delta": {"content": text}, "finish_reason": null}]);
    chunk(&choice, &Value::Null)
}

/// The end of an answer with that usage.
fn end(prompt_tokens: u32, completion_tokens: u32) -> String {
    let choice = json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]);
    let usage = json!({
        "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    });
    let end = chunk(&choice, &Value::Null) + &chunk(&json!([]), &usage);
    end + "data: [DONE]\n\n"
}

/// A seller of what an engine says that sends these bytes for every answer, and then closes.
async fn shop(market: &Market, answer: String) -> Shop<Upstream> {
    let app = Router::new().fallback(move || {
        let answer = answer.clone();
        async move { Body::from(answer).into_response() }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, app).await });
    let client = OpenAiClient::new(&format!("http://{address}/v1")).expect("a client");
    let card = ModelCard {
        id: "fake".to_owned(),
        created: 1,
        owned_by: "maker".to_owned(),
        aliases: Vec::new(),
        context_length: None,
        quantization: None,
        sha256: None,
        size_bytes: None,
    };
    Shop::open(market, Upstream::new(client, "up".to_owned(), card)).await
}

fn question(prompt_bytes: usize) -> ChatRequest {
    let content = "x".repeat(prompt_bytes);
    let messages = json!([{ "role": "user", "content": content }]);
    ChatRequest {
        messages: serde_json::from_value(messages).expect("messages"),
        ..chat()
    }
}

/// What the seller's books say was charged: tokens of prompts and of answers, and wei.
fn earned(market: &Market) -> (u64, u64, u128) {
    let earned = earnings(&market.home.path().join("payee.db")).expect("read");
    let days = earned.days.iter();
    days.fold((0, 0, 0), |sum, day| {
        (
            sum.0 + day.input_tokens,
            sum.1 + day.output_tokens,
            sum.2 + day.charged,
        )
    })
}

#[tokio::test]
async fn what_an_upstream_engine_counts_at_its_end_is_paid() {
    let market = Market::new();
    // Three chunks of two tokens each, and one that ended the answer.
    let answer = says("ab") + &says("cd") + &says("ef") + &end(7, 7);
    let shop = shop(&market, answer).await;
    let (answer, error) = text(
        shop.client(&market)
            .chat(&question(64))
            .await
            .expect("paid"),
    )
    .await;
    assert_eq!((answer.as_str(), error.is_none()), ("abcdef", true));
    assert_eq!(spent(&market).await, cost(7, 6));
    assert_eq!(earned(&market), (7, 6, cost(7, 6)));
    assert!(market.payer.evidence(9).await.expect("read").is_empty());
}

#[tokio::test]
async fn an_upstream_answer_is_cut_off_at_its_limit() {
    let market = Market::new();
    let answer = says("a") + &says("b") + &says("c") + &says("d") + &end(7, 4);
    let shop = shop(&market, answer).await;
    let mut request = question(64);
    request.parameters.max_tokens = Some(2);
    let mut chunks = shop.client(&market).chat(&request).await.expect("paid");
    let (mut said, mut finish) = (String::new(), None);
    while let Some(chunk) = chunks.next().await {
        for choice in chunk.expect("a chunk").choices {
            said.push_str(choice.delta.content.as_deref().unwrap_or_default());
            finish = choice.finish_reason.or(finish);
        }
    }
    assert_eq!((said.as_str(), finish.as_deref()), ("ab", Some("length")));
    // The engine was not heard to its end: the prompt has at least a token for 16 bytes.
    assert_eq!(earned(&market), (4, 2, cost(4, 2)));
}

#[tokio::test]
async fn m26_an_upstream_engine_that_dies_costs_what_it_delivered() {
    for (answer, input, output) in [
        (String::new(), 0, 0),
        (says("a") + &says("b") + &says("c"), 4, 3),
        (says("a") + "data: {\"id\":", 4, 1),
    ] {
        let market = Market::new();
        let shop = shop(&market, answer).await;
        let client = shop.client(&market);
        match client.chat(&question(64)).await {
            Ok(chunks) => {
                let (answer, error) = text(chunks).await;
                assert_eq!(answer.len(), output as usize);
                let error = error.expect("it is told").to_string();
                assert!(error.contains("broke the answer off"), "{error}");
            }
            Err(error) => assert!(
                error.to_string().contains("broke the answer off"),
                "{error}"
            ),
        }
        // With this window each charge is on the disk before its token leaves.
        let charged = (u64::from(input), u64::from(output), cost(input, output));
        assert_eq!(earned(&market), charged);
    }
}
