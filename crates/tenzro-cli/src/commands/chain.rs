//! `chain deploy` and `chain info`.

use std::fs;

use anyhow::Context;
use serde_json::json;
use tenzro_ledger::{
    Account, Address, Addresses, FaucetRules, Rules, SendError, connect as connect_chain, deploy,
};
use tenzro_node::config::Config;
use tenzro_node::{NetworkError, replace_file};
use tenzro_protocol::network::NetworkInfo;
use toml_edit::{DocumentMut, Item, Table, value};

use super::network::{explain_ledger, explain_node, node, unlock, wallet};
use crate::arguments;
use crate::output::Output;
use crate::report::Failure;

pub(super) async fn run(
    config: &Config,
    rpc: Option<&str>,
    command: arguments::Chain,
    output: &Output,
) -> anyhow::Result<()> {
    match command {
        arguments::Chain::Info => info(config, output).await,
        arguments::Chain::Deploy {
            development,
            arbiter,
        } => {
            let url = rpc.ok_or_else(|| {
                Failure::new("which chain? its address is needed")
                    .hint("tenzro-cli chain deploy --rpc URL")
            })?;
            put(config, url, development, arbiter, output).await
        }
    }
}

async fn put(
    config: &Config,
    url: &str,
    development: bool,
    arbiter: Option<Address>,
    output: &Output,
) -> anyhow::Result<()> {
    let provider = connect_chain(url).map_err(explain_ledger)?;
    let chain_id = tenzro_ledger::chain_id(&provider).await.map_err(|error| {
        let error = NetworkError::from(error);
        Failure::new(error.to_string()).hint("is --rpc the address of an EVM chain?")
    })?;
    let chosen = wallet(config, None)?;
    let signer = unlock(config, &chosen)?.signer;
    let account = Account::new(provider, chain_id, signer);
    let own = account.address();
    let rules = Rules::standard(own, arbiter.unwrap_or(own));
    let faucet = development.then(FaucetRules::standard);
    output.note(format!("deploying to chain {chain_id} from {own}"));
    let addresses = deploy(&account, rules, faucet, |name, address| {
        output.note(format!("{name} is at {address}"));
    })
    .await
    .map_err(|error| explain(&error, own))?;
    write(config, url, chain_id, &addresses)?;
    if output.json {
        output.json(&json!({"chain_id": chain_id, "url": url, "contracts": addresses}));
        return Ok(());
    }
    let file = config.home.config_file();
    output.line(format!("the contracts are on chain {chain_id}"));
    output.note(format!("their addresses are in {}", file.display()));
    output.hint("tenzro-cli node start --detach");
    Ok(())
}

fn explain(error: &SendError, own: Address) -> Failure {
    let hint = matches!(error, SendError::Gas { .. })
        .then(|| format!("send some of the chain's gas coin to {own}"));
    Failure::new(format!("the contracts cannot be deployed: {error}")).maybe_hint(hint)
}

/// Puts the chain into the settings and leaves all else in the file as it is.
fn write(config: &Config, url: &str, chain_id: u64, addresses: &Addresses) -> anyhow::Result<()> {
    let path = config.home.config_file();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).context(path.display().to_string()),
    };
    let mut document: DocumentMut = text.parse().context("config.toml is no TOML")?;
    let section = document.entry("chain").or_insert(Item::Table(Table::new()));
    let number = |number: u64| i64::try_from(number).map(value);
    section["url"] = value(url);
    section["id"] = number(chain_id)?;
    section["tnzo"] = value(addresses.tnzo.to_string());
    section["provider_registry"] = value(addresses.provider_registry.to_string());
    section["payment_channels"] = value(addresses.payment_channels.to_string());
    section["first_block"] = number(addresses.first_block)?;
    match addresses.faucet {
        Some(faucet) => section["faucet"] = value(faucet.to_string()),
        None => {
            section
                .as_table_like_mut()
                .and_then(|section| section.remove("faucet"));
        }
    }
    fs::create_dir_all(config.home.root())?;
    replace_file(&path, document.to_string().as_bytes()).context(path.display().to_string())
}

async fn info(config: &Config, output: &Output) -> anyhow::Result<()> {
    let info: NetworkInfo = node(config)?
        .call("tenzro_networkInfo", json!([]))
        .await
        .map_err(explain_node)?;
    if output.json {
        output.json(&info);
        return Ok(());
    }
    let contracts = info.contracts;
    let days = info.unbonding_seconds as f64 / 86_400.0;
    let lines = [
        ("chain", format!("{} ({})", info.chain_id, info.chain)),
        ("TNZO", contracts.tnzo),
        ("registry", contracts.provider_registry),
        ("channels", contracts.payment_channels),
        (
            "faucet",
            contracts.faucet.unwrap_or_else(|| "none".to_owned()),
        ),
        (
            "stake",
            format!("at least {} TNZO", info.minimum_stake.tnzo()),
        ),
        ("unbonding", format!("{days} days")),
        (
            "price rise",
            format!("after {} s", info.price_delay_seconds),
        ),
    ];
    for (name, text) in lines {
        output.line(format!("{name:<10} {text}"));
    }
    Ok(())
}
