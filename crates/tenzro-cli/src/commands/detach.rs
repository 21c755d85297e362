//! Starts this program again in the background and waits until it is ready; stops what runs there.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tenzro_node::config::Config;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::report::Failure;

/// How often a stopping process is looked at.
const POLL: Duration = Duration::from_millis(50);

/// What to run.
pub(super) struct Background {
    /// The command with its arguments.
    pub(super) arguments: Vec<String>,
    /// Where it logs.
    pub(super) log: PathBuf,
    /// The log goes on; otherwise it begins anew.
    pub(super) keep_log: bool,
    /// What a prompt asked for: there is none in the background.
    pub(super) wallet_password: Option<String>,
}

/// Starts it. Events before `ready` go to `progress`; the `ready` event is returned.
pub(super) async fn start(
    config: &Config,
    background: Background,
    mut progress: impl FnMut(&Value),
) -> anyhow::Result<Value> {
    let program = std::env::current_exe().context("cannot find this program")?;
    if let Some(parent) = background.log.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&background.log)
        .context("cannot write the log")?;
    if !background.keep_log {
        log.set_len(0).context("cannot write the log")?;
    }
    let mut command = tokio::process::Command::new(program);
    command
        .arg("--home")
        .arg(config.home.root())
        // The log says what happens, not only what goes wrong.
        .args(["--json", "-v"])
        .args(&background.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        // Its own group: Ctrl-C in this terminal is not for it.
        .process_group(0);
    if let Some(password) = &background.wallet_password {
        command.env("TENZRO_WALLET_PASSWORD", password);
    }
    let mut child = command.spawn().context("cannot start it")?;
    let stdout = child.stdout.take().context("it has no output")?;
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await? {
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        if event["event"] == "ready" {
            return Ok(event);
        }
        if let Some(message) = event["error"]["message"].as_str() {
            let hint = event["error"]["hint"].as_str().map(str::to_owned);
            return Err(Failure::new(message).maybe_hint(hint).into());
        }
        progress(&event);
    }
    let status = child.wait().await?;
    Err(Failure::new(format!("it ended at once ({status})"))
        .hint(format!("its log is {}", background.log.display()))
        .into())
}

/// Asks a process to end.
pub(super) fn terminate(pid: u32) -> anyhow::Result<()> {
    let valid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let valid = valid.ok_or_else(|| Failure::new("the process id is not valid"))?;
    kill_process(valid, Signal::TERM)
        .map_err(|error| Failure::new(format!("cannot stop process {pid}: {error}")).into())
}

/// Waits until a process has ended; `slow` is called once when that takes more than a second.
pub(super) async fn ended(
    pid: u32,
    patience: Duration,
    is_running: impl Fn() -> bool,
    slow: impl FnOnce(),
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut slow = Some(slow);
    while is_running() {
        if started.elapsed() > patience {
            return Err(Failure::new(format!("process {pid} does not stop"))
                .hint(format!("kill -9 {pid}"))
                .into());
        }
        if started.elapsed() > Duration::from_secs(1)
            && let Some(slow) = slow.take()
        {
            slow();
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
