//! `tenzro_providerStats`: what is known of a provider, each figure measured or read; null where nobody knows.

use std::time::Instant;

use serde_json::{Value, json};
use tenzro_api::Caller;
use tenzro_ledger::channels::Party;
use tenzro_ledger::{Address, wei};
use tenzro_payments::books::Earnings;
use tenzro_protocol::amount::Wei;
use tenzro_protocol::json_rpc::RpcError;
use tenzro_protocol::network::EndpointInfo;

use super::params::{AddressParam, read};
use super::{NodeRpc, from_ledger, internal};
use crate::directory::Probes;
use crate::sale::{earnings, has_books};

/// How long what the books say is told again: they are read as a whole.
const EARNINGS: std::time::Duration = std::time::Duration::from_secs(2);

/// The last look at a wallet's books.
pub(crate) type LastEarnings = std::sync::Mutex<Option<(Address, Instant, Earnings)>>;

impl NodeRpc {
    pub(super) async fn provider_stats(
        &self,
        caller: Caller,
        params: Value,
    ) -> Result<Value, RpcError> {
        let AddressParam { address, .. } = read(params, &["address"])?;
        let provider = address.map_or_else(|| self.own_address(), Ok)?;
        self.catch_up().await;
        let endpoints = self.with_directory(|directory| directory.endpoints_of(provider));
        let mut models: Vec<&String> = endpoints
            .iter()
            .map(|endpoint| &endpoint.model_id)
            .collect();
        models.sort();
        models.dedup();
        let probes = self.probes_of(&endpoints);
        let staked = self
            .registry
            .snapshot()
            .provider(provider)
            .map(|one| wei(one.staked));
        let channels = self.channels.of(Party::Payee(provider)).await;
        let channels = channels.map_err(from_ledger)?;
        let settled = channels.values().map(|channel| channel.settled);
        let earned = settled.fold(0, u128::saturating_add);
        let books = self.earnings_of(provider).await?;
        let bought = self.bought_from(caller, provider).await?;
        let is_serving = endpoints
            .iter()
            .any(|endpoint| endpoint.status.is_answering());
        Ok(json!({
            "provider": provider.to_string(),
            "models_served": models.len(),
            "model_ids": models,
            "total_inferences": books.as_ref().map(|books| books.requests),
            "inferences_bought": bought,
            "total_earned": Wei(earned),
            "unsettled": books.as_ref().map(|books| Wei(books.unsettled)),
            "uptime_percent": probes.uptime_percent(),
            "avg_latency_ms": probes.latency_mean_ms(),
            "staked": staked.unwrap_or_default(),
            // Nobody counts failed answers of others' servers.
            "success_rate": null,
            "channels": channels.len(),
            "is_serving": is_serving,
        }))
    }

    /// All probes of these since the node started.
    fn probes_of(&self, endpoints: &[EndpointInfo]) -> Probes {
        let measured = self.health.measured();
        let of = endpoints
            .iter()
            .filter_map(|one| measured.get(&one.endpoint_id));
        of.fold(Probes::default(), |sum, one| sum.and(one))
    }

    /// What the books of a wallet of this home say; others' are not here.
    async fn earnings_of(&self, provider: Address) -> Result<Option<Earnings>, RpcError> {
        let own = self.account.as_ref().map(|account| account.address());
        if own != Some(provider) && !has_books(&self.home, provider) {
            return Ok(None);
        }
        let last = || {
            let last = self.earnings.lock();
            last.unwrap_or_else(std::sync::PoisonError::into_inner)
        };
        if let Some((of, at, known)) = &*last()
            && *of == provider
            && at.elapsed() < EARNINGS
        {
            return Ok(Some(known.clone()));
        }
        let home = self.home.clone();
        let read = tokio::task::spawn_blocking(move || earnings(&home, provider));
        let found = read.await.map_err(internal)?.map_err(internal)?;
        *last() = Some((provider, Instant::now(), found.clone()));
        Ok(Some(found))
    }

    /// Answers that this node paid for itself: for those who may spend its money. All requests of the books
    /// are read for it.
    async fn bought_from(
        &self,
        caller: Caller,
        provider: Address,
    ) -> Result<Option<u64>, RpcError> {
        let payer = self.payer.as_ref().filter(|_| self.may_spend(caller));
        let Some(payer) = payer else {
            return Ok(None);
        };
        let spending = payer.spending(0).await.map_err(internal)?;
        let of = spending.iter().filter(|one| one.payee == provider);
        Ok(Some(of.map(|one| one.requests).sum()))
    }
}
