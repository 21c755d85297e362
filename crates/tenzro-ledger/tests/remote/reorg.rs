//! The chain takes blocks back.

use serde_json::json;
use tenzro_ledger::registry::{FollowConfig, Registry};

use super::scene::{Scene, agree, offer, tnzo};

#[tokio::test]
async fn a_registration_that_is_taken_back_is_forgotten() {
    let scene = Scene::new(&[]).await;
    let (stays, goes) = (scene.wallet(1_000).await, scene.wallet(1_000).await);
    let directory = tempfile::tempdir().unwrap();
    let config = FollowConfig {
        confirmations: 2,
        file: Some(directory.path().join("registry.json")),
    };
    let view = Registry::open(scene.ledger.clone(), config.clone());
    scene.operations(&stays).register("stays").await.unwrap();
    scene.mine(3).await;
    view.catch_up().await.unwrap();
    scene.operations(&goes).register("goes").await.unwrap();
    scene.operations(&goes).serve_model(&offer()).await.unwrap();
    scene.mine(2).await;
    view.catch_up().await.unwrap();
    assert!(view.snapshot().provider(goes.address()).is_some());
    agree(&view, &scene.ledger).await;

    // Five blocks: both transactions are among them.
    scene.anvil.ask("anvil_reorg", json!([5, []])).await;
    scene.mine(3).await;
    view.catch_up().await.unwrap();
    let snapshot = view.snapshot();
    assert!(snapshot.provider(goes.address()).is_none());
    assert_eq!(snapshot.endpoints().count(), 0);
    assert!(snapshot.provider(stays.address()).is_some());
    agree(&view, &scene.ledger).await;

    // What is kept was taken back as well, and life goes on.
    let restarted = Registry::open(scene.ledger.clone(), config);
    assert_eq!(*restarted.snapshot(), *snapshot);
    scene.operations(&goes).stake(tnzo(1_000)).await.unwrap();
    scene.mine(2).await;
    restarted.catch_up().await.unwrap();
    agree(&restarted, &scene.ledger).await;
    assert!(restarted.snapshot().provider(goes.address()).is_some());
}

#[tokio::test]
async fn what_has_too_few_blocks_on_top_is_not_seen_yet() {
    let scene = Scene::new(&[]).await;
    let account = scene.wallet(0).await;
    let view = scene.view(2);
    let registered = scene.operations(&account).register("new").await.unwrap();
    for blocks_on_top in 0..2 {
        view.catch_up().await.unwrap();
        let seen = view.snapshot().provider(account.address()).is_some();
        assert!(!seen, "{blocks_on_top} blocks on top");
        scene.mine(1).await;
    }
    view.catch_up().await.unwrap();
    assert!(view.snapshot().provider(account.address()).is_some());
    assert_eq!(view.block(), registered.block_number);
}

#[tokio::test]
async fn a_chain_that_became_shorter_is_read_anew() {
    let scene = Scene::new(&[]).await;
    let account = scene.wallet(0).await;
    let view = scene.view(0);
    scene.operations(&account).register("new").await.unwrap();
    view.catch_up().await.unwrap();
    scene.anvil.ask("anvil_rollback", json!([1])).await;
    // At first it may be a node that lags behind another.
    view.catch_up().await.unwrap();
    assert!(view.snapshot().provider(account.address()).is_some());
    for _ in 0..5 {
        view.catch_up().await.unwrap();
    }
    assert!(view.snapshot().provider(account.address()).is_none());
    agree(&view, &scene.ledger).await;
}
