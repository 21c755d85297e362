//! `model list` (network), `model endpoints` and `model endpoint`.

use serde_json::json;
use tenzro_node::NodeError;
use tenzro_node::config::Config;
use tenzro_protocol::amount::Wei;
use tenzro_protocol::network::{EndpointInfo, Missing, NetworkModel};

use super::network::{START_NODE, explain_node, node, tell_missing};
use super::provider::status_text;
use crate::output::Output;
use crate::report::Failure;

pub(super) async fn models(config: &Config, output: &Output) -> anyhow::Result<()> {
    let models: Vec<NetworkModel> = node(config)?
        .call("tenzro_listModels", json!([]))
        .await
        .map_err(|error| match error {
            NodeError::Unreachable { .. } => Failure::new(error.to_string())
                .hint(format!(
                    "{START_NODE}; the models of this home: tenzro-cli model list --local"
                ))
                .into(),
            error => explain_node(error),
        })?;
    if output.json {
        output.json(&models);
        return Ok(());
    }
    if models.is_empty() {
        output.note("nobody serves a model yet");
        output.hint("tenzro-cli model serve MODEL --remote");
        return Ok(());
    }
    let rows = models.into_iter().map(|model| {
        let input = model.cheapest_input_token;
        let cheapest = input.zip(model.cheapest_output_token);
        vec![
            model.model_id,
            model.endpoints.to_string(),
            model.online.to_string(),
            cheapest.map_or_else(|| "-".to_owned(), |(input, answer)| price(input, answer)),
        ]
    });
    output.table(
        &["model", "endpoints", "online", "cheapest"],
        rows.collect(),
    );
    Ok(())
}

pub(super) async fn list(
    config: &Config,
    model: Option<&str>,
    output: &Output,
) -> anyhow::Result<()> {
    let params = model.map_or_else(|| json!([]), |model| json!([{"model": model}]));
    let mut endpoints: Vec<EndpointInfo> = node(config)?
        .call("tenzro_listModelEndpoints", params)
        .await
        .map_err(explain_node)?;
    if output.json {
        output.json(&endpoints);
        return Ok(());
    }
    endpoints.retain(|endpoint| !endpoint.missing.contains(&Missing::Serving));
    if endpoints.is_empty() {
        output.note("there is no endpoint");
        output.hint("tenzro-cli model serve MODEL --remote");
        return Ok(());
    }
    let (head, rows) = rows(&endpoints, true);
    output.table(&head, rows);
    Ok(())
}

pub(super) async fn show(
    config: &Config,
    id: Option<&str>,
    model: Option<&str>,
    output: &Output,
) -> anyhow::Result<()> {
    let params = match id {
        Some(id) => json!([{"endpoint_id": id}]),
        None => json!([{"model": model}]),
    };
    let endpoint: EndpointInfo = node(config)?
        .call("tenzro_getModelEndpoint", params)
        .await
        .map_err(explain_node)?;
    if output.json {
        output.json(&endpoint);
        return Ok(());
    }
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let priced = endpoint
        .price_per_input_token
        .zip(endpoint.price_per_output_token);
    let lines = [
        ("model", plain(&endpoint.model_id)),
        ("endpoint", endpoint.endpoint_id.clone()),
        ("address", plain(&endpoint.api_endpoint)),
        ("provider", provider(&endpoint)),
        ("status", status_text(&endpoint)),
        (
            "price",
            or_dash(priced.map(|(input, answer)| price(input, answer))),
        ),
        (
            "quantization",
            or_dash(endpoint.quantization.as_deref().map(plain)),
        ),
        (
            "context",
            or_dash(
                endpoint
                    .context_length
                    .map(|tokens| format!("{tokens} tokens")),
            ),
        ),
        ("sha256", or_dash(endpoint.model_hash.clone())),
        (
            "latency",
            or_dash(endpoint.latency_ms.map(|ms| format!("{ms:.1} ms"))),
        ),
        (
            "uptime",
            or_dash(endpoint.uptime_percent.map(|share| format!("{share:.1} %"))),
        ),
    ];
    for (name, text) in lines {
        output.line(format!("{name:<13} {text}"));
    }
    tell_missing(&endpoint.missing, output);
    Ok(())
}

/// A table of endpoints.
pub(super) fn rows(
    endpoints: &[EndpointInfo],
    with_provider: bool,
) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let mut head = vec!["model", "address", "status", "price", "latency"];
    if with_provider {
        head.push("provider");
    }
    let row = |endpoint: &EndpointInfo| {
        let priced = endpoint
            .price_per_input_token
            .zip(endpoint.price_per_output_token);
        let mut row = vec![
            plain(&endpoint.model_id),
            plain(&endpoint.api_endpoint),
            status_text(endpoint),
            priced.map_or_else(|| "-".to_owned(), |(input, answer)| price(input, answer)),
            endpoint
                .latency_ms
                .map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms")),
        ];
        if with_provider {
            row.push(provider(endpoint));
        }
        row
    };
    (head, endpoints.iter().map(row).collect())
}

fn provider(endpoint: &EndpointInfo) -> String {
    match (&endpoint.provider, &endpoint.provider_name) {
        (Some(address), Some(name)) => format!("{} ({address})", plain(name)),
        (Some(address), None) => address.clone(),
        (None, _) => "this node".to_owned(),
    }
}

/// TNZO per token.
pub(super) fn price(input: Wei, answer: Wei) -> String {
    match (input.0, answer.0) {
        (0, 0) => "free".to_owned(),
        (input, answer) if input == answer => format!("{} TNZO/token", Wei(input).tnzo()),
        (input, answer) => format!(
            "{} in, {} out TNZO/token",
            Wei(input).tnzo(),
            Wei(answer).tnzo()
        ),
    }
}

/// Somebody else's text on a terminal: nothing that moves the cursor or turns the text around.
pub(super) fn plain(text: &str) -> String {
    let is_trick = |character: char| {
        character.is_control()
            || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}')
    };
    text.chars()
        .map(|character| {
            if is_trick(character) {
                '\u{fffd}'
            } else {
                character
            }
        })
        .collect()
}
