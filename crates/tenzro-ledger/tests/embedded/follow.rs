//! Following a chain that refuses long ranges, or is reorganised between two questions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use alloy::primitives::TxKind;
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::rpc::client::RpcClient;
use alloy::rpc::json_rpc::{
    ErrorPayload, RequestPacket, Response, ResponsePacket, ResponsePayload, SerializedRequest,
};
use alloy::rpc::types::Filter;
use alloy::sol_types::SolCall;
use alloy::transports::{TransportError, TransportFut};
use serde_json::json;
use tenzro_ledger::Ledger;
use tenzro_ledger::contracts::ProviderRegistry;
use tenzro_ledger::registry::{FollowConfig, Registry};
use tower::Service;

use super::flow::register;
use super::scene::{CONTRACTS, Scene, draft, signed, wallet};

/// What happens to questions for logs.
#[derive(Debug, Clone)]
enum Trouble {
    /// Ranges of more blocks are refused.
    Ranges(u64),
    /// After the first answer the chain goes back and goes on otherwise.
    Reorganise(serde_json::Value, Arc<AtomicBool>),
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
        if let Trouble::Reorganise(snapshot, done) = &self.trouble
            && is_logs
            && !done.swap(true, Ordering::Relaxed)
        {
            self.scene.get("evm_revert", json!([snapshot])).await;
            let call = ProviderRegistry::registerCall {
                role: 1,
                name: "Bob".to_owned(),
            };
            let to = TxKind::Call(CONTRACTS.provider_registry);
            let (_, raw) = signed(&wallet(2), draft(0, to, call.abi_encode().into()));
            self.scene.send(&raw).await?;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_reorganisation_between_logs_and_block_is_noticed() {
    let scene = Arc::new(Scene::new());
    let snapshot = scene.get("evm_snapshot", json!([])).await;
    register(&scene.account(wallet(1)), "Ada").await;
    let trouble = Trouble::Reorganise(snapshot, Arc::default());
    let registry = follow(&scene, trouble).await;
    registry.catch_up().await.unwrap();
    registry.catch_up().await.unwrap();
    let snapshot = registry.snapshot();
    let known: Vec<_> = snapshot.providers().map(|(address, _)| *address).collect();
    assert_eq!(known, [wallet(2).address()]);
}
