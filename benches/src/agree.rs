//! Whether both servers say the same at temperature 0. Where they differ, the log probabilities of
//! both at the first differing token show whether it was a near-tie.

use anyhow::Context;
use serde_json::{Value, json};

use crate::Servers;
use crate::server::{Kind, Server, Sizes};

/// Log probability by which two candidates may differ to count as a near-tie.
/// Both servers round differently (other versions, thread pools and orders of sums), which moves
/// four-bit weights' logits by some tenths; a real fault moves them by whole units.
const NEAR_TIE: f64 = 0.5;

const TOKENS: u32 = 48;

const PROMPTS: [&str; 20] = [
    "What is the capital of France?",
    "Name three colours.",
    "Why is the sky blue?",
    "Write a short poem about the sea.",
    "How many days does a week have?",
    "Explain what a compiler does.",
    "Give me a recipe for pancakes.",
    "Who wrote Romeo and Juliet?",
    "Translate 'good morning' into Spanish.",
    "What is 7 times 8?",
    "Tell me about photosynthesis.",
    "What is the largest planet?",
    "Write a haiku about snow.",
    "List the primary colours.",
    "How does a bicycle stay upright?",
    "What is a black hole?",
    "Describe a cat in one sentence.",
    "What year did the Second World War end?",
    "Give advice for learning to swim.",
    "What is the boiling point of water?",
];

struct Token {
    text: String,
    top: Vec<(String, f64)>,
}

/// Prints each difference and fails when one is no near-tie.
pub(crate) async fn run(servers: &Servers) -> anyhow::Result<()> {
    let sizes = Sizes {
        context: 1024,
        parallel: 1,
    };
    let ours = Server::start(Kind::Ours, servers, sizes).await?;
    let theirs = Server::start(Kind::LlamaServer, servers, sizes).await?;
    let (mut equal, mut unexplained) = (0, 0);
    for prompt in PROMPTS {
        let (left, right) = (answer(&ours, prompt).await?, answer(&theirs, prompt).await?);
        let differs = left
            .iter()
            .zip(&right)
            .position(|(left, right)| left.text != right.text);
        let Some(at) = differs else {
            equal += 1;
            continue;
        };
        let rival = left[at]
            .top
            .iter()
            .find(|(text, _)| *text == right[at].text);
        let gap = rival.map_or(f64::INFINITY, |(_, logprob)| left[at].top[0].1 - logprob);
        let is_tie = gap < NEAR_TIE;
        unexplained += usize::from(!is_tie);
        println!(
            "{prompt:?} differs at token {at}: ours {:?}, theirs {:?}; {} (ours {:.3?}, theirs {:.3?})",
            left[at].text,
            right[at].text,
            if is_tie { "a near-tie" } else { "NO near-tie" },
            &left[at].top[..3],
            &right[at].top[..3],
        );
    }
    println!(
        "{equal} of {} texts are equal over {TOKENS} tokens, {} differ at a near-tie, {unexplained} otherwise",
        PROMPTS.len(),
        PROMPTS.len() - equal - unexplained,
    );
    anyhow::ensure!(unexplained == 0, "some texts differ without a near-tie");
    Ok(())
}

async fn answer(server: &Server, prompt: &str) -> anyhow::Result<Vec<Token>> {
    let body = json!({
        "model": server.model, "messages": [{"role": "user", "content": prompt}],
        "max_tokens": TOKENS, "temperature": 0, "logprobs": true, "top_logprobs": 5,
    });
    let client = reqwest::Client::builder()
        .pool_max_idle_per_host(0)
        .build()?;
    let url = format!("{}/v1/chat/completions", server.base_url);
    let answer: Value = client
        .post(url)
        .json(&body)
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    let tokens = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .context("no logprobs")?;
    let text = |token: &Value| token["token"].as_str().unwrap_or_default().to_owned();
    let top = |token: &Value| {
        let all = token["top_logprobs"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        all.iter()
            .map(|top| (text(top), top["logprob"].as_f64().unwrap_or(f64::NAN)))
            .collect()
    };
    let is_text = |token: &&Value| !text(token).starts_with("<|");
    Ok(tokens
        .iter()
        .filter(is_text)
        .map(|token| Token {
            text: text(token),
            top: top(token),
        })
        .collect())
}
