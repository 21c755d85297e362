//! `provider register|deregister|status|earnings|pricing|schedule` and `stake deposit|withdraw|status`.

use jiff::Timestamp;
use serde_json::json;
use tenzro_ledger::registry::{Price, Pricing};
use tenzro_ledger::{Address, TransactionReceipt};
use tenzro_node::config::Config;
use tenzro_node::{Network, pricing_info};
use tenzro_protocol::amount::Wei;
use tenzro_protocol::model_id::{is_valid, model_id};
use tenzro_protocol::network::{EndpointInfo, EndpointStatus, PricingInfo, ProviderInfo};
use tenzro_protocol::schedule::Schedule;

use super::earnings;
use super::endpoints::{price, rows};
use super::library;
use super::network::{
    Acting, connect, explain_ledger, explain_node, own_wallet, standing, tell_missing,
};
use crate::arguments;
use crate::output::Output;
use crate::report::Failure;

pub(super) async fn run(
    config: &Config,
    command: arguments::Provider,
    output: &Output,
) -> anyhow::Result<()> {
    match command {
        arguments::Provider::Register { role: _, name } => {
            let acting = Acting::start(config, output).await?;
            let receipt = acting.operations().register(&name).await;
            let receipt = receipt.map_err(|error| acting.explain(error))?;
            let done = format!("{} is registered as a model provider", acting.address());
            finish(&acting, &receipt, &done, output).await
        }
        arguments::Provider::Deregister => {
            let acting = Acting::start(config, output).await?;
            let receipt = acting.operations().deregister().await;
            let receipt = receipt.map_err(|error| acting.explain(error))?;
            let done = format!("{} is no provider any more", acting.address());
            if output.json {
                return finish(&acting, &receipt, &done, output).await;
            }
            output.line(done);
            output.hint("tenzro-cli stake withdraw");
            Ok(())
        }
        arguments::Provider::Status => status(config, output).await,
        arguments::Provider::Earnings => earnings::run(config, output),
        arguments::Provider::Pricing(command) => pricing(config, command, output).await,
        arguments::Provider::Schedule(command) => schedule(config, command, output).await,
    }
}

/// After a transaction: what was done, and what is still missing.
async fn finish(
    acting: &Acting,
    receipt: &TransactionReceipt,
    done: &str,
    output: &Output,
) -> anyhow::Result<()> {
    let standing = acting.standing().await?;
    if output.json {
        let hash = receipt.transaction_hash;
        output.json(&json!({"transaction_hash": hash, "provider": standing}));
        return Ok(());
    }
    output.line(done);
    tell_missing(&standing.missing, output);
    Ok(())
}

/// The network and the address of this home's wallet, without its key.
async fn own(config: &Config, output: &Output) -> anyhow::Result<(Network, Address)> {
    let network = connect(config).await?;
    let wallet = own_wallet(config, &network, output)?;
    Ok((network, wallet.address))
}

async fn status(config: &Config, output: &Output) -> anyhow::Result<()> {
    let (network, address) = own(config, output).await?;
    let standing = standing(&network, address).await?;
    let own_endpoints = endpoints(&network, address).await?;
    let earned = earnings::read(config, address)?;
    if output.json {
        output.json(&json!({
            "provider": standing,
            "endpoints": own_endpoints,
            "earnings": earnings::totals(&earned),
        }));
        return Ok(());
    }
    describe(&standing, output);
    output.line(format!("settled    {} TNZO", Wei(earned.settled).tnzo()));
    output.line(format!("unsettled  {}", earnings::unsettled(&earned)));
    if own_endpoints.is_empty() {
        output.hint("tenzro-cli model serve MODEL --remote");
    } else {
        output.line("");
        let (head, rows) = rows(&own_endpoints, false);
        output.table(&head, rows);
    }
    tell_missing(&standing.missing, output);
    let lag = network.info.ledger_lag_seconds;
    if lag > 60.0 {
        output.warn(format!("the node's view of the ledger is {lag:.0} s old"));
    }
    Ok(())
}

fn describe(standing: &ProviderInfo, output: &Output) {
    let role = match (standing.is_registered, standing.name.as_str()) {
        (false, _) => "none".to_owned(),
        (true, "") => "model-provider".to_owned(),
        (true, name) => format!("model-provider, as {name}"),
    };
    let active = if standing.is_eligible { "yes" } else { "no" };
    let mut lines = vec![
        ("wallet", standing.provider.clone()),
        ("role", role),
        ("stake", stake_text(standing)),
        ("active", active.to_owned()),
    ];
    if let Some(leaving) = leaving(standing) {
        lines.push(("unbonding", leaving));
    }
    let now = if standing.is_open {
        "open now"
    } else {
        "closed now"
    };
    let schedule = match &standing.schedule {
        Some(schedule) => format!("{schedule} ({now})"),
        None => "always".to_owned(),
    };
    lines.push(("schedule", schedule));
    for (name, text) in lines {
        output.line(format!("{name:<10} {text}"));
    }
}

