//! A running model server: an engine, the HTTP side and its place in the registry of this home.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tenzro_api::{Inference, Limits, Server, ServerConfig};
use tenzro_engine::{Engine, EngineConfig, LoadError, ModelInfo};
use tenzro_hub::LibraryEntry;
use tenzro_protocol::inference::ModelCard;

use crate::billing::Till;
use crate::home::Home;
use crate::local_inference::LocalInference;
use crate::openai_client::{ClientError, OpenAiClient};
use crate::operator_token::ensure_operator_token;
use crate::sale::Sale;
use crate::servers::{LedgerPlace, ServerRecord, Servers, Slot};
use crate::upstream::Upstream;

/// What computes the answers.
#[derive(Debug, Clone)]
pub enum Source {
    /// The built-in engine with a model of the library.
    Library {
        /// The model.
        entry: Box<LibraryEntry>,
        /// How to load it; the path is taken from the entry.
        engine: EngineConfig,
    },
    /// Another OpenAI-compatible server.
    Upstream {
        /// Its address; ends in `/v1`.
        url: String,
        /// The model's name there; `None` when it serves only one.
        model: Option<String>,
    },
}

/// Everything that a model server needs to start.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port; 0 chooses a free one.
    pub port: u16,
    /// Model id to serve under.
    pub id: String,
    /// What computes the answers.
    pub source: Source,
    /// Allow pages of other origins.
    pub cors: bool,
    /// Takes payments; without it everybody is served for free.
    pub sale: Option<Arc<Sale>>,
}

/// Why a model server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A model server of this home has the port.
    #[error(
        "port {port} is taken by the model server of this home that serves {model} (process {pid})"
    )]
    PortOurs {
        /// The port.
        port: u16,
        /// What it serves.
        model: String,
        /// Its process.
        pid: u32,
    },
    /// Another process has the port.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The registry cannot be written.
    #[error("{}: {source}", path.display())]
    Registry {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The upstream server cannot be used.
    #[error("the upstream server at {url} cannot be used: {reason}")]
    Upstream {
        /// Its address.
        url: String,
        /// Why not.
        reason: String,
    },
}

/// A running model server.
#[derive(Debug)]
pub struct ModelServer {
    server: Server,
    local: Option<Arc<LocalInference>>,
    card: Option<ModelCard>,
    record: ServerRecord,
    slot: Slot,
}

impl ModelServer {
    /// Listens first, so that `/health` answers while the model loads, then loads it. `progress` is
    /// called with 0–1 meanwhile and cancels by returning false.
    pub async fn start(
        home: &Home,
        options: ServeOptions,
        progress: impl Fn(f32) -> bool + Send + Sync + 'static,
    ) -> Result<Self, StartError> {
        match options.source.clone() {
            Source::Library { entry, engine } => {
                Self::start_local(home, options, *entry, engine, progress).await
            }
            Source::Upstream { url, model } => {
                Self::start_upstream(home, options, url, model).await
            }
        }
    }

    /// Where its API is; ends in `/v1`.
    pub fn base_url(&self) -> &str {
        &self.record.base_url
    }

    /// The model as `/v1/models` tells it; `None` while it loads.
    pub fn card(&self) -> Option<&ModelCard> {
        self.card.as_ref()
    }

    /// It has that place on the ledger; other commands see it from now on.
    pub fn set_registered(&mut self, place: LedgerPlace) -> std::io::Result<()> {
        self.record.on_ledger = Some(place);
        self.slot.publish(&self.record)
    }

    /// What it says about itself in the registry.
    pub fn record(&self) -> &ServerRecord {
        &self.record
    }

    /// What the built-in engine loaded.
    pub fn model(&self) -> Option<&ModelInfo> {
        self.local.as_ref()?.engine().map(Engine::model)
    }

    /// Takes no more requests, lets running answers finish for at most `grace`, then stops. Returns
    /// whether all of them finished, and the server's place in this home: until that is dropped the
    /// process counts as running, so that whoever stops it waits for what is still to be done.
    pub async fn shutdown(self, grace: Duration) -> (bool, Slot) {
        let finished = self.server.shutdown(grace).await;
        if let Some(engine) = self
            .local
            .as_ref()
            .and_then(|local| local.engine().cloned())
        {
            let _ = tokio::task::spawn_blocking(move || engine.shutdown()).await;
        }
        (finished, self.slot)
    }

