//! `node`: start, stop, restart, kill.

use std::collections::BTreeMap;

use futures::StreamExt;
use tenzro_ledger::{Account, Address, Keystore, Ledger, Operations, connect, wei};
use tenzro_node::{NodeClient, is_node_running};
use tenzro_protocol::amount::Wei;

use super::{Home, kill};

#[test]
fn a_node_is_started_once_tells_its_state_and_stops() {
    let mut home = Home::new();
    let url = home.start_node(&[]);
    let status = home.json(&["node", "status"]);
    assert_eq!(status["network"]["chain"], "embedded");
    assert_eq!(status["own"]["rpc_url"], url.as_str());
    let again = home.run(&["node", "start", "--port", "0"]);
    assert_eq!(again.code, Some(1));
    assert!(
        again.stderr.contains(&format!("runs already at {url}")),
        "{}",
        again.stderr
    );
    assert!(
        again.stderr.contains("hint: tenzro-cli node stop"),
        "{}",
        again.stderr
    );
    let port = url.rsplit(':').next().expect("a port");
    let other = Home::new();
    let taken = other.run(&["node", "start", "--port", port]);
    assert_eq!(taken.code, Some(1));
    assert!(
        taken.stderr.contains("cannot listen on"),
        "{}",
        taken.stderr
    );
    let info = home.ok(&["chain", "info"]);
    assert!(
        info.contains("1337 (embedded)") && info.contains("7 days"),
        "{info}"
    );
    assert!(home.ok(&["node", "logs"]).contains("the node runs"));
    assert_eq!(home.ok(&["node", "stop"]), "stopped the node\n");
    let stopped = home.run(&["node", "stop"]);
    assert_eq!(stopped.code, Some(1));
}

#[test]
fn local_servers_are_known_to_the_node_whichever_starts_first() {
    let mut home = Home::with_model();
    home.serve(&["--ctx-size", "512"]);
    home.start_node(&[]);
    let endpoints = home.json(&["model", "endpoints"]);
    assert_eq!(
        (&endpoints[0]["model_id"], &endpoints[0]["location"]),
        (&"smollm2-135m".into(), &"local".into())
    );
    home.ok(&["model", "stop", "smollm2-135m"]);
    assert_eq!(home.json(&["model", "endpoints"]), serde_json::json!([]));
    home.serve(&["--ctx-size", "512"]);
    let endpoint = home.json(&["model", "endpoint", "--model", "smollm2-135m"]);
    assert_eq!(
        (&endpoint["status"], &endpoint["price_per_output_token"]),
        (&"online".into(), &"0".into())
    );
}

#[test]
fn stake_comes_back_after_seven_days() {
    let mut home = Home::new();
    let url = home.start_node(&[]);
    home.ok(&["wallet", "faucet"]);
    home.ok(&["stake", "deposit", "--amount", "1000"]);
    home.ok(&["stake", "withdraw"]);
    let early = home.run(&["stake", "withdraw"]);
    assert_eq!(early.code, Some(1));
    assert!(early.stderr.contains("unbonding until"), "{}", early.stderr);
    advance(&home, &url, 7 * 24 * 3600);
    assert_eq!(
        home.ok(&["stake", "withdraw"]),
        "1000 TNZO are back in the wallet\n"
    );
    assert_eq!(home.ok(&["wallet", "balance"]), "20000 TNZO\n");
}

/// Moves the clock of an embedded chain, as its operator may and nobody else.
fn advance(home: &Home, url: &str, seconds: u64) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let call = |home: tenzro_node::Home| {
        let client = NodeClient::new(url, &home).expect("an address");
        let params = serde_json::json!([seconds]);
        runtime.block_on(client.call::<serde_json::Value>("evm_increaseTime", params))
    };
    let refused =
        call(tenzro_node::Home::new(home.path().join("somebody"))).expect_err("no operator");
    assert!(refused.to_string().contains("operator"), "{refused}");
    call(home.paths()).expect("the operator");
}

/// What the wallet sent to each address, as far as the chain said that it was mined.
type Acknowledged = BTreeMap<Address, u128>;

/// Sends from many tasks at once until `count` transfers were acknowledged, then kills the node.
async fn send_and_kill(
    account: &Account,
    ledger: &Ledger,
    count: usize,
    pid: &str,
    home: &tenzro_node::Home,
) -> Acknowledged {
    let operations = Operations { ledger, account };
    let transfers = futures::stream::iter(0u64..).map(|number| async move {
        let to = Address::with_last_byte(1 + u8::try_from(number % 200).expect("small"));
        operations.transfer(to, Wei(1)).await.map(|_| to)
    });
    let mut acknowledged = Acknowledged::new();
    let mut transfers = transfers.buffer_unordered(8).take(count).boxed_local();
    while let Some(result) = transfers.next().await {
        *acknowledged.entry(result.expect("sent")).or_default() += 1;
    }
    // While the next ones are on their way.
    kill(pid, || is_node_running(home));
    acknowledged
}

#[test]
fn what_was_acknowledged_survives_kill_9_again_and_again() {
    let mut home = Home::new();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    home.start_node(&[]);
    home.ok(&["wallet", "faucet"]);
    home.ok(&["--quiet", "node", "stop"]);
    let keystore = Keystore::new(home.path().join("home/keystore"));
    let wallet = keystore.default_wallet().expect("made");
    let signer = keystore
        .unlock(&wallet, None)
        .expect("its password is beside it");
    let mut sent = Acknowledged::new();
    for round in 0..6 {
        let url = home.start_node(&[]);
        let status = home.json(&["node", "status"]);
        let pid = status["own"]["pid"].to_string();
        runtime.block_on(async {
            let provider = connect(&url).expect("an address");
            let addresses = tenzro_ledger::EmbeddedChain::addresses();
            let ledger = Ledger::open(provider.clone(), addresses)
                .await
                .expect("there");
            check(&ledger, wallet.address, &sent).await;
            let account = Account::new(provider, ledger.chain_id(), signer.clone());
            let (count, paths) = (20 + 7 * round, home.paths());
            for (to, count) in send_and_kill(&account, &ledger, count, &pid, &paths).await {
                *sent.entry(to).or_default() += count;
            }
        });
    }
    let url = home.start_node(&[]);
    runtime.block_on(async {
        let addresses = tenzro_ledger::EmbeddedChain::addresses();
        let ledger = Ledger::open(connect(&url).expect("an address"), addresses).await;
        check(&ledger.expect("there"), wallet.address, &sent).await;
    });
}

/// Nothing acknowledged is lost, nothing is made, and nonces, balances and logs agree.
async fn check(ledger: &Ledger, own: Address, sent: &Acknowledged) {
    let balance = async |address| wei(ledger.balance(address).await.expect("readable")).0;
    let mut received = 0;
    for last_byte in 1..=200 {
        let address = Address::with_last_byte(last_byte);
        let has = balance(address).await;
        assert!(
            has >= sent.get(&address).copied().unwrap_or_default(),
            "{address}"
        );
        received += has;
    }
    let start = Wei::from_whole_tnzo(20_000).0;
    assert_eq!(balance(own).await + received, start);
    // The faucet, then one transaction for each wei.
    let tnzo = ledger.tnzo();
    let filter = tnzo.Transfer_filter().topic1(own).from_block(0);
    let logs = filter.query().await.expect("readable");
    assert_eq!(logs.len() as u128, received);
    let nonce = ledger.nonce(own).await.expect("readable");
    assert_eq!(u128::from(nonce), 1 + received);
}
