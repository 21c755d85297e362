//! One question and its streamed answer.

use std::time::{Duration, Instant};

use futures::StreamExt;
use tenzro_node::openai_client::{ChatAnswer, ClientError};
use tenzro_protocol::amount::Wei;
use tenzro_protocol::inference::ChatMessage;
use tenzro_protocol::openai::chat::{ChatRequest, Content, Message};
use tenzro_protocol::openai::{Parameters, StreamOptions, Usage};

use super::super::endpoints::plain;
use super::super::network::START_NODE;
use super::place::{FREE, Place};
use crate::report::Failure;

/// What the user chose for all turns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) max_tokens: Option<u32>,
    pub(super) temperature: Option<f32>,
}

/// Who sold an answer.
#[derive(Debug)]
enum Seller {
    /// The wallet that was paid.
    Wallet(String),
    /// The node does not say it.
    Unsaid,
}

/// A complete answer.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) text: String,
    pub(super) finish_reason: Option<String>,
    pub(super) usage: Usage,
    pub(super) first_token: Option<Duration>,
    /// Who was paid; `None` for a free answer.
    seller: Option<Seller>,
    whole: Duration,
}

impl Turn {
    /// Asks, and calls `show` with every new piece of text. Dropping the future ends the answer at
    /// the server too.
    pub(super) async fn run(
        place: &Place,
        conversation: Vec<ChatMessage>,
        settings: Settings,
        mut show: impl FnMut(&str),
    ) -> anyhow::Result<Self> {
        let request = ChatRequest {
            model: place.model.clone(),
            messages: conversation
                .into_iter()
                .map(|message| Message {
                    role: message.role,
                    content: Some(Content::Text(message.content)),
                    ..Message::default()
                })
                .collect(),
            parameters: Parameters {
                max_tokens: settings.max_tokens,
                temperature: settings.temperature,
                stream: Some(true),
                stream_options: Some(StreamOptions {
                    include_usage: Some(true),
                }),
                ..Parameters::default()
            },
            ..ChatRequest::default()
        };
        let asked = Instant::now();
        let explain = |error| explain(error, place);
        let ChatAnswer {
            provider,
            mut chunks,
        } = place.client.chat(&request).await.map_err(explain)?;
        let mut turn = Self {
            text: String::new(),
            finish_reason: None,
            usage: Usage::default(),
            first_token: None,
            seller: seller(place, provider),
            whole: Duration::ZERO,
        };
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(explain)?;
            if let Some(usage) = chunk.usage.flatten() {
                turn.usage = usage;
            }
            let Some(choice) = chunk.choices.into_iter().next() else {
                continue;
            };
            turn.finish_reason = choice.finish_reason.or(turn.finish_reason);
            if let Some(text) = choice.delta.content.filter(|text| !text.is_empty()) {
                turn.first_token.get_or_insert_with(|| asked.elapsed());
                show(&text);
                turn.text.push_str(&text);
            }
        }
        turn.whole = asked.elapsed();
        Ok(turn)
    }

    /// Of the answer, without the wait for its first token.
    pub(super) fn tokens_per_second(&self) -> f64 {
        let first = self.first_token.unwrap_or_default();
        let seconds = self.whole.saturating_sub(first).as_secs_f64();
        let tokens = f64::from(self.usage.completion_tokens.saturating_sub(1));
        if seconds > 0.0 { tokens / seconds } else { 0.0 }
    }

    /// The wallet that was paid; `None` for a free answer, and where the node does not say it.
    pub(super) fn provider(&self) -> Option<&str> {
        match &self.seller {
            Some(Seller::Wallet(wallet)) => Some(wallet),
            Some(Seller::Unsaid) | None => None,
        }
    }

    /// What it cost; `None` where nobody has said it.
    pub(super) fn cost(&self) -> Option<Wei> {
        match &self.seller {
            Some(_) => self.usage.cost,
            None => Some(Wei::ZERO),
        }
    }

    /// Who was paid how much, in words.
    fn price(&self) -> String {
        if self.seller.is_none() {
            return FREE.to_owned();
        }
        let cost = match self.cost() {
            Some(cost) => format!("{} TNZO", cost.tnzo()),
            None => "cost unknown".to_owned(),
        };
        match self.provider() {
            Some(provider) => format!("{cost} · {}", short(provider)),
            None => cost,
        }
    }

    /// A line for below the answer.
    pub(super) fn footer(&self, model: &str) -> String {
        let cut = match self.finish_reason.as_deref() {
            Some("length") => " · cut at its limit",
            Some("payment_required") => " · cut: the provider was not paid in time",
            _ => "",
        };
        format!(
            "{model} · {} tokens in, {} out · {:.1} tok/s · first after {:.2} s · {}{cut}",
            self.usage.prompt_tokens,
            self.usage.completion_tokens,
            self.tokens_per_second(),
            self.first_token.unwrap_or_default().as_secs_f64(),
            self.price(),
        )
    }
}

/// By what the node says of an answer that comes through it.
fn seller(place: &Place, provider: Option<String>) -> Option<Seller> {
    match provider.as_deref() {
        _ if !place.is_network() => None,
        Some("local") => None,
        Some(wallet) => Some(Seller::Wallet(plain(wallet))),
        None => Some(Seller::Unsaid),
    }
}

/// `0x1234…abcd`, as wallets are shown where there is little room.
pub(super) fn short(address: &str) -> String {
    match (
        address.get(..6),
        address.get(address.len().saturating_sub(4)..),
    ) {
        (Some(head), Some(tail)) if address.len() > 10 => format!("{head}…{tail}"),
        _ => address.to_owned(),
    }
}

fn explain(error: ClientError, place: &Place) -> anyhow::Error {
    let hint = match &error {
        ClientError::Connection(_) if place.is_network() => Some(START_NODE.to_owned()),
        ClientError::Connection(_) => Some("tenzro-cli model ps shows what is running".to_owned()),
        ClientError::Server { error, .. }
            if error.code.as_deref() == Some("context_length_exceeded") =>
        {
            Some("start anew with /new, or serve with a larger --ctx-size".to_owned())
        }
        ClientError::Server { status: 429, .. } => Some("try again in a moment".to_owned()),
        ClientError::Server { error, .. } => place.hint(error.code.as_deref()),
        ClientError::Protocol(_) | ClientError::Payment(_) => None,
    };
    Failure::new(error.to_string()).maybe_hint(hint).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_footer_says_why_an_answer_was_cut() {
        let footer = |reason: &str| {
            let turn = Turn {
                text: "Once".to_owned(),
                finish_reason: Some(reason.to_owned()),
                usage: Usage::default(),
                first_token: None,
                seller: None,
                whole: Duration::ZERO,
            };
            turn.footer("m")
        };
        assert!(footer("length").ends_with("cut at its limit"));
        assert!(footer("payment_required").ends_with("not paid in time"));
        assert!(footer("stop").ends_with(FREE));
    }
}
