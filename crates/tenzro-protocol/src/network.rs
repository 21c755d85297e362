//! What a node tells about the network it sees: endpoints, models, providers and the ledger.
//!
//! Figures that nobody has measured yet are `null`; nothing here is estimated.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::amount::Wei;
use crate::schedule::Schedule;

/// Whether an endpoint can be used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointStatus {
    /// Active, open, and answered the last probe.
    Online,
    /// Active and open, but some of the recent probes failed.
    Degraded,
    /// Active and open, but does not answer.
    Offline,
    /// Active and open, and not probed yet.
    Unknown,
    /// Active, but outside the provider's hours.
    ScheduledOff,
    /// Not registered, not staked, not priced, or stopped.
    Inactive,
}

impl EndpointStatus {
    /// Whether a request may go there: nothing is known against it.
    pub fn is_usable(self) -> bool {
        self.is_answering() || self == Self::Unknown
    }

    /// Whether it answered the last probe.
    pub fn is_answering(self) -> bool {
        matches!(self, Self::Online | Self::Degraded)
    }
}

/// What keeps an endpoint from being used, or a provider from being eligible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Missing {
    /// The provider is not registered.
    Registration,
    /// Too little is staked and not unbonding.
    Stake {
        /// Wei that are missing.
        amount: Wei,
    },
    /// The model has no price.
    Price {
        /// Model id.
        model_id: String,
    },
    /// The provider took the endpoint off.
    Serving,
}

/// For people.
impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registration => formatter.write_str("the provider is not registered"),
            Self::Stake { amount } => {
                write!(formatter, "{} TNZO of stake are missing", amount.tnzo())
            }
            Self::Price { model_id } => write!(formatter, "{model_id} has no price"),
            Self::Serving => formatter.write_str("its provider stopped it"),
        }
    }
}

/// One model served by one provider at one address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointInfo {
    /// 0x and 64 hexadecimal digits.
    pub endpoint_id: String,
    /// Model id.
    pub model_id: String,
    /// Address of the provider's wallet; `None` for a local endpoint.
    pub provider: Option<String>,
    /// What the provider calls itself: somebody else's text.
    pub provider_name: Option<String>,
    /// Base URL; ends in `/v1`. Somebody else's text.
    pub api_endpoint: String,
    /// SHA-256 of the model file, 64 hexadecimal digits.
    pub model_hash: Option<String>,
    /// Such as `Q4_K_M`: the provider's word.
    pub quantization: Option<String>,
    /// Tokens: the provider's word.
    pub context_length: Option<u32>,
    /// Wei.
    pub price_per_input_token: Option<Wei>,
    /// Wei.
    pub price_per_output_token: Option<Wei>,
    /// How often the price was set.
    pub price_version: Option<u64>,
    /// A rise that was announced.
    pub next_price: Option<NextPrice>,
    /// `network` when it is on the ledger, `local` when only this node knows it.
    pub location: Location,
    /// Whether it can be used now.
    pub status: EndpointStatus,
    /// What is missing when it is inactive.
    pub missing: Vec<Missing>,
    /// The last probe's response time.
    pub latency_ms: Option<f64>,
    /// Share of failed probes since the node started, 0–1.
    pub error_rate: Option<f64>,
    /// Share of answered probes since the node started, 0–100.
    pub uptime_percent: Option<f64>,
}

/// Who knows an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Location {
    /// On the ledger: everybody.
    Network,
    /// This node only; free.
    Local,
}

/// A price that takes effect later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextPrice {
    /// Wei.
    pub price_per_input_token: Wei,
    /// Wei.
    pub price_per_output_token: Wei,
    /// Unix seconds.
    pub effective_at: u64,
}

/// A model that somebody serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkModel {
    /// Model id.
    pub model_id: String,
    /// Endpoints of any status.
    pub endpoints: usize,
    /// Those that can be used now.
    pub online: usize,
    /// Wei; of those that are active.
    pub cheapest_input_token: Option<Wei>,
    /// Wei; of those that are active.
    pub cheapest_output_token: Option<Wei>,
    /// Wei; of those that are active.
    pub dearest_output_token: Option<Wei>,
}

/// A provider as the ledger has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProviderInfo {
    /// Address of the wallet.
    pub provider: String,
    /// Somebody else's text.
    pub name: String,
    /// Whether it is registered.
    pub is_registered: bool,
    /// Wei, with the unbonding part.
    pub staked: Wei,
    /// Wei that are leaving.
    pub unbonding: Wei,
    /// Unix seconds from when they can be withdrawn.
    pub unbonding_until: Option<u64>,
    /// Wei that its stake must reach.
    pub minimum_stake: Wei,
    /// Registered and staked.
    pub is_eligible: bool,
    /// What is missing.
    pub missing: Vec<Missing>,
    /// When it serves; always, where there is none.
    pub schedule: Option<Schedule>,
    /// Whether it serves now by its schedule.
    pub is_open: bool,
    /// Model ids of its endpoints that are not stopped.
    pub served_models: Vec<String>,
}

/// What a provider asks for a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PricingInfo {
    /// Model id.
    pub model_id: String,
    /// Wei.
    pub price_per_input_token: Wei,
    /// Wei.
    pub price_per_output_token: Wei,
    /// How often it was set.
    pub price_version: u64,
    /// A rise that was announced.
    pub next_price: Option<NextPrice>,
}

/// Where the contracts are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contracts {
    /// The token.
    pub tnzo: String,
    /// On development ledgers.
    pub faucet: Option<String>,
    /// Providers, endpoints, stake and prices.
    pub provider_registry: String,
    /// Escrow of payment channels.
    pub payment_channels: String,
    /// First block that can hold an event of theirs.
    pub first_block: u64,
}

/// The ledger and the node: what an SDK needs to sign.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// EIP-155 id.
    pub chain_id: u64,
    /// `embedded` or `remote`.
    pub chain: String,
    /// Whether a faucet gives TNZO away.
    pub is_development: bool,
    /// Where the contracts are.
    pub contracts: Contracts,
    /// Wei that a provider must have staked.
    pub minimum_stake: Wei,
    /// Seconds from asking for stake until it can be withdrawn.
    pub unbonding_seconds: u64,
    /// Seconds until a price rise takes effect.
    pub price_delay_seconds: u64,
    /// Last block of the node's view.
    pub block: Option<u64>,
    /// Age of the node's view.
    pub ledger_lag_seconds: f64,
    /// Address of the node's wallet.
    pub wallet: Option<String>,
    /// The node's version.
    pub version: String,
}
