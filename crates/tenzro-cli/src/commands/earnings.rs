//! `provider earnings`: what this home's wallet earned, from its own books. Needs no node.

use serde_json::json;
use tenzro_ledger::Address;
use tenzro_node::Earnings;
use tenzro_node::config::Config;
use tenzro_protocol::amount::Wei;

use super::network::wallet;
use crate::output::Output;
use crate::report::Failure;

/// What a wallet's books say.
pub(super) fn read(config: &Config, provider: Address) -> anyhow::Result<Earnings> {
    let earnings = tenzro_node::earnings(&config.home, provider);
    earnings.map_err(|error| Failure::new(format!("the payment books: {error}")).into())
}

/// As JSON, amounts in wei.
pub(super) fn totals(earnings: &Earnings) -> serde_json::Value {
    json!({
        "settled": Wei(earnings.settled),
        "unsettled": Wei(earnings.unsettled),
        "requests": earnings.requests,
        "open_channels": earnings.channels,
    })
}

pub(super) fn run(config: &Config, output: &Output) -> anyhow::Result<()> {
    let provider = wallet(config, None)?.address;
    let earnings = read(config, provider)?;
    if output.json {
        let days = earnings.days.iter().map(|day| {
            json!({
                "day": day.day,
                "model": day.model,
                "requests": day.requests,
                "input_tokens": day.input_tokens,
                "output_tokens": day.output_tokens,
                "earned": Wei(day.charged),
            })
        });
        let mut value = totals(&earnings);
        value["provider"] = json!(provider.to_string());
        value["ttft_ms_mean"] = json!(earnings.ttft_ms_mean);
        value["days"] = days.collect();
        output.json(&value);
        return Ok(());
    }
    output.line(format!("settled    {} TNZO", Wei(earnings.settled).tnzo()));
    output.line(format!("unsettled  {}", unsettled(&earnings)));
    if earnings.days.is_empty() {
        output.note("nobody has paid yet");
        output.hint("tenzro-cli provider status");
        return Ok(());
    }
    output.line("");
    let rows = earnings.days.into_iter().map(|day| {
        vec![
            day.day,
            day.model,
            day.requests.to_string(),
            day.input_tokens.to_string(),
            day.output_tokens.to_string(),
            Wei(day.charged).tnzo(),
        ]
    });
    let head = [
        "day",
        "model",
        "requests",
        "tokens in",
        "tokens out",
        "TNZO",
    ];
    output.table(&head, rows.collect());
    Ok(())
}

/// What was delivered and is not on the ledger yet, in words.
pub(super) fn unsettled(earnings: &Earnings) -> String {
    let amount = Wei(earnings.unsettled).tnzo();
    match earnings.channels {
        1 => format!("{amount} TNZO in 1 open channel"),
        count => format!("{amount} TNZO in {count} open channels"),
    }
}
