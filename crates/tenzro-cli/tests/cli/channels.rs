//! Money between two homes: paid answers, channels, earnings, and ways out without the other side.

use serde_json::{Value, json};
use tenzro_node::{NodeClient, NodeError};
use tenzro_protocol::amount::Wei;

use super::Home;

/// A provider with its node and a paid model server, and a consumer with a node of its own on the same ledger.
pub(super) fn market() -> (Home, Home) {
    market_with(&["--port", "0"])
}

/// With more arguments for the model server.
pub(super) fn market_with(more: &[&str]) -> (Home, Home) {
    let mut provider = Home::with_model();
    let ledger = provider.start_node(&[]);
    provider.ok(&["wallet", "faucet"]);
    for step in [
        "provider register --name ada",
        "stake deposit --amount 1000",
        "provider pricing set --model smollm2-135m --per-token 0.0001",
    ] {
        provider.ok(&step.split(' ').collect::<Vec<_>>());
    }
    let serve = [
        "model",
        "serve",
        "smollm2-135m",
        "--threads",
        "1",
        "--ctx-size",
        "512",
    ];
    provider.ok(&[&serve[..], &["--remote", "--detach"], more].concat());
    let mut consumer = Home::new();
    consumer.start_node(&["--chain", &ledger]);
    consumer.ok(&["wallet", "faucet"]);
    (provider, consumer)
}

fn address(home: &Home) -> String {
    let shown = home.json(&["wallet", "show"]);
    shown["address"].as_str().expect("an address").to_owned()
}

fn amount(value: &Value) -> Wei {
    Wei::parse_wei(value.as_str().expect("a decimal string")).expect("wei")
}

fn rpc(home: &Home, method: &str, params: Value) -> Value {
    call(home, method, params).expect(method)
}

/// As the operator of the home's node.
fn call(home: &Home, method: &str, params: Value) -> Result<Value, NodeError> {
    let url = home.rpc.as_deref().expect("a node");
    let node = NodeClient::new(url, &home.paths()).expect("an address");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(node.call(method, params))
}

pub(super) const QUESTION: [&str; 9] = [
    "chat",
    "--model",
    "smollm2-135m",
    "--temperature",
    "0",
    "--max-tokens",
    "8",
    "--system",
    "Answer in one word.",
];

