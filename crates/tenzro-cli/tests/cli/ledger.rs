//! The same flow on another chain, by configuration only: a real anvil.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::{Home, model_path};

/// A chain of Foundry's anvil, from the npm packages of `contracts/`.
pub(crate) struct Anvil {
    child: Child,
    pub(crate) url: String,
}

impl Anvil {
    pub(crate) fn start(chain_id: u64) -> Self {
        Self::start_with(&["--port", "0", "--chain-id", &chain_id.to_string()])
    }

    fn start_with(arguments: &[&str]) -> Self {
        let mut child = Command::new(anvil_path())
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("anvil runs");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let address = lines
            .map_while(Result::ok)
            .find_map(|line| Some(line.strip_prefix("Listening on ")?.to_owned()))
            .expect("it listens");
        Self {
            child,
            url: format!("http://{address}"),
        }
    }
}

impl Drop for Anvil {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn anvil_path() -> PathBuf {
    if let Some(path) = std::env::var_os("TENZRO_ANVIL") {
        return path.into();
    }
    let packages =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../contracts/node_modules/@foundry-rs");
    let entries = std::fs::read_dir(&packages).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path().join("bin/anvil"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!(
                "no anvil in {}: run script/contracts install",
                packages.display()
            )
        })
}

/// The first key that anvil funds with its gas coin.
pub(crate) const FUNDED: &str = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";

#[test]
fn the_flow_runs_on_anvil_by_configuration_only() {
    let anvil = Anvil::start(31337);
    let mut home = Home::new();
    let early = home.run(&["node", "start", "--port", "0", "--chain", &anvil.url]);
    assert_eq!(early.code, Some(1));
    assert!(
        early.stderr.contains("hint: tenzro-cli chain deploy --rpc"),
        "{}",
        early.stderr
    );

    let imported = home.run_with_input(&["wallet", "import"], FUNDED);
    assert_eq!(imported.code, Some(0), "{}", imported.stderr);
    let settings = home.path().join("home/config.toml");
    std::fs::write(&settings, "# mine\n[serve]\nparallel = 1 # one\n").expect("written");
    home.ok(&["chain", "deploy", "--rpc", &anvil.url, "--development"]);
    let text = std::fs::read_to_string(&settings).expect("there");
    assert!(
        text.starts_with("# mine\n[serve]\nparallel = 1 # one\n"),
        "{text}"
    );

    home.start_node(&[]);
    assert_eq!(home.json(&["chain", "info"])["chain_id"], 31337);
    let model = model_path().display().to_string();
    home.ok(&["model", "import", &model]);
    home.ok(&[
        "model",
        "serve",
        "smollm2-135m",
        "--port",
        "0",
        "--threads",
        "1",
        "--remote",
        "--detach",
    ]);
    for step in [
        "provider register --role model-provider",
        "stake deposit --amount 1000 --role model-provider",
        "provider pricing set --model smollm2-135m --per-token 0.0001",
        "provider schedule set --timezone UTC --hours 0-24",
    ] {
        home.ok(&step.split(' ').collect::<Vec<_>>());
    }
    let endpoint = home.json(&["model", "endpoint", "--model", "smollm2-135m"]);
    assert_eq!(endpoint["status"], "online");
    home.ok(&["model", "stop", "smollm2-135m"]);
    assert_eq!(home.json(&["model", "list"]), serde_json::json!([]));
    home.ok(&["node", "stop"]);

    // Settings for one chain do not fit another.
    let other = Anvil::start(31338);
    let wrong = home.run(&["node", "start", "--port", "0", "--chain", &other.url]);
    assert_eq!(wrong.code, Some(1));
    assert!(
        wrong.stderr.contains("there is no TNZO contract"),
        "{}",
        wrong.stderr
    );
}

#[test]
fn a_chain_that_is_away_at_the_start_is_waited_for() {
    let mut home = Home::new();
    let state = home.path().join("anvil.json").display().to_string();
    let mut first = Anvil::start_with(&["--port", "0", "--dump-state", &state]);
    let port = first.url.rsplit(':').next().expect("a port").to_owned();
    home.run_with_input(&["wallet", "import"], FUNDED);
    home.ok(&["chain", "deploy", "--rpc", &first.url, "--development"]);
    // On SIGTERM it writes its state.
    let stopped = Command::new("kill")
        .arg(first.child.id().to_string())
        .status();
    assert!(stopped.expect("runs").success() && first.child.wait().is_ok());

    let mut node = home
        .command(&["--json", "node", "start", "--port", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    let warnings = BufReader::new(node.stderr.take().expect("piped")).lines();
    let waits = warnings
        .map_while(Result::ok)
        .any(|line| line.contains("asking again in"));
    assert!(waits, "it says that it waits");
    let _second = Anvil::start_with(&["--port", &port, "--load-state", &state]);
    let mut events = BufReader::new(node.stdout.take().expect("piped")).lines();
    let ready = events.next().expect("an event").expect("text");
    let ready: serde_json::Value = serde_json::from_str(&ready).expect("JSON");
    home.rpc = ready["node"]["rpc_url"].as_str().map(str::to_owned);
    assert_eq!(home.json(&["chain", "info"])["chain_id"], 31337);
    home.ok(&["node", "stop"]);
    assert!(node.wait().expect("it ends").success());
}
