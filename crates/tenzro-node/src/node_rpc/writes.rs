//! Methods that change something: with transactions that the caller signed, or, for the operator,
//! with the node's wallet.

use jiff::Timestamp;
use serde_json::{Value, json};
use tenzro_api::Caller;
use tenzro_ledger::registry::endpoint_id;
use tenzro_ledger::{
    Account, Address, B256, Offer, Operations, SendError, TransactionReceipt, TransportError,
    recipient, stopped_endpoints, submit,
};
use tenzro_protocol::json_rpc::{RpcError, code};
use tenzro_protocol::model_id;
use tenzro_protocol::network::{Missing, ProviderInfo};
use tenzro_protocol::schedule::Schedule;

use super::params::{
    AddressParam, PricingParam, RegisterParam, ScheduleParam, ServeParam, SetPricingParam,
    SignedParam, SignedTransactions, StakeParam, StopParam, check_role, read, required,
};
use super::{NodeRpc, from_ledger, internal, not_operator, unavailable};
use crate::directory::{LocalEndpoint, meta, provider_info};
use crate::probe::{Found, ProbeError};

/// Transactions of one call.
const TRANSACTIONS_MAX: usize = 8;

const LACKS_TNZO: &str =
    "tenzro-cli wallet faucet on development ledgers, else send TNZO to this wallet";

/// Longest name that another engine may give a model that only this node knows.
const LOCAL_ID_BYTES_MAX: usize = 256;

impl NodeRpc {
    /// Gives development TNZO; on a chain whose gas costs something, only for the operator.
    pub(super) async fn faucet(&self, caller: Caller, params: Value) -> Result<Value, RpcError> {
        let AddressParam { address, .. } = read(params, &["address"])?;
        let address = address.map_or_else(|| self.own_address(), Ok)?;
        let caller = if self.is_embedded {
            Caller::Operator
        } else {
            caller
        };
        let operations = self.operations(caller)?;
        let no_faucet = || RpcError::new(code::NOT_FOUND, "this ledger has no faucet");
        let receipt = operations.drip(address).await.ok_or_else(no_faucet)?;
        let receipt = receipt.map_err(|error| from_send(&error))?;
        let hash = receipt.transaction_hash;
        Ok(json!({"address": address.to_string(), "transaction_hash": hash}))
    }

    pub(super) async fn register_provider(
        &self,
        caller: Caller,
        params: Value,
    ) -> Result<Value, RpcError> {
        let param: RegisterParam = read(params, &["role", "name"])?;
        check_role(param.role.as_deref())?;
        let receipt = match self.submit_all(&param.signed_transactions).await? {
            Some(receipt) => receipt,
            None => sent(self.operations(caller)?.register(&param.name).await)?,
        };
        self.done(&receipt).await
    }

    pub(super) async fn deregister_provider(
        &self,
        caller: Caller,
        params: Value,
    ) -> Result<Value, RpcError> {
        let param: SignedParam = read(params, &[])?;
        let receipt = match self.submit_all(&param.signed_transactions).await? {
            Some(receipt) => receipt,
            None => sent(self.operations(caller)?.deregister().await)?,
        };
        self.done(&receipt).await
    }

    pub(super) async fn stake(&self, caller: Caller, params: Value) -> Result<Value, RpcError> {
        let param: StakeParam = read(params, &["amount", "role"])?;
        check_role(param.role.as_deref())?;
        let receipt = match self.submit_all(&param.signed_transactions).await? {
            Some(receipt) => receipt,
            None => {
                let amount = required(param.amount()?, "amount")?;
                sent(self.operations(caller)?.stake(amount).await)?
            }
        };
        self.done(&receipt).await
    }

    /// Asks for stake back; what has finished unbonding is paid out first, in a call of its own.
    pub(super) async fn unstake(&self, caller: Caller, params: Value) -> Result<Value, RpcError> {
        let param: StakeParam = read(params, &["amount"])?;
        check_role(param.role.as_deref())?;
        let receipt = match self.submit_all(&param.signed_transactions).await? {
            Some(receipt) => receipt,
            None => {
                let operations = self.operations(caller)?;
                let amount = param.amount()?;
                sent(operations.unstake(amount).await)?
            }
        };
        self.done(&receipt).await
    }

    pub(super) async fn set_provider_pricing(
        &self,
        caller: Caller,
        params: Value,
    ) -> Result<Value, RpcError> {
        // The price is read by itself, so that an error names its field.
        let beside: PricingParam = read(params.clone(), &["model", "per_token"])?;
        let param: SetPricingParam = read(params, &["model", "per_token"])?;
        let receipt = match self.submit_all(&param.signed_transactions).await? {
            Some(receipt) => receipt,
            None => {
                let price = param.price(&beside)?;
                let model = network_id(&required(param.model, "model")?)?;
                sent(self.operations(caller)?.set_pricing(&model, price).await)?
            }
        };
        self.done(&receipt).await
    }