#[test]
fn an_answer_of_the_network_is_paid_and_the_rest_of_the_channel_comes_back() {
    let (provider, consumer) = market();
    let seller = address(&provider);
    let ask = [&QUESTION[..], &["What is the capital of France?"]].concat();
    let answer = consumer.json(&ask);
    assert_eq!(answer["provider"], json!(seller), "{answer}");
    let cost = amount(&answer["cost_wei"]);
    let tokens = answer["usage"]["total_tokens"].as_u64().expect("a count");
    // The token that ends the answer has no text, and costs nothing.
    assert_eq!(answer["finish_reason"], "stop");
    assert_eq!(
        cost,
        Wei(u128::from(tokens - 1) * 10u128.pow(14)),
        "{answer}"
    );
    assert_eq!(answer["cost_tnzo"], json!(cost.tnzo()));
    let shown = consumer.run(&ask);
    let short = format!("{} TNZO · {}…{}", cost.tnzo(), &seller[..6], &seller[38..]);
    assert!(shown.stderr.contains(&short), "{}", shown.stderr);
    assert!(shown.stdout.contains("Paris"), "{}", shown.stdout);

    // The owner is not charged by its own server.
    let own = provider.json(&ask);
    assert_eq!(
        (&own["provider"], &own["cost_wei"], &own["content"]),
        (&Value::Null, &json!("0"), &answer["content"])
    );

    let total = Wei(2 * cost.0);
    let channels = consumer.json(&["channel", "list"]);
    let channel = &channels[0];
    assert_eq!(channels.as_array().map(Vec::len), Some(1), "{channels}");
    assert_eq!(
        (
            &channel["status"],
            &channel["provider"],
            &channel["due"],
            &channel["settled"]
        ),
        (&json!("open"), &json!(seller), &json!(total), &json!("0")),
        "{channel}"
    );
    assert!(amount(&channel["signed"]).0 >= total.0, "{channel}");
    let stranger = rpc(
        &provider,
        "tenzro_listPaymentChannels",
        json!([address(&consumer)]),
    );
    assert_eq!(
        (&stranger[0]["deposit"], &stranger[0]["due"]),
        (&channel["deposit"], &Value::Null)
    );

    let earned = provider.json(&["provider", "earnings"]);
    assert_eq!(
        (
            &earned["settled"],
            &earned["unsettled"],
            &earned["requests"],
            &earned["open_channels"]
        ),
        (&json!("0"), &json!(total), &json!(2), &json!(1)),
        "{earned}"
    );
    assert_eq!(
        (&earned["days"][0]["model"], &earned["days"][0]["earned"]),
        (&json!("smollm2-135m"), &json!(total))
    );
    let status = provider.ok(&["provider", "status"]);
    let unsettled = format!("unsettled  {} TNZO in 1 open channel", total.tnzo());
    assert!(status.contains(&unsettled), "{status}");

    let stats = rpc(&consumer, "tenzro_providerStats", json!([seller]));
    assert_eq!(stats["model_ids"], json!(["smollm2-135m"]), "{stats}");
    let known = [
        ("models_served", json!(1)),
        ("staked", json!(Wei(1000 * 10u128.pow(18)))),
        ("total_earned", json!("0")),
        ("inferences_bought", json!(2)),
        ("is_serving", json!(true)),
        ("uptime_percent", json!(100.0)),
        // Only the provider's own node knows.
        ("total_inferences", Value::Null),
        ("unsettled", Value::Null),
        ("success_rate", Value::Null),
    ];
    for (name, value) in known {
        assert_eq!(stats[name], value, "{name}: {stats}");
    }
    assert!(
        stats["avg_latency_ms"]
            .as_f64()
            .is_some_and(|mean| mean > 0.0),
        "{stats}"
    );
    let own = rpc(&provider, "tenzro_providerStats", json!([]));
    assert_eq!(
        (
            &own["total_inferences"],
            &own["unsettled"],
            &own["inferences_bought"]
        ),
        (&json!(2), &json!(total), &json!(0)),
        "{own}"
    );

    let id = channel["channel_id"].as_str().expect("an id");
    let deposit = amount(&channel["deposit"]);
    let closed = consumer.ok(&["channel", "close", id]);
    let back = Wei(deposit.0 - total.0).tnzo();
    let expected = format!(
        "closed: {back} TNZO are back in the wallet, {} were paid\n",
        total.tnzo()
    );
    assert_eq!(closed, expected);
    let left = Wei(20_000 * 10u128.pow(18) - total.0);
    assert_eq!(
        consumer.ok(&["wallet", "balance"]),
        format!("{} TNZO\n", left.tnzo())
    );
    let earned = provider.ok(&["provider", "earnings"]);
    assert!(
        earned.starts_with(&format!(
            "settled    {} TNZO\nunsettled  0 TNZO in 0 open channels\n",
            total.tnzo()
        )),
        "{earned}"
    );
    let stats = rpc(
        &consumer,
        "tenzro_providerStats",
        json!([{"address": seller}]),
    );
    assert_eq!(stats["total_earned"], json!(total), "{stats}");
    let again = consumer.json(&["channel", "close", id]);
    assert_eq!(
        (&again["status"], &again["transaction_hash"]),
        (&json!("closed"), &Value::Null)
    );
}

