//! Starts one of the two servers on a free port and measures its process from outside.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::Servers;

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    LlamaServer,
}

/// Sizes that both servers get alike.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Tokens of one request.
    pub(crate) context: u32,
    /// Requests at the same time.
    pub(crate) parallel: u32,
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) base_url: String,
    pub(crate) model: &'static str,
    /// Until the first token of a first request, from the start of the process.
    pub(crate) home: Option<std::path::PathBuf>,
}

impl Server {
    /// Starts and waits until it answers.
    pub(crate) async fn start(kind: Kind, servers: &Servers, sizes: Sizes) -> anyhow::Result<Self> {
        let server = Self::spawn(kind, servers, sizes)?;
        server.wait_until_ready().await?;
        Ok(server)
    }

    /// Starts without waiting.
    pub(crate) fn spawn(kind: Kind, servers: &Servers, sizes: Sizes) -> anyhow::Result<Self> {
        let port = free_port()?;
        let (mut command, home) = match kind {
            Kind::Ours => {
                let home =
                    std::env::temp_dir().join(format!("tenzro-bench-{}", std::process::id()));
                // Imported once; later starts find it in the library.
                let mut import = Command::new(&servers.ours);
                import
                    .arg("--home")
                    .arg(&home)
                    .args(["--quiet", "model", "import"]);
                let imported = import.arg(&servers.model).stdout(Stdio::null()).status()?;
                if !imported.success() {
                    bail!("the model could not be imported");
                }
                let mut command = Command::new(&servers.ours);
                command
                    .arg("--home")
                    .arg(&home)
                    .args(["model", "serve"])
                    .arg(&servers.model);
                command.args(["--alias", "model", "--port", &port.to_string()]);
                command.args(["--ctx-size", &sizes.context.to_string()]);
                command.args(["--parallel", &sizes.parallel.to_string()]);
                (command, Some(home))
            }
            Kind::LlamaServer => {
                let mut command = Command::new(&servers.llama_server);
                command.arg("-m").arg(&servers.model).args(["-a", "model"]);
                command.args([
                    "--port",
                    &port.to_string(),
                    "-np",
                    &sizes.parallel.to_string(),
                ]);
                // One buffer for all slots, as large as ours.
                let cells = sizes.context * sizes.parallel;
                command.args(["-kvu", "-c", &cells.to_string(), "--no-webui"]);
                (command, None)
            }
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self {
            child,
            base_url: format!("http://127.0.0.1:{port}"),
            model: "model",
            home,
        })
    }

    pub(crate) async fn wait_until_ready(&self) -> anyhow::Result<()> {
        let client = reqwest::Client::new();
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(60) {
            let health = client.get(format!("{}/health", self.base_url)).send().await;
            if health.is_ok_and(|response| response.status().is_success()) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("the server at {} did not start", self.base_url)
    }

    /// Resident memory in bytes.
    pub(crate) fn memory_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kibibytes: u64 = line
            .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .context("no VmRSS")?;
        Ok(kibibytes * 1024)
    }

    /// CPU time of all threads so far, from the scheduler's nanosecond counters.
    pub(crate) fn cpu_time(&self) -> anyhow::Result<Duration> {
        let mut nanoseconds = 0u64;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))?.flatten() {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let first = text
                .split_whitespace()
                .next()
                .and_then(|text| text.parse::<u64>().ok());
            nanoseconds += first.unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Time from now until the process computes nothing any more.
    pub(crate) async fn time_until_idle(&self) -> anyhow::Result<Duration> {
        const WINDOW: Duration = Duration::from_millis(5);
        const QUIET_WINDOWS: u32 = 8;
        let started = Instant::now();
        let mut last_busy = started;
        let mut quiet = 0;
        let mut before = self.cpu_time()?;
        while quiet < QUIET_WINDOWS && started.elapsed() < Duration::from_secs(60) {
            tokio::time::sleep(WINDOW).await;
            let now = self.cpu_time()?;
            // Threads that come and go may make the sum smaller.
            if now.saturating_sub(before) > WINDOW / 5 {
                last_busy = Instant::now();
                quiet = 0;
            } else {
                quiet += 1;
            }
            before = now;
        }
        Ok(last_busy - started)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(home) = &self.home {
            let _ = remove_servers(home);
        }
    }
}

fn remove_servers(home: &Path) -> std::io::Result<()> {
    std::fs::remove_dir_all(home.join("servers"))
}

fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}
