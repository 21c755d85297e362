//! What a provider does, from its first TNZO to its last, and what everybody else sees of it.

use std::time::Duration;

use alloy::primitives::{B256, U256, keccak256};
use alloy::providers::Provider;
use serde_json::json;
use tenzro_ledger::contracts::{Faucet, ProviderRegistry, TNZO};
use tenzro_ledger::registry::{FollowConfig, Registry, endpoint_id};
use tenzro_ledger::{Account, SendError, submit};

use super::scene::{CONTRACTS, START, Scene, TNZO_WEI, developer, wallet};

const MODEL: &str = "qwen3-0.6b";
const URL: &str = "http://127.0.0.1:8080";
const DAY_S: u64 = 24 * 60 * 60;

fn tnzo(count: u128) -> U256 {
    U256::from(count * TNZO_WEI)
}

async fn drip(account: &Account) {
    let to = account.address();
    account
        .call(CONTRACTS.faucet.unwrap(), Faucet::dripCall { to })
        .await
        .unwrap();
}

pub(crate) async fn register(account: &Account, name: &str) {
    let name = name.to_owned();
    let call = ProviderRegistry::registerCall { role: 1, name };
    account
        .call(CONTRACTS.provider_registry, call)
        .await
        .unwrap();
}

async fn stake(account: &Account, amount: U256) {
    let registry = CONTRACTS.provider_registry;
    let approve = TNZO::approveCall {
        spender: registry,
        value: amount,
    };
    account.call(CONTRACTS.tnzo, approve).await.unwrap();
    let call = ProviderRegistry::stakeCall { amount };
    account.call(registry, call).await.unwrap();
}

async fn price(account: &Account, input: u128, output: u128) {
    let call = ProviderRegistry::setPricingCall {
        modelId: MODEL.to_owned(),
        inputPrice: input,
        outputPrice: output,
    };
    account
        .call(CONTRACTS.provider_registry, call)
        .await
        .unwrap();
}

async fn serve(account: &Account) -> B256 {
    let call = ProviderRegistry::serveModelCall {
        modelId: MODEL.to_owned(),
        modelHash: keccak256(MODEL),
        baseUrl: URL.to_owned(),
        meta: "{}".to_owned(),
    };
    account
        .call(CONTRACTS.provider_registry, call)
        .await
        .unwrap();
    endpoint_id(account.address(), MODEL, URL)
}