fn stake_text(standing: &ProviderInfo) -> String {
    format!(
        "{} TNZO (at least {} must stay)",
        standing.staked.tnzo(),
        standing.minimum_stake.tnzo()
    )
}

/// What is unbonding, and until when.
fn leaving(standing: &ProviderInfo) -> Option<String> {
    let until = i64::try_from(standing.unbonding_until?).ok()?;
    let until = Timestamp::from_second(until).ok()?;
    (standing.unbonding > Wei::ZERO)
        .then(|| format!("{} TNZO, until {until}", standing.unbonding.tnzo()))
}

/// The wallet's endpoints that are not stopped, as the node tells them.
async fn endpoints(network: &Network, address: Address) -> anyhow::Result<Vec<EndpointInfo>> {
    let all: Vec<EndpointInfo> = network
        .node
        .call("tenzro_listModelEndpoints", json!([]))
        .await
        .map_err(explain_node)?;
    let own = address.to_string();
    let is_own = |endpoint: &EndpointInfo| {
        let is_stopped = endpoint
            .missing
            .contains(&tenzro_protocol::network::Missing::Serving);
        endpoint.provider.as_ref() == Some(&own) && !is_stopped
    };
    Ok(all.into_iter().filter(is_own).collect())
}

/// The id under which a model stands on the ledger.
fn network_model(config: &Config, model: &str) -> anyhow::Result<String> {
    let known = library(config).find(model)?;
    let id = known.map_or_else(|_| model_id(model), |entry| entry.id);
    if is_valid(&id) {
        return Ok(id);
    }
    Err(Failure::new(format!("--model: '{model}' is no model"))
        .hint("tenzro-cli model list --local")
        .into())
}

async fn pricing(
    config: &Config,
    command: arguments::Pricing,
    output: &Output,
) -> anyhow::Result<()> {
    match command {
        arguments::Pricing::Set {
            model,
            per_token,
            input,
            output: answer,
        } => {
            let model = network_model(config, &model)?;
            let both = per_token.map(|price| (price, price));
            let (input, answer) = both.or(input.zip(answer)).unwrap_or_default();
            let price = Price {
                input: input.0,
                output: answer.0,
            };
            set_price(config, &model, price, output).await
        }
        arguments::Pricing::Show { model } => show_prices(config, model.as_deref(), output).await,
    }
}

async fn set_price(
    config: &Config,
    model: &str,
    price: Price,
    output: &Output,
) -> anyhow::Result<()> {
    let acting = Acting::start(config, output).await?;
    let receipt = acting.operations().set_pricing(model, price).await;
    let receipt = receipt.map_err(|error| acting.explain(error))?;
    let ledger = &acting.network.ledger;
    let now = ledger.pricing_now(acting.address(), model).await;
    let now = now.map_err(explain_ledger)?;
    let now = now.map(|pricing| pricing_info(model, pricing, Timestamp::now()));
    if output.json {
        let hash = receipt.transaction_hash;
        output.json(&json!({"transaction_hash": hash, "pricing": now}));
        return Ok(());
    }
    if let Some(now) = now {
        tell_price(&now, output);
    }
    tell_missing(&acting.standing().await?.missing, output);
    Ok(())
}

fn tell_price(pricing: &PricingInfo, output: &Output) {
    output.line(format!(
        "{}: {}",
        pricing.model_id,
        price(
            pricing.price_per_input_token,
            pricing.price_per_output_token
        )
    ));
    if let Some(next) = &pricing.next_price {
        let at = i64::try_from(next.effective_at).unwrap_or_default();
        let at = Timestamp::from_second(at).map_or_else(|_| "-".to_owned(), |at| at.to_string());
        output.line(format!(
            "{}: {} from {at}",
            pricing.model_id,
            price(next.price_per_input_token, next.price_per_output_token)
        ));
    }
}

async fn show_prices(config: &Config, model: Option<&str>, output: &Output) -> anyhow::Result<()> {
    let (network, address) = own(config, output).await?;
    let prices = match model {
        Some(model) => {
            let model = network_model(config, model)?;
            let found = network.ledger.pricing_now(address, &model).await;
            let found: Option<Pricing> = found.map_err(explain_ledger)?;
            found
                .map(|pricing| pricing_info(&model, pricing, Timestamp::now()))
                .into_iter()
                .collect()
        }
        None => all_prices(&network, address).await?,
    };
    if output.json {
        output.json(&prices);
        return Ok(());
    }
    if prices.is_empty() {
        output.note("no price is set");
        output.hint("tenzro-cli provider pricing set --model MODEL --per-token 0.0001");
    }
    for pricing in &prices {
        tell_price(pricing, output);
    }
    Ok(())
}

