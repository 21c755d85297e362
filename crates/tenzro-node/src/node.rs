//! A running node: ledger, registry view, wallet, probes and JSON-RPC.
//!
//! ```text
//! start: claim the home ─▶ open the ledger ─▶ catch up ─▶ listen ─▶ publish the record
//! then:  follow the ledger, probe endpoints
//! stop:  refuse calls ─▶ running calls finish ─▶ end
//! ```

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tenzro_api::{JsonRpc, Limits, NodeServerConfig, Server};
use tenzro_ledger::{Account, Keystore, WalletError};
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::directory::LocalEndpoint;
use crate::health::Health;
use crate::ledger_source::{self, LedgerSource, LedgerSourceError};
use crate::local_endpoints::LocalEndpoints;
use crate::model_server::{reachable, unix_seconds};
use crate::node_rpc::NodeRpc;
use crate::operator_token::ensure_operator_token;
use crate::probe::Prober;
use crate::servers::{NodeRecord, Servers, Slot, running_node};

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeStartError {
    /// One runs already.
    #[error("a node of this home runs already{}", .0.as_ref().map(|node| format!(" at {} (process {})", node.rpc_url, node.pid)).unwrap_or_default())]
    Running(Option<NodeRecord>),
    /// The settings name no address to listen on.
    #[error("node.host: '{0}' is no IP address")]
    Host(String),
    /// Another process has the port.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The home cannot be written.
    #[error("{}: {source}", path.display())]
    Home {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerSourceError),
    /// The node's wallet cannot be used.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// The HTTP client does not start.
    #[error("the HTTP client does not start: {0}")]
    Client(String),
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    server: Server,
    record: NodeRecord,
    tasks: Vec<JoinHandle<()>>,
    // Held until the end, so that nobody else uses the ledger's file meanwhile.
    _slot: Slot,
}

impl Node {
    /// Starts. A chain that does not answer is waited for; `waiting` is told why.
    pub async fn start(config: &Config, waiting: impl Fn(&str)) -> Result<Self, NodeStartError> {
        let home = &config.home;
        let failed = |path: PathBuf| move |source| NodeStartError::Home { path, source };
        let slot = Slot::claim(home.node()).map_err(failed(home.node()))?;
        let slot = slot.ok_or_else(|| NodeStartError::Running(running_node(home)))?;
        let token = ensure_operator_token(home).map_err(failed(home.operator_token_file()))?;
        let source = ledger_source::open(config, &waiting).await?;
        let account = account(config, &source)?;
        let rpc = Arc::new(rpc(config, &source, account).await?);
        let server = listen(config, token, rpc.clone()).await?;
        let record = record(&source, server.local_addr());
        slot.publish(&record).map_err(failed(home.node()))?;
        let follow = {
            let (registry, period) = (rpc.registry.clone(), source.period);
            tokio::spawn(async move { registry.follow(period).await })
        };
        let probe = tokio::spawn(async move {
            let endpoints = || rpc.with_directory(|directory| directory.endpoints(None));
            rpc.health.keep_probing(endpoints).await;
        });
        tracing::info!(url = record.rpc_url, chain = record.chain, "the node runs");
        Ok(Self {
            server,
            record,
            tasks: vec![follow, probe],
            _slot: slot,
        })
    }

    /// What it says about itself.
    pub fn record(&self) -> &NodeRecord {
        &self.record
    }

    /// Refuses new calls, lets running ones finish for at most `grace`, then stops.
    pub async fn shutdown(self, grace: Duration) -> bool {
        let finished = self.server.shutdown(grace).await;
        for task in &self.tasks {
            task.abort();
        }
        finished
    }
}

/// The node's wallet: the default one of the home. Made on the first use of a development ledger,
/// where it costs nothing to have one.
fn account(config: &Config, source: &LedgerSource) -> Result<Option<Account>, NodeStartError> {
    let keystore = Keystore::new(config.home.keystore());
    let password = config.wallet_password().map(|password| password.reveal());
    let wallet = match keystore.default_wallet() {
        Ok(wallet) => wallet,
        Err(WalletError::None) if source.ledger.addresses().faucet.is_some() => {
            keystore.create(None, password)?
        }
        Err(WalletError::None) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let signer = keystore.unlock(&wallet, password)?;
    let provider = source.ledger.provider().clone();
    Ok(Some(Account::new(
        provider,
        source.ledger.chain_id(),
        signer,
    )))
}

async fn rpc(
    config: &Config,
    source: &LedgerSource,
    account: Option<Account>,
) -> Result<NodeRpc, NodeStartError> {
    let home = &config.home;
    let ledger = source.ledger.clone();
    // Whoever runs a development ledger has all parties on his own machines.
    let is_development = ledger.addresses().faucet.is_some();
    let allow_private = config
        .get("node.allow_private_endpoints")
        .unwrap_or(is_development);
    let prober =
        Prober::new(allow_private).map_err(|error| NodeStartError::Client(error.to_string()))?;
    let local = LocalEndpoints::open(home.node().join("endpoints.json"));
    find_running(config, &prober, &local).await;
    Ok(NodeRpc {
        ledger,
        registry: source.registry.clone(),
        rules: source.rules,
        is_embedded: source.is_embedded,
        account,
        local,
        health: Health::new(prober.clone()),
        prober,
        home: home.clone(),
    })
}

/// Model servers that started before the node are local endpoints like those that start later.
async fn find_running(config: &Config, prober: &Prober, local: &LocalEndpoints) {
    for server in Servers::new(&config.home).running().unwrap_or_default() {
        if server.on_ledger.is_some() {
            continue;
        }
        let found = prober.probe(&server.base_url, &server.model).await;
        let added = found.map_err(|error| error.to_string()).and_then(|found| {
            let endpoint = LocalEndpoint {
                model_id: found.card.id.clone(),
                base_url: server.base_url.clone(),
                card: found.card,
            };
            local.add(endpoint).map_err(|error| error.to_string())
        });
        if let Err(reason) = added {
            tracing::warn!(server = server.base_url, reason, "not taken as an endpoint");
        }
    }
}

async fn listen(
    config: &Config,
    operator_token: String,
    rpc: Arc<dyn JsonRpc>,
) -> Result<Server, NodeStartError> {
    let host: String = config.get("node.host").unwrap_or_default();
    let ip: IpAddr = host.parse().map_err(|_| NodeStartError::Host(host))?;
    let address = SocketAddr::new(ip, config.get("node.port").unwrap_or_default());
    let server = NodeServerConfig {
        listen: address,
        cors: config.get("node.cors").unwrap_or(false),
        operator_token,
        limits: Limits::default(),
    };
    Server::bind_node(server, rpc)
        .await
        .map_err(|source| NodeStartError::Listen { address, source })
}

fn record(source: &LedgerSource, address: SocketAddr) -> NodeRecord {
    NodeRecord {
        pid: std::process::id(),
        port: address.port(),
        rpc_url: format!("http://{}", reachable(address)),
        chain: source.chain.clone(),
        chain_id: source.ledger.chain_id(),
        started: unix_seconds(),
    }
}
