//! `model ps` and `model stop`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tenzro_ledger::registry::Endpoint;
use tenzro_node::config::Config;
use tenzro_node::{LedgerPlace, ServerRecord, Servers};
use tenzro_protocol::model_id::{is_meant, nearest};

use super::detach;
use super::library;
use super::network::{Acting, connect, own_node, wallet};
use super::serve::{DRAIN, SETTLE};
use crate::output::Output;
use crate::report::Failure;

/// What a server may need on top of draining and settling.
const MARGIN: Duration = Duration::from_secs(10);

pub(super) fn list(config: &Config, output: &Output) -> anyhow::Result<()> {
    let servers = Servers::new(&config.home).running()?;
    if output.json {
        output.json(&servers);
        return Ok(());
    }
    if servers.is_empty() {
        output.hint("tenzro-cli model serve MODEL --detach");
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let rows = servers
        .into_iter()
        .map(|server| {
            let minutes = now.saturating_sub(server.started) / 60;
            vec![
                server.model,
                server.base_url,
                server.pid.to_string(),
                format!("{}h{:02}m", minutes / 60, minutes % 60),
                server.upstream.unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    output.table(&["model", "address", "process", "up", "upstream"], rows);
    Ok(())
}

/// Running servers that serve what a text names: those of that id, else those that know it as another
/// name of their model.
pub(super) fn serving(
    config: &Config,
    servers: Vec<ServerRecord>,
    model: &str,
) -> Vec<ServerRecord> {
    let entry = library(config).find(model).ok().and_then(Result::ok);
    let is_entry = |name: &String| entry.as_ref().is_some_and(|entry| entry.id == *name);
    let (by_id, others): (Vec<_>, Vec<_>) = servers
        .into_iter()
        .partition(|server| is_meant(model, &server.model));
    if !by_id.is_empty() {
        return by_id;
    }
    others
        .into_iter()
        .filter(|server| {
            let names = std::iter::once(&server.model).chain(&server.aliases);
            names
                .into_iter()
                .any(|name| is_meant(model, name) || is_entry(name))
        })
        .collect()
}

pub(super) async fn run(
    config: &Config,
    model: Option<&str>,
    all: bool,
    output: &Output,
) -> anyhow::Result<()> {
    let registry = Servers::new(&config.home);
    let running = registry.running()?;
    let names: Vec<String> = running.iter().map(|server| server.model.clone()).collect();
    let chosen = match model {
        Some(model) if !all => serving(config, running, model),
        _ => running,
    };
    if chosen.is_empty() && !all {
        if let Some(model) = model
            && unregister(config, model, output).await?
        {
            return Ok(());
        }
        let model = model.unwrap_or_default();
        let near = nearest(model, names.iter().map(String::as_str));
        let hint = match near.as_slice() {
            [] => "tenzro-cli model ps lists the running ones".to_owned(),
            near => format!("running: {}", near.join(", ")),
        };
        return Err(Failure::new(format!("no model server serves '{model}'"))
            .hint(hint)
            .into());
    }
    for server in &chosen {
        // The lock was held a moment ago, so the process is the server.
        detach::terminate(server.pid)?;
    }
    for server in chosen {
        let is_running = || registry.is_running(server.port);
        let slow = || {
            output.note(format!(
                "{}: running answers finish (at most 30 s)",
                server.model
            ));
        };
        detach::ended(server.pid, DRAIN + SETTLE + MARGIN, is_running, slow).await?;
        if let Some(place) = &server.on_ledger {
            check_unregistered(config, &server, place, output).await;
        }
        if output.json {
            output.json(&json!({"stopped": server.model, "port": server.port}));
        } else {
            output.line(format!("stopped {}", server.model));
        }
    }
    Ok(())
}

/// A server that ended without saying so, as after kill -9, is still known to others: takes it
/// off. True when there was one.
async fn unregister(config: &Config, model: &str, output: &Output) -> anyhow::Result<bool> {
    if let Some(node) = own_node(config)? {
        // Forgets local ones, and takes those of the node's wallet off the ledger.
        let stopped = node.call("tenzro_stopModel", json!([model])).await;
        if let Ok(stopped) = stopped {
            let _: serde_json::Value = stopped;
            tell_unregistered(model, output);
            return Ok(true);
        }
    }
    let is_left = |endpoint: &Endpoint| is_meant(model, &endpoint.model_id);
    let left = left_on_ledger(config, is_left).await;
    let left = left.unwrap_or_default();
    if left.is_empty() {
        return Ok(false);
    }
    let acting = Acting::start(config, output).await?;
    for endpoint in left {
        let stopped = acting.operations().stop_model(endpoint.id).await;
        stopped.map_err(|error| acting.explain(error))?;
        tell_unregistered(&endpoint.model_id, output);
    }
    Ok(true)
}

fn tell_unregistered(model: &str, output: &Output) {
    if output.json {
        output.json(&json!({"stopped": model, "port": null}));
    } else {
        output.line(format!("unregistered {model} (no server was running)"));
    }
}

/// Says so when a server has stopped but could not be unregistered.
async fn check_unregistered(
    config: &Config,
    server: &ServerRecord,
    place: &LedgerPlace,
    output: &Output,
) {
    let mut config = config.clone();
    config.set("rpc", place.rpc_url.clone());
    let is_left = |endpoint: &Endpoint| {
        endpoint.base_url == place.base_url && is_meant(&server.model, &endpoint.model_id)
    };
    let left = left_on_ledger(&config, is_left).await;
    if left.is_ok_and(|left| left.is_empty()) {
        return;
    }
    output.warn(format!(
        "{} may still be registered on the ledger",
        server.model
    ));
    output.hint(format!(
        "tenzro-cli model stop {}, once the node answers",
        server.model
    ));
}

/// Endpoints of this home's wallet that are on the ledger.
async fn left_on_ledger(
    config: &Config,
    is_left: impl Fn(&Endpoint) -> bool,
) -> anyhow::Result<Vec<Endpoint>> {
    let own = wallet(config, None)?.address;
    let network = connect(config).await?;
    let mut endpoints = network.ledger.endpoints_now(own).await?;
    endpoints.retain(|endpoint| !endpoint.is_stopped && is_left(endpoint));
    Ok(endpoints)
}
