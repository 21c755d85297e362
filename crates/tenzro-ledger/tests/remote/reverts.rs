//! What contracts refuse, in words, before anything is sent and after.

use alloy::primitives::{Address, B256, address};
use alloy::providers::Provider;
use serde_json::json;
use tenzro_ledger::contracts::Faucet;
use tenzro_ledger::{Account, SendError, TransactionReceipt, submit};
use tenzro_protocol::schedule::Schedule;

use super::scene::{CHAIN_ID, MODEL, Scene, endpoint_of, offer, price, tnzo};

const PAID: Address = address!("00000000000000000000000000000000000000ff");

/// The words, where nothing was sent.
fn refused(result: Result<TransactionReceipt, SendError>) -> String {
    match result.unwrap_err() {
        SendError::Reverted {
            reason,
            transaction: None,
            ..
        } => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn whatever_a_user_may_meet_is_said_in_words_and_costs_nothing() {
    let scene = Scene::new(&[]).await;
    let (account, other) = (scene.wallet(1_003).await, scene.wallet(0).await);
    let operations = scene.operations(&account);

    let reason = refused(operations.transfer(PAID, tnzo(2_000)).await);
    assert_eq!(reason, "the wallet has 1003 TNZO, but 2000 are needed");
    let reason = refused(operations.stake(tnzo(2_000)).await);
    assert_eq!(reason, "the wallet has 1003 TNZO, but 2000 are needed");
    let reason = refused(operations.deregister().await);
    assert_eq!(reason, "this wallet is not registered as a provider");
    let reason = refused(operations.withdraw_stake().await);
    assert_eq!(reason, "no stake is unbonding");

    let reason = refused(operations.register(&"n".repeat(65)).await);
    assert_eq!(reason, "name has 65 bytes; it must have 0 to 64");
    let reason = refused(operations.set_pricing("", price()).await);
    assert_eq!(reason, "modelId has 0 bytes; it must have 1 to 128");
    let mut long = offer();
    long.model_id = "m".repeat(129);
    let reason = refused(operations.serve_model(&long).await);
    assert_eq!(reason, "modelId has 129 bytes; it must have 1 to 128");
    let mut long = offer();
    long.base_url = "u".repeat(257);
    let reason = refused(operations.serve_model(&long).await);
    assert_eq!(reason, "baseUrl has 257 bytes; it must have 1 to 256");
    let mut long = offer();
    long.meta = "m".repeat(1_025);
    let reason = refused(operations.serve_model(&long).await);
    assert_eq!(reason, "meta has 1025 bytes; it must have 0 to 1024");
    let mut schedule = Schedule {
        timezone: "t".repeat(65),
        start_minute: 0,
        end_minute: 1,
        days_mask: 1,
    };
    let reason = refused(operations.set_schedule(&schedule).await);
    assert_eq!(reason, "timezone has 65 bytes; it must have 1 to 64");
    schedule.timezone = "UTC".to_owned();
    schedule.end_minute = 1_500;
    let reason = refused(operations.set_schedule(&schedule).await);
    assert!(reason.contains("InvalidSchedule"), "{reason}");
    assert!(reason.contains("endMinute 1500"), "{reason}");

    let reason = refused(operations.stop_model(B256::repeat_byte(7)).await);
    let expected = format!("there is no endpoint {}", B256::repeat_byte(7));
    assert_eq!(reason, expected);
    assert_eq!(nonce(&scene, &account).await, 0, "nothing was sent");

    operations.serve_model(&offer()).await.unwrap();
    let endpoint = endpoint_of(&account);
    let reason = refused(scene.operations(&other).stop_model(endpoint).await);
    assert_eq!(reason, format!("endpoint {endpoint} is another provider's"));

    operations.stake(tnzo(1_000)).await.unwrap();
    let reason = refused(operations.request_unstake(tnzo(2_000)).await);
    let expected = "2000 TNZO were asked for, but only 1000 are staked and not unbonding";
    assert_eq!(reason, expected);
    operations.request_unstake(tnzo(1)).await.unwrap();
    let reason = refused(operations.withdraw_stake().await);
    let until = scene.now().await + 7 * 24 * 3600;
    assert_eq!(
        reason,
        format!("the stake is unbonding until Unix time {until}")
    );

    operations.drip(PAID).await.unwrap().unwrap();
    let next = scene.now().await + 24 * 3600;
    let reason = refused(operations.drip(PAID).await.unwrap());
    let expected = format!("the faucet gives once a day: again at Unix time {next}");
    assert_eq!(reason, expected);
    // Prices and calls after all that are as good as before.
    operations.set_pricing(MODEL, price()).await.unwrap();
}

/// The hash and the words, where it was mined and failed.
fn failed(result: Result<TransactionReceipt, SendError>) -> (B256, String) {
    match result.unwrap_err() {
        SendError::Reverted {
            reason,
            transaction: Some(hash),
            ..
        } => (hash, reason),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_mined_and_fails_says_why() {
    let scene = Scene::new(&[]).await;
    let (late, early) = (scene.wallet(0).await, scene.wallet(0).await);
    let faucet = scene.contracts().faucet.unwrap();
    let drip = Faucet::dripCall { to: PAID };
    let signed = late.sign(faucet, drip.clone()).await.unwrap();
    early.call(faucet, drip).await.unwrap();
    let (hash, reason) = failed(submit(scene.ledger.provider(), &signed.raw).await);
    assert_eq!(hash, signed.hash);
    assert!(reason.contains("the faucet gives once a day"), "{reason}");
    // Its nonce is used up, and the next one is right.
    scene.operations(&late).register("late").await.unwrap();
    assert_eq!(nonce(&scene, &late).await, 2);
}

#[tokio::test]
async fn what_fails_because_of_its_own_block_says_why() {
    let scene = Scene::new(&["--order", "fifo"]).await;
    let (late, early) = (scene.wallet(0).await, scene.wallet(0).await);
    let faucet = scene.contracts().faucet.unwrap();
    let drip = Faucet::dripCall { to: PAID };
    let late_signed = late.sign(faucet, drip.clone()).await.unwrap();
    let early_signed = early.sign(faucet, drip).await.unwrap();
    scene.anvil.ask("evm_setAutomine", json!([false])).await;
    let provider = scene.ledger.provider();
    for raw in [&early_signed.raw, &late_signed.raw] {
        let _ = provider.send_raw_transaction(raw).await.unwrap();
    }
    scene.mine(1).await;
    let first = submit(provider, &early_signed.raw).await.unwrap();
    let (hash, reason) = failed(submit(provider, &late_signed.raw).await);
    assert_eq!(hash, late_signed.hash);
    assert!(reason.contains("the faucet gives once a day"), "{reason}");
    let second = provider.get_transaction_receipt(hash).await;
    assert_eq!(second.unwrap().unwrap().block_hash, first.block_hash);
}

#[tokio::test]
async fn without_gas_coin_the_account_is_named() {
    let scene = Scene::new(&[]).await;
    let account = scene.wallet(5).await;
    let broke = [account.address().to_string(), "0x0".to_owned()];
    scene.anvil.ask("anvil_setBalance", json!(broke)).await;
    let error = scene.operations(&account).transfer(PAID, tnzo(1)).await;
    let error = error.unwrap_err();
    let SendError::Gas { account: named, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(*named, account.address());
    assert!(error.to_string().contains(&named.to_string()), "{error}");
    assert_eq!(nonce(&scene, &account).await, 0);
    // With gas it goes on where it was.
    scene.fund(account.address()).await;
    let operations = scene.operations(&account);
    operations.transfer(PAID, tnzo(1)).await.unwrap();
}

#[tokio::test]
async fn a_transaction_for_another_chain_is_refused() {
    let scene = Scene::new(&[]).await;
    let account = scene.wallet(5).await;
    let foreign = Account::new(
        scene.anvil.provider(),
        CHAIN_ID + 1,
        account.signer().clone(),
    );
    let error = scene.operations(&foreign).transfer(PAID, tnzo(1)).await;
    let error = error.unwrap_err();
    assert!(
        error.to_string().to_lowercase().contains("chain"),
        "{error}"
    );
    assert_eq!(nonce(&scene, &account).await, 0);
}

async fn nonce(scene: &Scene, account: &Account) -> u64 {
    let provider = scene.ledger.provider();
    let nonce = provider.get_transaction_count(account.address()).await;
    nonce.unwrap()
}
