//! The seed's provider flow with the real binary, a real model and the embedded ledger.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tenzro_node::Servers;
use tenzro_testkit::hub::HubStandIn;

use super::{Home, kill, model_path};

const REPO: &str = "unsloth/gemma-3-270m-it-GGUF";

/// Serves the test model from the hub under the seed's name.
fn hub() -> HubStandIn {
    let hub = HubStandIn::start();
    let content = std::fs::read(model_path()).expect("readable");
    hub.put(REPO, "gemma-3-270m-it-Q4_K_M.gguf", content);
    hub
}

fn download(home: &Home, hub: &HubStandIn) {
    let mut command = home.command(&["model", "download", REPO]);
    let status = command.env("HF_ENDPOINT", hub.endpoint()).status();
    assert!(status.expect("runs").success());
}

/// Serves on the ledger in the background, on a free port.
fn serve_remote(home: &Home) -> serde_json::Value {
    let events = home.ok(&[
        "--json",
        "model",
        "serve",
        REPO,
        "--port",
        "0",
        "--ctx-size",
        "512",
        "--threads",
        "1",
        "--remote",
        "--detach",
    ]);
    let last = events.lines().last().expect("an event");
    serde_json::from_str(last).expect("JSON lines")
}

fn status_of(home: &Home) -> (bool, Vec<String>) {
    let status = home.json(&["provider", "status"]);
    let endpoints = status["endpoints"].as_array().expect("endpoints");
    let states = endpoints
        .iter()
        .map(|one| one["status"].as_str().expect("a status"));
    let is_eligible = status["provider"]["is_eligible"].as_bool().expect("a flag");
    (is_eligible, states.map(str::to_owned).collect())
}

#[test]
fn the_seeds_flow_runs_as_written_from_an_empty_home() {
    let (mut home, hub) = (Home::new(), hub());
    home.start_node(&[]);
    assert_eq!(home.ok(&["wallet", "faucet"]), "20000 TNZO\n");
    download(&home, &hub);
    let last_lines: Vec<serde_json::Value> = home
        .ok(&[
            "--json",
            "model",
            "serve",
            REPO,
            "--port",
            "0",
            "--ctx-size",
            "4096",
            "--gpu-layers",
            "35",
            "--remote",
            "--detach",
        ])
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON lines"))
        .collect();
    let served = last_lines.last().expect("a line");
    let missing = served["provider"]["missing"]
        .as_array()
        .expect("what is missing");
    assert_eq!(missing.len(), 3, "{served}");

    let done = home.run(&["provider", "register", "--role", "model-provider"]);
    assert!(
        done.stderr
            .contains("tenzro-cli stake deposit --amount 1000"),
        "{}",
        done.stderr
    );
    home.ok(&[
        "stake",
        "deposit",
        "--amount",
        "1000",
        "--role",
        "model-provider",
    ]);
    assert_eq!(home.ok(&["wallet", "balance"]), "19000 TNZO\n");
    let set = [
        "provider",
        "pricing",
        "set",
        "--model",
        "gemma3-270m",
        "--per-token",
        "0.0001",
    ];
    assert_eq!(home.ok(&set), "gemma3-270m: 0.0001 TNZO/token\n");
    assert_eq!(
        home.ok(&["provider", "pricing", "show"]),
        "gemma3-270m: 0.0001 TNZO/token\n"
    );
    home.ok(&[
        "provider",
        "schedule",
        "set",
        "--timezone",
        "UTC",
        "--hours",
        "0-24",
    ]);
    let done = home.run(&["provider", "status"]);
    assert_eq!(done.code, Some(0));
    assert!(
        done.stdout.contains("1000 TNZO") && done.stdout.contains("online"),
        "{}",
        done.stdout
    );
    assert!(!done.stderr.contains("inactive"), "{}", done.stderr);

    let endpoints = home.ok(&["model", "endpoints"]);
    assert!(
        endpoints.contains("gemma3-270m") && endpoints.contains("0.0001"),
        "{endpoints}"
    );
    let endpoint = home.json(&["model", "endpoint", "--model", "gemma3-270m"]);
    assert_eq!(endpoint["status"], "online");
    assert_eq!(endpoint["price_per_output_token"], "100000000000000");
    assert_eq!(endpoint["quantization"], "Q4_K_M");
    let models = home.json(&["model", "list"]);
    assert_eq!(
        (&models[0]["model_id"], &models[0]["online"]),
        (&"gemma3-270m".into(), &1.into())
    );

    home.ok(&["model", "stop", REPO]);
    assert_eq!(home.json(&["model", "list"]), serde_json::json!([]));
    assert_eq!(status_of(&home), (true, Vec::new()));
}