#[test]
fn a_channel_is_left_without_its_provider() {
    let mut home = Home::new();
    home.start_node(&[]);
    home.ok(&["wallet", "faucet"]);
    let gone = "0x00000000000000000000000000000000000000aa";
    let open = ["channel", "open", "--provider", gone, "--amount", "5"];
    let opened = home.json(&open);
    assert_eq!(
        (&opened["status"], &opened["deposit"], &opened["signed"]),
        (&json!("open"), &json!(Wei(5 * 10u128.pow(18))), &json!("0")),
        "{opened}"
    );
    let id = opened["channel_id"].as_str().expect("an id");
    let twice = home.run(&open);
    assert_eq!(twice.code, Some(1));
    assert!(
        twice.stderr.contains(id) && twice.stderr.contains("topup"),
        "{}",
        twice.stderr
    );
    let more = home.ok(&["channel", "topup", id, "--amount", "2.5"]);
    assert_eq!(more, "put 2.5 TNZO in: 7.5 in all\n");
    assert_eq!(home.ok(&["wallet", "balance"]), "19992.5 TNZO\n");

    let nobody = home.run(&["channel", "close", id]);
    assert_eq!(nobody.code, Some(1));
    assert!(
        nobody.stderr.contains("it has no endpoint on the ledger")
            && nobody.stderr.contains("--force"),
        "{}",
        nobody.stderr
    );
    // Nothing has changed by it.
    assert_eq!(home.json(&["channel", "list"])[0]["status"], "open");

    let force = ["channel", "close", id, "--force"];
    let asked = home.json(&force);
    let at = asked["withdrawable_at"].as_u64().expect("a time");
    assert_eq!(
        (&asked["status"], &asked["refunded"]),
        (&json!("closing"), &Value::Null)
    );
    assert!(asked["transaction_hash"].is_string(), "{asked}");
    let early = home.json(&force);
    assert_eq!(
        (
            &early["status"],
            &early["withdrawable_at"],
            &early["transaction_hash"]
        ),
        (&json!("closing"), &json!(at), &Value::Null)
    );
    let listed = home.ok(&["channel", "list"]);
    assert!(listed.contains("closing, withdrawable from 2"), "{listed}");
    rpc(&home, "evm_increaseTime", json!([3601]));
    let done = home.ok(&force);
    assert_eq!(
        done,
        "closed: 7.5 TNZO are back in the wallet, 0 were paid\n"
    );
    assert_eq!(home.ok(&["wallet", "balance"]), "20000 TNZO\n");

    // Another home without a node of its own acts with its wallet.
    let mut guest = Home::new();
    guest.rpc = home.rpc.clone();
    guest.ok(&["wallet", "faucet"]);
    let opened = guest.json(&open);
    assert_eq!(
        (&opened["status"], &opened["due"]),
        (&json!("open"), &Value::Null)
    );
    let id = opened["channel_id"].as_str().expect("an id");
    assert_eq!(guest.run(&open).code, Some(1), "one channel to a provider");
    guest.ok(&["channel", "topup", id, "--amount", "1"]);
    let polite = guest.run(&["channel", "close", id]);
    assert_eq!(polite.code, Some(1));
    assert!(
        polite
            .stderr
            .contains("tenzro-cli node start --detach; or close it"),
        "{}",
        polite.stderr
    );
    let force = ["channel", "close", id, "--force"];
    assert!(
        guest
            .ok(&force)
            .starts_with("closing: what is left can be taken back from 2")
    );
    assert!(
        guest.ok(&force).starts_with("closing:"),
        "too early changes nothing"
    );
    rpc(&home, "evm_increaseTime", json!([3601]));
    assert_eq!(
        guest.ok(&force),
        "closed: 6 TNZO are back in the wallet, 0 were paid\n"
    );
    assert_eq!(guest.ok(&["wallet", "balance"]), "20000 TNZO\n");
}

