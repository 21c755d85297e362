//! `wallet create|import|list|show|use|balance|send|faucet|export`.

use std::fs;

use serde_json::json;
use tenzro_ledger::{Address, Wallet, wei};
use tenzro_node::config::Config;
use tenzro_protocol::amount::Wei;

use super::network::{
    Acting, ask, can_ask, connect, explain_ledger, explain_wallet, keystore, own_wallet,
    read_secret, unlock, wallet,
};
use crate::arguments;
use crate::output::Output;
use crate::report::Failure;

pub(super) async fn run(
    config: &Config,
    command: arguments::Wallet,
    output: &Output,
) -> anyhow::Result<()> {
    match command {
        arguments::Wallet::Create { name } => create(config, name.as_deref(), output),
        arguments::Wallet::Import { name, key_file } => {
            let key = match key_file {
                Some(file) => fs::read_to_string(&file)
                    .map_err(|error| Failure::new(format!("{}: {error}", file.display())))?,
                None => read_secret("Private key (64 hexadecimal digits): ")?,
            };
            import(config, name.as_deref(), &key, output)
        }
        arguments::Wallet::List => list(config, output),
        arguments::Wallet::Show { wallet: name } => {
            show(&wallet(config, name.as_deref())?, output);
            Ok(())
        }
        arguments::Wallet::Use { wallet: name } => {
            let chosen = wallet(config, Some(&name))?;
            keystore(config)
                .set_default(&chosen)
                .map_err(explain_wallet)?;
            output.note(format!("{} is in use now", chosen.name));
            show(&wallet(config, Some(&chosen.name))?, output);
            Ok(())
        }
        arguments::Wallet::Balance { wallet: name } => {
            balance(config, name.as_deref(), output).await
        }
        arguments::Wallet::Send { to, amount } => send(config, &to, amount, output).await,
        arguments::Wallet::Faucet { wallet: name } => faucet(config, name.as_deref(), output).await,
        arguments::Wallet::Export {
            wallet: name,
            private_key,
        } => export(config, name.as_deref(), private_key, output),
    }
}

/// A password for a new wallet: the environment's, or typed twice. `None` keeps a random one beside
/// the wallet.
fn new_password(config: &Config) -> anyhow::Result<Option<String>> {
    if let Some(password) = config.wallet_password() {
        return Ok(Some(password.reveal().to_owned()));
    }
    if !can_ask() {
        return Ok(None);
    }
    let password = ask("Password (empty: a random one in a file beside the wallet): ")?;
    if password.is_empty() {
        return Ok(None);
    }
    if ask("Once more: ")? != password {
        return Err(Failure::new("the two passwords differ").into());
    }
    Ok(Some(password))
}

fn create(config: &Config, name: Option<&str>, output: &Output) -> anyhow::Result<()> {
    let password = new_password(config)?;
    let made = keystore(config).create(name, password.as_deref());
    tell_new(&made.map_err(explain_wallet)?, config, output);
    Ok(())
}

fn import(config: &Config, name: Option<&str>, key: &str, output: &Output) -> anyhow::Result<()> {
    let password = new_password(config)?;
    let made = keystore(config).import(name, key, password.as_deref());
    tell_new(&made.map_err(explain_wallet)?, config, output);
    Ok(())
}

fn tell_new(made: &Wallet, config: &Config, output: &Output) {
    show(made, output);
    let directory = config.home.keystore();
    let where_password = if made.has_password_file {
        format!(", its password in {}.password beside it", made.name)
    } else {
        String::new()
    };
    output.note(format!(
        "the key is in {}{where_password}: keep a copy, nobody can make it again",
        directory.join(format!("{}.json", made.name)).display()
    ));
    if !made.is_default {
        output.hint(format!("tenzro-cli wallet use {}", made.name));
    }
}

fn value(wallet: &Wallet) -> serde_json::Value {
    json!({
        "name": wallet.name,
        "address": wallet.address.to_string(),
        "is_default": wallet.is_default,
        "has_password_file": wallet.has_password_file,
    })
}

fn show(wallet: &Wallet, output: &Output) {
    if output.json {
        return output.json(&value(wallet));
    }
    output.line(format!("{} {}", wallet.name, wallet.address));
}

