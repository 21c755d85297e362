//! The engine with a real model: what it says, shares, refuses and stops.

mod agreement;
mod budget;
mod loading;
mod recount;
mod requests;
mod sharing;

use futures::StreamExt;
use tenzro_engine::{Engine, EngineConfig, EngineStream};
use tenzro_protocol::inference::{
    ChatMessage, ChatPrompt, Finished, GenerateError, GenerateEvent, GenerateRequest, Prompt,
    Sampling, Started, TokenLogprob,
};
use tenzro_testkit::model_path;

/// Tests run beside each other: one thread each.
fn config(ctx_size: u32, parallel: u32) -> EngineConfig {
    EngineConfig {
        ctx_size: Some(ctx_size),
        parallel: Some(parallel),
        threads: Some(1),
        ..EngineConfig::new(model_path())
    }
}

fn load(ctx_size: u32, parallel: u32) -> Engine {
    Engine::load(&config(ctx_size, parallel), |_| true).expect("the test model loads")
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
        name: None,
    }
}

/// A greedy request.
fn request(prompt: Prompt, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt,
        max_tokens: Some(max_tokens),
        sampling: Sampling {
            temperature: Some(0.0),
            ..Sampling::default()
        },
        stop: Vec::new(),
        ignore_eos: false,
        logprobs: None,
        budget: None,
    }
}

fn chat(messages: Vec<ChatMessage>, max_tokens: u32) -> GenerateRequest {
    let prompt = Prompt::Chat(ChatPrompt {
        messages,
        ..ChatPrompt::default()
    });
    request(prompt, max_tokens)
}

fn ask(question: &str, max_tokens: u32) -> GenerateRequest {
    chat(vec![message("user", question)], max_tokens)
}

/// A whole answer.
#[derive(Debug)]
struct Answer {
    text: String,
    started: Started,
    finished: Finished,
    tokens: Vec<TokenLogprob>,
}

/// Reads a stream to its end and checks the order of its events.
async fn read(mut stream: EngineStream) -> Result<Answer, GenerateError> {
    let GenerateEvent::Started(started) = stream.next().await.expect("a first event")? else {
        panic!("the first event says that the prompt is processed");
    };
    let (mut text, mut tokens, mut count) = (String::new(), Vec::new(), 0);
    while let Some(event) = stream.next().await {
        match event? {
            GenerateEvent::Delta(delta) => {
                text.push_str(&delta.text);
                tokens.extend(delta.logprobs);
                count += delta.token_count;
            }
            GenerateEvent::Finished(finished) => {
                assert!(stream.next().await.is_none(), "nothing follows the end");
                let sampled = finished.usage.completion_tokens;
                assert!(
                    count == sampled || count + 1 == sampled,
                    "{count} of {sampled}"
                );
                return Ok(Answer {
                    text,
                    started,
                    finished,
                    tokens,
                });
            }
            GenerateEvent::Started(_) => panic!("started twice"),
        }
    }
    panic!("the stream ended without its last event");
}

async fn answer(engine: &Engine, request: GenerateRequest) -> Answer {
    let stream = engine.generate(request).expect("admitted");
    read(stream).await.expect("an answer")
}

/// Text of about `tokens` tokens that begins with `name`.
fn long_text(name: &str, tokens: usize) -> String {
    let mut text = format!("{name}: ");
    for index in 0..tokens / 8 {
        text.push_str(&format!("Item {index} is a box of red apples. "));
    }
    text
}