    pub(super) async fn set_provider_schedule(
        &self,
        caller: Caller,
        params: Value,
    ) -> Result<Value, RpcError> {
        let param: ScheduleParam = read(params, &["timezone", "hours"])?;
        let receipt = match self.submit_all(&param.signed_transactions).await? {
            Some(receipt) => receipt,
            None => {
                let operations = self.operations(caller)?;
                sent(match param.schedule()? {
                    Some(schedule) => operations.set_schedule(&schedule).await,
                    None => operations.clear_schedule().await,
                })?
            }
        };
        self.done(&receipt).await
    }

    /// Probes the endpoint, then records it: for this node, or, with `remote`, on the ledger.
    pub(super) async fn serve_model(
        &self,
        caller: Caller,
        params: Value,
    ) -> Result<Value, RpcError> {
        let param: ServeParam = read(params, &["model", "endpoint"])?;
        let model = required(param.model, "model")?;
        let endpoint = match param.endpoint {
            Some(endpoint) => endpoint,
            None => self.running_server(&model)?,
        };
        let on_ledger = param.remote || !param.signed_transactions.is_empty();
        if caller != Caller::Operator && param.signed_transactions.is_empty() {
            return Err(not_operator());
        }
        // Before anybody is called on the caller's behalf.
        self.check_signed(&param.signed_transactions)?;
        let base_url = self.prober.check(&endpoint).map_err(from_probe)?;
        let found = self
            .prober
            .probe(&base_url, &model)
            .await
            .map_err(from_probe)?;
        if !on_ledger {
            return self.serve_locally(found, base_url);
        }
        let model_id = network_id(&model)?;
        self.check_payment(&param.signed_transactions, &model_id, &base_url)
            .await?;
        let receipt = match self.submit_all(&param.signed_transactions).await? {
            Some(receipt) => receipt,
            None => {
                let price = param.pricing.map(|pricing| pricing.price()).transpose()?;
                let hash = found
                    .card
                    .sha256
                    .as_ref()
                    .and_then(|hash| hash.parse().ok());
                let offer = Offer {
                    model_id: model_id.clone(),
                    model_hash: param.model_hash.or(hash).unwrap_or_default(),
                    base_url: base_url.clone(),
                    meta: meta(&found.card),
                    price,
                };
                sent(self.operations(caller)?.serve_model(&offer).await)?
            }
        };
        let id = endpoint_id(receipt.from, &model_id, &base_url);
        let recorded = self.ledger.endpoint_now(id).await.map_err(from_ledger)?;
        let Some((_, pricing, is_active)) = recorded else {
            let message = format!(
                "signed_transactions: they were mined, but did not put {model_id} at {base_url} on \
                 the ledger"
            );
            return Err(RpcError::new(code::TRANSACTION, message));
        };
        self.health.record(&id.to_string(), Some(found.latency));
        let mut result = self.done(&receipt).await?;
        if let Some(missing) = result["missing"]
            .as_array_mut()
            .filter(|_| pricing.is_none())
        {
            missing.push(json!(Missing::Price {
                model_id: model_id.clone(),
            }));
        }
        let more = json!({
            "success": true,
            "status": "serving",
            "location": "network",
            "endpoint_id": id,
            "model_id": model_id,
            "api_endpoint": base_url,
            "is_active": is_active,
        });
        extend(&mut result, more);
        Ok(result)
    }

