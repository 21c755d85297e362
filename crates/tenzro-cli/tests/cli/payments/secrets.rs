//! What must not be in a log is not there, however much is logged.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rusqlite::Connection;
use serde_json::{Value, json};
use tenzro_node::operator_token;

use super::market::{MODEL, Market, chat, cost_of, key, rpc};
use crate::Home;

/// Starts a command in the foreground that logs all it can, and waits for its `ready` event.
fn start(home: &Home, command: &str) -> (Child, Value, PathBuf) {
    let log = home.path().join("log");
    let mut arguments = vec!["-vvv", "--json"];
    arguments.extend(command.split(' '));
    let mut child = home
        .command(&arguments)
        .stdout(Stdio::piped())
        .stderr(File::create(&log).expect("a file"))
        .spawn()
        .expect("runs");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let events =
        lines.map(|line| serde_json::from_str::<Value>(&line.expect("text")).expect("JSON"));
    let ready = events.into_iter().find(|event| event["event"] == "ready");
    (child, ready.expect("it becomes ready"), log)
}

/// Signatures of all vouchers in a file of books but the one that was settled, which is on the ledger, in every
/// form that a log could show.
fn signatures(path: &std::path::Path) -> Vec<String> {
    let conn = Connection::open(path).expect("books");
    let mut statement = conn
        .prepare("SELECT signature FROM voucher, channel WHERE channel = id AND amount <> settled")
        .expect("the tables");
    let signatures = statement
        .query_map([], |row| row.get::<_, Vec<u8>>(0))
        .expect("rows");
    let mut forms = Vec::new();
    for signature in signatures {
        let hex: String = signature
            .expect("bytes")
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        // Inside of a credential, from where the signature begins at any of three offsets.
        for skip in 0..3 {
            let end = skip + (hex.len() - skip) / 3 * 3;
            forms.push(URL_SAFE_NO_PAD.encode(&hex[skip..end]));
        }
        forms.push(hex);
    }
    forms
}

#[test]
fn m31_no_key_token_or_voucher_is_in_a_log() {
    let (mut provider, mut consumer) = (Home::with_model(), Home::new());
    let (mut node, ready, node_log) = start(&consumer, "node start --port 0");
    consumer.rpc = ready["node"]["rpc_url"].as_str().map(str::to_owned);
    provider.rpc.clone_from(&consumer.rpc);
    provider.ok(&["wallet", "create"]);
    provider.ok(&["wallet", "faucet"]);
    consumer.ok(&["wallet", "faucet"]);
    let market = Market::of(provider, consumer);
    let serve = format!("model serve {MODEL} --port 0 --ctx-size 512 --threads 1 --remote");
    let (mut server, _, server_log) = start(&market.provider, &serve);
    market.wait_for_endpoint();

    let streamed = market
        .ask("v1/chat/completions", &chat(70, true))
        .streamed();
    cost_of(&streamed.usage);
    let params = json!({"model": MODEL, "max_tokens": 4, "messages": chat(1, false)["messages"]});
    rpc(&market.node, "tenzro_chat", &params);
    let mut secrets = Vec::new();
    for home in [&market.provider, &market.consumer] {
        let key: String = key(home)
            .to_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        secrets.extend([key, operator_token(&home.paths()).expect("a token")]);
    }
    // How every credential begins.
    secrets.push(URL_SAFE_NO_PAD.encode("{\"challenge\""));

    market.provider.ok(&["model", "stop", MODEL]);
    assert!(server.wait().expect("ends").success());
    let vouchers = signatures(&market.payee_books());
    assert!(!vouchers.is_empty(), "one is paid ahead");
    secrets.extend(vouchers);
    for (name, log) in [("node", &node_log), ("server", &server_log)] {
        let text = std::fs::read_to_string(log).expect("a log");
        assert!(text.contains("TRACE"), "{name} logs little");
        for secret in &secrets {
            // Calls of the chain have what is published there.
            let mut lines = text
                .lines()
                .filter(|line| !line.contains("alloy_rpc_client"));
            let line = lines.find(|line| line.contains(secret.as_str()));
            assert_eq!(line, None, "{name}");
        }
    }
    market.consumer.ok(&["node", "stop"]);
    assert!(node.wait().expect("ends").success());
}
