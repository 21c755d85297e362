//! `node start|status|stop|logs`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tenzro_node::config::Config;
use tenzro_node::{
    EMBEDDED, LedgerSourceError, Node, NodeRecord, NodeStartError, is_node_running, running_node,
};
use tenzro_protocol::network::NetworkInfo;

use super::detach::{self, Background};
use super::network::{explain_node, explain_wallet, keystore, node, unlock};
use super::serve::Stop;
use crate::arguments;
use crate::output::Output;
use crate::report::Failure;

/// How long running calls may go on after a stop: a transaction is mined in that time.
const DRAIN: Duration = Duration::from_secs(10);

/// What a node may need on top of that.
const MARGIN: Duration = Duration::from_secs(10);

/// How often a log is looked at for more.
const LOG_POLL: Duration = Duration::from_millis(200);

pub(super) async fn run(
    mut config: Config,
    command: arguments::Node,
    output: &Output,
) -> anyhow::Result<()> {
    match command {
        arguments::Node::Start(start) if start.detach => detach(&config, &start, output).await,
        arguments::Node::Start(arguments) => {
            apply(&mut config, &arguments);
            start(&config, output).await
        }
        arguments::Node::Status => status(&config, output).await,
        arguments::Node::Stop => stop(&config, output).await,
        arguments::Node::Logs { lines, follow } => logs(&config, lines, follow).await,
    }
}

fn apply(config: &mut Config, start: &arguments::NodeStart) {
    if let Some(host) = start.host {
        config.set("node.host", host.to_string());
    }
    if let Some(port) = start.port {
        config.set("node.port", port.to_string());
    }
    if let Some(chain) = &start.chain {
        config.set("chain.url", chain.clone());
    }
}

async fn start(config: &Config, output: &Output) -> anyhow::Result<()> {
    let mut stop = Stop::listen()?;
    // Asked before anything starts; in the background the password is there already.
    let mut config = config.clone();
    if let Ok(wallet) = keystore(&config).default_wallet()
        && let Some(typed) = unlock(&config, &wallet)?.typed_password
    {
        config.set_wallet_password(typed);
    }
    let told = output.clone();
    let starting = Node::start(&config, move |reason| told.warn(reason));
    let node = tokio::select! {
        started = starting => started.map_err(explain)?,
        () = stop.wait() => return Ok(()),
    };
    let record = node.record();
    if output.json {
        output.json(&json!({"event": "ready", "node": record}));
    } else {
        report(record, output);
    }
    stop.wait().await;
    output.note("stopping");
    tokio::select! {
        finished = node.shutdown(DRAIN) => {
            if !finished {
                output.warn("some calls were cut off");
            }
        }
        () = stop.wait() => output.warn("stopped at once"),
    }
    Ok(())
}

fn report(record: &NodeRecord, output: &Output) {
    output.line(format!(
        "node at {} on chain {} ({})",
        record.rpc_url, record.chain_id, record.chain
    ));
}

fn explain(error: NodeStartError) -> anyhow::Error {
    let hint = match &error {
        NodeStartError::Running(_) => Some("tenzro-cli node stop".to_owned()),
        NodeStartError::Listen { .. } => {
            Some("choose another --port (0 takes a free one)".to_owned())
        }
        NodeStartError::Ledger(LedgerSourceError::NoContracts { url }) => Some(format!(
            "tenzro-cli chain deploy --rpc {url}, or set the addresses under [chain] in config.toml"
        )),
        NodeStartError::Wallet(_) => {
            Some("set TENZRO_WALLET_PASSWORD, or start it in a terminal to be asked".to_owned())
        }
        _ => None,
    };
    Failure::new(format!("the node cannot start: {error}"))
        .maybe_hint(hint)
        .into()
}

fn log_path(config: &Config) -> PathBuf {
    config.home.node().join("log")
}

