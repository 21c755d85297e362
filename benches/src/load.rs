//! One streamed chat request and its times.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::StreamExt;
use serde_json::{Value, json};
use tenzro_protocol::openai::chat::ChatChunk;
use tenzro_protocol::sse::SseParser;

use crate::server::Server;

/// A conversation: role and text.
pub(crate) type Messages = Vec<(&'static str, String)>;

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) messages: Messages,
    /// Exactly so many tokens are generated.
    pub(crate) tokens: u32,
}

/// When what arrived.
#[derive(Debug, Clone)]
pub(crate) struct Timing {
    pub(crate) started: Instant,
    pub(crate) first_token: Duration,
    pub(crate) whole: Duration,
    /// Longest time between two pieces.
    pub(crate) gap_max: Duration,
    /// By the server's own count.
    pub(crate) tokens: u32,
    pub(crate) prompt_tokens: u32,
    pub(crate) text: String,
}

impl Ask {
    pub(crate) fn body(&self, model: &str) -> Value {
        let messages: Vec<Value> = self
            .messages
            .iter()
            .map(|(role, content)| json!({"role": role, "content": content}))
            .collect();
        json!({
            "model": model, "messages": messages, "max_tokens": self.tokens, "temperature": 0,
            "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
        })
    }
}

/// Sends a request on a connection of its own: llama-server closes a connection after a stream.
pub(crate) async fn send(server: &Server, ask: &Ask) -> anyhow::Result<Timing> {
    let client = client()?;
    run(&client, server, ask, None).await
}

/// Sends a request and leaves after so many tokens.
pub(crate) async fn send_and_leave(server: &Server, ask: &Ask, after: u32) -> anyhow::Result<()> {
    let client = client()?;
    run(&client, server, ask, Some(after)).await.map(|_| ())
}

fn client() -> anyhow::Result<reqwest::Client> {
    Ok(reqwest::Client::builder()
        .pool_max_idle_per_host(0)
        .tcp_nodelay(true)
        .build()?)
}

async fn run(
    client: &reqwest::Client,
    server: &Server,
    ask: &Ask,
    leave_after: Option<u32>,
) -> anyhow::Result<Timing> {
    let started = Instant::now();
    let url = format!("{}/v1/chat/completions", server.base_url);
    let response = client
        .post(url)
        .json(&ask.body(server.model))
        .send()
        .await?;
    if !response.status().is_success() {
        bail!("{}: {}", response.status(), response.text().await?);
    }
    let mut timing = Timing {
        started,
        first_token: Duration::ZERO,
        whole: Duration::ZERO,
        gap_max: Duration::ZERO,
        tokens: 0,
        prompt_tokens: 0,
        text: String::new(),
    };
    let mut parser = SseParser::default();
    let mut bytes = response.bytes_stream();
    let mut last: Option<Instant> = None;
    let mut pieces = 0;
    while let Some(chunk) = bytes.next().await {
        for data in parser.push(&chunk?)? {
            if data == "[DONE]" {
                break;
            }
            let chunk: ChatChunk = serde_json::from_str(&data).context("not a chunk")?;
            if let Some(usage) = chunk.usage.flatten() {
                timing.tokens = usage.completion_tokens;
                timing.prompt_tokens = usage.prompt_tokens;
            }
            let text = chunk
                .choices
                .into_iter()
                .next()
                .and_then(|choice| choice.delta.content)
                .filter(|text| !text.is_empty());
            if let Some(text) = text {
                let now = Instant::now();
                match last.replace(now) {
                    None => timing.first_token = now - started,
                    Some(before) => timing.gap_max = timing.gap_max.max(now - before),
                }
                timing.text.push_str(&text);
                timing.whole = now - started;
                pieces += 1;
                if leave_after.is_some_and(|after| pieces >= after) {
                    return Ok(timing);
                }
            }
        }
    }
    if timing.tokens != ask.tokens {
        bail!("{} tokens instead of {}", timing.tokens, ask.tokens);
    }
    Ok(timing)
}

/// Sends all at once and waits for all.
pub(crate) async fn send_all(server: &Server, asks: &[Ask]) -> anyhow::Result<Vec<Timing>> {
    futures::future::try_join_all(asks.iter().map(|ask| send(server, ask))).await
}

/// Tokens per second over all requests together.
pub(crate) fn throughput(timings: &[Timing]) -> f64 {
    let start = timings.iter().map(|timing| timing.started).min();
    let end = timings
        .iter()
        .map(|timing| timing.started + timing.whole)
        .max();
    let tokens: u32 = timings.iter().map(|timing| timing.tokens).sum();
    match (start, end) {
        (Some(start), Some(end)) => f64::from(tokens) / (end - start).as_secs_f64(),
        _ => 0.0,
    }
}

/// The middle one, in seconds.
pub(crate) fn median_s(durations: impl Iterator<Item = Duration>) -> f64 {
    let mut seconds: Vec<f64> = durations.map(|duration| duration.as_secs_f64()).collect();
    median(&mut seconds)
}

/// The middle one.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[length / 2],
        length => f64::midpoint(values[length / 2 - 1], values[length / 2]),
    }
}
