//! `model serve`, in the foreground or detached.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tenzro_hub::{HashState, LibraryEntry};
use tenzro_node::config::Config;
use tenzro_node::{
    EngineConfig, LoadError, ModelServer, ServeOptions, ServerRecord, Servers, Source, StartError,
};
use tenzro_protocol::model_id;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{find, library};
use crate::arguments::Serve;
use crate::output::Output;
use crate::progress::Shower;
use crate::report::{Failure, OurFault};

/// How long running answers may go on after a stop. Source: design, `model stop`.
pub(super) const DRAIN: Duration = Duration::from_secs(30);

pub(super) async fn run(config: &Config, serve: Serve, output: &Output) -> anyhow::Result<()> {
    if serve.detach {
        return detach(config, &serve, output).await;
    }
    let options = options(config, &serve, output)?;
    let mut stop = Stop::listen()?;
    let shower = Shower::new(output);
    let size = match &options.source {
        Source::Library { entry, .. } => entry.size(),
        Source::Upstream { .. } => 0,
    };
    let loading = CancellationToken::new();
    // Ends the thread that reads the model too: the program waits for it.
    let _stop_loading = loading.clone().drop_guard();
    let starting = ModelServer::start(&config.home, options, move |share| {
        shower.bytes("loading", (f64::from(share) * size as f64) as u64, size);
        !loading.is_cancelled()
    });
    let server = tokio::select! {
        started = starting => started.map_err(|error| explain(error, &serve))?,
        () = stop.wait() => {
            output.note("stopped before the model was loaded");
            return Ok(());
        }
    };
    announce(&server, output);

    stop.wait().await;
    output.note("stopping: running answers may finish (30 s); once more to stop at once");
    tokio::select! {
        finished = server.shutdown(DRAIN) => {
            if !finished {
                output.warn("some answers were cut off");
            }
        }
        () = stop.wait() => output.warn("stopped at once"),
    }
    Ok(())
}

fn announce(server: &ModelServer, output: &Output) {
    let record = server.record();
    if let Some(model) = server.model() {
        for warning in &model.warnings {
            output.warn(warning);
        }
        output.note(format!(
            "{}: {} requests of {} tokens at the same time, {} threads",
            model.description, model.parallel, model.context_tokens, model.threads
        ));
    }
    if output.json {
        return output.json(&json!({"event": "ready", "server": record}));
    }
    output.line(format!("serving {} at {}", record.model, record.base_url));
    output.hint(format!("tenzro-cli chat --model {}", record.model));
}

/// SIGTERM or Ctrl-C.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn explain(error: StartError, serve: &Serve) -> anyhow::Error {
    let hint = match &error {
        StartError::PortOurs { model, .. } => Some(format!(
            "tenzro-cli model stop {model}, or choose another --port"
        )),
        StartError::Listen { source, .. } => Some(match source.kind() {
            std::io::ErrorKind::AddrNotAvailable => {
                "choose an address of this machine with --host".to_owned()
            }
            std::io::ErrorKind::PermissionDenied => {
                "choose a --port from 1024 on (0 takes a free one)".to_owned()
            }
            _ => "choose another --port (0 takes a free one)".to_owned(),
        }),
        StartError::Load(error) => error.hint(),
        StartError::Upstream { .. } => {
            Some("the address must end in /v1 and be running".to_owned())
        }
        StartError::Registry { .. } => None,
    };
    let is_ours = matches!(
        &error,
        StartError::Load(LoadError::WarmUp | LoadError::Thread(_))
    );
    let failure = Failure::new(format!("cannot serve {}: {error}", serve.model)).maybe_hint(hint);
    let error = anyhow::Error::new(failure);
    if is_ours {
        error.context(OurFault)
    } else {
        error
    }
}

fn options(config: &Config, serve: &Serve, output: &Output) -> anyhow::Result<ServeOptions> {
    let host = match serve.host {
        Some(host) => host,
        None => config
            .get::<IpAddr>("serve.host")
            .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    };
    let (id, source) = match &serve.upstream {
        Some(url) => {
            let upstream = Source::Upstream {
                url: url.clone(),
                model: serve.upstream_model.clone(),
            };
            (model_id::model_id(&serve.model), upstream)
        }
        None => {
            let entry = entry(config, &serve.model, output)?;
            let engine = EngineConfig {
                ctx_size: serve.ctx_size.or_else(|| config.get("serve.ctx_size")),
                parallel: serve.parallel.or_else(|| config.get("serve.parallel")),
                gpu_layers: serve.gpu_layers.or_else(|| config.get("serve.gpu_layers")),
                threads: serve.threads.or_else(|| config.get("serve.threads")),
                queue_size: config.get("serve.queue_size").unwrap_or(64),
                ..EngineConfig::new(entry.path().to_owned())
            };
            if serve.gpu_layers.is_some() && !tenzro_node::has_gpu_backend() {
                output.note("this build has no GPU backend: --gpu-layers is ignored");
            }
            let entry = Box::new(entry);
            (entry.id.clone(), Source::Library { entry, engine })
        }
    };
    let id = serve.alias.clone().unwrap_or(id);
    if !model_id::is_valid(&id) {
        return Err(Failure::new(format!("'{id}' is no model id"))
            .hint("use lower-case letters, digits, '.', '-' and '_' in --alias")
            .into());
    }
    Ok(ServeOptions {
        host,
        port: port(config, serve),
        id,
        source,
        cors: config.get("serve.cors").unwrap_or(false),
    })
}

