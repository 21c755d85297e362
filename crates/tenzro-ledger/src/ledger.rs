//! The ledger as everything above it sees it: one alloy provider over whichever chain, and the
//! addresses of the contracts there.

pub(crate) mod logs;
pub(crate) mod repeat;

use std::time::Duration;

use alloy::network::Ethereum;
use alloy::primitives::{Address, B256, U256};
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::rpc::client::RpcClient;
use alloy::transports::TransportError;
use alloy::transports::http::Http;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::contracts::{Faucet, PaymentChannels, ProviderRegistry, TNZO};

/// How long one call to a chain over HTTP may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Where the contracts are on a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The token.
    pub tnzo: Address,
    /// Gives tokens away on development ledgers.
    pub faucet: Option<Address>,
    /// Providers, endpoints, stake and prices.
    pub provider_registry: Address,
    /// Escrow of payment channels.
    pub payment_channels: Address,
    /// First block that can hold an event of theirs.
    #[serde(default)]
    pub first_block: u64,
}

/// Reads a ledger; cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    provider: DynProvider,
    addresses: Addresses,
    chain_id: u64,
}

/// Why a ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The address of the chain is none.
    #[error("'{0}' is no http or https address")]
    Url(String),
    /// The chain does not answer, or not what was asked.
    #[error("the chain cannot be used: {}", short(.0))]
    Transport(#[from] TransportError),
    /// Nothing answers there.
    #[error("the chain cannot be reached: {0}")]
    Unreachable(String),
    /// A contract's answer cannot be read.
    #[error("the contract's answer cannot be read: {0}")]
    Contract(alloy::contract::Error),
    /// Nothing is deployed there.
    #[error("there is no {name} contract at {address} on chain {chain_id}")]
    NoContract {
        /// Which one.
        name: &'static str,
        /// Where it should be.
        address: Address,
        /// On which chain.
        chain_id: u64,
    },
    /// It is reorganised again and again while it is read.
    #[error("the chain changes faster than it can be read")]
    Reorganising,
    /// Who answers does not have the newest blocks.
    #[error("the chain's node lags behind: it does not have the newest blocks yet")]
    Lagging,
    /// What became of a transaction cannot be told by its receipt.
    #[error("the receipt of transaction {0} does not tell what it did")]
    Receipt(B256),
    /// The chain is another one than before.
    #[error("the chain has id {actual}, but the settings are for {expected}")]
    OtherChain {
        /// What it says.
        actual: u64,
        /// What it should be.
        expected: u64,
    },
}

impl From<alloy::contract::Error> for LedgerError {
    fn from(error: alloy::contract::Error) -> Self {
        match error {
            // No answer is nothing that the contract said.
            alloy::contract::Error::TransportError(error) if !error.is_error_resp() => {
                Self::Transport(error)
            }
            other => Self::Contract(other),
        }
    }
}

impl LedgerError {
    /// Whether waiting may help.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Transport(_) | Self::Unreachable(_) | Self::Reorganising | Self::Lagging
        )
    }
}

/// An error without the bodies of requests and answers.
pub(crate) fn short(error: &TransportError) -> String {
    match error {
        TransportError::ErrorResp(payload) => payload.message.to_string(),
        other => {
            let text = other.to_string();
            text.chars().take(300).collect()
        }
    }
}

/// A provider that repeats what a busy chain refuses or leaves unanswered.
pub fn connect(url: &str) -> Result<DynProvider, LedgerError> {
    let invalid = || LedgerError::Url(url.to_owned());
    let parsed: alloy::transports::http::reqwest::Url = url.parse().map_err(|_| invalid())?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(invalid());
    }
    // Another part of the process may have installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = alloy::transports::http::reqwest::Client::builder()
        .timeout(CALL_TIMEOUT)
        .build()
        .map_err(|_| invalid())?;
    let transport = Http::with_client(client, parsed);
    let client = RpcClient::builder()
        .layer(repeat::Repeat)
        .transport(transport, false);
    Ok(provider_of(client))
}

/// EIP-155 id of a chain.
pub async fn chain_id(provider: &DynProvider) -> Result<u64, LedgerError> {
    Ok(provider.get_chain_id().await?)
}

/// Passes a call on to the chain as it is.
pub async fn forward(
    ledger: &Ledger,
    method: String,
    params: &RawValue,
) -> Result<Box<RawValue>, TransportError> {
    let provider = ledger.provider();
    provider.raw_request_dyn(method.into(), params).await
}

/// A provider that fills nothing in by itself: transactions are made in one place, `transaction.rs`.
pub(crate) fn provider_of(client: RpcClient) -> DynProvider {
    ProviderBuilder::<_, _, Ethereum>::default()
        .connect_client(client)
        .erased()
}

impl Ledger {
    /// Checks that the contracts are there.
    pub async fn open(provider: DynProvider, addresses: Addresses) -> Result<Self, LedgerError> {
        let chain_id = provider.get_chain_id().await?;
        let faucet = addresses.faucet.map(|address| ("Faucet", address));
        let others = [
            ("TNZO", addresses.tnzo),
            ("ProviderRegistry", addresses.provider_registry),
            ("PaymentChannels", addresses.payment_channels),
        ];
        for (name, address) in others.into_iter().chain(faucet) {
            if provider.get_code_at(address).await?.is_empty() {
                return Err(LedgerError::NoContract {
                    name,
                    address,
                    chain_id,
                });
            }
        }
        Ok(Self {
            provider,
            addresses,
            chain_id,
        })
    }

    /// The chain itself.
    pub fn provider(&self) -> &DynProvider {
        &self.provider
    }

    /// Where the contracts are.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// EIP-155 id of the chain.
    pub fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// Height of the newest block.
    pub async fn head(&self) -> Result<u64, LedgerError> {
        Ok(self.provider.get_block_number().await?)
    }

    /// Transactions that the account has sent.
    pub async fn nonce(&self, account: Address) -> Result<u64, LedgerError> {
        Ok(self.provider.get_transaction_count(account).await?)
    }

    /// Wei of TNZO that the account has.
    pub async fn balance(&self, account: Address) -> Result<U256, LedgerError> {
        Ok(self.tnzo().balanceOf(account).call().await?)
    }

    /// The token.
    pub fn tnzo(&self) -> TNZO::TNZOInstance<DynProvider> {
        TNZO::new(self.addresses.tnzo, self.provider.clone())
    }

    /// The faucet, on development ledgers.
    pub fn faucet(&self) -> Option<Faucet::FaucetInstance<DynProvider>> {
        let address = self.addresses.faucet?;
        Some(Faucet::new(address, self.provider.clone()))
    }

    /// The registry of providers.
    pub fn registry(&self) -> ProviderRegistry::ProviderRegistryInstance<DynProvider> {
        ProviderRegistry::new(self.addresses.provider_registry, self.provider.clone())
    }

    /// The escrow.
    pub fn channels(&self) -> PaymentChannels::PaymentChannelsInstance<DynProvider> {
        PaymentChannels::new(self.addresses.payment_channels, self.provider.clone())
    }
}
