//! `model download`, `import`, `list`, `info` and `remove`.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;
use tenzro_hub::{DownloadError, HashState, Hub, ImportError, LibraryEntry, ModelRef, read_header};
use tenzro_node::config::Config;
use tenzro_node::{ServerRecord, Servers};
use tokio_util::sync::CancellationToken;

use super::{find, library};
use crate::arguments::Download;
use crate::output::{Output, bytes};
use crate::progress::Shower;
use crate::report::Failure;

pub(super) async fn download(
    config: &Config,
    download: Download,
    output: &Output,
) -> anyhow::Result<()> {
    let mut reference =
        ModelRef::parse(&download.repo).map_err(|error| Failure::new(error.to_string()))?;
    if let Some(filename) = &download.filename {
        reference = reference
            .with_filename(filename)
            .map_err(|error| Failure::new(error.to_string()))?;
    }
    if let Some(revision) = download.revision {
        reference.revision = Some(revision);
    }
    let shower = Shower::new(output);
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    let sink = |event| shower.download(&event);
    let hub = Hub::new(config.hub.clone());
    let fetched = hub
        .download(&library(config), &reference, &sink, &cancel)
        .await;
    shower.finish();
    let entry = fetched
        .map_err(|error: DownloadError| Failure::new(error.to_string()).maybe_hint(error.hint()))?;
    report_entry(&entry, output);
    Ok(())
}

pub(super) fn import(
    config: &Config,
    file: &Path,
    name: Option<&str>,
    output: &Output,
) -> anyhow::Result<()> {
    let total = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
    let shower = Shower::new(output);
    let imported = library(config).import(file, name, |done| {
        shower.bytes("hashing", done, total);
        true
    });
    shower.finish();
    let entry = imported.map_err(|error| {
        let hint = match &error {
            ImportError::Taken(_) | ImportError::Id(_) => Some("choose another --name".to_owned()),
            _ => None,
        };
        Failure::new(error.to_string()).maybe_hint(hint)
    })?;
    report_entry(&entry, output);
    Ok(())
}

fn report_entry(entry: &LibraryEntry, output: &Output) {
    if output.json {
        return output.json(&json!({"event": "done", "model": entry}));
    }
    output.line(&entry.id);
    output.note(format!(
        "{} is in the library ({}, SHA-256 {})",
        entry.id,
        bytes(entry.size()),
        entry.sha256()
    ));
    output.hint(format!("tenzro-cli model serve {}", entry.id));
}

