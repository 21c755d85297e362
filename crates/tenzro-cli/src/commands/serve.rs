//! `model serve`, in the foreground or detached.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tenzro_hub::{HashState, LibraryEntry};
use tenzro_node::config::Config;
use tenzro_node::{
    EngineConfig, Goods, LoadError, ModelServer, Network, Registration, RegistrationError, Sale,
    ServeOptions, ServerRecord, Servers, Source, StartError, forget,
};
use tenzro_protocol::amount::Wei;
use tenzro_protocol::model_id;
use tenzro_protocol::network::ProviderInfo;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::detach::{self, Background};
use super::network::{
    Unlocked, connect, explain_node, explain_send, own_node, own_wallet, tell_missing, unlock,
};
use super::{find, library};
use crate::arguments::Serve;
use crate::output::Output;
use crate::progress::Shower;
use crate::report::{Failure, OurFault};

/// How long running answers may go on after a stop. Source: design, `model stop`.
pub(super) const DRAIN: Duration = Duration::from_secs(30);

/// How long settling may take after a stop.
pub(super) const SETTLE: Duration = Duration::from_secs(20);

pub(super) async fn run(config: &Config, serve: Serve, output: &Output) -> anyhow::Result<()> {
    if serve.detach {
        return detach(config, &serve, output).await;
    }
    let mut options = options(config, &serve, output)?;
    let mut stop = Stop::listen()?;
    // What cannot be registered need not be loaded.
    let remote = Remote::prepare(config, &serve, output).await?;
    if let Some(remote) = &remote {
        options.sale = Some(remote.sale(config, &options).await?);
    }
    let sale = options.sale.clone();
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
    let mut server = tokio::select! {
        started = starting => started.map_err(|error| explain(error, &serve))?,
        () = stop.wait() => {
            output.note("stopped before the model was loaded");
            return Ok(());
        }
    };
    let registered = tokio::select! {
        registered = register(config, &mut server, remote, output) => Some(registered),
        () = stop.wait() => None,
    };
    let (registration, provider) = match registered {
        Some(Ok(registered)) => registered,
        Some(Err(error)) => {
            server.shutdown(Duration::ZERO).await;
            return Err(error);
        }
        None => {
            server.shutdown(Duration::ZERO).await;
            output.note("stopped before it was registered; its transaction may still be mined");
            output.hint(format!("tenzro-cli model stop {}", serve.model));
            return Ok(());
        }
    };
    announce(&server, provider.as_ref(), output);

    stop.wait().await;
    output.note("stopping: running answers may finish (30 s); once more to stop at once");
    let ending = async {
        let record = server.record().clone();
        // Nobody is sent here any more while the last answers finish.
        let unregistering = unregister(config, registration, &record);
        let (ended, (finished, place)) = tokio::join!(unregistering, server.shutdown(DRAIN));
        if let Err(error) = ended {
            output.warn(format!("it is still registered: {error}"));
            output.hint(format!(
                "tenzro-cli model stop {}, once the node answers",
                serve.model
            ));
        }
        if !finished {
            output.warn("some answers were cut off");
        }
        if let Some(sale) = &sale {
            settle(sale, output).await;
        }
        // `model stop` returns now: what was earned is on the ledger before the ledger is stopped.
        drop(place);
    };
    tokio::select! {
        () = ending => {}
        () = stop.wait() => output.warn("stopped at once"),
    }
    Ok(())
}

/// What `--remote` needs, found before the model is loaded.
struct Remote {
    network: Network,
    unlocked: Unlocked,
    public_url: Option<String>,
}

impl Remote {
    /// `None` without `--remote`.
    async fn prepare(
        config: &Config,
        serve: &Serve,
        output: &Output,
    ) -> anyhow::Result<Option<Self>> {
        if !serve.remote {
            return Ok(None);
        }
        let network = connect(config).await?;
        let wallet = own_wallet(config, &network, output)?;
        let unlocked = unlock(config, &wallet)?;
        Ok(Some(Self {
            network,
            unlocked,
            public_url: serve.public_url.clone(),
        }))
    }

    /// Takes payments for what is served.
    async fn sale(&self, config: &Config, options: &ServeOptions) -> anyhow::Result<Arc<Sale>> {
        let hash = match &options.source {
            Source::Library { entry, .. } => entry.sha256().parse().ok(),
            Source::Upstream { .. } => None,
        };
        let host = self.public_url.as_deref().and_then(host_of);
        let goods = Goods {
            model: options.id.clone(),
            hash,
            host: host.unwrap_or_else(|| options.host.to_string()),
        };
        let sale = Sale::open(config, &self.network, &self.unlocked.signer, goods).await;
        let sale = sale.map_err(|error| Failure::new(format!("cannot take payments: {error}")))?;
        Ok(Arc::new(sale))
    }
}

/// The host in `https://host:port/path`.
fn host_of(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    let host = rest.split('/').next().filter(|host| !host.is_empty());
    host.map(str::to_owned)
}