/// The model to serve. A path that is not in the library yet is imported; a file that changed since
/// it was verified is verified again.
fn entry(config: &Config, model: &str, output: &Output) -> anyhow::Result<LibraryEntry> {
    let library = library(config);
    let path = Path::new(model);
    let is_file = path
        .extension()
        .is_some_and(|extension| extension == "gguf")
        && path.is_file();
    let entry = if is_file && library.find(model)?.is_err() {
        let path = std::fs::canonicalize(path)?;
        library
            .import(&path, None, |_| true)
            .map_err(|error| Failure::new(error.to_string()))?
    } else {
        find(config, model)?
    };
    let shower = Shower::new(output);
    let state = match entry.quick_state() {
        HashState::Touched => library.verify(&entry, |done| {
            shower.bytes("verifying", done, entry.size());
            true
        })?,
        state => state,
    };
    shower.finish();
    let again = entry.repo.as_ref().map(|repo| {
        format!(
            "tenzro-cli model remove {} && tenzro-cli model download {repo}",
            entry.id
        )
    });
    match state {
        HashState::Unchanged | HashState::Verified => Ok(entry),
        HashState::Mismatch { expected, actual } => Err(Failure::new(format!(
            "{} is damaged: its SHA-256 is {actual}, it should be {expected}",
            entry.path().display()
        ))
        .maybe_hint(again)
        .into()),
        HashState::Missing | HashState::Touched => {
            Err(Failure::new(format!("{} is gone", entry.path().display()))
                .maybe_hint(again)
                .into())
        }
    }
}

/// Starts this program again in the background and waits until it serves.
async fn detach(config: &Config, serve: &Serve, output: &Output) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find this program")?;
    // Find mistakes while there is a terminal to report them to.
    if serve.upstream.is_none() {
        entry(config, &serve.model, output)?;
    }
    let log_path = Servers::new(&config.home).log_file(port(config, serve));
    if let Some(parent) = log_path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .context("cannot write the log")?;
    // Begins anew with the server, but stays while another one may still write to it.
    let is_taken =
        port(config, serve) == 0 || Servers::new(&config.home).is_running(port(config, serve));
    if !is_taken {
        log.set_len(0).context("cannot write the log")?;
    }
    let mut command = tokio::process::Command::new(program);
    command
        .arg("--home")
        .arg(config.home.root())
        .arg("--json")
        .args(["model", "serve"])
        .args(arguments(serve))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        // Its own group: Ctrl-C in this terminal is not for it.
        .process_group(0);
    let mut child = command.spawn().context("cannot start the server")?;
    let stdout = child.stdout.take().context("the server has no output")?;
    let mut lines = BufReader::new(stdout).lines();
    let shower = Shower::new(output);
    while let Some(line) = lines.next_line().await? {
        let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        match event["event"].as_str() {
            Some("ready") => {
                shower.finish();
                let record: ServerRecord = serde_json::from_value(event["server"].clone())?;
                report(&record, &log_path, output);
                return Ok(());
            }
            Some("loading") => {
                let number = |name: &str| event[name].as_u64().unwrap_or(0);
                shower.bytes("loading", number("done_bytes"), number("total_bytes"));
            }
            _ => {
                if let Some(message) = event["error"]["message"].as_str() {
                    shower.finish();
                    let hint = event["error"]["hint"].as_str().map(str::to_owned);
                    return Err(Failure::new(message).maybe_hint(hint).into());
                }
            }
        }
    }
    shower.finish();
    let status = child.wait().await?;
    Err(Failure::new(format!("the server ended at once ({status})"))
        .hint(format!("its log is {}", log_path.display()))
        .into())
}

fn port(config: &Config, serve: &Serve) -> u16 {
    serve
        .port
        .or_else(|| config.get("serve.port"))
        .unwrap_or(8080)
}

fn report(record: &ServerRecord, log: &Path, output: &Output) {
    if output.json {
        return output.json(&json!({"event": "ready", "server": record, "log": log}));
    }
    output.line(format!("serving {} at {}", record.model, record.base_url));
    output.note(format!("process {}, log {}", record.pid, log.display()));
    output.hint(format!("tenzro-cli chat --model {}", record.model));
}

/// The same arguments without `--detach`.
fn arguments(serve: &Serve) -> Vec<String> {
    let mut arguments = vec![serve.model.clone()];
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            arguments.extend([format!("--{name}"), value]);
        }
    };
    add("port", serve.port.map(|port| port.to_string()));
    add("host", serve.host.map(|host| host.to_string()));
    add("ctx-size", serve.ctx_size.map(|tokens| tokens.to_string()));
    add(
        "gpu-layers",
        serve.gpu_layers.map(|layers| layers.to_string()),
    );
    add("parallel", serve.parallel.map(|count| count.to_string()));
    add("threads", serve.threads.map(|count| count.to_string()));
    add("alias", serve.alias.clone());
    add("upstream", serve.upstream.clone());
    add("upstream-model", serve.upstream_model.clone());
    arguments
}
