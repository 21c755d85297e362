//! Help, settings and mistakes.

use super::Home;

#[test]
fn every_command_has_help_and_most_have_an_example() {
    let home = Home::new();
    for command in [
        "model download",
        "model import",
        "model list",
        "model endpoints",
        "model endpoint",
        "provider register",
        "provider deregister",
        "provider status",
        "provider earnings",
        "provider pricing set",
        "provider pricing show",
        "provider schedule set",
        "provider schedule show",
        "provider schedule clear",
        "stake deposit",
        "stake withdraw",
        "stake status",
        "wallet create",
        "wallet import",
        "wallet list",
        "wallet show",
        "wallet use",
        "wallet balance",
        "wallet send",
        "wallet faucet",
        "wallet export",
        "channel list",
        "channel open",
        "channel topup",
        "channel close",
        "node start",
        "node status",
        "node stop",
        "node logs",
        "chain deploy",
        "chain info",
        "model info",
        "model remove",
        "model serve",
        "model ps",
        "model stop",
        "chat",
        "config show",
        "completions",
    ] {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        arguments.push("--help");
        let done = home.run(&arguments);
        assert_eq!(done.code, Some(0), "{command}");
        assert!(
            done.stdout.contains("Example"),
            "{command} shows no example"
        );
    }
    let script = home.run(&["completions", "bash"]);
    assert!(script.stdout.contains("tenzro-cli"));
}

#[test]
fn mistakes_have_a_hint_and_their_exit_code() {
    let home = Home::new();
    let cases: [(&[&str], i32, &str); 8] = [
        (
            &["model", "list"],
            1,
            "hint: tenzro-cli node start --detach",
        ),
        (
            &["model", "info", "nobody/nothing"],
            1,
            "hint: tenzro-cli model download nobody/nothing",
        ),
        (
            &["model", "serve", "nothing"],
            1,
            "hint: tenzro-cli model download nothing",
        ),
        (
            &["model", "stop", "nothing"],
            1,
            "no model server serves 'nothing'",
        ),
        (&["model", "download", "nothing"], 1, "as in owner/name"),
        (&["chat", "--model", "nothing", "Hi"], 1, "hint:"),
        (&["model", "serve", "a", "--port", "x"], 2, "--port"),
        (&["nonsense"], 2, "nonsense"),
    ];
    for (arguments, code, text) in cases {
        let done = home.run(arguments);
        assert_eq!(done.code, Some(code), "{arguments:?}: {}", done.stderr);
        assert!(done.stderr.contains(text), "{arguments:?}: {}", done.stderr);
        assert_eq!(done.stdout, "", "{arguments:?}: errors are no data");
    }
    let done = home.run(&["--json", "provider", "status"]);
    let error: serde_json::Value = serde_json::from_str(&done.stdout).expect("one JSON document");
    assert_eq!(error["error"]["hint"], "tenzro-cli node start --detach");
}

#[test]
fn settings_say_where_they_come_from() {
    let home = Home::new();
    let directory = home.path().join("home");
    std::fs::create_dir_all(&directory).expect("made");
    std::fs::write(directory.join("config.toml"), "[serve]\nport = 9000\n").expect("written");
    let done = home.run(&["config", "show"]);
    let port = done
        .stdout
        .lines()
        .find(|line| line.contains("serve.port"))
        .expect("listed");
    assert_eq!(
        port.split_whitespace().collect::<Vec<_>>(),
        ["serve.port", "9000", "config.toml"]
    );
    std::fs::write(directory.join("config.toml"), "[serve]\nprot = 1\n").expect("written");
    let done = home.run(&["config", "show"]);
    assert_eq!(done.code, Some(1));
    assert!(
        done.stderr.contains("did you mean serve.port"),
        "{}",
        done.stderr
    );
}

#[test]
fn files_that_are_no_models_are_refused() {
    let home = Home::new();
    let file = home.path().join("x.gguf");
    std::fs::write(&file, b"GGUF\x03\0\0\0 and no more").expect("written");
    let done = home.run(&["model", "import", &file.display().to_string()]);
    assert_eq!(done.code, Some(1));
    assert!(done.stderr.contains("truncated"), "{}", done.stderr);
    std::fs::write(&file, b"MZ").expect("written");
    let done = home.run(&["model", "serve", &file.display().to_string()]);
    assert_eq!(done.code, Some(1));
    assert!(done.stderr.contains("not a GGUF file"), "{}", done.stderr);
}
