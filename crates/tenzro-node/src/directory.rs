//! The network as a node tells it: the registry's view, this node's local endpoints and what probes
//! measured, as one list. Plain functions on plain values.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tenzro_ledger::registry::{Endpoint, Pricing, Provider, Snapshot, endpoint_id};
use tenzro_ledger::{Address, wei};
use tenzro_protocol::amount::Wei;
use tenzro_protocol::inference::ModelCard;
use tenzro_protocol::model_id::is_meant;
use tenzro_protocol::network::{
    EndpointInfo, EndpointStatus, Location, Missing, NetworkModel, NextPrice, PricingInfo,
    ProviderInfo,
};

use crate::choice::Demand;

/// Longest JSON about a model; the contract allows no more.
const META_BYTES_MAX: usize = 1024;

/// An endpoint that only this node knows; free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocalEndpoint {
    pub(crate) model_id: String,
    pub(crate) base_url: String,
    pub(crate) card: ModelCard,
}

impl LocalEndpoint {
    /// As on the ledger, for nobody's wallet.
    pub(crate) fn id(&self) -> String {
        endpoint_id(Address::ZERO, &self.model_id, &self.base_url).to_string()
    }
}

/// What probes of one endpoint measured since the node started.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Probes {
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    /// Whether the last one was answered, and how fast the last answered one was.
    pub(crate) is_up: bool,
    pub(crate) latency_ms: Option<f64>,
    /// Of all answered ones together.
    pub(crate) latency_sum_ms: f64,
    /// The last 8 probes, the newest in bit 0; a set bit failed.
    pub(crate) recent_failures: u8,
}

impl Probes {
    /// Takes one probe in; `None` when it failed.
    pub(crate) fn record(&mut self, latency_ms: Option<f64>) {
        self.recent_failures = self.recent_failures << 1 | u8::from(latency_ms.is_none());
        self.is_up = latency_ms.is_some();
        match latency_ms {
            Some(latency) => {
                self.answered += 1;
                self.latency_ms = latency_ms;
                self.latency_sum_ms += latency;
            }
            None => self.failed += 1,
        }
    }

    fn total(&self) -> u64 {
        self.answered + self.failed
    }

    /// Those of two endpoints: only their sums make sense.
    pub(crate) fn and(self, other: &Self) -> Self {
        Self {
            answered: self.answered + other.answered,
            failed: self.failed + other.failed,
            latency_sum_ms: self.latency_sum_ms + other.latency_sum_ms,
            ..Self::default()
        }
    }

    /// Share of the probes that were answered, in percent.
    pub(crate) fn uptime_percent(&self) -> Option<f64> {
        share(self.answered, self.total()).map(|share| share * 100.0)
    }

    /// Of the answered ones.
    pub(crate) fn latency_mean_ms(&self) -> Option<f64> {
        (self.answered > 0).then(|| self.latency_sum_ms / self.answered as f64)
    }
}

/// Everything that the list is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Directory<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) minimum_stake: Wei,
    pub(crate) local: &'a BTreeMap<String, LocalEndpoint>,
    pub(crate) probes: &'a HashMap<String, Probes>,
    pub(crate) now: Timestamp,
    /// Now, as the ledger reckons: prices change by its clock, which may be ahead of ours.
    pub(crate) ledger_now: Timestamp,
}

