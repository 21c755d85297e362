//! The `eth_newFilter` family, time travel and going back.

use alloy::primitives::U256;
use alloy::providers::Provider;
use serde_json::{Value, json};

use super::scene::{CONTRACTS, START, Scene, developer, transfer, wallet};

async fn send(scene: &Scene, nonce: u64) {
    let raw = transfer(&developer(), nonce, wallet(1).address(), U256::from(nonce));
    scene.send(&raw).await.unwrap();
}

fn count(answer: &Value) -> usize {
    answer.as_array().unwrap().len()
}

async fn timestamp(scene: &Scene) -> u64 {
    let block = scene.provider.get_block(Default::default()).await.unwrap();
    block.unwrap().header.timestamp
}

#[tokio::test]
async fn filters_show_what_is_new_once() {
    let scene = Scene::new();
    let blocks = scene.get("eth_newBlockFilter", json!([])).await;
    let logs = scene
        .get(
            "eth_newFilter",
            json!([{"address": CONTRACTS.tnzo, "fromBlock": "0x1"}]),
        )
        .await;
    let changes = async |id: &Value| scene.get("eth_getFilterChanges", json!([id])).await;
    assert_eq!(count(&changes(&blocks).await), 0);
    send(&scene, 5).await;
    scene.get("evm_mine", json!([])).await;
    assert_eq!(count(&changes(&blocks).await), 2);
    assert_eq!(count(&changes(&logs).await), 1);
    assert_eq!(count(&changes(&blocks).await), 0);
    assert_eq!(count(&changes(&logs).await), 0);
    let all = scene.get("eth_getFilterLogs", json!([logs])).await;
    assert_eq!(count(&all), 3, "with the mint and the faucet's half");

    let snapshot = scene.get("evm_snapshot", json!([])).await;
    send(&scene, 6).await;
    assert_eq!(count(&changes(&logs).await), 1);
    scene.get("evm_revert", json!([snapshot])).await;
    assert_eq!(count(&changes(&logs).await), 0);
    send(&scene, 6).await;
    assert_eq!(count(&changes(&logs).await), 1);
    assert_eq!(
        scene.get("eth_uninstallFilter", json!([logs])).await,
        json!(true)
    );
    assert_eq!(
        scene.get("eth_uninstallFilter", json!([logs])).await,
        json!(false)
    );
}

#[tokio::test]
async fn blocks_share_seconds_and_never_go_back_in_time() {
    let scene = Scene::new();
    send(&scene, 5).await;
    send(&scene, 6).await;
    assert_eq!(timestamp(&scene).await, START);
    scene
        .clock
        .store(START - 1_000, std::sync::atomic::Ordering::Relaxed);
    send(&scene, 7).await;
    assert_eq!(timestamp(&scene).await, START);
}

#[tokio::test]
async fn time_is_turned_on_and_kept() {
    let scene = Scene::new();
    assert_eq!(
        scene.get("evm_increaseTime", json!([100])).await,
        json!(100)
    );
    assert_eq!(
        scene.get("evm_increaseTime", json!(["0x64"])).await,
        json!(200)
    );
    send(&scene, 5).await;
    assert_eq!(timestamp(&scene).await, START + 200);
    scene
        .get("evm_setNextBlockTimestamp", json!([START + 1_000]))
        .await;
    scene.pass(5);
    send(&scene, 6).await;
    assert_eq!(timestamp(&scene).await, START + 1_000);
    scene.pass(5);
    scene.get("evm_mine", json!([])).await;
    assert_eq!(timestamp(&scene).await, START + 1_005);
    scene.get("evm_mine", json!([START + 2_000])).await;
    assert_eq!(timestamp(&scene).await, START + 2_000);
    let scene = scene.reopen();
    scene.get("evm_mine", json!([{"blocks": 3}])).await;
    assert_eq!(timestamp(&scene).await, START + 2_000);
    assert_eq!(scene.provider.get_block_number().await.unwrap(), 12);
}

#[tokio::test]
async fn going_back_restores_state_clock_and_nonces() {
    let scene = Scene::new();
    send(&scene, 5).await;
    let before = scene
        .get("eth_getBlockByNumber", json!(["latest", true]))
        .await;
    let first = scene.get("evm_snapshot", json!([])).await;
    let second = scene.get("evm_snapshot", json!([])).await;
    scene.get("evm_increaseTime", json!([500])).await;
    send(&scene, 6).await;
    assert_eq!(scene.get("evm_revert", json!([first])).await, json!(true));
    let after = scene
        .get("eth_getBlockByNumber", json!(["latest", true]))
        .await;
    assert_eq!(after, before);
    assert_eq!(scene.balance(wallet(1).address()).await, U256::from(5));
    let gone = scene.get("evm_revert", json!([second])).await;
    assert_eq!(gone, json!(false), "later snapshots are used up too");
    send(&scene, 6).await;
    assert_eq!(timestamp(&scene).await, START);
}
