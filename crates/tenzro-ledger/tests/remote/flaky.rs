//! The chain's node is somebody's service: it limits, fails and loses answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use alloy::primitives::{Address, U256, address};
use alloy::providers::Provider;
use serde_json::json;
use tenzro_ledger::registry::Registry;
use tenzro_ledger::{Account, Ledger, Operations, SendError, connect, submit};

use super::proxy::{Call, Fault, Proxy};
use super::scene::{CHAIN_ID, MODEL, Scene, agree, offer, price, tnzo, view};

const PAID: Address = address!("00000000000000000000000000000000000000ff");
const SEND: &str = "eth_sendRawTransaction";
const LOGS: &str = "eth_getLogs";

fn no_fault(_: &Call) -> Option<Fault> {
    None
}

/// Providers spread over a hundred blocks.
async fn busy() -> Scene {
    let scene = Scene::new(&[]).await;
    for _ in 0..5 {
        let account = scene.wallet(1_000).await;
        let operations = scene.operations(&account);
        operations.register("somebody").await.unwrap();
        scene.mine(15).await;
        operations.serve_model(&offer()).await.unwrap();
    }
    scene
}

/// Until a round has no error, as `follow` does.
async fn complete(view: &Registry, rounds: usize) {
    for _ in 0..rounds {
        if view.catch_up().await.is_ok() {
            return;
        }
    }
    view.catch_up().await.unwrap();
}

#[tokio::test]
async fn ranges_of_logs_shrink_however_they_are_refused() {
    const LIMIT: u64 = 7;
    let refusals = [
        // Infura
        Fault::Refusal(200, -32005, "query returned more than 10000 results"),
        // Alchemy
        Fault::Refusal(
            400,
            -32602,
            "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range",
        ),
        // QuickNode
        Fault::Refusal(413, -32614, "eth_getLogs is limited to a 10,000 range"),
        // Ankr
        Fault::Refusal(200, -32600, "block range is too wide"),
        // BNB Chain
        Fault::Refusal(200, -32005, "limit exceeded"),
        // Erigon, Bor
        Fault::Refusal(200, -32000, "exceed maximum block range: 5000"),
        // dRPC
        Fault::Refusal(
            400,
            35,
            "ranges over 10000 blocks are not supported on freetier",
        ),
        // geth
        Fault::Refusal(200, -32000, "query timeout exceeded"),
        // Whoever stands before the node
        Fault::Status(413, None),
        Fault::Status(400, None),
    ];
    let scene = busy().await;
    for refusal in refusals {
        let proxy = Proxy::start(scene.anvil.url(), {
            let refusal = refusal.clone();
            move |call| (call.method == LOGS && call.range() > LIMIT).then(|| refusal.clone())
        });
        let proxy = proxy.await;
        let ledger = scene.ledger_at(&proxy.url).await;
        let view = view(ledger, 0);
        let result = view.catch_up().await;
        result.unwrap_or_else(|error| panic!("{refusal:?}: {error}"));
        agree(&view, &scene.ledger).await;
        // Whoever refuses is not asked for more again and again.
        let refused = proxy
            .calls(LOGS)
            .iter()
            .filter(|call| call.range() > LIMIT)
            .count();
        assert!(refused <= 12, "{refused} refused: {refusal:?}");
    }
}

#[tokio::test]
async fn ranges_of_logs_that_take_too_long_shrink_from_round_to_round() {
    let scene = busy().await;
    let faults = [Fault::Status(504, None), Fault::Cut, Fault::Garbage];
    let cases = faults.into_iter().map(async |fault| {
        let proxy = Proxy::start(scene.anvil.url(), {
            let fault = fault.clone();
            move |call| (call.method == LOGS && call.range() > 40).then(|| fault.clone())
        });
        let proxy = proxy.await;
        let view = view(scene.ledger_at(&proxy.url).await, 0);
        assert!(view.catch_up().await.unwrap_err().is_retryable());
        complete(&view, 4).await;
        agree(&view, &scene.ledger).await;
    });
    futures::future::join_all(cases).await;
}

#[tokio::test]
async fn a_node_that_is_asked_too_often_is_given_time() {
    let scene = busy().await;
    let faults = [
        Fault::Status(429, None),
        Fault::Refusal(
            429,
            -32005,
            "daily request count exceeded, request rate limited",
        ),
        Fault::Refusal(
            200,
            429,
            "Your app has exceeded its compute units per second capacity",
        ),
        Fault::Refusal(200, -32007, "100/second request limit reached"),
    ];
    let cases = faults.into_iter().map(async |fault| {
        let proxy = Proxy::start(scene.anvil.url(), move |call| {
            (call.earlier < 2).then(|| fault.clone())
        });
        let proxy = proxy.await;
        let view = view(scene.ledger_at(&proxy.url).await, 0);
        view.catch_up().await.unwrap();
        agree(&view, &scene.ledger).await;
        let ranges: Vec<u64> = proxy.calls(LOGS).iter().map(Call::range).collect();
        assert_eq!(ranges.len(), 3, "{ranges:?}");
        assert!(ranges.iter().all(|range| *range == ranges[0]), "{ranges:?}");
    });
    futures::future::join_all(cases).await;
}

