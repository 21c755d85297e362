//! Starts anvil, of the npm package that `contracts/package.json` pins.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};

use alloy::providers::{DynProvider, Provider};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const CONTRACTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../contracts");

/// A running chain; ends with this value.
pub(crate) struct Anvil {
    child: Child,
    pub(crate) port: u16,
}

impl Anvil {
    /// Every transaction is mined at once, unless the arguments say otherwise.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        Self::start_on(0, arguments).await
    }

    /// On a port that was `free_port` once.
    pub(crate) async fn start_on(port: u16, arguments: &[&str]) -> Self {
        let mut child = Command::new(binary())
            .args(["--port", &port.to_string(), "--color", "never"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("anvil can be started");
        let output = child.stdout.take().expect("piped");
        let mut lines = BufReader::new(output).lines();
        let port = loop {
            let line = lines.next_line().await.expect("readable");
            let line = line.expect("anvil listens before it ends");
            if let Some(address) = line.strip_prefix("Listening on ") {
                let (_, port) = address.rsplit_once(':').expect("host:port");
                break port.parse().expect("a port");
            }
        };
        // Whoever does not read what it prints makes it wait.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { child, port }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Through no proxy, and never refused.
    pub(crate) fn provider(&self) -> DynProvider {
        tenzro_ledger::connect(&self.url()).expect("an address")
    }

    pub(crate) async fn ask(&self, method: &'static str, params: Value) -> Value {
        let answer = self.provider().raw_request(method.into(), params).await;
        answer.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Ends it as Ctrl-C does: it writes its state.
    pub(crate) async fn stop(mut self) {
        let id = self.child.id().expect("running");
        let id = rustix::process::Pid::from_raw(id.cast_signed()).expect("not 0");
        rustix::process::kill_process(id, rustix::process::Signal::INT).expect("it is ours");
        self.child.wait().await.expect("it ends");
    }
}

/// Below the ports that the system gives to connections, so that none takes it between two starts.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = (std::process::id() % 700) as u16 * 16;
    loop {
        let port = 20_000 + base + NEXT.fetch_add(1, Ordering::Relaxed) % 16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The program itself: the script that npm links to it hides how it ended.
fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("TENZRO_ANVIL") {
        return path.into();
    }
    let packages = Path::new(CONTRACTS).join("node_modules/@foundry-rs");
    let found = std::fs::read_dir(packages).into_iter().flatten().flatten();
    found
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("anvil-"))
        .map(|entry| entry.path().join("bin/anvil"))
        .find(|path| path.is_file())
        .expect("anvil is not installed: run script/contracts install, or set TENZRO_ANVIL")
}
