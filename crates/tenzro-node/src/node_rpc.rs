//! The node's JSON-RPC: what each method takes and does.
//!
//! ```text
//! call ─┬─ eth_*, net_*, web3_*, evm_* ─▶ the ledger's own RPC, embedded or remote
//!       ├─ reads  ─▶ Directory (registry view + local endpoints + probes), contract views
//!       └─ writes ─▶ transactions that the caller signed, or, for the operator, the node's wallet
//! ```

mod channels;
mod chat;
mod params;
mod payee_check;
mod reads;
mod stats;
mod writes;

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde_json::Value;
use serde_json::value::to_raw_value;
use tenzro_api::{Caller, JsonRpc, LedgerView};
use tenzro_ledger::registry::Registry;
use tenzro_ledger::{Account, Address, Ledger, RegistryRules, TransportError, forward};
use tenzro_payments::payer::Payer;
use tenzro_protocol::json_rpc::{RpcError, code};

use crate::channel_view::ChannelViews;
use crate::directory::Directory;
use crate::health::Health;
use crate::home::Home;
use crate::local_endpoints::LocalEndpoints;
use crate::network_inference::NetworkInference;
use crate::probe::Prober;

pub(crate) use stats::LastEarnings;

/// Ethereum methods that are passed on. Others may act with keys that the chain's node holds.
const FORWARDED: [&str; 35] = [
    "eth_accounts",
    "eth_blockNumber",
    "eth_call",
    "eth_chainId",
    "eth_estimateGas",
    "eth_feeHistory",
    "eth_gasPrice",
    "eth_getBalance",
    "eth_getBlockByHash",
    "eth_getBlockByNumber",
    "eth_getBlockReceipts",
    "eth_getBlockTransactionCountByHash",
    "eth_getBlockTransactionCountByNumber",
    "eth_getCode",
    "eth_getFilterChanges",
    "eth_getFilterLogs",
    "eth_getLogs",
    "eth_getStorageAt",
    "eth_getTransactionByBlockHashAndIndex",
    "eth_getTransactionByBlockNumberAndIndex",
    "eth_getTransactionByHash",
    "eth_getTransactionCount",
    "eth_getTransactionReceipt",
    "eth_maxPriorityFeePerGas",
    "eth_newBlockFilter",
    "eth_newFilter",
    "eth_protocolVersion",
    "eth_sendRawTransaction",
    "eth_syncing",
    "eth_uninstallFilter",
    "net_listening",
    "net_peerCount",
    "net_version",
    "web3_clientVersion",
    "web3_sha3",
];

/// Development methods of the embedded chain: for the operator.
const DEVELOPMENT: [&str; 5] = [
    "evm_increaseTime",
    "evm_mine",
    "evm_revert",
    "evm_setNextBlockTimestamp",
    "evm_snapshot",
];

/// How long a read waits for an up-to-date view.
const CATCH_UP: Duration = Duration::from_secs(1);

/// Everything that calls need.
#[derive(Debug)]
pub(crate) struct NodeRpc {
    pub(crate) ledger: Ledger,
    pub(crate) registry: Registry,
    pub(crate) rules: RegistryRules,
    pub(crate) is_embedded: bool,
    /// Whether only programs of this machine can call: they may spend the node's money.
    pub(crate) is_private: bool,
    /// The node's wallet.
    pub(crate) account: Option<Account>,
    /// The same wallet, paying providers.
    pub(crate) payer: Option<Payer>,
    /// Who serves what; set once the node is complete.
    pub(crate) network: OnceLock<Weak<NetworkInference>>,
    /// Channels as the ledger tells them.
    pub(crate) channels: ChannelViews,
    pub(crate) earnings: LastEarnings,
    pub(crate) local: LocalEndpoints,
    pub(crate) prober: Prober,
    pub(crate) health: Health,
    pub(crate) home: Home,
}

impl JsonRpc for NodeRpc {
    fn call(
        &self,
        caller: Caller,
        method: String,
        params: Value,
    ) -> BoxFuture<'_, Result<Value, RpcError>> {
        async move { self.dispatch(caller, &method, params).await }.boxed()
    }

    fn ledger_view(&self) -> LedgerView {
        LedgerView {
            block: self.registry.block(),
            lag_seconds: self.registry.lag().as_secs_f64(),
        }
    }
}