impl Directory<'_> {
    /// All endpoints of the ledger and this node; of one model, when one is named. Local ones first,
    /// then by what a typical request costs.
    pub(crate) fn endpoints(&self, model: Option<&str>) -> Vec<EndpointInfo> {
        let is_wanted = |id: &str| model.is_none_or(|wanted| is_meant(wanted, id));
        let local = self.local.values();
        let local = local
            .filter(|endpoint| is_wanted(&endpoint.model_id))
            .map(|endpoint| self.local_endpoint(endpoint));
        let mut network: Vec<EndpointInfo> = self
            .snapshot
            .endpoints()
            .filter(|endpoint| is_wanted(&endpoint.model_id))
            .map(|endpoint| self.network_endpoint(endpoint))
            .collect();
        network.sort_by_key(|endpoint| {
            let is_inactive = endpoint.status == EndpointStatus::Inactive;
            (is_inactive, Demand::TYPICAL.cost(endpoint))
        });
        local.chain(network).collect()
    }

    /// Those of a provider that were not taken off.
    pub(crate) fn endpoints_of(&self, provider: Address) -> Vec<EndpointInfo> {
        let mut endpoints = self.endpoints(None);
        endpoints.retain(|endpoint| {
            provider_of(endpoint) == Some(provider) && !endpoint.missing.contains(&Missing::Serving)
        });
        endpoints
    }

    /// One endpoint by its id.
    pub(crate) fn endpoint(&self, id: &str) -> Option<EndpointInfo> {
        if let Some(local) = self.local.get(id) {
            return Some(self.local_endpoint(local));
        }
        let endpoint = self.snapshot.endpoint(id.parse().ok()?)?;
        Some(self.network_endpoint(endpoint))
    }

    /// What is served, by model, with the range of prices.
    pub(crate) fn models(&self) -> Vec<NetworkModel> {
        let mut models: BTreeMap<String, Vec<EndpointInfo>> = BTreeMap::new();
        for endpoint in self.endpoints(None) {
            let is_gone = endpoint.missing.contains(&Missing::Serving);
            if !is_gone {
                models
                    .entry(endpoint.model_id.clone())
                    .or_default()
                    .push(endpoint);
            }
        }
        let summary = |(model_id, endpoints): (String, Vec<EndpointInfo>)| {
            let active = || {
                let is_active =
                    |endpoint: &&EndpointInfo| endpoint.status != EndpointStatus::Inactive;
                endpoints.iter().filter(is_active)
            };
            let is_online = |endpoint: &&EndpointInfo| endpoint.status.is_answering();
            NetworkModel {
                online: endpoints.iter().filter(is_online).count(),
                cheapest_input_token: active().filter_map(|one| one.price_per_input_token).min(),
                cheapest_output_token: active().filter_map(|one| one.price_per_output_token).min(),
                dearest_output_token: active().filter_map(|one| one.price_per_output_token).max(),
                endpoints: endpoints.len(),
                model_id,
            }
        };
        models.into_iter().map(summary).collect()
    }

    /// All providers that are registered or have a stake.
    pub(crate) fn providers(&self) -> Vec<ProviderInfo> {
        let known = self.snapshot.providers();
        known
            .filter(|(_, provider)| provider.is_registered || !provider.staked.is_zero())
            .map(|(address, provider)| {
                let served = self
                    .snapshot
                    .endpoints()
                    .filter(|endpoint| endpoint.provider == *address && !endpoint.is_stopped);
                let served = served.map(|endpoint| endpoint.model_id.clone()).collect();
                provider_info(*address, provider, self.minimum_stake, served, self.now)
            })
            .collect()
    }

    fn local_endpoint(&self, endpoint: &LocalEndpoint) -> EndpointInfo {
        let id = endpoint.id();
        let probes = self.probes.get(&id).copied().unwrap_or_default();
        EndpointInfo {
            model_id: endpoint.model_id.clone(),
            provider: None,
            provider_name: None,
            api_endpoint: endpoint.base_url.clone(),
            model_hash: endpoint.card.sha256.clone(),
            quantization: endpoint.card.quantization.clone(),
            context_length: endpoint.card.context_length,
            price_per_input_token: Some(Wei::ZERO),
            price_per_output_token: Some(Wei::ZERO),
            price_version: None,
            next_price: None,
            location: Location::Local,
            status: measured_status(&probes),
            missing: Vec::new(),
            latency_ms: probes.latency_ms,
            error_rate: share(probes.failed, probes.total()),
            uptime_percent: probes.uptime_percent(),
            endpoint_id: id,
        }
    }

    fn network_endpoint(&self, endpoint: &Endpoint) -> EndpointInfo {
        let id = endpoint.id.to_string();
        let probes = self.probes.get(&id).copied().unwrap_or_default();
        let provider = self.snapshot.provider(endpoint.provider);
        let pricing = self.snapshot.pricing(endpoint.provider, &endpoint.model_id);
        let missing = missing(provider, endpoint, pricing, self.minimum_stake);
        let is_open = provider
            .and_then(|provider| provider.schedule.as_ref())
            .is_none_or(|schedule| schedule.is_open(self.now));
        let status = match (missing.is_empty(), is_open) {
            (false, _) => EndpointStatus::Inactive,
            (true, false) => EndpointStatus::ScheduledOff,
            (true, true) => measured_status(&probes),
        };
        let priced =
            pricing.map(|pricing| pricing_info(&endpoint.model_id, pricing, self.ledger_now));
        let meta = Meta::read(&endpoint.meta);
        EndpointInfo {
            endpoint_id: id,
            model_id: endpoint.model_id.clone(),
            provider: Some(endpoint.provider.to_string()),
            provider_name: provider
                .map(|provider| provider.name.clone())
                .filter(|name| !name.is_empty()),
            api_endpoint: endpoint.base_url.clone(),
            model_hash: (!endpoint.model_hash.is_zero()).then(|| {
                endpoint
                    .model_hash
                    .to_string()
                    .trim_start_matches("0x")
                    .to_owned()
            }),
            quantization: meta.quantization,
            context_length: meta.context_length,
            price_per_input_token: priced.as_ref().map(|price| price.price_per_input_token),
            price_per_output_token: priced.as_ref().map(|price| price.price_per_output_token),
            price_version: priced.as_ref().map(|price| price.price_version),
            next_price: priced.and_then(|price| price.next_price),
            location: Location::Network,
            status,
            missing,
            latency_ms: probes.latency_ms,
            error_rate: share(probes.failed, probes.total()),
            uptime_percent: probes.uptime_percent(),
        }
    }
}

