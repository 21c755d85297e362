//! Reads from the contracts what holds right now, where a view built from events may lag.

use alloy::primitives::{Address, B256, U256};
use tenzro_protocol::amount::Wei;
use tenzro_protocol::schedule::Schedule;

use crate::contracts::ProviderRegistry as Contract;
use crate::ledger::{Ledger, LedgerError};
use crate::registry::{Endpoint, Pricing, Provider};

/// Endpoints that are asked for at once.
const PAGE: u64 = 50;

/// Endpoints of one provider that are read at most.
const ENDPOINTS_MAX: u64 = 1_000;

/// Rules of the ledger that the registry was deployed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegistryRules {
    /// Wei that a provider must have staked.
    pub minimum_stake: Wei,
    /// From asking for stake until it can be withdrawn.
    pub unbonding_seconds: u64,
    /// Until a price rise takes effect.
    pub price_delay_seconds: u64,
}

/// Amounts above 2^128 wei cannot exist: the supply is far below.
pub fn wei(amount: U256) -> Wei {
    Wei(amount.saturating_to())
}

impl Ledger {
    /// The rules.
    pub async fn rules(&self) -> Result<RegistryRules, LedgerError> {
        let registry = self.registry();
        Ok(RegistryRules {
            minimum_stake: wei(registry.minimumStake().call().await?),
            unbonding_seconds: registry.unbondingPeriod().call().await?,
            price_delay_seconds: registry.priceDelay().call().await?,
        })
    }

    /// A provider; an address that never did anything is an empty one.
    pub async fn provider_now(&self, address: Address) -> Result<Provider, LedgerError> {
        // Its generated method has the name of the instance's own.
        let call = Contract::providerCall { account: address };
        let registry = self.registry();
        let found = registry.call_builder(&call).call().await?;
        Ok(Provider {
            is_registered: found.role != 0,
            name: found.name,
            staked: found.staked,
            unbonding: found.unbonding,
            unbonding_until: found.unbondingUntil,
            schedule: found.schedule.isSet.then_some(Schedule {
                timezone: found.schedule.timezone,
                start_minute: found.schedule.startMinute,
                end_minute: found.schedule.endMinute,
                days_mask: found.schedule.daysMask,
            }),
        })
    }

    /// What a provider asks for a model.
    pub async fn pricing_now(
        &self,
        provider: Address,
        model_id: &str,
    ) -> Result<Option<Pricing>, LedgerError> {
        let registry = self.registry();
        let call = registry.pricing(provider, model_id.to_owned());
        Ok(pricing(&call.call().await?))
    }

    /// An endpoint with its price and whether it is active; `None` when there is none.
    pub async fn endpoint_now(
        &self,
        id: B256,
    ) -> Result<Option<(Endpoint, Option<Pricing>, bool)>, LedgerError> {
        match self.registry().endpoint(id).call().await {
            Ok(found) => {
                let (pricing, is_active) = (pricing(&found.pricing), found.active);
                Ok(Some((endpoint(found), pricing, is_active)))
            }
            Err(error)
                if error
                    .as_decoded_error::<Contract::EndpointNotFound>()
                    .is_some() =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// All endpoints of a provider, stopped ones included, at most 1,000.
    pub async fn endpoints_now(&self, provider: Address) -> Result<Vec<Endpoint>, LedgerError> {
        let mut endpoints = Vec::new();
        let registry = self.registry();
        for offset in (0..ENDPOINTS_MAX).step_by(PAGE as usize) {
            let page = registry.endpointsOf(provider, U256::from(offset), U256::from(PAGE));
            let page = page.call().await?;
            let is_last = (page.len() as u64) < PAGE;
            endpoints.extend(page.into_iter().map(endpoint));
            if is_last {
                break;
            }
        }
        Ok(endpoints)
    }
}

fn endpoint(found: Contract::EndpointView) -> Endpoint {
    Endpoint {
        id: found.id,
        provider: found.provider,
        model_id: found.modelId,
        model_hash: found.modelHash,
        base_url: found.baseUrl,
        meta: found.meta,
        is_stopped: found.stopped,
    }
}

fn pricing(found: &Contract::Pricing) -> Option<Pricing> {
    found.isSet.then(|| Pricing::from_contract(found))
}
