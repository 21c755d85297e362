//! Opens the ledger that the settings name: the embedded chain of this home, or any chain over HTTP.

use std::time::Duration;

use serde_json::json;
use tenzro_ledger::registry::{FollowConfig, Registry};
use tenzro_ledger::{
    Addresses, EmbeddedChain, EmbeddedError, Ledger, LedgerError, RegistryRules, connect,
};
use tenzro_protocol::json_rpc::code;
use tenzro_protocol::network::NetworkInfo;

use crate::config::Config;
use crate::network::addresses;
use crate::node_client::{NodeClient, NodeError};

/// The chain's name where it is embedded.
pub const EMBEDDED: &str = "embedded";

/// How often a view follows an embedded chain; commands that read make it catch up first.
const EMBEDDED_PERIOD: Duration = Duration::from_millis(500);

/// How often a view follows a chain over HTTP: most L2 chains make a block each second or two.
const REMOTE_PERIOD: Duration = Duration::from_secs(1);

/// First and longest pause until a chain that does not answer is asked again.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// An opened ledger, and its registry as it is now.
#[derive(Debug)]
pub(crate) struct LedgerSource {
    pub(crate) ledger: Ledger,
    pub(crate) rules: RegistryRules,
    pub(crate) registry: Registry,
    /// `embedded` or the chain's address.
    pub(crate) chain: String,
    /// Whether the chain lives in this process.
    pub(crate) is_embedded: bool,
    /// How often to follow it.
    pub(crate) period: Duration,
}

/// What is known of a ledger before it is asked anything.
struct Opened {
    ledger: Ledger,
    chain: String,
    is_embedded: bool,
    /// Blocks on top of a block before it counts.
    blocks_on_top: u64,
    period: Duration,
}

/// Why a ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerSourceError {
    /// The embedded chain does not open.
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    /// The chain cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The settings name some contracts, but not all, or an address is none.
    #[error("chain.{key}: {reason}")]
    Setting {
        /// Which setting.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Nobody says where the contracts are.
    #[error("nobody knows where the contracts are on the chain at {url}")]
    NoContracts {
        /// The chain's address.
        url: String,
    },
}

/// A chain that does not answer is asked again, ever more slowly; `waiting` is told why.
pub(crate) async fn open(
    config: &Config,
    waiting: impl Fn(&str),
) -> Result<LedgerSource, LedgerSourceError> {
    let chain: String = config.get("chain.url").unwrap_or_default();
    let mut pause = PAUSE;
    loop {
        let error = match open_once(config, &chain).await {
            Ok(source) => return Ok(source),
            Err(error) => error,
        };
        let LedgerSourceError::Ledger(ledger_error) = &error else {
            return Err(error);
        };
        if !ledger_error.is_retryable() {
            return Err(error);
        }
        waiting(&format!("{error}; asking again in {} s", pause.as_secs()));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn open_once(config: &Config, chain: &str) -> Result<LedgerSource, LedgerSourceError> {
    let opened = match chain {
        EMBEDDED => open_embedded(config).await?,
        url => open_remote(config, url).await?,
    };
    let follow = FollowConfig {
        confirmations: opened.blocks_on_top,
        file: Some(config.home.node().join("registry.json")),
    };
    let registry = Registry::open(opened.ledger.clone(), follow);
    let rules = opened.ledger.rules().await?;
    registry.catch_up().await?;
    Ok(LedgerSource {
        ledger: opened.ledger,
        rules,
        registry,
        chain: opened.chain,
        is_embedded: opened.is_embedded,
        period: opened.period,
    })
}

async fn open_embedded(config: &Config) -> Result<Opened, LedgerSourceError> {
    let file = config.home.node().join("ledger.sqlite");
    let chain = EmbeddedChain::open(&file)?;
    let ledger = Ledger::open(chain.provider(), EmbeddedChain::addresses()).await?;
    Ok(Opened {
        ledger,
        chain: EMBEDDED.to_owned(),
        is_embedded: true,
        blocks_on_top: 0,
        period: EMBEDDED_PERIOD,
    })
}

async fn open_remote(config: &Config, url: &str) -> Result<Opened, LedgerSourceError> {
    let provider = connect(url)?;
    let addresses = match configured(config)? {
        Some(addresses) => addresses,
        None => shared(config, url).await?,
    };
    let ledger = Ledger::open(provider, addresses).await?;
    if let Some(expected) = config.get::<u64>("chain.id")
        && expected != ledger.chain_id()
    {
        return Err(LedgerError::OtherChain {
            actual: ledger.chain_id(),
            expected,
        }
        .into());
    }
    // A block counts as its own first confirmation. A development chain often makes a block only when
    // somebody sends something, so waiting for another one would hide the last transaction.
    let is_development = addresses.faucet.is_some();
    let confirmations = config
        .get::<u64>("chain.confirmations")
        .unwrap_or(if is_development { 1 } else { 2 });
    Ok(Opened {
        ledger,
        chain: url.to_owned(),
        is_embedded: false,
        blocks_on_top: confirmations.saturating_sub(1),
        period: REMOTE_PERIOD,
    })
}

/// Addresses from the settings: all of them or none.
pub(crate) fn configured(config: &Config) -> Result<Option<Addresses>, LedgerSourceError> {
    let keys = [
        "chain.tnzo",
        "chain.provider_registry",
        "chain.payment_channels",
    ];
    if keys.iter().all(|key| config.get::<String>(key).is_none()) {
        return Ok(None);
    }
    let read = |key: &'static str| {
        let text: Option<String> = config.get(key);
        let reason = match &text {
            Some(text) => format!("'{text}' is no address"),
            None => "is missing, but other contracts are set".to_owned(),
        };
        let key = key.trim_start_matches("chain.");
        text.and_then(|text| text.parse().ok())
            .ok_or(LedgerSourceError::Setting { key, reason })
    };
    Ok(Some(Addresses {
        tnzo: read(keys[0])?,
        provider_registry: read(keys[1])?,
        payment_channels: read(keys[2])?,
        faucet: match config.get::<String>("chain.faucet") {
            Some(_) => Some(read("chain.faucet")?),
            None => None,
        },
        first_block: config.get("chain.first_block").unwrap_or_default(),
    }))
}

/// Addresses from the node that holds the chain, when it is one.
async fn shared(config: &Config, url: &str) -> Result<Addresses, LedgerSourceError> {
    let no_contracts = || LedgerSourceError::NoContracts {
        url: url.to_owned(),
    };
    let node = NodeClient::new(url, &config.home).map_err(|_| LedgerError::Url(url.to_owned()))?;
    let info: NetworkInfo = match node.call("tenzro_networkInfo", json!([])).await {
        Ok(info) => info,
        Err(NodeError::Unreachable { reason, .. }) => {
            return Err(LedgerError::Unreachable(reason).into());
        }
        Err(NodeError::Rpc(error)) if error.code != code::METHOD_NOT_FOUND => {
            return Err(LedgerError::Unreachable(error.message).into());
        }
        Err(_) => return Err(no_contracts()),
    };
    addresses(&info.contracts).map_err(|_| no_contracts())
}