#[test]
fn what_the_wallet_or_its_owner_does_not_allow_is_said_with_the_next_step() {
    let (_provider, consumer) = market();
    let ask = [&QUESTION[..], &["Hello"]].concat();
    let own = address(&consumer);
    let someone = "0x00000000000000000000000000000000000000aa";
    let cases: [(&[&str], i32, &str); 7] = [
        (
            &[
                "channel",
                "open",
                "--provider",
                someone,
                "--amount",
                "20001",
            ],
            1,
            "20001 are needed\nhint: tenzro-cli wallet faucet",
        ),
        (
            &["channel", "open", "--provider", &own, "--amount", "1"],
            1,
            "does not pay itself",
        ),
        (
            &["channel", "open", "--provider", "0x12", "--amount", "1"],
            2,
            "--provider",
        ),
        (
            &["channel", "open", "--provider", &own, "--amount", "0"],
            1,
            "0 is no deposit",
        ),
        (&["channel", "topup", "0x12", "--amount", "1"], 2, "CHANNEL"),
        (
            &[
                "channel",
                "close",
                "0x1111111111111111111111111111111111111111111111111111111111111111",
            ],
            1,
            "there is no channel",
        ),
        (
            &["chat", "--model", "smollm2-136m", "Hello"],
            1,
            "hint: the network serves smollm2-135m",
        ),
    ];
    for (arguments, code, text) in cases {
        let done = consumer.run(arguments);
        assert_eq!(done.code, Some(code), "{arguments:?}: {}", done.stderr);
        assert!(done.stderr.contains(text), "{arguments:?}: {}", done.stderr);
        assert_eq!(done.stdout, "", "{arguments:?}: errors are no data");
    }

    consumer.ok(&["wallet", "send", "--to", someone, "--amount", "20000"]);
    let poor = consumer.run(&ask);
    assert_eq!(poor.code, Some(1), "{}", poor.stdout);
    assert!(
        poor.stderr.contains("TNZO are missing in the wallet")
            && poor.stderr.contains("wallet faucet"),
        "{}",
        poor.stderr
    );
    let url = consumer.rpc.clone().expect("a node");
    let ledger = consumer.json(&["node", "status"])["own"]["chain"].clone();
    consumer.ok(&["node", "stop"]);
    let settings = consumer.path().join("home/config.toml");
    std::fs::write(&settings, "[payments]\nmax_deposit = \"0\"\n").expect("written");
    let port = url.rsplit(':').next().expect("a port").to_owned();
    let ledger = ledger.as_str().expect("an address").to_owned();
    consumer.ok(&[
        "node", "start", "--port", &port, "--chain", &ledger, "--detach",
    ]);
    let limited = consumer.run(&ask);
    assert_eq!(limited.code, Some(1), "{}", limited.stdout);
    assert!(
        limited.stderr.contains("payments.max_deposit"),
        "{}",
        limited.stderr
    );
}

#[test]
fn an_endpoint_that_asks_to_be_paid_to_somebody_else_is_not_recorded() {
    let (provider, consumer) = market();
    let endpoints = provider.json(&["model", "endpoints"]);
    let offer = json!([{
        "model": "smollm2-135m",
        "endpoint": endpoints[0]["api_endpoint"],
        "remote": true,
    }]);
    let priced = [
        "provider",
        "pricing",
        "set",
        "--model",
        "smollm2-135m",
        "--per-token",
        "0.0001",
    ];
    consumer.ok(&priced);
    let error = call(&consumer, "tenzro_serveModel", offer.clone()).expect_err("another wallet");
    let expected = format!(
        "asks for payment to another payee: {}, not {}",
        address(&provider),
        address(&consumer)
    );
    assert!(error.to_string().contains(&expected), "{error}");
    let all = consumer.json(&["model", "endpoints"]);
    assert_eq!(all.as_array().map(Vec::len), Some(1), "{all}");
    // The same endpoint again, for the wallet that it is of.
    assert_eq!(
        rpc(&provider, "tenzro_serveModel", offer)["is_active"],
        json!(true)
    );
}
