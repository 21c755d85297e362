//! Killed at any moment (SIGKILL), the chain has all that it acknowledged.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use alloy::primitives::{B256, U256};
use alloy::providers::Provider;
use alloy::rpc::types::Filter;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use tempfile::TempDir;
use tenzro_ledger::EmbeddedChain;
use tenzro_ledger::contracts::TNZO;

use super::scene::{CONTRACTS, developer, transfer, wallet};

/// Says to the test below that it is the process to be killed, and which file it uses.
const FILE: &str = "TENZRO_CRASH_TEST_FILE";
const SENDERS: u64 = 4;
const ROUNDS: usize = 24;

/// Sends for ever, and prints what was acknowledged. Does nothing unless started by the test below.
#[tokio::test(flavor = "multi_thread")]
async fn the_process_that_is_killed() {
    let Ok(path) = std::env::var(FILE) else {
        return;
    };
    let chain = EmbeddedChain::open(Path::new(&path)).unwrap();
    let tasks: Vec<_> = (0..SENDERS)
        .map(|who| {
            let provider = chain.provider();
            tokio::spawn(async move {
                let signer = wallet(who);
                let mut nonce = provider
                    .get_transaction_count(signer.address())
                    .await
                    .unwrap();
                loop {
                    let raw = transfer(&signer, nonce, sink(), U256::from(1));
                    let sent = provider.send_raw_transaction(&raw).await.unwrap();
                    println!("acknowledged {}", sent.tx_hash());
                    nonce += 1;
                }
            })
        })
        .collect();
    futures::future::join_all(tasks).await;
}

fn sink() -> alloy::primitives::Address {
    wallet(99).address()
}

/// Starts the sender, kills it after so many acknowledgements, and tells all that it printed.
fn kill_after(path: &Path, count: usize) -> Vec<B256> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "crash::the_process_that_is_killed",
            "--nocapture",
        ])
        .env(FILE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut acknowledged = Vec::new();
    let output = BufReader::new(child.stdout.take().unwrap());
    for line in output.lines() {
        let line = line.unwrap();
        // The harness prints the test's name on the same line as the first acknowledgement; a line
        // that the kill cut short was not acknowledged.
        if let Some((_, hash)) = line.split_once("acknowledged ")
            && let Ok(hash) = hash.parse()
        {
            acknowledged.push(hash);
        }
        if acknowledged.len() == count {
            // What it printed meanwhile is read to the end.
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(acknowledged.len() >= count);
    acknowledged
}

async fn check(path: &Path, acknowledged: &[B256]) {
    let chain = EmbeddedChain::open(path).unwrap();
    let provider = chain.provider();
    for hash in acknowledged {
        let receipt = provider.get_transaction_receipt(*hash).await.unwrap();
        let receipt = receipt.unwrap_or_else(|| panic!("{hash} is lost"));
        assert!(receipt.status());
        let block = provider
            .get_block_by_hash(receipt.block_hash.unwrap())
            .await
            .unwrap();
        let block = block.unwrap();
        assert_eq!(block.transactions.hashes().next(), Some(*hash));
    }
    let token = TNZO::new(CONTRACTS.tnzo, provider.clone());
    let received = token.balanceOf(sink()).call().await.unwrap();
    let mut sent = 0;
    for who in 0..SENDERS {
        let address = wallet(who).address();
        let nonce = provider.get_transaction_count(address).await.unwrap();
        let left = token.balanceOf(address).call().await.unwrap();
        assert_eq!(left, U256::from(1_000_000 - nonce));
        sent += nonce;
    }
    assert_eq!(received, U256::from(sent));
    assert!(sent >= acknowledged.len() as u64);
    let head = provider.get_block_number().await.unwrap();
    let mut logs = 0;
    for from in (0..=head).step_by(5_000) {
        let filter = Filter::new()
            .topic2(sink().into_word())
            .from_block(from)
            .to_block(from + 4_999);
        logs += provider.get_logs(&filter).await.unwrap().len() as u64;
    }
    assert_eq!(logs, sent);
}

#[tokio::test]
async fn nothing_acknowledged_is_lost() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("ledger.sqlite");
    let chain = EmbeddedChain::open(&path).unwrap();
    for who in 0..SENDERS {
        let raw = transfer(
            &developer(),
            5 + who,
            wallet(who).address(),
            U256::from(1_000_000),
        );
        let sent = chain.provider().send_raw_transaction(&raw).await;
        let _ = sent.unwrap();
    }
    drop(chain);
    let mut runner = TestRunner::default();
    let mut acknowledged = Vec::new();
    for _ in 0..ROUNDS {
        let count = (1..120_usize).new_tree(&mut runner).unwrap().current();
        acknowledged.extend(kill_after(&path, count));
        check(&path, &acknowledged).await;
    }
}
