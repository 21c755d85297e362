//! The network as a command sees it: a node, and the ledger that it tells about and passes on.

use serde_json::json;
use tenzro_ledger::{Addresses, Ledger, LedgerError, connect};
use tenzro_protocol::network::{Contracts, NetworkInfo};

use crate::config::Config;
use crate::ledger_source::{LedgerSourceError, configured};
use crate::node_client::{NodeClient, NodeError};

/// A node and its ledger.
#[derive(Debug, Clone)]
pub struct Network {
    /// The node.
    pub node: NodeClient,
    /// What it says about itself and its ledger.
    pub info: NetworkInfo,
    /// The ledger, through the node.
    pub ledger: Ledger,
}

/// Why the network cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The node does not answer or refuses.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The ledger behind it cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The settings of this home name other contracts on that chain.
    #[error(
        "the node names other contracts than this home's settings do on chain {0}: it may be after your TNZO"
    )]
    OtherContracts(u64),
    /// The settings name only some contracts.
    #[error(transparent)]
    Settings(#[from] LedgerSourceError),
    /// The node names contracts by no addresses.
    #[error("the node's address of a contract cannot be read: '{0}'")]
    Address(String),
}

impl Network {
    /// Asks the node about its ledger and checks that the contracts are there. What the settings say
    /// about that chain's contracts comes before the node's word.
    pub async fn connect(node: NodeClient, config: &Config) -> Result<Self, NetworkError> {
        let info: NetworkInfo = node.call("tenzro_networkInfo", json!([])).await?;
        let addresses = addresses(&info.contracts)?;
        if let Some(expected) = configured(config)?
            && config.get("chain.id") == Some(info.chain_id)
            && expected != addresses
        {
            return Err(NetworkError::OtherContracts(info.chain_id));
        }
        let ledger = Ledger::open(connect(node.url())?, addresses).await?;
        if ledger.chain_id() != info.chain_id {
            return Err(LedgerError::OtherChain {
                actual: ledger.chain_id(),
                expected: info.chain_id,
            }
            .into());
        }
        Ok(Self { node, info, ledger })
    }
}

/// Addresses from the texts on the wire.
pub(crate) fn addresses(contracts: &Contracts) -> Result<Addresses, NetworkError> {
    let read = |text: &String| {
        text.parse()
            .map_err(|_| NetworkError::Address(text.chars().take(60).collect()))
    };
    Ok(Addresses {
        tnzo: read(&contracts.tnzo)?,
        faucet: contracts.faucet.as_ref().map(read).transpose()?,
        provider_registry: read(&contracts.provider_registry)?,
        payment_channels: read(&contracts.payment_channels)?,
        first_block: contracts.first_block,
    })
}

/// Addresses as texts for the wire.
pub(crate) fn contracts(addresses: &Addresses) -> Contracts {
    Contracts {
        tnzo: addresses.tnzo.to_string(),
        faucet: addresses.faucet.map(|address| address.to_string()),
        provider_registry: addresses.provider_registry.to_string(),
        payment_channels: addresses.payment_channels.to_string(),
        first_block: addresses.first_block,
    }
}