async fn all_prices(network: &Network, address: Address) -> anyhow::Result<Vec<PricingInfo>> {
    #[derive(serde::Deserialize)]
    struct Prices {
        pricing: Vec<PricingInfo>,
    }
    let params = json!([{"address": address.to_string()}]);
    let prices: Prices = network
        .node
        .call("tenzro_getProviderPricing", params)
        .await
        .map_err(explain_node)?;
    Ok(prices.pricing)
}

async fn schedule(
    config: &Config,
    command: arguments::Schedule,
    output: &Output,
) -> anyhow::Result<()> {
    match command {
        arguments::Schedule::Set {
            timezone,
            hours,
            days,
        } => {
            let schedule = Schedule::parse(&timezone, &hours, days.as_deref())
                .map_err(|error| Failure::new(format!("--{error}")))?;
            let acting = Acting::start(config, output).await?;
            let receipt = acting.operations().set_schedule(&schedule).await;
            let receipt = receipt.map_err(|error| acting.explain(error))?;
            finish(&acting, &receipt, &format!("serving {schedule}"), output).await
        }
        arguments::Schedule::Clear => {
            let acting = Acting::start(config, output).await?;
            let receipt = acting.operations().clear_schedule().await;
            let receipt = receipt.map_err(|error| acting.explain(error))?;
            finish(&acting, &receipt, "serving always", output).await
        }
        arguments::Schedule::Show => {
            let (network, address) = own(config, output).await?;
            let standing = standing(&network, address).await?;
            if output.json {
                let schedule = &standing.schedule;
                output.json(&json!({"schedule": schedule, "is_open": standing.is_open}));
            } else {
                let always = || "always".to_owned();
                output.line(standing.schedule.map_or_else(always, |one| one.to_string()));
            }
            Ok(())
        }
    }
}

pub(super) async fn stake(
    config: &Config,
    command: arguments::Stake,
    output: &Output,
) -> anyhow::Result<()> {
    match command {
        arguments::Stake::Deposit { amount, role: _ } => {
            if amount == Wei::ZERO {
                return Err(Failure::new("--amount: 0 is no stake").into());
            }
            let acting = Acting::start(config, output).await?;
            let receipt = acting.operations().stake(amount).await;
            let receipt = receipt.map_err(|error| acting.explain(error))?;
            let done = format!("staked {} TNZO", amount.tnzo());
            finish(&acting, &receipt, &done, output).await
        }
        arguments::Stake::Withdraw { amount } => withdraw(config, amount, output).await,
        arguments::Stake::Status => {
            let (network, address) = own(config, output).await?;
            let standing = standing(&network, address).await?;
            if output.json {
                output.json(&standing);
                return Ok(());
            }
            output.line(format!("staked     {}", stake_text(&standing)));
            if let Some(leaving) = leaving(&standing) {
                output.line(format!("unbonding  {leaving}"));
            }
            tell_missing(&standing.missing, output);
            Ok(())
        }
    }
}

async fn withdraw(config: &Config, amount: Option<Wei>, output: &Output) -> anyhow::Result<()> {
    let acting = Acting::start(config, output).await?;
    let before = acting.standing().await?;
    let receipt = acting.operations().unstake(amount).await;
    let receipt = receipt.map_err(|error| acting.explain(error))?;
    let after = acting.standing().await?;
    let done = if after.staked < before.staked {
        format!(
            "{} TNZO are back in the wallet",
            Wei(before.staked.0 - after.staked.0).tnzo()
        )
    } else {
        let until = leaving(&after).unwrap_or_default();
        format!("unbonding {until}; then run tenzro-cli stake withdraw again")
    };
    if output.json {
        let hash = receipt.transaction_hash;
        output.json(&json!({"transaction_hash": hash, "provider": after}));
        return Ok(());
    }
    output.line(done);
    if after.served_models.is_empty() {
        return Ok(());
    }
    tell_missing(&after.missing, output);
    Ok(())
}

/// Whether an endpoint can be used, for people.
pub(super) fn status_text(endpoint: &EndpointInfo) -> String {
    let status = match endpoint.status {
        EndpointStatus::Online => "online",
        EndpointStatus::Degraded => "degraded",
        EndpointStatus::Offline => "offline",
        EndpointStatus::Unknown => "not probed yet",
        EndpointStatus::ScheduledOff => "outside its hours",
        EndpointStatus::Inactive => "inactive",
    };
    status.to_owned()
}