#[test]
fn the_steps_come_in_any_order_and_each_says_what_is_missing() {
    let (mut home, hub) = (Home::new(), hub());
    home.start_node(&[]);
    let done = home.run(&[
        "provider",
        "pricing",
        "set",
        "--model",
        REPO,
        "--per-token",
        "0.5",
    ]);
    assert_eq!(
        done.stdout, "gemma3-270m: 0.5 TNZO/token\n",
        "{}",
        done.stderr
    );
    home.ok(&[
        "provider",
        "schedule",
        "set",
        "--timezone",
        "UTC",
        "--hours",
        "0-24",
    ]);
    let poor = home.run(&["stake", "deposit", "--amount", "1000"]);
    assert_eq!(poor.code, Some(1));
    assert!(
        poor.stderr.contains("hint: tenzro-cli wallet faucet"),
        "{}",
        poor.stderr
    );
    home.ok(&["wallet", "faucet"]);
    home.ok(&["stake", "deposit", "--amount", "400"]);
    download(&home, &hub);
    serve_remote(&home);
    assert_eq!(status_of(&home), (false, vec!["inactive".to_owned()]));
    let done = home.run(&["provider", "register"]);
    assert!(
        done.stderr.contains("stake deposit --amount 600"),
        "{}",
        done.stderr
    );
    home.ok(&["stake", "deposit", "--amount", "600"]);
    assert_eq!(status_of(&home), (true, vec!["online".to_owned()]));

    // A rise is announced and waits; unbonding de-lists at once.
    let rise = home.ok(&[
        "provider",
        "pricing",
        "set",
        "--model",
        "gemma3-270m",
        "--per-token",
        "1",
    ]);
    assert!(
        rise.contains("0.5 TNZO/token\n") && rise.contains("1 TNZO/token from"),
        "{rise}"
    );
    let leaving = home.ok(&["stake", "withdraw", "--amount", "0.5"]);
    assert!(
        leaving.starts_with("unbonding 0.5 TNZO, until"),
        "{leaving}"
    );
    assert_eq!(status_of(&home), (false, vec!["inactive".to_owned()]));
    let closed = [
        "provider",
        "schedule",
        "set",
        "--timezone",
        "UTC",
        "--hours",
        "0-24",
        "--days",
    ];
    let today = TimeZone::UTC.to_datetime(Timestamp::now()).weekday();
    // Neither today nor, should midnight come meanwhile, tomorrow.
    let day = format!("{:?}", today.wrapping_add(3)).to_lowercase();
    home.ok(&["stake", "deposit", "--amount", "1"]);
    home.ok(&[&closed[..], &[day.as_str()]].concat());
    assert_eq!(status_of(&home), (true, vec!["scheduled_off".to_owned()]));
    home.ok(&["provider", "schedule", "clear"]);
    home.ok(&["provider", "deregister"]);
    assert_eq!(status_of(&home), (false, vec!["inactive".to_owned()]));
    home.ok(&["provider", "register", "--name", "ada"]);
    assert_eq!(status_of(&home), (true, vec!["online".to_owned()]));
}

#[test]
fn a_killed_server_is_taken_off_the_ledger_by_stop() {
    let (mut home, hub) = (Home::new(), hub());
    home.start_node(&[]);
    download(&home, &hub);
    let served = serve_remote(&home);
    let server = &served["server"];
    let port = server["port"]
        .as_u64()
        .and_then(|port| u16::try_from(port).ok());
    let servers = Servers::new(&home.paths());
    kill(&server["pid"].to_string(), || {
        servers.is_running(port.expect("a port"))
    });
    let stopped = home.ok(&["model", "stop", "gemma3-270m"]);
    assert!(stopped.starts_with("unregistered gemma3-270m"), "{stopped}");
    assert_eq!(home.json(&["model", "list"]), serde_json::json!([]));
    let again = home.run(&["model", "stop", "gemma3-270m"]);
    assert_eq!(again.code, Some(1), "{}", again.stdout);
}

#[test]
fn two_homes_share_a_ledger_and_see_the_same_endpoint() {
    let (mut provider, hub) = (Home::new(), hub());
    let ledger = provider.start_node(&[]);
    provider.ok(&["wallet", "faucet"]);
    download(&provider, &hub);
    for step in [
        "provider register --name ada",
        "stake deposit --amount 1000",
        "provider pricing set --model gemma3-270m --per-token 0.0001",
    ] {
        provider.ok(&step.split(' ').collect::<Vec<_>>());
    }
    serve_remote(&provider);

    // A consumer's own node on the same ledger, and its own wallet.
    let mut consumer = Home::new();
    let own = consumer.start_node(&["--chain", &ledger]);
    assert_ne!(own, ledger);
    let endpoint = consumer.json(&["model", "endpoint", "--model", "gemma3-270m"]);
    assert_eq!(endpoint["provider_name"], "ada");
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while consumer.json(&["model", "endpoint", "--model", "gemma3-270m"])["status"] != "online" {
        assert!(
            std::time::Instant::now() < patience,
            "its own probe finds it"
        );
    }
    consumer.ok(&["wallet", "faucet"]);
    let other = provider.json(&["wallet", "show"])["address"]
        .as_str()
        .expect("one")
        .to_owned();
    consumer.ok(&["wallet", "send", "--to", &other, "--amount", "1.5"]);
    assert_eq!(provider.ok(&["wallet", "balance"]), "19001.5 TNZO\n");
    assert_eq!(consumer.ok(&["wallet", "balance"]), "19998.5 TNZO\n");

    provider.ok(&["model", "stop", "gemma3-270m"]);
    assert_eq!(consumer.json(&["model", "list"]), serde_json::json!([]));
}
