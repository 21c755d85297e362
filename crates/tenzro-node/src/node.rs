//! A running node: ledger, registry view, wallet, probes and JSON-RPC.
//!
//! ```text
//! start: claim the home ─▶ open the ledger ─▶ catch up ─▶ listen ─▶ publish the record
//! then:  follow the ledger, probe endpoints
//! stop:  refuse calls ─▶ running calls finish ─▶ end
//! ```

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tenzro_api::{Inference, JsonRpc, Limits, NodeServerConfig, Server};
use tenzro_hub::Library;
use tenzro_ledger::{Account, Keystore, Ledger, WalletError};
use tenzro_payments::payer::budget::Limits as Budget;
use tenzro_payments::payer::{PayError, Payer, PayerConfig, unix_now};
use tenzro_payments::signature::Signer;
use tenzro_protocol::amount::Wei;
use tokio::task::JoinHandle;

use crate::channel_view::ChannelViews;
use crate::choice::PricesMax;
use crate::closing;
use crate::config::Config;
use crate::directory::LocalEndpoint;
use crate::health::Health;
use crate::ledger_source::{self, LedgerSource, LedgerSourceError};
use crate::local_endpoints::LocalEndpoints;
use crate::model_server::{reachable, unix_seconds};
use crate::network_inference::NetworkInference;
use crate::node_rpc::{LastEarnings, NodeRpc};
use crate::operator_token::ensure_operator_token;
use crate::payer_ledger::LedgerView;
use crate::probe::Prober;
use crate::sale::Place;
use crate::servers::{NodeRecord, Servers, Slot, running_node};

/// How often the books of the payer are held against the ledger.
const RECOVER_PERIOD: Duration = Duration::from_secs(60);

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
    /// The books of what the node pays cannot be used.
    #[error("the payment books cannot be used: {0}")]
    Payer(#[from] PayError),
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
    payer: Option<Payer>,
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
        let library = Library::new(home.root(), &config.hub.cache_dir);
        let prices_max = PricesMax {
            input: amount(config, "payments.max_input_price"),
            output: amount(config, "payments.max_output_price"),
        };
        let inference = Arc::new(NetworkInference::new(
            rpc.clone(),
            library,
            rpc.prober.allows_private(),
            prices_max,
        ));
        rpc.set_network(&inference);
        let server = listen(config, token, rpc.clone(), inference).await?;
        let record = record(&source, server.local_addr());
        slot.publish(&record).map_err(failed(home.node()))?;
        let follow = {
            let (registry, period) = (rpc.registry.clone(), source.period);
            tokio::spawn(async move { registry.follow(period).await })
        };
        let payer = rpc.payer.clone();
        let recover = payer.clone();
        let recover = recover.map(|payer| tokio::spawn(keep_recovered(payer)));
        let probe = tokio::spawn(async move {
            let endpoints = || rpc.with_directory(|directory| directory.endpoints(None));
            rpc.health.keep_probing(endpoints).await;
        });
        tracing::info!(url = record.rpc_url, chain = record.chain, "the node runs");
        Ok(Self {
            server,
            record,
            tasks: [follow, probe].into_iter().chain(recover).collect(),
            payer,
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
        // What was bought until now is in the books.
        if let Some(payer) = self.payer {
            payer.shutdown().await;
        }
        finished
    }
}

/// Holds the payer's books against the ledger: at the start, and now and then.
async fn keep_recovered(payer: Payer) {
    loop {
        if let Err(error) = payer.recover().await {
            tracing::warn!(%error, "the channels of the node's wallet cannot be read");
        }
        tokio::time::sleep(RECOVER_PERIOD).await;
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
    let payer = account
        .as_ref()
        .map(|account| payer(config, &ledger, account));
    Ok(NodeRpc {
        payer: payer.transpose()?,
        channels: ChannelViews::new(ledger.clone()),
        earnings: LastEarnings::default(),
        network: OnceLock::new(),
        ledger,
        registry: source.registry.clone(),
        rules: source.rules,
        is_embedded: source.is_embedded,
        is_private: host(config)?.is_loopback(),
        account,
        local,
        health: Health::new(prober.clone()),
        prober,
        home: home.clone(),
    })
}

/// The node's wallet as a payer of providers.
fn payer(config: &Config, ledger: &Ledger, account: &Account) -> Result<Payer, NodeStartError> {
    let limit = |key| amount(config, key).map(|Wei(amount)| amount);
    let path = Place::of(&config.home, account.address()).payer_file();
    let directory = path.parent().expect("it is in the wallet's directory");
    std::fs::create_dir_all(directory).map_err(|source| NodeStartError::Home {
        path: directory.to_owned(),
        source,
    })?;
    let payer = PayerConfig {
        path,
        market: closing::market(ledger),
        signer: Signer::from_bytes(&account.signer().to_bytes()).expect("a wallet's key is a key"),
        limits: Budget {
            hour: limit("payments.max_per_hour"),
            day: limit("payments.max_per_day"),
            deposit: limit("payments.max_deposit"),
        },
        clock: unix_now,
    };
    let view = LedgerView::new(ledger.clone(), account.signer().clone());
    Ok(Payer::open(payer, Arc::new(view))?)
}

/// A setting that is an amount of TNZO.
fn amount(config: &Config, key: &str) -> Option<Wei> {
    let text: Option<String> = config.get(key);
    text.and_then(|text| Wei::parse_tnzo(&text).ok())
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
    inference: Arc<dyn Inference>,
) -> Result<Server, NodeStartError> {
    let address = SocketAddr::new(host(config)?, config.get("node.port").unwrap_or_default());
    let server = NodeServerConfig {
        listen: address,
        cors: config.get("node.cors").unwrap_or(false),
        operator_token,
        fingerprint: concat!("tenzro-", env!("CARGO_PKG_VERSION")).to_owned(),
        limits: Limits::default(),
    };
    Server::bind_node(server, rpc, inference)
        .await
        .map_err(|source| NodeStartError::Listen { address, source })
}

fn host(config: &Config) -> Result<IpAddr, NodeStartError> {
    let host: String = config.get("node.host").unwrap_or_default();
    host.parse().map_err(|_| NodeStartError::Host(host))
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
