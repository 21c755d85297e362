//! The same answers for money and for free, in turn, from one provider on one machine.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::StreamExt;
use tenzro_ledger::{B256, Ledger, PrivateKeySigner, connect};
use tenzro_node::openai_client::{Chunks, OpenAiClient};
use tenzro_node::paying_client::PayingClient;
use tenzro_node::{LedgerView, NodeClient};
use tenzro_payments::payer::budget::Limits;
use tenzro_payments::payer::terms::{Expected, Market};
use tenzro_payments::payer::{Payer, PayerConfig, unix_now};
use tenzro_payments::signature::Signer;
use tenzro_payments::voucher::Domain;
use tenzro_protocol::openai::chat::{ChatChunk, ChatRequest, Content, Message};
use tenzro_protocol::openai::{Parameters, StreamOptions};

use crate::{Arguments, percentile};

/// One provider, asked in both ways.
pub(crate) struct Provider {
    pub(crate) url: String,
    model: String,
    tokens: u32,
    free: OpenAiClient,
    paying: PayingClient,
}

/// One answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) first: Duration,
    rate: f64,
}

impl Provider {
    pub(crate) async fn connect(
        arguments: &Arguments,
        key: &B256,
        token: &str,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let nobody = tenzro_node::Home::new(folder.to_owned());
        let node = NodeClient::new(&arguments.rpc, &nobody)?;
        let info: serde_json::Value = node
            .call("tenzro_networkInfo", serde_json::json!([]))
            .await?;
        let address = |name: &str| -> anyhow::Result<tenzro_ledger::Address> {
            Ok(info["contracts"][name]
                .as_str()
                .context("a contract")?
                .parse()?)
        };
        let addresses = tenzro_ledger::Addresses {
            tnzo: address("tnzo")?,
            faucet: None,
            provider_registry: address("provider_registry")?,
            payment_channels: address("payment_channels")?,
            first_block: 0,
        };
        let ledger = Ledger::open(connect(&arguments.rpc)?, addresses).await?;
        let price = ledger
            .pricing_now(arguments.provider, &arguments.model)
            .await?;
        let price = price.context("the provider has a price")?.at(unix_now());
        let place = ledger.escrow();
        let payer = PayerConfig {
            path: folder.join("payer.sqlite"),
            market: Market {
                domain: Domain::new(place.chain_id, place.address),
                token: place.token,
            },
            signer: Signer::from_bytes(key).context("a key")?,
            limits: Limits::default(),
            clock: unix_now,
        };
        let wallet = PrivateKeySigner::from_bytes(key)?;
        let payer = Payer::open(payer, Arc::new(LedgerView::new(ledger, wallet)))?;
        let expected = Expected {
            payee: arguments.provider,
            model: arguments.model.clone(),
            model_hash: None,
            input_price_max: price.input,
            output_price_max: price.output,
            window_tokens_max: 64,
            answer_tokens_max: arguments.tokens,
        };
        let url = &arguments.provider_url;
        Ok(Self {
            url: url.clone(),
            model: arguments.model.clone(),
            tokens: arguments.tokens,
            free: OpenAiClient::new(url)?.with_token(Some(token.to_owned())),
            paying: PayingClient::new(url, true, payer, expected, None)?,
        })
    }

    /// An answer to a prompt that no cache knows.
    fn request(&self, number: usize, tokens: u32) -> ChatRequest {
        ChatRequest {
            model: self.model.clone(),
            messages: vec![Message {
                role: "user".to_owned(),
                content: Some(Content::Text(format!(
                    "{number}. Tell me about the number {number}."
                ))),
                ..Message::default()
            }],
            parameters: Parameters {
                max_tokens: Some(tokens),
                temperature: Some(0.0),
                ignore_eos: Some(true),
                stream: Some(true),
                stream_options: Some(StreamOptions {
                    include_usage: Some(true),
                }),
                ..Parameters::default()
            },
            ..ChatRequest::default()
        }
    }

    pub(crate) async fn paid(&self, number: usize, tokens: u32) -> anyhow::Result<Timing> {
        let began = Instant::now();
        let chunks = self.paying.chat(&self.request(number, tokens)).await?;
        time(began, chunks).await
    }

    async fn free(&self, number: usize, tokens: u32) -> anyhow::Result<Timing> {
        let began = Instant::now();
        let answer = self.free.chat(&self.request(number, tokens)).await?;
        time(began, answer.chunks).await
    }
}

async fn time(began: Instant, mut chunks: Chunks<ChatChunk>) -> anyhow::Result<Timing> {
    let mut first = None;
    let mut tokens = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        let has_text = chunk.choices.first().is_some_and(|choice| {
            let text = choice.delta.content.as_ref();
            text.is_some_and(|text| !text.is_empty())
        });
        if has_text {
            first.get_or_insert_with(|| began.elapsed());
        }
        if let Some(usage) = chunk.usage.flatten() {
            tokens = usage.completion_tokens;
        }
    }
    let first = first.context("no text came")?;
    let rest = began.elapsed().saturating_sub(first);
    Ok(Timing {
        first,
        rate: f64::from(tokens.saturating_sub(1)) / rest.as_secs_f64(),
    })
}

pub(crate) async fn run(provider: &Provider, pairs: usize) -> anyhow::Result<()> {
    let tokens = provider.tokens;
    // The channel is opened, and everything is warm.
    provider.paid(1_000_000, tokens).await?;
    provider.free(1_000_001, tokens).await?;
    let (mut paid, mut free) = (Vec::new(), Vec::new());
    for number in 0..pairs {
        paid.push(provider.paid(2 * number, tokens).await?);
        free.push(provider.free(2 * number + 1, tokens).await?);
    }
    let ratio = |one: &[Timing], other: &[Timing]| {
        let pairs = one.iter().zip(other);
        let mut ratios: Vec<f64> = pairs.map(|(one, other)| one.rate / other.rate).collect();
        percentile(&mut ratios, 50)
    };
    let rates = |timings: &[Timing]| {
        percentile(
            &mut timings.iter().map(|one| one.rate).collect::<Vec<_>>(),
            50,
        )
    };
    let firsts = |timings: &[Timing]| {
        let values = timings.iter().map(|one| one.first.as_secs_f64() * 1e3);
        percentile(&mut values.collect::<Vec<_>>(), 50)
    };
    let rate_ratio = ratio(&paid, &free);
    let mut waits: Vec<f64> = paid
        .iter()
        .zip(&free)
        .map(|(paid, free)| (paid.first.as_secs_f64() - free.first.as_secs_f64()) * 1e3)
        .collect();
    let wait = percentile(&mut waits, 50);
    println!(
        "## Paid against free, {pairs} pairs of {} tokens\n",
        provider.tokens
    );
    println!("| figure | paid | free | paid to free | target | reached |");
    println!("|---|---|---|---|---|---|");
    let reached = |is: bool| if is { "yes" } else { "no" };
    println!(
        "| tokens/s, median ↑ | {:.1} | {:.1} | {rate_ratio:.3} | ≥ 0.99 | {} |",
        rates(&paid),
        rates(&free),
        reached(rate_ratio >= 0.99)
    );
    println!(
        "| first token, median (ms) ↓ | {:.2} | {:.2} | {wait:+.2} ms | ≤ +5 ms | {} |\n",
        firsts(&paid),
        firsts(&free),
        reached(wait <= 5.0)
    );
    Ok(())
}