pub(super) fn list(config: &Config, output: &Output) -> anyhow::Result<()> {
    let entries = library(config).list()?;
    let running = Servers::new(&config.home).running()?;
    let served_at = |entry: &LibraryEntry| {
        let server = running.iter().find(|server| serves(server, entry));
        server.map(|server| server.base_url.clone())
    };
    if output.json {
        let rows: Vec<_> = entries
            .iter()
            .map(|entry| {
                let state = serde_json::to_value(entry.quick_state()).unwrap_or_default();
                json!({"model": entry, "hash": state, "served": served_at(entry)})
            })
            .collect();
        output.json(&rows);
        return Ok(());
    }
    if entries.is_empty() {
        output.hint("tenzro-cli model download unsloth/gemma-3-270m-it-GGUF");
    }
    let rows = entries
        .iter()
        .map(|entry| {
            vec![
                entry.id.clone(),
                entry
                    .repo
                    .clone()
                    .unwrap_or_else(|| "(imported)".to_owned()),
                entry.quantization.clone().unwrap_or_else(|| "-".to_owned()),
                bytes(entry.size()),
                entry
                    .context_length
                    .map_or_else(|| "-".to_owned(), |tokens| tokens.to_string()),
                describe_state(&entry.quick_state()).to_owned(),
                served_at(entry).unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    let head = [
        "id",
        "repository",
        "quant",
        "size",
        "context",
        "hash",
        "served",
    ];
    output.table(&head, rows);
    Ok(())
}

/// Under its own id or another one. The model of an upstream server is not ours.
fn serves(server: &ServerRecord, entry: &LibraryEntry) -> bool {
    server.upstream.is_none() && (server.model == entry.id || server.aliases.contains(&entry.id))
}

fn describe_state(state: &HashState) -> &'static str {
    match state {
        HashState::Unchanged | HashState::Verified => "verified",
        HashState::Touched => "changed since verified",
        HashState::Mismatch { .. } => "WRONG",
        HashState::Missing => "missing",
    }
}

pub(super) fn info(config: &Config, model: &str, output: &Output) -> anyhow::Result<ExitCode> {
    let entry = find(config, model)?;
    let header = read_header(entry.path())
        .map_err(|error| Failure::new(format!("{}: {error}", entry.path().display())));
    let shower = Shower::new(output);
    let state = library(config).verify(&entry, |done| {
        shower.bytes("verifying", done, entry.size());
        true
    })?;
    shower.finish();
    let is_right = state == HashState::Verified;
    if output.json {
        output.json(&json!({"model": entry, "header": header.ok(), "hash": state}));
    } else {
        let header = header?;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let mut rows = vec![
            ("id", entry.id.clone()),
            ("repository", or_dash(entry.repo.clone())),
            ("commit", or_dash(entry.commit.clone())),
            ("name", or_dash(header.name)),
            ("architecture", header.architecture),
            (
                "parameters",
                format!("{:.1} M", header.parameters as f64 / 1e6),
            ),
            ("quantization", or_dash(entry.quantization.clone())),
            (
                "context",
                or_dash(
                    entry
                        .context_length
                        .map(|tokens| format!("{tokens} tokens")),
                ),
            ),
            ("licence", or_dash(entry.licence.clone())),
            ("size", bytes(entry.size())),
            (
                "chat template",
                if header.chat_template.is_some() {
                    "yes"
                } else {
                    "no"
                }
                .to_owned(),
            ),
        ];
        for file in &entry.files {
            rows.push(("file", file.path.display().to_string()));
            rows.push(("sha256", file.sha256.clone()));
        }
        let verdict = match &state {
            HashState::Mismatch { expected, actual } => {
                format!("MISMATCH: expected {expected}, found {actual}")
            }
            HashState::Verified if entry.repo.is_some() => {
                "verified, equal to the hub's".to_owned()
            }
            other => describe_state(other).to_owned(),
        };
        rows.push(("integrity", verdict));
        for (name, value) in rows {
            output.line(format!("{name:<14} {value}"));
        }
    }
    if is_right {
        return Ok(ExitCode::SUCCESS);
    }
    output.hint(format!(
        "tenzro-cli model remove {} and fetch it again",
        entry.id
    ));
    Ok(ExitCode::from(1))
}

pub(super) fn remove(config: &Config, model: &str, output: &Output) -> anyhow::Result<()> {
    let entry = find(config, model)?;
    let running = Servers::new(&config.home).running()?;
    if let Some(server) = running.iter().find(|server| serves(server, &entry)) {
        return Err(Failure::new(format!("{} is being served", entry.id))
            .hint(format!("tenzro-cli model stop {}", server.model))
            .into());
    }
    if !output.yes && std::io::stdin().is_terminal() && !confirm(&entry)? {
        return Err(Failure::new("nothing was removed").into());
    }
    library(config).remove(&entry)?;
    if output.json {
        output.json(&json!({"removed": entry.id}));
    } else {
        output.note(format!("removed {} ({})", entry.id, bytes(entry.size())));
    }
    Ok(())
}

fn confirm(entry: &LibraryEntry) -> anyhow::Result<bool> {
    let mut stderr = std::io::stderr().lock();
    write!(
        stderr,
        "remove {} ({})? [y/N] ",
        entry.id,
        bytes(entry.size())
    )?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}
