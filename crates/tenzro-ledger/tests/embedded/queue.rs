//! More transactions at once than may wait to be mined.

use alloy::primitives::{Bytes, U256};
use alloy::providers::Provider;
use tokio::task::JoinSet;

use super::scene::{Scene, transfer, wallet};

/// More than the queue (1,024) and the batch that is being written (512) hold.
const MANY: u64 = 1_700;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_an_error_and_loses_nothing() {
    let scene = Scene::new();
    // As long as another connection writes, the chain's own cannot.
    let blocker = rusqlite::Connection::open(scene.path()).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut sends = JoinSet::new();
    for number in 0..MANY {
        let raw = transfer(&wallet(number), 0, wallet(number + 1).address(), U256::ZERO);
        let provider = scene.provider.clone();
        sends.spawn(async move { send(&provider, raw).await });
    }
    let mut refused: Vec<Bytes> = Vec::new();
    // Nothing can be mined yet, so that whoever is answered was refused.
    refused.extend(sends.join_next().await.unwrap().unwrap());
    assert_eq!(refused.len(), 1);
    blocker.execute_batch("ROLLBACK").unwrap();
    while let Some(sent) = sends.join_next().await {
        refused.extend(sent.unwrap());
    }
    // What was refused can be sent again as it is, what was not is mined once.
    for raw in refused {
        assert_eq!(send(&scene.provider, raw).await, None);
    }
    let blocks = scene.provider.get_block_number().await.unwrap();
    assert_eq!(blocks, 5 + MANY);
    for number in 0..MANY {
        let sender = wallet(number).address();
        let nonce = scene.provider.get_transaction_count(sender).await.unwrap();
        assert_eq!(nonce, 1, "{number}");
    }
}

/// The transaction, when it is refused because too many wait.
async fn send(provider: &impl Provider, raw: Bytes) -> Option<Bytes> {
    let error = provider.send_raw_transaction(&raw).await.err()?;
    let payload = error.as_error_resp().unwrap();
    assert_eq!(payload.code, -32005);
    let text = "too many requests: too many transactions wait to be mined; try again";
    assert_eq!(payload.message, text);
    Some(raw)
}