impl NodeRpc {
    async fn dispatch(
        &self,
        caller: Caller,
        method: &str,
        params: Value,
    ) -> Result<Value, RpcError> {
        match method {
            "tenzro_networkInfo" => self.network_info().await,
            "tenzro_listModels" => self.list_models().await,
            "tenzro_listModelEndpoints" => self.list_model_endpoints(params).await,
            "tenzro_getModelEndpoint" => self.get_model_endpoint(params).await,
            "tenzro_listProviders" => self.list_providers().await,
            "tenzro_getProviderPricing" => self.get_provider_pricing(params).await,
            "tenzro_getProviderSchedule" => self.get_provider_schedule(params).await,
            "tenzro_getBalance" => self.get_balance(params).await,
            "tenzro_faucet" => self.faucet(caller, params).await,
            "tenzro_registerProvider" => self.register_provider(caller, params).await,
            "tenzro_deregisterProvider" => self.deregister_provider(caller, params).await,
            "tenzro_stake" => self.stake(caller, params).await,
            "tenzro_unstake" => self.unstake(caller, params).await,
            "tenzro_setProviderPricing" => self.set_provider_pricing(caller, params).await,
            "tenzro_setProviderSchedule" => self.set_provider_schedule(caller, params).await,
            "tenzro_chat" => self.chat(caller, params).await,
            "tenzro_listPaymentChannels" => self.list_channels(caller, params).await,
            "tenzro_openPaymentChannel" => self.open_channel(caller, params).await,
            "tenzro_topUpPaymentChannel" => self.top_up_channel(caller, params).await,
            "tenzro_closePaymentChannel" => self.close_channel(caller, params).await,
            "tenzro_providerStats" => self.provider_stats(caller, params).await,
            "tenzro_serveModel" => self.serve_model(caller, params).await,
            "tenzro_stopModel" => self.stop_model(caller, params).await,
            method if DEVELOPMENT.contains(&method) && self.is_embedded => match caller {
                Caller::Operator => self.forward(method, params).await,
                Caller::Anyone => Err(not_operator()),
            },
            method if FORWARDED.contains(&method) => self.forward(method, params).await,
            _ => {
                let method: String = method.chars().take(100).collect();
                let message = format!("there is no method '{method}'");
                Err(RpcError::new(code::METHOD_NOT_FOUND, message))
            }
        }
    }

    async fn forward(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        let params = match params {
            Value::Null => Value::Array(Vec::new()),
            params => params,
        };
        let params = to_raw_value(&params).map_err(internal)?;
        let result = forward(&self.ledger, method.to_owned(), &params).await;
        match result {
            Ok(result) => serde_json::from_str(result.get()).map_err(internal),
            Err(TransportError::ErrorResp(payload)) => Err(RpcError {
                code: payload.code,
                message: payload.message.into_owned(),
                data: payload
                    .data
                    .and_then(|data| serde_json::from_str(data.get()).ok()),
            }),
            Err(error) => Err(unavailable(&error.to_string())),
        }
    }

    /// Answers of the network come from there.
    pub(crate) fn set_network(&self, network: &Arc<NetworkInference>) {
        let _ = self.network.set(Arc::downgrade(network));
    }

    /// Calls `read` with the directory as it is now.
    pub(crate) fn with_directory<T>(&self, read: impl FnOnce(Directory<'_>) -> T) -> T {
        let snapshot = self.registry.snapshot();
        let (local, probes) = (self.local.all(), self.health.measured());
        read(Directory {
            snapshot: &snapshot,
            minimum_stake: self.rules.minimum_stake,
            local: &local,
            probes: &probes,
            now: Timestamp::now(),
            ledger_now: self.ledger_now(),
        })
    }

    /// The later of our clock and the last block's: an idle chain has no new block.
    fn ledger_now(&self) -> Timestamp {
        let block = i64::try_from(self.registry.time()).unwrap_or_default();
        let block = Timestamp::from_second(block).unwrap_or_default();
        Timestamp::now().max(block)
    }

    /// Brings the view up to date before a read on a development ledger, where whoever reads has
    /// often just written. Of other chains the view is as old as it says, and no read waits.
    async fn catch_up(&self) {
        if self.ledger.addresses().faucet.is_none() {
            return;
        }
        let caught_up = tokio::time::timeout(CATCH_UP, self.registry.catch_up()).await;
        if let Ok(Err(error)) = caught_up {
            tracing::debug!(%error, "the view is old");
        }
    }

    /// Whether the caller may spend the node's money, and so learn how it is spent.
    fn may_spend(&self, caller: Caller) -> bool {
        self.is_private || caller == Caller::Operator
    }

    fn own_address(&self) -> Result<Address, RpcError> {
        let account = self.account.as_ref();
        account.map(Account::address).ok_or_else(|| {
            RpcError::invalid_params("address is required: this node has no wallet of its own")
        })
    }
}

fn not_operator() -> RpcError {
    let message = "this call acts for the node's operator";
    RpcError::new(code::UNAUTHORIZED, message).hint(
        "send transactions signed by your own wallet in signed_transactions, or the operator token \
         (the file rpc.token in the node's home) as Authorization: Bearer",
    )
}

fn internal(error: impl std::fmt::Display) -> RpcError {
    tracing::error!(%error, "a call failed");
    RpcError::new(code::INTERNAL, "the node failed; its log has the details")
}

fn unavailable(reason: &str) -> RpcError {
    tracing::warn!(reason, "the ledger does not answer");
    RpcError::new(
        code::LEDGER_UNAVAILABLE,
        "the ledger does not answer; try again",
    )
}

fn from_ledger(error: tenzro_ledger::LedgerError) -> RpcError {
    if error.is_retryable() {
        return unavailable(&error.to_string());
    }
    internal(error)
}