/// The wallet of an endpoint's provider; none of a local endpoint.
pub(crate) fn provider_of(endpoint: &EndpointInfo) -> Option<Address> {
    endpoint.provider.as_deref()?.parse().ok()
}

fn measured_status(probes: &Probes) -> EndpointStatus {
    match (probes.total(), probes.is_up, probes.recent_failures) {
        (0, ..) => EndpointStatus::Unknown,
        (_, false, _) => EndpointStatus::Offline,
        (_, true, 0) => EndpointStatus::Online,
        (_, true, _) => EndpointStatus::Degraded,
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn missing(
    provider: Option<&Provider>,
    endpoint: &Endpoint,
    pricing: Option<Pricing>,
    minimum_stake: Wei,
) -> Vec<Missing> {
    let unknown = Provider::default();
    let mut missing = missing_of(provider.unwrap_or(&unknown), minimum_stake);
    if pricing.is_none() {
        missing.push(Missing::Price {
            model_id: endpoint.model_id.clone(),
        });
    }
    if endpoint.is_stopped {
        missing.push(Missing::Serving);
    }
    missing
}

/// What keeps all endpoints of a provider from being active.
fn missing_of(provider: &Provider, minimum_stake: Wei) -> Vec<Missing> {
    let mut missing = Vec::new();
    if !provider.is_registered {
        missing.push(Missing::Registration);
    }
    let bonded = wei(provider.staked.saturating_sub(provider.unbonding));
    if bonded < minimum_stake {
        missing.push(Missing::Stake {
            amount: Wei(minimum_stake.0 - bonded.0),
        });
    }
    missing
}

/// A provider as it is told.
pub fn provider_info(
    address: Address,
    provider: &Provider,
    minimum_stake: Wei,
    mut served_models: Vec<String>,
    now: Timestamp,
) -> ProviderInfo {
    served_models.sort();
    served_models.dedup();
    let missing = missing_of(provider, minimum_stake);
    let schedule = provider.schedule.clone();
    ProviderInfo {
        provider: address.to_string(),
        name: provider.name.clone(),
        is_registered: provider.is_registered,
        staked: wei(provider.staked),
        unbonding: wei(provider.unbonding),
        unbonding_until: (provider.unbonding_until > 0).then_some(provider.unbonding_until),
        minimum_stake,
        is_eligible: missing.is_empty(),
        missing,
        is_open: schedule
            .as_ref()
            .is_none_or(|schedule| schedule.is_open(now)),
        schedule,
        served_models,
    }
}

/// A price as it is told.
pub fn pricing_info(model_id: &str, pricing: Pricing, now: Timestamp) -> PricingInfo {
    let seconds = u64::try_from(now.as_second()).unwrap_or_default();
    let price = pricing.at(seconds);
    PricingInfo {
        model_id: model_id.to_owned(),
        price_per_input_token: Wei(price.input),
        price_per_output_token: Wei(price.output),
        price_version: pricing.version,
        next_price: pricing
            .waiting(seconds)
            .map(|(effective_at, price)| NextPrice {
                price_per_input_token: Wei(price.input),
                price_per_output_token: Wei(price.output),
                effective_at,
            }),
    }
}

/// What a provider says about its model on the ledger.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Meta {
    quantization: Option<String>,
    context_length: Option<u32>,
}

impl Meta {
    /// Somebody else's text: what is no such JSON says nothing.
    fn read(text: &str) -> Self {
        if text.len() > META_BYTES_MAX {
            return Self::default();
        }
        serde_json::from_str(text).unwrap_or_default()
    }
}

/// The JSON that [`Meta`] reads.
pub(crate) fn meta(card: &ModelCard) -> String {
    let mut fields = serde_json::Map::new();
    let known: [(&str, Option<Value>); 2] = [
        (
            "quantization",
            card.quantization.as_ref().map(|name| json!(name)),
        ),
        (
            "context_length",
            card.context_length.map(|tokens| json!(tokens)),
        ),
    ];
    for (name, value) in known {
        fields.extend(value.map(|value| (name.to_owned(), value)));
    }
    Value::Object(fields).to_string()
}
