//! Starts the node or anvil on a free port.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use tenzro_ledger::embedded::CHAIN_ID;

use crate::client::Client;

/// Between two attempts to get a first answer: the error of a start-up time.
const PAUSE: Duration = Duration::from_millis(1);
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    pub(crate) client: Client,
    /// From the start of the process to its first answer.
    pub(crate) started_after: Duration,
}

impl Server {
    /// The node with an embedded chain in that home.
    pub(crate) async fn node(binary: &Path, home: &Path) -> anyhow::Result<Self> {
        Self::start(|port| {
            let mut command = Command::new(binary);
            command.args(["--quiet", "node", "start", "--port", &port.to_string()]);
            command.env("TENZRO_HOME", home);
            command
        })
        .await
    }

    /// anvil in memory, with our chain's id and free gas, and without a log of the calls.
    pub(crate) async fn anvil(binary: &Path) -> anyhow::Result<Self> {
        Self::start(|port| {
            let mut command = Command::new(binary);
            command.args(["--quiet", "--port", &port.to_string()]);
            command.args(["--chain-id", &CHAIN_ID.to_string()]);
            command.args(["--base-fee", "0", "--gas-price", "0"]);
            command.args(["--disable-min-priority-fee", "--order", "fifo"]);
            command
        })
        .await
    }

    async fn start(command: impl Fn(u16) -> Command) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let url = format!("http://127.0.0.1:{port}");
        let client = Client::new(&url)?;
        let mut command = command(port);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let began = Instant::now();
        let child = command
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let mut server = Self {
            child,
            url,
            client,
            started_after: Duration::ZERO,
        };
        while server.client.ask("eth_chainId", json!([])).await.is_err() {
            ensure!(
                server.child.try_wait()?.is_none() && began.elapsed() < STARTS_WITHIN,
                "{command:?} does not answer"
            );
            tokio::time::sleep(PAUSE).await;
        }
        server.started_after = began.elapsed();
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the node of a home keeps its chain.
pub(crate) fn ledger_file(home: &Path) -> PathBuf {
    home.join("node").join("ledger.sqlite")
}