/// Turns what is earned into TNZO before the end; what cannot be settled now is in the books.
async fn settle(sale: &Sale, output: &Output) {
    match sale.settle(SETTLE).await {
        Ok(round) if round.channels > 0 => output.note(format!(
            "settled {} TNZO of {} channels",
            Wei(round.amount).tnzo(),
            round.channels
        )),
        Ok(_) => {}
        Err(reason) => {
            output.warn(format!("not everything is settled: {reason}"));
            output.hint("it is settled when this model is served again");
        }
    }
}

/// Registers on the ledger, or with the node of this home when it runs. A model server without a node
/// serves all the same.
async fn register(
    config: &Config,
    server: &mut ModelServer,
    remote: Option<Remote>,
    output: &Output,
) -> anyhow::Result<(Option<Registration>, Option<ProviderInfo>)> {
    let record = server.record();
    let Some(remote) = remote else {
        let Some(node) = own_node(config)? else {
            return Ok((None, None));
        };
        let registered = Registration::local(node, &record.model, &record.base_url);
        return Ok(match registered.await {
            Ok(registration) => (Some(registration), None),
            Err(error) => {
                output.warn(format!("the node does not know this server: {error}"));
                (None, None)
            }
        });
    };
    let card = server.card().context("the model is not loaded")?;
    let base_url = remote.public_url.as_deref().unwrap_or(&record.base_url);
    let network = remote.network.clone();
    let registered =
        Registration::on_ledger(remote.network, remote.unlocked.signer, card, base_url);
    let (registration, recorded) = registered.await.map_err(|error| match error {
        RegistrationError::Node(error) => explain_node(error),
        RegistrationError::Send(error) => explain_send(error, &network),
    })?;
    if let Some(place) = registration.place() {
        server.set_registered(place)?;
    }
    Ok((Some(registration), Some(recorded.provider)))
}

async fn unregister(
    config: &Config,
    registration: Option<Registration>,
    record: &ServerRecord,
) -> anyhow::Result<()> {
    match registration {
        Some(registration) => registration.end().await?,
        None => {
            // A node that started later found this server by itself.
            if let Some(node) = own_node(config)? {
                forget(&node, &record.model, Some(&record.base_url)).await?;
            }
        }
    }
    Ok(())
}

/// What to do next, or what is missing until this server can earn.
fn tell_next(record: &ServerRecord, provider: Option<&ProviderInfo>, output: &Output) {
    match provider {
        Some(provider) if !provider.missing.is_empty() => {
            tell_missing(&provider.missing, output);
        }
        Some(provider) => output.note(format!("registered on the ledger by {}", provider.provider)),
        None => output.hint(format!("tenzro-cli chat --model {}", record.model)),
    }
}

fn announce(server: &ModelServer, provider: Option<&ProviderInfo>, output: &Output) {
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
        let event = json!({"event": "ready", "server": record, "provider": provider});
        return output.json(&event);
    }
    output.line(format!("serving {} at {}", record.model, record.base_url));
    tell_next(record, provider, output);
}

/// SIGTERM or Ctrl-C.
pub(super) struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    pub(super) fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?,
        })
    }

    pub(super) async fn wait(&mut self) {
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
        sale: None,
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

/// Serves in the background and waits until it is ready.
async fn detach(config: &Config, serve: &Serve, output: &Output) -> anyhow::Result<()> {
    // Find mistakes while there is a terminal to report them to.
    if serve.upstream.is_none() {
        entry(config, &serve.model, output)?;
    }
    let wallet_password = match Remote::prepare(config, serve, output).await? {
        Some(remote) => remote.unlocked.typed_password,
        None => None,
    };
    let port = port(config, serve);
    let log = Servers::new(&config.home).log_file(port);
    let mut arguments = arguments(serve);
    if !config.is_default("rpc") {
        arguments.extend(["--rpc".to_owned(), config.get("rpc").unwrap_or_default()]);
    }
    let background = Background {
        arguments,
        log: log.clone(),
        // Another one may still write to it.
        keep_log: port == 0 || Servers::new(&config.home).is_running(port),
        wallet_password,
    };
    let shower = Shower::new(output);
    let ready = detach::start(config, background, |event| {
        if event["event"] == "loading" {
            let number = |name: &str| event[name].as_u64().unwrap_or(0);
            shower.bytes("loading", number("done_bytes"), number("total_bytes"));
        }
    })
    .await;
    shower.finish();
    let ready = ready?;
    let record: ServerRecord = serde_json::from_value(ready["server"].clone())?;
    if output.json {
        let provider = &ready["provider"];
        output.json(&json!({
            "event": "ready", "server": record, "provider": provider, "log": log,
        }));
        return Ok(());
    }
    output.line(format!("serving {} at {}", record.model, record.base_url));
    output.note(format!("process {}, log {}", record.pid, log.display()));
    let provider = serde_json::from_value(ready["provider"].clone()).ok();
    tell_next(&record, provider.as_ref(), output);
    Ok(())
}

fn port(config: &Config, serve: &Serve) -> u16 {
    serve
        .port
        .or_else(|| config.get("serve.port"))
        .unwrap_or(8080)
}

/// The same arguments without `--detach`.
fn arguments(serve: &Serve) -> Vec<String> {
    let mut arguments = ["model", "serve", &serve.model].map(str::to_owned).to_vec();
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
    add("public-url", serve.public_url.clone());
    if serve.remote {
        arguments.push("--remote".to_owned());
    }
    arguments
}
