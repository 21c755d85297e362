//! Following a chain that refuses long ranges, or is reorganised between two questions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use alloy::primitives::{Address, TxKind, U64};
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::rpc::client::RpcClient;
use alloy::rpc::json_rpc::{
    ErrorPayload, RequestPacket, Response, ResponsePacket, ResponsePayload, SerializedRequest,
};
use alloy::rpc::types::Filter;
use alloy::sol_types::SolCall;
use alloy::transports::{TransportError, TransportFut};
use serde_json::json;
use tenzro_ledger::contracts::ProviderRegistry;
use tenzro_ledger::registry::{FollowConfig, Registry};
use tenzro_ledger::{Ledger, LedgerError};
use tower::Service;

use super::flow::register;
use super::scene::{CONTRACTS, Scene, draft, signed, wallet};

/// What happens to questions for logs.
#[derive(Debug, Clone)]
enum Trouble {
    /// Ranges of more blocks are refused.
    Ranges(u64),
    /// After the next answer to a method the chain goes back and goes on otherwise.
    Reorganise {
        snapshot: serde_json::Value,
        after: &'static str,
        is_due: Arc<AtomicBool>,
    },
    /// After each answer the chain has another last block. The number is that of the newest snapshot.
    Restless(Arc<AtomicU64>),
}

#[derive(Clone)]
struct Troubled {
    scene: Arc<Scene>,
    trouble: Trouble,
}

impl Troubled {
    async fn answer(&self, request: SerializedRequest) -> Response {
        let payload = match self.payload(&request).await {
            Ok(value) => ResponsePayload::Success(value),
            Err(error) => ResponsePayload::Failure(error),
        };
        let id = request.id().clone();
        Response { id, payload }
    }

    async fn payload(
        &self,
        request: &SerializedRequest,
    ) -> Result<Box<serde_json::value::RawValue>, ErrorPayload> {
        let is_logs = request.method() == "eth_getLogs";
        if let Trouble::Ranges(longest) = self.trouble
            && is_logs
        {
            let [filter]: [Filter; 1] =
                serde_json::from_str(request.params().unwrap().get()).unwrap();
            let (from, to) = filter.extract_block_range();
            if to.unwrap() - from.unwrap() >= longest {
                return Err(ErrorPayload::invalid_params());
            }
        }
        let answer = self.scene.chain.request(request.method(), request.params());
        let answer = answer.await?;
        match &self.trouble {
            Trouble::Reorganise {
                snapshot,
                after,
                is_due,
            } if request.method() == *after && is_due.swap(false, Ordering::Relaxed) => {
                self.scene.get("evm_revert", json!([snapshot])).await;
                let call = ProviderRegistry::registerCall {
                    role: 1,
                    name: "Bob".to_owned(),
                };
                let to = TxKind::Call(CONTRACTS.provider_registry);
                let (_, raw) = signed(&wallet(2), draft(0, to, call.abi_encode().into()));
                self.scene.send(&raw).await?;
                self.scene.get("evm_mine", json!([{"blocks": 5}])).await;
            }
            Trouble::Restless(snapshots) if is_logs => {
                let id = U64::from(snapshots.fetch_sub(1, Ordering::Relaxed));
                assert_eq!(self.scene.get("evm_revert", json!([id])).await, true);
                self.scene.pass(1);
                self.scene.get("evm_mine", json!([])).await;
            }
            _ => {}
        }
        Ok(answer)
    }
}

impl Service<RequestPacket> for Troubled {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, packet: RequestPacket) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let RequestPacket::Single(request) = packet else {
                panic!("nobody sends batches here");
            };
            Ok(ResponsePacket::Single(this.answer(request).await))
        })
    }
}

async fn follow(scene: &Arc<Scene>, trouble: Trouble) -> Registry {
    let transport = Troubled {
        scene: Arc::clone(scene),
        trouble,
    };
    let provider: DynProvider = ProviderBuilder::default()
        .connect_client(RpcClient::new(transport, true))
        .erased();
    let ledger = Ledger::open(provider, CONTRACTS).await.unwrap();
    let config = FollowConfig {
        confirmations: 0,
        file: None,
    };
    Registry::open(ledger, config)
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_shrink_until_they_are_taken() {
    let scene = Arc::new(Scene::new());
    for number in 0..5 {
        scene.get("evm_mine", json!([{"blocks": 20}])).await;
        register(&scene.account(wallet(number)), "somebody").await;
    }
    let registry = follow(&scene, Trouble::Ranges(7)).await;
    registry.catch_up().await.unwrap();
    assert_eq!(registry.snapshot().providers().count(), 5);
    assert_eq!(registry.block(), Some(110));
}

fn known(registry: &Registry) -> Vec<Address> {
    let snapshot = registry.snapshot();
    snapshot.providers().map(|(address, _)| *address).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reorganisation_between_logs_and_block_is_noticed() {
    let scene = Arc::new(Scene::new());
    let snapshot = scene.get("evm_snapshot", json!([])).await;
    register(&scene.account(wallet(1)), "Ada").await;
    let trouble = Trouble::Reorganise {
        snapshot,
        after: "eth_getLogs",
        is_due: Arc::new(true.into()),
    };
    let registry = follow(&scene, trouble).await;
    registry.catch_up().await.unwrap();
    assert_eq!(known(&registry), [wallet(2).address()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reorganisation_below_the_range_that_is_read_is_noticed() {
    let scene = Arc::new(Scene::new());
    let snapshot = scene.get("evm_snapshot", json!([])).await;
    register(&scene.account(wallet(1)), "Ada").await;
    let is_due = Arc::new(AtomicBool::new(false));
    let trouble = Trouble::Reorganise {
        snapshot,
        after: "eth_getBlockByNumber",
        is_due: Arc::clone(&is_due),
    };
    let registry = follow(&scene, trouble).await;
    registry.catch_up().await.unwrap();
    assert_eq!(known(&registry), [wallet(1).address()]);
    scene.get("evm_mine", json!([])).await;
    // The next question for a block is whether the last one still stands.
    is_due.store(true, Ordering::Relaxed);
    registry.catch_up().await.unwrap();
    assert_eq!(known(&registry), [wallet(2).address()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_never_stands_still_is_an_error() {
    let scene = Arc::new(Scene::new());
    // Reverting to one uses up the later ones.
    for _ in 0..20 {
        scene.get("evm_snapshot", json!([])).await;
    }
    scene.get("evm_mine", json!([])).await;
    let registry = follow(&scene, Trouble::Restless(Arc::new(20.into()))).await;
    let error = registry.catch_up().await.unwrap_err();
    assert!(matches!(error, LedgerError::Reorganising), "{error}");
    assert!(error.is_retryable());
}