#[tokio::test]
async fn a_node_that_says_when_to_come_again_is_obeyed() {
    let scene = Scene::new(&[]).await;
    for status in [429, 503] {
        let proxy = Proxy::start(scene.anvil.url(), move |call| {
            (call.earlier == 0).then_some(Fault::Status(status, Some(1)))
        });
        let provider = connect(&proxy.await.url).unwrap();
        let started = Instant::now();
        provider.get_chain_id().await.unwrap();
        assert!(started.elapsed() >= Duration::from_secs(1));
    }
}

#[tokio::test]
async fn a_node_that_fails_at_times_delays_and_no_more() {
    let scene = busy().await;
    let faults = [
        Fault::Status(500, None),
        Fault::Status(502, None),
        Fault::Status(503, None),
        Fault::Cut,
        Fault::Garbage,
        Fault::Delay(Duration::from_millis(100)),
    ];
    let cases = faults.into_iter().map(async |fault| {
        let proxy = Proxy::start(scene.anvil.url(), {
            let fault = fault.clone();
            move |call| (call.earlier == 0).then(|| fault.clone())
        });
        let proxy = proxy.await;
        let view = view(scene.ledger_at(&proxy.url).await, 0);
        let result = view.catch_up().await;
        result.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        agree(&view, &scene.ledger).await;
    });
    futures::future::join_all(cases).await;
}

#[tokio::test]
async fn a_payment_is_made_once_whatever_becomes_of_a_call() {
    let scene = Scene::new(&[]).await;
    let faults = [
        Fault::LoseAnswer,
        Fault::Cut,
        Fault::Status(429, None),
        Fault::Status(500, None),
        Fault::Status(502, None),
        Fault::Status(503, None),
        Fault::Garbage,
        Fault::Delay(Duration::from_millis(100)),
    ];
    let cases = faults.into_iter().enumerate().map(async |(number, fault)| {
        let account = scene.wallet(10).await;
        let address = account.address();
        let proxy = Proxy::start(scene.anvil.url(), {
            let fault = fault.clone();
            move |call| (call.earlier == 0).then(|| fault.clone())
        });
        let proxy = proxy.await;
        let account = through(&proxy, &account);
        let operations = scene.operations(&account);
        let paid = Address::with_last_byte(100 + number as u8);
        let result = operations.transfer(paid, tnzo(1)).await;
        result.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        let balance = scene.ledger.balance(paid).await.unwrap();
        assert_eq!(balance, U256::from(tnzo(1).0), "{fault:?}");
        assert_eq!(nonce(&scene, address).await, 1, "{fault:?}");
        operations.transfer(paid, tnzo(1)).await.unwrap();
        assert_eq!(nonce(&scene, address).await, 2, "{fault:?}");
    });
    futures::future::join_all(cases).await;
}

#[tokio::test]
async fn a_payment_without_any_answer_is_told_with_its_hash_and_not_made_twice() {
    let scene = Scene::new(&[]).await;
    let account = scene.wallet(10).await;
    let proxy = Proxy::start(scene.anvil.url(), |call| {
        (call.method == SEND).then_some(Fault::Cut)
    });
    let proxy = proxy.await;
    let account = through(&proxy, &account).with_patience(Duration::from_millis(1_500));
    let operations = scene.operations(&account);
    let error = operations.transfer(PAID, tnzo(1)).await.unwrap_err();
    let SendError::NotMined(hash) = error else {
        panic!("{error:?}");
    };
    assert!(error.to_string().contains(&hash.to_string()), "{error}");
    assert!(
        error.to_string().contains("before you send again"),
        "{error}"
    );
    // The next one takes its place, so that at most one of the two can ever be mined.
    proxy.set(no_fault);
    operations.transfer(PAID, tnzo(1)).await.unwrap();
    assert_eq!(nonce(&scene, account.address()).await, 1);
    let balance = scene.ledger.balance(PAID).await.unwrap();
    assert_eq!(balance, U256::from(tnzo(1).0));
}

#[tokio::test]
async fn where_nobody_listens_nothing_is_sent() {
    let scene = Scene::new(&[]).await;
    let account = scene.wallet(10).await;
    let ledger = scene.ledger.clone();
    scene.anvil.stop().await;
    let operations = Operations {
        ledger: &ledger,
        account: &account,
    };
    let error = operations.transfer(PAID, tnzo(1)).await.unwrap_err();
    assert!(matches!(error, SendError::Transport(_)), "{error:?}");
}

#[tokio::test]
async fn what_another_signed_is_submitted_once() {
    let scene = Scene::new(&[]).await;
    let account = scene.wallet(0).await;
    let signed = scene.operations(&account).sign_serve_model(&offer()).await;
    let signed = signed.unwrap();
    let proxy = Proxy::start(scene.anvil.url(), |call| {
        (call.method == SEND && call.earlier == 0).then_some(Fault::LoseAnswer)
    });
    let provider = connect(&proxy.await.url).unwrap();
    let receipt = submit(&provider, &signed.raw).await.unwrap();
    assert_eq!(receipt.transaction_hash, signed.hash);
    // Again: it is there already.
    let again = submit(&provider, &signed.raw).await.unwrap();
    assert_eq!(again.block_hash, receipt.block_hash);
    assert_eq!(nonce(&scene, account.address()).await, 1);
}

