//! Whose file it is, what is in it after a restart, and files that are none.

use std::fs;

use alloy::primitives::U256;
use alloy::providers::Provider;
use serde_json::json;
use tempfile::TempDir;
use tenzro_ledger::{EmbeddedChain, EmbeddedError};

use super::scene::{Scene, developer, transfer, wallet};

#[tokio::test]
async fn all_is_there_after_a_restart() {
    let scene = Scene::new();
    let raw = transfer(&developer(), 5, wallet(1).address(), U256::from(7));
    let hash = scene.send(&raw).await.unwrap();
    let questions = [
        ("eth_getTransactionReceipt", json!([hash])),
        ("eth_getTransactionByHash", json!([hash])),
        ("eth_getBlockByNumber", json!(["latest", true])),
        ("eth_getLogs", json!([{"fromBlock": "earliest"}])),
    ];
    let mut before = Vec::new();
    for (method, params) in &questions {
        before.push(scene.get(method, params.clone()).await);
    }
    let scene = scene.reopen();
    for ((method, params), before) in questions.iter().zip(before) {
        assert_eq!(scene.get(method, params.clone()).await, before, "{method}");
    }
    let raw = transfer(&developer(), 6, wallet(1).address(), U256::from(7));
    scene.send(&raw).await.unwrap();
    assert_eq!(scene.balance(wallet(1).address()).await, U256::from(14));
}

#[tokio::test]
async fn a_file_is_opened_once_at_a_time() {
    let scene = Scene::new();
    let error = EmbeddedChain::open(&scene.path()).unwrap_err();
    assert!(matches!(error, EmbeddedError::InUse(_)), "{error}");
    let path = scene.path();
    let Scene {
        directory,
        chain,
        provider,
        ..
    } = scene;
    drop(chain);
    // A provider keeps the chain.
    assert!(EmbeddedChain::open(&path).is_err());
    assert_eq!(provider.get_block_number().await.unwrap(), 5);
    drop(provider);
    EmbeddedChain::open(&path).unwrap();
    drop(directory);
}

#[test]
fn files_that_are_no_ledger_are_named() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("ledger.sqlite");
    fs::write(&path, "some text that is long enough to be looked at by SQLite, 100 bytes or so, which is its header's size").unwrap();
    let error = EmbeddedChain::open(&path).unwrap_err();
    assert!(matches!(error, EmbeddedError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("ledger.sqlite"), "{error}");

    fs::remove_file(&path).unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE notes (text)").unwrap();
    drop(other);
    let error = EmbeddedChain::open(&path).unwrap_err();
    assert!(matches!(error, EmbeddedError::Foreign(_)), "{error}");
}

#[test]
fn files_of_other_versions_and_contracts_are_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("ledger.sqlite");
    drop(EmbeddedChain::open(&path).unwrap());
    let edit = |sql: &str| {
        let file = rusqlite::Connection::open(&path).unwrap();
        file.execute_batch(sql).unwrap();
    };
    edit("PRAGMA user_version = 99");
    let error = EmbeddedChain::open(&path).unwrap_err();
    assert!(
        matches!(error, EmbeddedError::Version { actual: 99, .. }),
        "{error}"
    );
    edit("PRAGMA user_version = 1; UPDATE meta SET value = zeroblob(32) WHERE key = 'genesis'");
    let error = EmbeddedChain::open(&path).unwrap_err();
    assert!(matches!(error, EmbeddedError::OtherContracts(_)), "{error}");
    edit("DELETE FROM meta; DELETE FROM block");
    EmbeddedChain::open(&path).unwrap_err();
}