fn list(config: &Config, output: &Output) -> anyhow::Result<()> {
    let wallets = keystore(config).list().map_err(explain_wallet)?;
    if output.json {
        output.json(&wallets.iter().map(value).collect::<Vec<_>>());
        return Ok(());
    }
    if wallets.is_empty() {
        output.hint("tenzro-cli wallet create");
        return Ok(());
    }
    let mark = |is_set: bool, text: &str| {
        if is_set {
            text.to_owned()
        } else {
            "-".to_owned()
        }
    };
    let rows = wallets.into_iter().map(|wallet| {
        vec![
            mark(wallet.is_default, "*"),
            wallet.name,
            wallet.address.to_string(),
            mark(wallet.has_password_file, "in a file"),
        ]
    });
    output.table(&["in use", "name", "address", "password"], rows.collect());
    Ok(())
}

/// The address that a text means: one, or that of a wallet.
fn address(config: &Config, text: &str) -> anyhow::Result<Address> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    Ok(wallet(config, Some(text))?.address)
}

async fn balance(config: &Config, name: Option<&str>, output: &Output) -> anyhow::Result<()> {
    let network = connect(config).await?;
    let address = match name {
        Some(name) => address(config, name)?,
        None => own_wallet(config, &network, output)?.address,
    };
    let balance = network.ledger.balance(address).await;
    let balance = wei(balance.map_err(explain_ledger)?);
    tell_balance(address, balance, output);
    Ok(())
}

fn tell_balance(address: Address, balance: Wei, output: &Output) {
    if output.json {
        return output.json(&json!({
            "address": address.to_string(),
            "balance": balance,
            "balance_tnzo": balance.tnzo(),
        }));
    }
    output.line(format!("{} TNZO", balance.tnzo()));
}

async fn send(config: &Config, to: &str, amount: Wei, output: &Output) -> anyhow::Result<()> {
    let to = address(config, to)?;
    if amount == Wei::ZERO {
        return Err(Failure::new("--amount: nothing would be sent").into());
    }
    let acting = Acting::start(config, output).await?;
    let receipt = acting.operations().transfer(to, amount).await;
    let receipt = receipt.map_err(|error| acting.explain(error))?;
    if output.json {
        output.json(&json!({
            "transaction_hash": receipt.transaction_hash,
            "from": acting.address().to_string(),
            "to": to.to_string(),
            "amount": amount,
        }));
    } else {
        output.line(format!("sent {} TNZO to {to}", amount.tnzo()));
        output.note(format!("transaction {}", receipt.transaction_hash));
    }
    Ok(())
}

async fn faucet(config: &Config, name: Option<&str>, output: &Output) -> anyhow::Result<()> {
    let acting = Acting::start(config, output).await?;
    let to = match name {
        Some(name) => address(config, name)?,
        None => acting.address(),
    };
    let receipt = acting.operations().drip(to).await.ok_or_else(|| {
        Failure::new("this ledger has no faucet: only development ledgers give TNZO away")
    })?;
    receipt.map_err(|error| acting.explain(error))?;
    let balance = acting.network.ledger.balance(to).await;
    tell_balance(to, wei(balance.map_err(explain_ledger)?), output);
    Ok(())
}

fn export(
    config: &Config,
    name: Option<&str>,
    private_key: bool,
    output: &Output,
) -> anyhow::Result<()> {
    let chosen = wallet(config, name)?;
    if !private_key {
        let text = keystore(config).export(&chosen).map_err(explain_wallet)?;
        output.line(text.trim_end());
        return Ok(());
    }
    if !output.yes {
        if !can_ask() {
            return Err(
                Failure::new("the private key is shown only when you say so")
                    .hint("add --yes")
                    .into(),
            );
        }
        output.warn("whoever sees the private key owns the wallet");
        if ask("Type yes to see it: ")? != "yes" {
            return Err(Failure::new("nothing was shown").into());
        }
    }
    let key = unlock(config, &chosen)?.signer.to_bytes();
    if output.json {
        output.json(&json!({"address": chosen.address.to_string(), "private_key": key}));
    } else {
        output.line(key.to_string());
    }
    Ok(())
}
