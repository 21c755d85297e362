//! `model ps` and `model stop`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tenzro_node::config::Config;
use tenzro_node::{ServerRecord, Servers};
use tenzro_protocol::model_id::{comparable, nearest};

use super::detach;
use super::serve::DRAIN;
use crate::output::Output;
use crate::report::Failure;

/// What a server may need on top of draining.
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

/// Running servers that serve what a text names.
pub(super) fn serving(servers: Vec<ServerRecord>, model: &str) -> Vec<ServerRecord> {
    let wanted = comparable(model);
    servers
        .into_iter()
        .filter(|server| {
            std::iter::once(&server.model)
                .chain(&server.aliases)
                .any(|name| comparable(name) == wanted)
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
        Some(model) if !all => serving(running, model),
        _ => running,
    };
    if chosen.is_empty() && !all {
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
        detach::ended(server.pid, DRAIN + MARGIN, is_running, slow).await?;
        if output.json {
            output.json(&json!({"stopped": server.model, "port": server.port}));
        } else {
            output.line(format!("stopped {}", server.model));
        }
    }
    Ok(())
}