    fn serve_locally(&self, found: Found, base_url: String) -> Result<Value, RpcError> {
        let name = &found.card.id;
        if name.len() > LOCAL_ID_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(RpcError::new(
                code::ENDPOINT,
                "endpoint: its model's name is too long or has control characters",
            ));
        }
        let endpoint = LocalEndpoint {
            model_id: found.card.id.clone(),
            base_url: base_url.clone(),
            card: found.card,
        };
        let (id, model_id) = (endpoint.id(), endpoint.model_id.clone());
        self.local.add(endpoint).map_err(internal)?;
        self.health.record(&id, Some(found.latency));
        Ok(json!({
            "success": true,
            "status": "serving",
            "location": "local",
            "endpoint_id": id,
            "model_id": model_id,
            "api_endpoint": base_url,
            "is_active": true,
        }))
    }

    /// Takes endpoints of a model off: this node's local ones, and those of the signer's or the
    /// node's wallet on the ledger.
    pub(super) async fn stop_model(
        &self,
        caller: Caller,
        params: Value,
    ) -> Result<Value, RpcError> {
        let param: StopParam = read(params, &["model"])?;
        if let Some(receipt) = self.submit_all(&param.signed_transactions).await? {
            let stopped = stopped_endpoints(&receipt);
            if stopped.is_empty() {
                let message = "signed_transactions: they were mined, but stopped no endpoint";
                return Err(RpcError::new(code::TRANSACTION, message));
            }
            let mut result = self.done(&receipt).await?;
            let more = json!({"success": true, "status": "stopped", "endpoint_ids": stopped});
            extend(&mut result, more);
            return Ok(result);
        }
        if caller != Caller::Operator {
            return Err(not_operator());
        }
        let base_url = param.endpoint.as_ref().map(|url| url.trim_end_matches('/'));
        let local = param
            .endpoint_id
            .and_then(|id| self.local.all().remove(&id.to_string()));
        let (model, url) = match (&local, param.endpoint_id) {
            (Some(one), _) => (Some(&one.model_id), Some(one.base_url.as_str())),
            (None, Some(_)) => (None, None),
            (None, None) => (param.model.as_ref(), base_url),
        };
        let mut stopped = Vec::new();
        if let Some(model) = model {
            let gone = self.local.remove(model, url).map_err(internal)?;
            stopped.extend(gone.iter().map(LocalEndpoint::id));
        }
        let own = match local {
            Some(_) => Vec::new(),
            None => self.own_endpoints(&param, base_url).await?,
        };
        let mut transaction = None;
        for id in own {
            let receipt = sent(self.operations(caller)?.stop_model(id).await)?;
            transaction = Some(receipt.transaction_hash);
            stopped.push(id.to_string());
        }
        if stopped.is_empty() {
            let id = param.endpoint_id.map(|id| id.to_string());
            return Err(self.no_endpoint(&id.or(param.model).unwrap_or_default()));
        }
        Ok(json!({
            "success": true,
            "status": "stopped",
            "endpoint_ids": stopped,
            "transaction_hash": transaction,
        }))
    }

    /// Running endpoints of the node's wallet that a stop means.
    async fn own_endpoints(
        &self,
        param: &StopParam,
        base_url: Option<&str>,
    ) -> Result<Vec<B256>, RpcError> {
        if let Some(id) = param.endpoint_id {
            return Ok(vec![id]);
        }
        let model = required(param.model.as_deref(), "model")?;
        let Some(account) = &self.account else {
            return Ok(Vec::new());
        };
        let all = self.ledger.endpoints_now(account.address()).await;
        let mut own = all.map_err(from_ledger)?;
        own.retain(|endpoint| {
            !endpoint.is_stopped
                && model_id::is_meant(model, &endpoint.model_id)
                && base_url.is_none_or(|url| url == endpoint.base_url)
        });
        Ok(own.into_iter().map(|endpoint| endpoint.id).collect())
    }

    /// The address of the running model server of this home that serves a model.
    fn running_server(&self, model: &str) -> Result<String, RpcError> {
        let running = crate::Servers::new(&self.home)
            .running()
            .map_err(internal)?;
        let mut serving = running.into_iter().filter(|server| {
            std::iter::once(&server.model)
                .chain(&server.aliases)
                .any(|name| model_id::is_meant(model, name))
        });
        let server = serving.next().ok_or_else(|| {
            let shown: String = model.chars().take(60).collect();
            RpcError::invalid_params(format!(
                "endpoint is required: no model server of this node's home serves '{shown}'"
            ))
        })?;
        Ok(server.base_url)
    }

    pub(super) fn operations(&self, caller: Caller) -> Result<Operations<'_>, RpcError> {
        if caller != Caller::Operator {
            return Err(not_operator());
        }
        let no_wallet = || RpcError::new(code::SERVER, "this node has no wallet");
        let account: &Account = self.account.as_ref().ok_or_else(no_wallet)?;
        Ok(Operations {
            ledger: &self.ledger,
            account,
        })
    }

    /// Sends what the caller signed, one after the other; the last receipt.
    pub(super) async fn submit_all(
        &self,
        transactions: &SignedTransactions,
    ) -> Result<Option<TransactionReceipt>, RpcError> {
        self.check_signed(transactions)?;
        let mut last = None;
        for raw in transactions {
            last = Some(sent(submit(self.ledger.provider(), raw).await)?);
        }
        Ok(last)
    }

    /// They are few, and call this ledger's contracts.
    pub(super) fn check_signed(&self, transactions: &SignedTransactions) -> Result<(), RpcError> {
        if transactions.len() > TRANSACTIONS_MAX {
            return Err(RpcError::invalid_params(format!(
                "signed_transactions: at most {TRANSACTIONS_MAX}"
            )));
        }
        let addresses = self.ledger.addresses();
        let contracts = [
            Some(addresses.tnzo),
            Some(addresses.provider_registry),
            Some(addresses.payment_channels),
            addresses.faucet,
        ];
        for raw in transactions {
            let to = recipient(raw, self.ledger.chain_id()).map_err(|reason| {
                RpcError::invalid_params(format!("signed_transactions: {reason}"))
            })?;
            if to.is_none() || !contracts.contains(&to) {
                return Err(RpcError::invalid_params(
                    "signed_transactions: they must call this ledger's contracts",
                ));
            }
        }
        Ok(())
    }

    /// What a write answers: the transaction, and where the provider stands now.
    async fn done(&self, receipt: &TransactionReceipt) -> Result<Value, RpcError> {
        let provider = self.provider_now(receipt.from).await?;
        let status = if provider.is_eligible {
            "active"
        } else {
            "inactive"
        };
        let mut result = serde_json::to_value(provider).map_err(internal)?;
        let hash = json!({"transaction_hash": receipt.transaction_hash, "status": status});
        extend(&mut result, hash);
        Ok(result)
    }

    async fn provider_now(&self, address: Address) -> Result<ProviderInfo, RpcError> {
        let provider = self
            .ledger
            .provider_now(address)
            .await
            .map_err(from_ledger)?;
        let served = self
            .ledger
            .endpoints_now(address)
            .await
            .map_err(from_ledger)?;
        let served = served.into_iter().filter(|endpoint| !endpoint.is_stopped);
        let served = served.map(|endpoint| endpoint.model_id).collect();
        let minimum = self.rules.minimum_stake;
        Ok(provider_info(
            address,
            &provider,
            minimum,
            served,
            Timestamp::now(),
        ))
    }
}

