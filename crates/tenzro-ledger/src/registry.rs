//! The provider registry as this process sees it: a snapshot built from the contract's events alone.
//!
//! ```text
//! logs ─▶ follow.rs (ranges, reorganisations, cursor) ─▶ Snapshot::apply ─▶ Registry (readers never wait)
//! ```

mod follow;

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::sol_types::SolValue;
use serde::{Deserialize, Serialize};
use tenzro_protocol::schedule::Schedule;

use crate::contracts::ProviderRegistry::{self, ProviderRegistryEvents as Event};

pub use follow::{FollowConfig, Registry};

/// A provider as the contract has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provider {
    /// Registered as a model provider.
    pub is_registered: bool,
    /// What it calls itself: somebody else's text.
    pub name: String,
    /// Wei, with the unbonding part.
    pub staked: U256,
    /// Wei.
    pub unbonding: U256,
    /// Unix seconds from when the unbonding part can be withdrawn.
    pub unbonding_until: u64,
    /// When it serves, unchecked; always, where none is set.
    pub schedule: Option<Schedule>,
}

/// Wei per token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Of the prompt.
    pub input: u128,
    /// Of the answer.
    pub output: u128,
}

/// The price of a provider's model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pricing {
    /// How often it was set.
    pub version: u64,
    /// What holds until another one takes effect.
    current: Price,
    /// What takes effect later, and when (Unix seconds).
    pending: Option<(u64, Price)>,
}

impl Pricing {
    /// As the contract tells it.
    pub(crate) fn from_contract(found: &ProviderRegistry::Pricing) -> Self {
        let price = |input, output| Price { input, output };
        let pending = price(found.pendingInputPrice, found.pendingOutputPrice);
        Self {
            version: found.version,
            current: price(found.inputPrice, found.outputPrice),
            pending: (found.pendingAt != 0).then_some((found.pendingAt, pending)),
        }
    }

    /// The price at that time.
    pub fn at(&self, unix_seconds: u64) -> Price {
        match self.pending {
            Some((from, price)) if from <= unix_seconds => price,
            _ => self.current,
        }
    }

    /// The price that waits at that time, and when it takes effect.
    pub fn waiting(&self, unix_seconds: u64) -> Option<(u64, Price)> {
        self.pending.filter(|(from, _)| *from > unix_seconds)
    }
}

/// One model served by one provider at one base URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Made of provider, model and address.
    pub id: B256,
    /// Whose it is.
    pub provider: Address,
    /// Model id: somebody else's text.
    pub model_id: String,
    /// SHA-256 of the model file.
    pub model_hash: B256,
    /// Somebody else's text.
    pub base_url: String,
    /// Somebody else's text.
    pub meta: String,
    /// Taken off by its provider.
    pub is_stopped: bool,
}

/// The registry at the end of a block.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    providers: BTreeMap<Address, Provider>,
    endpoints: BTreeMap<B256, Endpoint>,
    /// By provider and model id.
    pricing: BTreeMap<Address, BTreeMap<String, Pricing>>,
}

impl Snapshot {
    /// Every address that was ever registered or staked, or set something.
    pub fn providers(&self) -> impl Iterator<Item = (&Address, &Provider)> {
        self.providers.iter()
    }

    /// One of them.
    pub fn provider(&self, address: Address) -> Option<&Provider> {
        self.providers.get(&address)
    }

