//! What is wrong is named, with the next step, and nothing has changed.

use super::Home;

#[test]
fn wrong_amounts_zones_hours_and_names_change_nothing() {
    let mut home = Home::new();
    home.start_node(&[]);
    home.ok(&["wallet", "faucet"]);
    home.ok(&["provider", "register", "--name", "ada"]);
    let before = (
        home.json(&["provider", "status"]),
        home.ok(&["wallet", "balance"]),
    );
    let long = "x".repeat(65);
    let price = ["provider", "pricing", "set", "--model", "m", "--per-token"];
    let hours = [
        "provider",
        "schedule",
        "set",
        "--timezone",
        "UTC",
        "--hours",
    ];
    let cases: [(&[&str], i32, &str); 18] = [
        (
            &[&price[..], &["0.0001x"]].concat(),
            2,
            "'0.0001x' is no decimal number",
        ),
        (
            &[&price[..], &["0.0000000000000000001"]].concat(),
            2,
            "more than 18 decimals",
        ),
        (&[&price[..], &["-1"]].concat(), 2, "'-1' is negative"),
        (&[&price[..], &["1e3"]].concat(), 2, "--per-token"),
        (&price[..5], 2, "--per-token"),
        (
            &[
                "provider",
                "pricing",
                "set",
                "--model",
                "no/such model",
                "--per-token",
                "1",
            ],
            1,
            "--model: 'no/such model'",
        ),
        (&[&hours[..], &["0-25"]].concat(), 1, "--hours: '0-25'"),
        (&[&hours[..], &["9"]].concat(), 1, "--hours: '9'"),
        (
            &[
                "provider",
                "schedule",
                "set",
                "--timezone",
                "Mars/Base",
                "--hours",
                "0-24",
            ],
            1,
            "--timezone: there is no time zone 'Mars/Base'",
        ),
        (
            &[
                "provider",
                "schedule",
                "set",
                "--timezone",
                "UTC",
                "--hours",
                "0-24",
                "--days",
                "x",
            ],
            1,
            "--days: 'x'",
        ),
        (
            &["provider", "register", "--role", "validator"],
            2,
            "model-provider",
        ),
        (
            &["provider", "register", "--name", &long],
            1,
            "name has 65 bytes",
        ),
        (&["stake", "deposit", "--amount", "0"], 1, "--amount: 0"),
        (
            &["stake", "deposit", "--amount", "20001"],
            1,
            "the wallet has 20000 TNZO",
        ),
        (
            &["stake", "withdraw", "--amount", "1"],
            1,
            "only 0 are staked",
        ),
        (
            &["wallet", "send", "--to", "0x12", "--amount", "1"],
            1,
            "there is no wallet '0x12'",
        ),
        (
            &["wallet", "send", "--to", "wallet-1", "--amount", "20001"],
            1,
            "20001 are needed",
        ),
        (&["wallet", "faucet"], 1, "once a day"),
    ];
    for (arguments, code, text) in cases {
        let done = home.run(arguments);
        assert_eq!(
            done.code,
            Some(code),
            "{arguments:?}: {}{}",
            done.stdout,
            done.stderr
        );
        assert!(done.stderr.contains(text), "{arguments:?}: {}", done.stderr);
        assert_eq!(done.stdout, "", "{arguments:?}");
    }
    let after = (
        home.json(&["provider", "status"]),
        home.ok(&["wallet", "balance"]),
    );
    assert_eq!(before, after);
}

#[test]
fn endpoints_that_are_not_there_or_do_not_answer_are_refused() {
    let mut home = Home::with_model();
    home.start_node(&[]);
    let done = home.run(&["model", "endpoint", "--model", "nothing"]);
    assert_eq!(done.code, Some(1));
    assert!(
        done.stderr.contains("nobody serves 'nothing'"),
        "{}",
        done.stderr
    );
    let done = home.run(&["model", "endpoint", "0x12"]);
    assert!(
        done.stderr.contains("nobody serves '0x12'"),
        "{}",
        done.stderr
    );
    let serve = [
        "model",
        "serve",
        "smollm2-135m",
        "--port",
        "0",
        "--threads",
        "1",
        "--detach",
    ];
    for (url, text) in [
        ("http://127.0.0.1:1/v1", "does not answer"),
        ("http://127.0.0.1:1/v2", "it must end in /v1"),
        ("ftp://127.0.0.1/v1", "it must be http or https"),
    ] {
        let done = home.run(&[&serve[..], &["--remote", "--public-url", url]].concat());
        assert_eq!(done.code, Some(1), "{}", done.stdout);
        assert!(done.stderr.contains(text), "{}", done.stderr);
        assert_eq!(
            home.json(&["model", "ps"]),
            serde_json::json!([]),
            "it has ended"
        );
    }
    assert_eq!(home.json(&["model", "endpoints"]), serde_json::json!([]));
}

#[test]
fn a_node_that_names_other_contracts_than_the_settings_gets_no_signature() {
    let mut home = Home::new();
    home.start_node(&[]);
    let info = home.json(&["chain", "info"]);
    let tnzo = info["contracts"]["tnzo"].as_str().expect("an address");
    let other = "0x000000000000000000000000000000000000dEaD";
    let settings = format!(
        "[chain]\nid = 1337\ntnzo = \"{tnzo}\"\nprovider_registry = \"{other}\"\n\
         payment_channels = \"{other}\"\n"
    );
    let file = home.path().join("home/config.toml");
    std::fs::write(&file, settings).expect("written");
    let done = home.run(&["stake", "deposit", "--amount", "1"]);
    assert_eq!(done.code, Some(1));
    assert!(
        done.stderr.contains("names other contracts"),
        "{}",
        done.stderr
    );
    std::fs::write(&file, format!("[chain]\ntnzo = \"{tnzo}\"\n")).expect("written");
    let done = home.run(&["wallet", "balance"]);
    assert!(
        done.stderr.contains("chain.provider_registry: is missing"),
        "{}",
        done.stderr
    );
    std::fs::remove_file(&file).expect("there");
}

#[test]
fn another_wallets_password_is_not_guessed() {
    let mut home = Home::new();
    home.start_node(&[]);
    let mut make = home.command(&["wallet", "create", "--name", "mine"]);
    assert!(
        make.env("TENZRO_WALLET_PASSWORD", "secret")
            .status()
            .expect("runs")
            .success()
    );
    home.ok(&["wallet", "use", "mine"]);
    let done = home.run(&["wallet", "faucet"]);
    assert_eq!(done.code, Some(1));
    assert!(
        done.stderr.contains("hint: set TENZRO_WALLET_PASSWORD"),
        "{}",
        done.stderr
    );
    let mut wrong = home.command(&["wallet", "faucet"]);
    let wrong = wrong
        .env("TENZRO_WALLET_PASSWORD", "Secret")
        .output()
        .expect("runs");
    let stderr = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        stderr.contains("wrong password for wallet 'mine'"),
        "{stderr}"
    );
    let mut right = home.command(&["wallet", "faucet"]);
    let right = right
        .env("TENZRO_WALLET_PASSWORD", "secret")
        .output()
        .expect("runs");
    assert_eq!(String::from_utf8_lossy(&right.stdout), "20000 TNZO\n");
}
