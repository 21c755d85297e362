//! `model ps` and `model stop`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tenzro_node::config::Config;
use tenzro_node::{ServerRecord, Servers};
use tenzro_protocol::model_id::{comparable, nearest};

use super::library;
use super::serve::DRAIN;
use crate::output::Output;
use crate::report::Failure;

/// How often a stopping server is looked at.
const POLL: Duration = Duration::from_millis(50);

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

/// Running servers that serve what a text names: those of that id, else those that know it as another
/// name of their model.
pub(super) fn serving(
    config: &Config,
    servers: Vec<ServerRecord>,
    model: &str,
) -> Vec<ServerRecord> {
    let wanted = comparable(model);
    let entry = library(config).find(model).ok().and_then(Result::ok);
    let is_entry = |name: &String| entry.as_ref().is_some_and(|entry| entry.id == *name);
    let (by_id, others): (Vec<_>, Vec<_>) = servers
        .into_iter()
        .partition(|server| comparable(&server.model) == wanted);
    if !by_id.is_empty() {
        return by_id;
    }
    others
        .into_iter()
        .filter(|server| {
            let names = std::iter::once(&server.model).chain(&server.aliases);
            names
                .into_iter()
                .any(|name| comparable(name) == wanted || is_entry(name))
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
        let pid = i32::try_from(server.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failure::new("the server's process id is not valid"))?;
        // The lock was held a moment ago, so the process is the server.
        kill_process(pid, Signal::TERM).map_err(|error| {
            Failure::new(format!("cannot stop process {}: {error}", server.pid))
        })?;
    }
    for server in chosen {
        let started = Instant::now();
        let mut has_told = false;
        while registry.is_running(server.port) {
            if started.elapsed() > DRAIN + MARGIN {
                return Err(
                    Failure::new(format!("process {} does not stop", server.pid))
                        .hint(format!("kill -9 {}", server.pid))
                        .into(),
                );
            }
            if !has_told && started.elapsed() > Duration::from_secs(1) {
                output.note(format!(
                    "{}: running answers finish (at most 30 s)",
                    server.model
                ));
                has_told = true;
            }
            tokio::time::sleep(POLL).await;
        }
        if output.json {
            output.json(&json!({"stopped": server.model, "port": server.port}));
        } else {
            output.line(format!("stopped {}", server.model));
        }
    }
    Ok(())
}