    async fn start_local(
        home: &Home,
        options: ServeOptions,
        entry: LibraryEntry,
        mut engine: EngineConfig,
        progress: impl Fn(f32) -> bool + Send + Sync + 'static,
    ) -> Result<Self, StartError> {
        entry.path().clone_into(&mut engine.model_path);
        let local = Arc::new(LocalInference::default());
        let inference: Arc<dyn Inference> = local.clone();
        let mut aliases = entry.aliases();
        if entry.id != options.id {
            aliases.push(entry.id.clone());
        }
        let mut started = Self::listen(
            home,
            &options,
            inference,
            aliases.clone(),
            None,
            Some(local.clone()),
        )
        .await?;
        let shown = Arc::clone(&local);
        let loading = tokio::task::spawn_blocking(move || {
            Engine::load(&engine, |share| {
                shown.set_progress(share);
                progress(share)
            })
        });
        let engine = loading
            .await
            .map_err(|_| StartError::Load(LoadError::WarmUp))??;
        let card = ModelCard {
            id: options.id,
            created: started.record.started,
            owned_by: owner_of(entry.repo.as_deref()),
            aliases,
            context_length: Some(engine.model().context_tokens),
            quantization: entry.quantization.clone(),
            sha256: Some(entry.sha256().to_owned()),
            size_bytes: Some(entry.size()),
        };
        started.card = Some(card.clone());
        local.set_loaded(engine, card);
        started.local = Some(local);
        started.publish(home)?;
        Ok(started)
    }

    async fn start_upstream(
        home: &Home,
        options: ServeOptions,
        url: String,
        model: Option<String>,
    ) -> Result<Self, StartError> {
        let unusable = |reason: String| StartError::Upstream {
            url: url.clone(),
            reason,
        };
        let client_error = |error: ClientError| unusable(error.to_string());
        let client = OpenAiClient::new(&url).map_err(client_error)?;
        let served = client.models().await.map_err(client_error)?.data;
        let wanted = model.or_else(|| match served.as_slice() {
            [only] => Some(only.card.id.clone()),
            _ => None,
        });
        let names = || {
            served
                .iter()
                .map(|model| model.card.id.as_str())
                .collect::<Vec<_>>()
        };
        let Some(name) = wanted else {
            return Err(unusable(format!(
                "it serves several models, choose one with --upstream-model: {}",
                names().join(", ")
            )));
        };
        let Some(found) = served.iter().find(|model| model.card.id == name) else {
            return Err(unusable(format!(
                "it does not serve '{name}', but {}",
                names().join(", ")
            )));
        };
        let card = ModelCard {
            id: options.id.clone(),
            created: unix_seconds(),
            aliases: vec![name.clone()],
            ..found.card.clone()
        };
        let aliases = card.aliases.clone();
        let inference = Arc::new(Upstream::new(client, name, card.clone()));
        let mut started =
            Self::listen(home, &options, inference, aliases, Some(url.clone()), None).await?;
        started.card = Some(card);
        started.publish(home)?;
        Ok(started)
    }

    async fn listen(
        home: &Home,
        options: &ServeOptions,
        inference: Arc<dyn Inference>,
        aliases: Vec<String>,
        upstream: Option<String>,
        local: Option<Arc<LocalInference>>,
    ) -> Result<Self, StartError> {
        let servers = Servers::new(home);
        let registry = |source| StartError::Registry {
            path: home.servers(),
            source,
        };
        let address = SocketAddr::new(options.host, options.port);
        let config = ServerConfig {
            listen: address,
            cors: options.cors,
            fingerprint: concat!("tenzro-", env!("CARGO_PKG_VERSION")).to_owned(),
            limits: Limits::default(),
        };
        let billing = match &options.sale {
            Some(sale) => {
                let token = ensure_operator_token(home).map_err(registry)?;
                Some(Till::shared(sale.payee().clone(), &token))
            }
            None => None,
        };
        let server = match Server::bind(config, inference, billing).await {
            Ok(server) => server,
            Err(source) => {
                let running = servers.running().map_err(registry)?;
                return Err(
                    match running.into_iter().find(|one| one.port == options.port) {
                        Some(ours) => StartError::PortOurs {
                            port: ours.port,
                            model: ours.model,
                            pid: ours.pid,
                        },
                        None => StartError::Listen { address, source },
                    },
                );
            }
        };
        let local_addr = server.local_addr();
        let port = local_addr.port();
        let slot = servers.claim(port).map_err(registry)?;
        // The port was free a moment ago, so only a server on another address can hold the slot.
        let slot =
            slot.ok_or_else(|| registry(std::io::Error::other("the port's slot is held")))?;
        Ok(Self {
            record: ServerRecord {
                pid: std::process::id(),
                port,
                base_url: format!("http://{}/v1", reachable(local_addr)),
                model: options.id.clone(),
                aliases,
                started: unix_seconds(),
                upstream,
                on_ledger: None,
            },
            server,
            local,
            card: None,
            slot,
        })
    }

    fn publish(&self, home: &Home) -> Result<(), StartError> {
        self.slot
            .publish(&self.record)
            .map_err(|source| StartError::Registry {
                path: home.servers(),
                source,
            })
    }
}

/// An address that a client on this machine can connect to.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn owner_of(repo: Option<&str>) -> String {
    repo.and_then(|repo| repo.split_once('/'))
        .map_or("local", |(owner, _)| owner)
        .to_owned()
}

pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