/// A schedule with the fields of every published client.
pub(super) fn schedule_value(schedule: Option<&Schedule>) -> Value {
    let Some(schedule) = schedule else {
        return json!({"enabled": false, "active_now": true});
    };
    let flags: Vec<bool> = (0..7)
        .map(|day| schedule.days_mask >> day & 1 == 1)
        .collect();
    json!({
        "enabled": true,
        "timezone": schedule.timezone,
        "hours": schedule.hours(),
        "start_hour": schedule.start_minute / 60,
        "end_hour": schedule.end_minute.div_ceil(60),
        "start_minute": schedule.start_minute,
        "end_minute": schedule.end_minute,
        "days": schedule.days(),
        "days_of_week": flags,
        "active_now": schedule.is_open(Timestamp::now()),
    })
}

pub(super) fn extend(value: &mut Value, more: Value) {
    if let (Value::Object(fields), Value::Object(more)) = (value, more) {
        fields.extend(more);
    }
}

/// A model id that may stand on the ledger.
fn network_id(model: &str) -> Result<String, RpcError> {
    if model_id::is_valid(model) {
        return Ok(model.to_owned());
    }
    let shown: String = model.chars().take(60).collect();
    Err(RpcError::invalid_params(format!(
        "model: '{shown}' is no model id: use lower-case letters, digits, '.', '-' and '_', at most 96"
    )))
}

pub(super) fn sent(
    result: Result<TransactionReceipt, SendError>,
) -> Result<TransactionReceipt, RpcError> {
    let receipt = result.map_err(|error| from_send(&error))?;
    tracing::info!(transaction = %receipt.transaction_hash, from = %receipt.from, "mined");
    Ok(receipt)
}

pub(super) fn from_send(error: &SendError) -> RpcError {
    match error {
        SendError::Reverted {
            reason,
            data,
            transaction,
        } => {
            let mut more = json!({"revert": data, "transaction_hash": transaction});
            if error.lacks_tnzo() {
                extend(&mut more, json!({"hint": LACKS_TNZO}));
            }
            RpcError {
                code: code::TRANSACTION,
                message: reason.clone(),
                data: Some(more),
            }
        }
        // The chain's words. Others may hold its address, and that a key.
        SendError::Transport(TransportError::ErrorResp(_))
        | SendError::Gas { .. }
        | SendError::NothingStaked
        | SendError::NotMined(_) => RpcError::new(code::TRANSACTION, error.to_string()),
        SendError::Transport(_) | SendError::Ledger(_) => unavailable(&error.to_string()),
    }
}

fn from_probe(error: ProbeError) -> RpcError {
    let hint = match &error {
        ProbeError::Private(_) => Some(
            "register an address that others can reach (--public-url); a node of a private network \
             may allow it with node.allow_private_endpoints = true",
        ),
        ProbeError::Unreachable { .. } => Some("start the model server first"),
        ProbeError::Url { .. } | ProbeError::Refused { .. } | ProbeError::OtherModel { .. } => None,
    };
    let code = match &error {
        ProbeError::Url { .. } | ProbeError::Private(_) => code::INVALID_PARAMS,
        ProbeError::Unreachable { .. }
        | ProbeError::Refused { .. }
        | ProbeError::OtherModel { .. } => code::ENDPOINT,
    };
    let answer = RpcError::new(code, error.to_string());
    match hint {
        Some(hint) => answer.hint(hint),
        None => answer,
    }
}
