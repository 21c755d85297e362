//! Methods that change nothing: open to everybody.

use serde_json::{Value, json};
use tenzro_ledger::wei;
use tenzro_protocol::json_rpc::{RpcError, code};
use tenzro_protocol::model_id::nearest;
use tenzro_protocol::network::{EndpointInfo, NetworkInfo, PricingInfo};

use super::params::{AddressParam, EndpointParam, ModelParam, read};
use super::{NodeRpc, from_ledger, internal};
use crate::directory::pricing_info;
use crate::ledger_source::EMBEDDED;
use crate::network::contracts;

impl NodeRpc {
    pub(super) async fn network_info(&self) -> Result<Value, RpcError> {
        self.catch_up().await;
        let addresses = self.ledger.addresses();
        let info = NetworkInfo {
            chain_id: self.ledger.chain_id(),
            chain: if self.is_embedded { EMBEDDED } else { "remote" }.to_owned(),
            is_development: addresses.faucet.is_some(),
            contracts: contracts(addresses),
            minimum_stake: self.rules.minimum_stake,
            unbonding_seconds: self.rules.unbonding_seconds,
            price_delay_seconds: self.rules.price_delay_seconds,
            block: self.registry.block(),
            ledger_lag_seconds: self.registry.lag().as_secs_f64(),
            wallet: self
                .account
                .as_ref()
                .map(|account| account.address().to_string()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        serde_json::to_value(info).map_err(internal)
    }

    pub(super) async fn list_models(&self) -> Result<Value, RpcError> {
        self.catch_up().await;
        let models = self.with_directory(|directory| directory.models());
        serde_json::to_value(models).map_err(internal)
    }

    pub(super) async fn list_model_endpoints(&self, params: Value) -> Result<Value, RpcError> {
        let ModelParam { model } = read(params, &["model"])?;
        self.catch_up().await;
        let endpoints = self.with_directory(|directory| directory.endpoints(model.as_deref()));
        serde_json::to_value(endpoints).map_err(internal)
    }

    /// By id, or the best one of a model: local before network, usable before others, then by price.
    pub(super) async fn get_model_endpoint(&self, params: Value) -> Result<Value, RpcError> {
        let EndpointParam { model, endpoint_id } = read(params, &["endpoint_id"])?;
        self.catch_up().await;
        let found = match (&endpoint_id, &model) {
            (Some(id), _) => self.with_directory(|directory| directory.endpoint(id)),
            (None, Some(model)) => self.best_endpoint(model),
            (None, None) => {
                return Err(RpcError::invalid_params("endpoint_id or model is required"));
            }
        };
        match found {
            Some(endpoint) => serde_json::to_value(endpoint).map_err(internal),
            None => Err(self.no_endpoint(&endpoint_id.or(model).unwrap_or_default())),
        }
    }

    fn best_endpoint(&self, model: &str) -> Option<EndpointInfo> {
        let endpoints = self.with_directory(|directory| directory.endpoints(Some(model)));
        endpoints.into_iter().min_by_key(|endpoint| {
            use tenzro_protocol::network::EndpointStatus as Status;
            match endpoint.status {
                Status::Online => 0,
                Status::Degraded => 1,
                Status::Unknown => 2,
                Status::Offline => 3,
                Status::ScheduledOff => 4,
                Status::Inactive => 5,
            }
        })
    }

    pub(super) fn no_endpoint(&self, wanted: &str) -> RpcError {
        let wanted: String = wanted.chars().take(120).collect();
        let error = RpcError::new(code::NOT_FOUND, format!("nobody serves '{wanted}'"));
        let models = self.with_directory(|directory| directory.models());
        let near = nearest(&wanted, models.iter().map(|model| model.model_id.as_str()));
        match near.as_slice() {
            [] => error,
            near => error.hint(format!("served: {}", near.join(", "))),
        }
    }

    pub(super) async fn list_providers(&self) -> Result<Value, RpcError> {
        self.catch_up().await;
        let providers = self.with_directory(|directory| directory.providers());
        serde_json::to_value(providers).map_err(internal)
    }

    /// All prices of a provider, or that of one model.
    pub(super) async fn get_provider_pricing(&self, params: Value) -> Result<Value, RpcError> {
        let AddressParam { address, model } = read(params, &["address", "model"])?;
        let address = address.map_or_else(|| self.own_address(), Ok)?;
        self.catch_up().await;
        let now = self.ledger_now();
        let snapshot = self.registry.snapshot();
        let prices: Vec<PricingInfo> = snapshot
            .prices_of(address)
            .map(|(model_id, pricing)| pricing_info(model_id, *pricing, now))
            .collect();
        let Some(model) = model else {
            return Ok(json!({"provider": address.to_string(), "pricing": prices}));
        };
        match prices.into_iter().find(|price| price.model_id == model) {
            Some(price) => serde_json::to_value(price).map_err(internal),
            None => {
                let message = format!("{address} asks no price for '{model}'");
                Err(RpcError::new(code::NOT_FOUND, message))
            }
        }
    }

    pub(super) async fn get_provider_schedule(&self, params: Value) -> Result<Value, RpcError> {
        let AddressParam { address, .. } = read(params, &["address"])?;
        let address = address.map_or_else(|| self.own_address(), Ok)?;
        self.catch_up().await;
        let snapshot = self.registry.snapshot();
        let schedule = snapshot
            .provider(address)
            .and_then(|one| one.schedule.clone());
        Ok(super::writes::schedule_value(schedule.as_ref()))
    }

    pub(super) async fn get_balance(&self, params: Value) -> Result<Value, RpcError> {
        let AddressParam { address, .. } = read(params, &["address"])?;
        let address = address.map_or_else(|| self.own_address(), Ok)?;
        let balance = self.ledger.balance(address).await.map_err(from_ledger)?;
        let balance = wei(balance);
        let (address, tnzo) = (address.to_string(), balance.tnzo());
        Ok(json!({"address": address, "balance": balance, "balance_tnzo": tnzo}))
    }
}
