//! Many senders of one wallet: each transaction is mined, once, and no nonce is left out.

use alloy::primitives::{Address, U256, address};
use alloy::providers::Provider;
use futures::future::join_all;
use tenzro_ledger::Account;

use super::scene::{CHAIN_ID, Scene, tnzo};

const PAID: Address = address!("00000000000000000000000000000000000000ff");

/// Every one of them pays 1 TNZO, all at once; different and equal ones.
async fn all_pay(scene: &Scene, accounts: &[&Account], each: usize) {
    let payments = accounts
        .iter()
        .flat_map(|account| (0..each).map(|_| scene.operations(account).transfer(PAID, tnzo(1))));
    let receipts = join_all(payments).await;
    let expected = accounts.len() * each;
    let mut hashes: Vec<_> = receipts
        .into_iter()
        .map(|receipt| receipt.expect("mined").transaction_hash)
        .collect();
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), expected, "each has a transaction of its own");
    let paid = scene.ledger.balance(PAID).await.unwrap();
    assert_eq!(paid, U256::from(tnzo(expected as u64).0));
    let provider = scene.ledger.provider();
    let address = accounts[0].address();
    let nonce = provider.get_transaction_count(address).await.unwrap();
    assert_eq!(nonce, expected as u64);
}

#[tokio::test]
async fn forty_at_once_from_one_account() {
    let scene = Scene::new(&[]).await;
    let account = scene.wallet(100).await;
    all_pay(&scene, &[&account], 40).await;
}

#[tokio::test]
async fn forty_at_once_into_blocks_of_a_second() {
    let scene = Scene::new(&[]).await;
    let account = scene.wallet(100).await;
    scene
        .anvil
        .ask("evm_setIntervalMining", serde_json::json!([1]))
        .await;
    all_pay(&scene, &[&account], 40).await;
}

#[tokio::test]
async fn two_processes_with_the_same_key() {
    let scene = Scene::new(&[]).await;
    let one = scene.wallet(100).await;
    let other = Account::new(scene.anvil.provider(), CHAIN_ID, one.signer().clone());
    all_pay(&scene, &[&one, &other], 20).await;
}

#[tokio::test]
async fn two_processes_with_the_same_key_into_blocks_of_a_second() {
    let scene = Scene::new(&[]).await;
    let one = scene.wallet(100).await;
    let other = Account::new(scene.anvil.provider(), CHAIN_ID, one.signer().clone());
    scene
        .anvil
        .ask("evm_setIntervalMining", serde_json::json!([1]))
        .await;
    all_pay(&scene, &[&one, &other], 20).await;
}