async fn detach(
    config: &Config,
    start: &arguments::NodeStart,
    output: &Output,
) -> anyhow::Result<()> {
    // The log of a running node must not be cut off.
    if is_node_running(&config.home) {
        return Err(explain(NodeStartError::Running(running_node(&config.home))));
    }
    let mut arguments = vec!["node".to_owned(), "start".to_owned()];
    let flags = [
        ("--host", start.host.map(|host| host.to_string())),
        ("--port", start.port.map(|port| port.to_string())),
        ("--chain", start.chain.clone()),
    ];
    for (name, value) in flags {
        arguments.extend(value.into_iter().flat_map(|value| [name.to_owned(), value]));
    }
    let wallet_password = match keystore(config).default_wallet() {
        Ok(wallet) => unlock(config, &wallet)?.typed_password,
        Err(tenzro_ledger::WalletError::None) => None,
        Err(error) => return Err(explain_wallet(error)),
    };
    let log = log_path(config);
    let background = Background {
        arguments,
        log: log.clone(),
        keep_log: false,
        wallet_password,
    };
    let ready = detach::start(config, background, |_| {}).await?;
    let record: NodeRecord = serde_json::from_value(ready["node"].clone())?;
    if output.json {
        output.json(&json!({"event": "ready", "node": record, "log": log}));
        return Ok(());
    }
    report(&record, output);
    output.note(format!("process {}, log {}", record.pid, log.display()));
    if record.chain == EMBEDDED {
        output.hint("tenzro-cli wallet faucet");
    }
    Ok(())
}

async fn status(config: &Config, output: &Output) -> anyhow::Result<()> {
    let client = node(config)?;
    let info: NetworkInfo = client
        .call("tenzro_networkInfo", json!([]))
        .await
        .map_err(explain_node)?;
    let own = running_node(&config.home);
    if output.json {
        output.json(&json!({"url": client.url(), "network": info, "own": own}));
        return Ok(());
    }
    let block = info
        .block
        .map_or_else(|| "-".to_owned(), |block| block.to_string());
    let mut lines = vec![
        ("node", client.url().to_owned()),
        ("version", info.version),
        ("chain", format!("{} ({})", info.chain_id, info.chain)),
        (
            "block",
            format!("{block}, seen {:.1} s ago", info.ledger_lag_seconds),
        ),
        ("wallet", info.wallet.unwrap_or_else(|| "none".to_owned())),
    ];
    if let Some(own) = own {
        lines.push(("process", own.pid.to_string()));
    }
    for (name, text) in lines {
        output.line(format!("{name:<8} {text}"));
    }
    Ok(())
}

async fn stop(config: &Config, output: &Output) -> anyhow::Result<()> {
    let Some(node) = running_node(&config.home) else {
        return Err(Failure::new("no node of this home is running")
            .hint("tenzro-cli node start --detach")
            .into());
    };
    // The lock was held a moment ago, so the process is the node.
    detach::terminate(node.pid)?;
    let is_running = || is_node_running(&config.home);
    let slow = || output.note("running calls finish");
    detach::ended(node.pid, DRAIN + MARGIN, is_running, slow).await?;
    if output.json {
        output.json(&json!({"stopped": node.rpc_url}));
    } else {
        output.line("stopped the node");
    }
    Ok(())
}

async fn logs(config: &Config, lines: usize, follow: bool) -> anyhow::Result<()> {
    let path = log_path(config);
    let mut file = File::open(&path).map_err(|error| {
        Failure::new(format!("{}: {error}", path.display()))
            .hint("only a node that was started with --detach keeps a log")
    })?;
    let mut last = std::collections::VecDeque::new();
    for line in BufReader::new(&file).lines() {
        last.push_back(line.context("the log cannot be read")?);
        if last.len() > lines {
            last.pop_front();
        }
    }
    let mut stdout = std::io::stdout();
    for line in last {
        writeln!(stdout, "{line}")?;
    }
    if !follow {
        return Ok(());
    }
    let mut position = file.stream_position()?;
    loop {
        tokio::time::sleep(LOG_POLL).await;
        // A new start cuts the log off.
        if file.metadata()?.len() < position {
            file = File::open(&path)?;
            position = 0;
        }
        file.seek(SeekFrom::Start(position))?;
        let mut more = Vec::new();
        file.read_to_end(&mut more)?;
        position += more.len() as u64;
        stdout.write_all(&more)?;
        stdout.flush()?;
    }
}