async fn view(scene: &Scene) -> Registry {
    let config = FollowConfig {
        confirmations: 0,
        file: None,
    };
    Registry::open(scene.ledger().await, config)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_comes_serves_and_leaves() {
    let scene = Scene::new();
    let ledger = scene.ledger().await;
    let registry = view(&scene).await;
    let account = scene.account(wallet(1));
    let me = account.address();

    drip(&account).await;
    assert_eq!(ledger.balance(me).await.unwrap(), tnzo(20_000));
    register(&account, "Ada").await;
    stake(&account, tnzo(1_500)).await;
    price(&account, 3, 5).await;
    let id = serve(&account).await;

    registry.catch_up().await.unwrap();
    let snapshot = registry.snapshot();
    let endpoint = snapshot.endpoint(id).unwrap();
    assert_eq!(
        (endpoint.model_id.as_str(), endpoint.base_url.as_str()),
        (MODEL, URL)
    );
    assert_eq!(snapshot.provider(me).unwrap().name, "Ada");
    assert!(snapshot.is_active(endpoint, tnzo(1_000)));
    assert!(ledger.registry().isActive(id).call().await.unwrap());
    let page = ledger
        .registry()
        .endpointsByModel(MODEL.to_owned(), U256::ZERO, U256::from(10))
        .call()
        .await
        .unwrap();
    assert_eq!(page.len(), 1);

    // A rise waits for a minute, and both sides say so.
    price(&account, 4, 5).await;
    registry.catch_up().await.unwrap();
    let pricing = registry.snapshot().pricing(me, MODEL).unwrap();
    assert_eq!(pricing.at(START).input, 3);
    assert_eq!(pricing.at(START + 60).input, 4);

    // Below the minimum it is no longer active; the stake comes back after a week.
    let amount = tnzo(1_000);
    let unstake = ProviderRegistry::requestUnstakeCall { amount };
    account
        .call(CONTRACTS.provider_registry, unstake)
        .await
        .unwrap();
    assert!(!ledger.registry().isActive(id).call().await.unwrap());
    let withdraw = ProviderRegistry::withdrawStakeCall {};
    let early = account
        .call(CONTRACTS.provider_registry, withdraw.clone())
        .await
        .unwrap_err();
    let SendError::Reverted {
        reason,
        transaction,
        ..
    } = early
    else {
        panic!("{early}");
    };
    assert!(reason.contains("unbonding until"), "{reason}");
    assert_eq!(transaction, None, "nothing is sent that would fail");

    scene.get("evm_increaseTime", json!([7 * DAY_S])).await;
    account
        .call(CONTRACTS.provider_registry, withdraw)
        .await
        .unwrap();
    assert_eq!(ledger.balance(me).await.unwrap(), tnzo(19_500));
    registry.catch_up().await.unwrap();
    let snapshot = registry.snapshot();
    assert_eq!(snapshot.provider(me).unwrap().staked, tnzo(500));
    assert!(!snapshot.is_active(snapshot.endpoint(id).unwrap(), tnzo(1_000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_faucet_gives_once_a_day() {
    let scene = Scene::new();
    let account = scene.account(wallet(1));
    drip(&account).await;
    let again = Faucet::dripCall {
        to: account.address(),
    };
    let faucet = CONTRACTS.faucet.unwrap();
    let error = account.call(faucet, again.clone()).await.unwrap_err();
    assert!(error.to_string().contains("once a day"), "{error}");
    // No block in between: what became due shows all the same.
    scene.pass(DAY_S);
    account.call(faucet, again).await.unwrap();
    assert_eq!(scene.balance(account.address()).await, tnzo(40_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn going_back_rebuilds_the_view() {
    let scene = Scene::new();
    let registry = view(&scene).await;
    let (ada, bob) = (scene.account(wallet(1)), scene.account(wallet(2)));
    register(&ada, "Ada").await;
    registry.catch_up().await.unwrap();
    let before = registry.snapshot();
    let snapshot = scene.get("evm_snapshot", json!([])).await;

    register(&bob, "Bob").await;
    registry.catch_up().await.unwrap();
    assert!(registry.snapshot().provider(bob.address()).is_some());

    // A shorter chain first …
    assert_eq!(
        scene.get("evm_revert", json!([snapshot])).await,
        json!(true)
    );
    registry.catch_up().await.unwrap();
    assert_eq!(*registry.snapshot(), *before);
    assert_eq!(
        registry.block(),
        Some(scene.provider.get_block_number().await.unwrap())
    );

    // … then another block at the same height.
    let snapshot = scene.get("evm_snapshot", json!([])).await;
    register(&bob, "Bob").await;
    registry.catch_up().await.unwrap();
    scene.get("evm_revert", json!([snapshot])).await;
    register(&scene.account(wallet(3)), "Cleo").await;
    registry.catch_up().await.unwrap();
    let snapshot = registry.snapshot();
    assert!(snapshot.provider(bob.address()).is_none());
    assert_eq!(snapshot.provider(wallet(3).address()).unwrap().name, "Cleo");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_goes_on_from_its_file() {
    let scene = Scene::new();
    let config = FollowConfig {
        confirmations: 0,
        file: Some(scene.directory.path().join("registry.json")),
    };
    let registry = Registry::open(scene.ledger().await, config.clone());
    register(&scene.account(wallet(1)), "Ada").await;
    registry.catch_up().await.unwrap();
    drop(registry);
    let scene = scene.reopen();
    let registry = Registry::open(scene.ledger().await, config);
    assert!(registry.snapshot().provider(wallet(1).address()).is_some());
    register(&scene.account(wallet(2)), "Bob").await;
    registry.catch_up().await.unwrap();
    assert_eq!(registry.snapshot().providers().count(), 2);
    assert!(registry.lag() < Duration::from_secs(60));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wallet_sends_from_many_tasks() {
    let scene = Scene::new();
    let account = std::sync::Arc::new(scene.account(developer()));
    let sink = wallet(9).address();
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let account = account.clone();
            let call = TNZO::transferCall {
                to: sink,
                value: U256::from(1),
            };
            tokio::spawn(async move { account.call(CONTRACTS.tnzo, call).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(scene.balance(sink).await, U256::from(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_goes_on_after_the_chain_went_back() {
    let scene = Scene::new();
    let account = scene.account(wallet(1));
    let snapshot = scene.get("evm_snapshot", json!([])).await;
    register(&account, "Ada").await;
    drip(&account).await;
    scene.get("evm_revert", json!([snapshot])).await;
    // The account counts on from nonce 2, the chain from 0.
    register(&account, "Ada").await;
    let count = scene.provider.get_transaction_count(account.address());
    assert_eq!(count.await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_signed_is_submitted_by_anybody_and_twice() {
    let scene = Scene::new();
    let account = scene.account(wallet(1));
    let to = account.address();
    let call = Faucet::dripCall { to };
    let signed = account.sign(CONTRACTS.faucet.unwrap(), call).await.unwrap();
    for _ in 0..2 {
        let receipt = submit(&scene.provider, &signed.raw).await.unwrap();
        assert_eq!(receipt.transaction_hash, signed.hash);
    }
    assert_eq!(scene.balance(to).await, tnzo(20_000));
}