    /// All endpoints, stopped ones included.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.values()
    }

    /// One of them.
    pub fn endpoint(&self, id: B256) -> Option<&Endpoint> {
        self.endpoints.get(&id)
    }

    /// What a provider asks for a model.
    pub fn pricing(&self, provider: Address, model_id: &str) -> Option<Pricing> {
        self.pricing.get(&provider)?.get(model_id).copied()
    }

    /// All prices of a provider.
    pub fn prices_of(&self, provider: Address) -> impl Iterator<Item = (&String, &Pricing)> {
        self.pricing.get(&provider).into_iter().flatten()
    }

    /// Registered, bonded, priced and not stopped: the contract's rule.
    pub fn is_active(&self, endpoint: &Endpoint, minimum_stake: U256) -> bool {
        let is_bonded = self.provider(endpoint.provider).is_some_and(|provider| {
            provider.is_registered
                && provider.staked.saturating_sub(provider.unbonding) >= minimum_stake
        });
        is_bonded
            && !endpoint.is_stopped
            && self
                .pricing(endpoint.provider, &endpoint.model_id)
                .is_some()
    }

    /// Takes one event in. `block_time` is the Unix time of its block.
    pub(crate) fn apply(&mut self, event: Event, block_time: u64) {
        match event {
            Event::Registered(event) => {
                let provider = self.provider_mut(event.provider);
                provider.is_registered = true;
                provider.name = event.name;
            }
            Event::Deregistered(event) => {
                let provider = self.provider_mut(event.provider);
                provider.is_registered = false;
                provider.name.clear();
            }
            Event::Staked(event) => self.provider_mut(event.provider).staked = event.total,
            Event::UnstakeRequested(event) => {
                let provider = self.provider_mut(event.provider);
                provider.unbonding = event.unbonding;
                provider.unbonding_until = event.availableAt;
            }
            Event::UnstakeCancelled(event) => self.provider_mut(event.provider).bond_again(),
            Event::StakeWithdrawn(event) => {
                let provider = self.provider_mut(event.provider);
                provider.staked = event.total;
                provider.bond_again();
            }
            Event::Slashed(event) => {
                let provider = self.provider_mut(event.provider);
                provider.staked = event.total;
                provider.unbonding = event.unbonding;
                if event.unbonding.is_zero() {
                    provider.bond_again();
                }
            }
            Event::ScheduleSet(event) => {
                self.provider_mut(event.provider).schedule = Some(Schedule {
                    timezone: event.timezone,
                    start_minute: event.startMinute,
                    end_minute: event.endMinute,
                    days_mask: event.daysMask,
                });
            }
            Event::ScheduleCleared(event) => self.provider_mut(event.provider).schedule = None,
            Event::ModelServed(event) => {
                let endpoint = Endpoint {
                    id: event.endpointId,
                    provider: event.provider,
                    model_id: event.modelId,
                    model_hash: event.modelHash,
                    base_url: event.baseUrl,
                    meta: event.meta,
                    is_stopped: false,
                };
                self.endpoints.insert(endpoint.id, endpoint);
            }
            Event::EndpointUpdated(event) => {
                if let Some(endpoint) = self.endpoints.get_mut(&event.endpointId) {
                    endpoint.model_hash = event.modelHash;
                    endpoint.meta = event.meta;
                }
            }
            Event::ModelStopped(event) => {
                if let Some(endpoint) = self.endpoints.get_mut(&event.endpointId) {
                    endpoint.is_stopped = true;
                }
            }
            Event::PricingSet(event) => {
                let price = Price {
                    input: event.inputPrice,
                    output: event.outputPrice,
                };
                let models = self.pricing.entry(event.provider).or_default();
                let before = models.get(&event.modelId).map(|known| known.at(block_time));
                let waits = event.effectiveAt > block_time;
                let pricing = Pricing {
                    version: event.version,
                    current: before.filter(|_| waits).unwrap_or(price),
                    pending: waits.then_some((event.effectiveAt, price)),
                };
                models.insert(event.modelId, pricing);
            }
        }
    }

    fn provider_mut(&mut self, address: Address) -> &mut Provider {
        self.providers.entry(address).or_default()
    }
}

impl Provider {
    /// Nothing is unbonding any more.
    fn bond_again(&mut self) {
        self.unbonding = U256::ZERO;
        self.unbonding_until = 0;
    }
}

/// The id that the contract gives an endpoint.
pub fn endpoint_id(provider: Address, model_id: &str, base_url: &str) -> B256 {
    keccak256((provider, model_id, base_url).abi_encode_params())
}
