//! The chain goes away and comes back.

use std::time::Duration;

use alloy::primitives::{Address, address};
use serde_json::json;
use tenzro_ledger::{Ledger, connect};

use super::anvil::{Anvil, free_port};
use super::scene::{Scene, agree, tnzo};

const PAID: Address = address!("00000000000000000000000000000000000000ff");
const PERIOD: Duration = Duration::from_millis(20);

#[tokio::test]
async fn a_follower_and_a_waiting_transaction_survive_a_restart_of_the_chain() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state.json");
    let arguments = ["--state", state.to_str().unwrap()];
    let port = free_port();
    let scene = Scene::on(Anvil::start_on(port, &arguments).await).await;
    let payer = scene.wallet(100).await;
    scene.operations(&payer).register("payer").await.unwrap();
    let view = scene.view(0);
    let following = tokio::spawn({
        let view = view.clone();
        async move { view.follow(PERIOD).await }
    });
    // Three payments wait to be mined when the chain goes away: it forgets what waits.
    scene.anvil.ask("evm_setAutomine", json!([false])).await;
    let ledger = scene.ledger.clone();
    let payments = tokio::spawn({
        let ledger = ledger.clone();
        async move {
            let operations = tenzro_ledger::Operations {
                ledger: &ledger,
                account: &payer,
            };
            let one = async || operations.transfer(PAID, tnzo(1)).await;
            let receipts = tokio::join!(one(), one(), one());
            // The next one after them finds no gap.
            (receipts, one().await, payer)
        }
    });
    let waiting = async || {
        let status = scene.anvil.ask("txpool_status", json!([])).await;
        status["pending"].as_str() == Some("0x3")
    };
    while !waiting().await {
        tokio::task::yield_now().await;
    }
    let Scene { anvil, .. } = scene;
    anvil.stop().await;
    assert!(view.catch_up().await.is_err());

    let anvil = Anvil::start_on(port, &arguments).await;
    let (receipts, last, payer) = payments.await.unwrap();
    for receipt in [receipts.0, receipts.1, receipts.2, last] {
        receipt.expect("mined");
    }
    let balance = ledger.balance(PAID).await.unwrap();
    assert_eq!(tenzro_ledger::wei(balance), tnzo(4));
    let operations = tenzro_ledger::Operations {
        ledger: &ledger,
        account: &payer,
    };
    operations.register("again").await.unwrap();
    // The follower itself sees it.
    let is_seen = || {
        let snapshot = view.snapshot();
        let provider = snapshot.provider(payer.address());
        provider.is_some_and(|provider| provider.name == "again")
    };
    while !is_seen() {
        tokio::time::sleep(PERIOD).await;
    }
    agree(&view, &ledger).await;
    following.abort();
    drop(anvil);
}

#[tokio::test]
async fn a_chain_that_lost_everything_is_read_anew() {
    let port = free_port();
    let scene = Scene::on(Anvil::start_on(port, &[]).await).await;
    let account = scene.wallet(0).await;
    scene.operations(&account).register("old").await.unwrap();
    let view = scene.view(0);
    view.catch_up().await.unwrap();
    assert_eq!(view.snapshot().providers().count(), 1);
    scene.anvil.stop().await;

    // The same transactions put the contracts at the same addresses.
    let scene = Scene::on(Anvil::start_on(port, &[]).await).await;
    scene.mine(10).await;
    view.catch_up().await.unwrap();
    assert_eq!(view.snapshot().providers().count(), 0);
    agree(&view, &scene.ledger).await;
}

#[tokio::test]
async fn a_chain_that_is_not_there_yet_can_be_tried_again() {
    let port = free_port();
    let provider = connect(&format!("http://127.0.0.1:{port}")).unwrap();
    let error = tenzro_ledger::chain_id(&provider).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");

    let scene = Scene::on(Anvil::start_on(port, &[]).await).await;
    // The same provider, now that it is there.
    let ledger = Ledger::open(provider.clone(), *scene.contracts()).await;
    let ledger = ledger.unwrap();
    scene.anvil.stop().await;
    let error = ledger.balance(PAID).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let error = ledger.rules().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
}

#[tokio::test]
async fn no_address_of_a_chain() {
    for url in ["", "127.0.0.1:8545", "ws://127.0.0.1:8545", "http://"] {
        let error = connect(url).unwrap_err();
        assert!(!error.is_retryable(), "{url}");
        assert!(error.to_string().contains(url));
    }
}