#[tokio::test]
async fn a_node_behind_another_does_not_make_the_view_forget() {
    let scene = busy().await;
    let proxy = Proxy::start(scene.anvil.url(), no_fault).await;
    let view = view(scene.ledger_at(&proxy.url).await, 0);
    view.catch_up().await.unwrap();
    let (before, read) = (view.snapshot(), proxy.calls(LOGS).len());
    proxy.set(|call| (call.method == "eth_getBlockByNumber").then_some(Fault::Null));
    view.catch_up().await.unwrap();
    assert_eq!(*view.snapshot(), *before);
    proxy.set(no_fault);
    view.catch_up().await.unwrap();
    assert_eq!(*view.snapshot(), *before);
    assert_eq!(proxy.calls(LOGS).len(), read, "nothing is read again");
}

#[tokio::test]
async fn a_view_that_is_read_anew_is_shown_when_it_is_complete() {
    let scene = busy().await;
    let proxy = Proxy::start(scene.anvil.url(), no_fault).await;
    let view = view(scene.ledger_at(&proxy.url).await, 0);
    view.catch_up().await.unwrap();
    let before = view.snapshot();
    scene.anvil.ask("anvil_reorg", json!([3, []])).await;
    proxy.set(|call| (call.method == LOGS).then_some(Fault::Status(403, None)));
    view.catch_up().await.unwrap_err();
    assert_eq!(*view.snapshot(), *before);
    proxy.set(no_fault);
    view.catch_up().await.unwrap();
    agree(&view, &scene.ledger).await;
}

#[tokio::test]
async fn logs_of_blocks_that_are_replaced_meanwhile_do_not_count() {
    let scene = Scene::new(&[]).await;
    let account = scene.wallet(0).await;
    scene.operations(&account).register("goes").await.unwrap();
    let has_logs = Arc::new(AtomicBool::new(false));
    let proxy = Proxy::start(scene.anvil.url(), move |call| {
        let is_logs = call.method == LOGS;
        let had_logs = has_logs.fetch_or(is_logs, Ordering::SeqCst);
        let asks_for_hash = call.method == "eth_getBlockByNumber";
        (had_logs && asks_for_hash).then_some(Fault::Delay(Duration::from_millis(500)))
    });
    let proxy = proxy.await;
    let view = view(scene.ledger_at(&proxy.url).await, 0);
    let catching_up = tokio::spawn({
        let view = view.clone();
        async move { view.catch_up().await }
    });
    let mut hashes = usize::MAX;
    loop {
        let now = proxy.calls("eth_getBlockByNumber").len();
        if proxy.calls(LOGS).is_empty() {
            hashes = now;
        } else if now > hashes {
            break;
        }
        tokio::task::yield_now().await;
    }
    scene.anvil.ask("anvil_reorg", json!([1, []])).await;
    catching_up.await.unwrap().unwrap();
    proxy.set(no_fault);
    view.catch_up().await.unwrap();
    assert!(view.snapshot().provider(account.address()).is_none());
    agree(&view, &scene.ledger).await;
}

#[tokio::test]
async fn a_node_that_does_not_tell_the_time_of_logs_is_asked_for_it() {
    let scene = busy().await;
    let account = scene.wallet(0).await;
    let operations = scene.operations(&account);
    operations.set_pricing(MODEL, price()).await.unwrap();
    let mut higher = price();
    higher.input += 1;
    operations.set_pricing(MODEL, higher).await.unwrap();
    let proxy = Proxy::start(scene.anvil.url(), |call| {
        (call.method == LOGS).then_some(Fault::Without("blockTimestamp"))
    });
    let view = view(scene.ledger_at(&proxy.await.url).await, 0);
    view.catch_up().await.unwrap();
    agree(&view, &scene.ledger).await;
    let pricing = view.snapshot().pricing(account.address(), MODEL).unwrap();
    assert_eq!(pricing.at(scene.now().await), price());
}

/// The same wallet through the proxy.
fn through(proxy: &Proxy, account: &Account) -> Account {
    let provider = connect(&proxy.url).expect("an address");
    Account::new(provider, CHAIN_ID, account.signer().clone())
}

async fn nonce(scene: &Scene, address: Address) -> u64 {
    let provider = scene.ledger.provider();
    provider.get_transaction_count(address).await.unwrap()
}

#[tokio::test]
async fn garbage_for_ever_is_an_error_that_may_pass() {
    let scene = Scene::new(&[]).await;
    let proxy = Proxy::start(scene.anvil.url(), |_| Some(Fault::Status(404, None))).await;
    let provider = connect(&proxy.url).unwrap();
    let error = Ledger::open(provider, *scene.contracts())
        .await
        .unwrap_err();
    assert!(error.is_retryable());
    assert!(error.to_string().contains("404"), "{error}");
}
