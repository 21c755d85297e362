//! The real binary in homes of its own: what it prints, keeps and survives.

mod channels;
mod chat;
mod download;
mod ledger;
mod liar;
mod mistakes;
mod node;
mod payments;
mod provider;
mod serve;
mod terminal;
mod usage;
mod wallet;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;
use tenzro_testkit::model_path;

/// A home and the command line that uses it.
struct Home {
    directory: TempDir,
    /// The node that commands talk to, when it is not the default one.
    rpc: Option<String>,
}

/// What a command did.
struct Done {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Home {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a directory"),
            rpc: None,
        }
    }

    /// With the test model in its library.
    fn with_model() -> Self {
        let home = Self::new();
        let model = model_path();
        let done = home.run(&["model", "import", &model.display().to_string()]);
        assert_eq!(
            (done.code, done.stdout.trim()),
            (Some(0), "smollm2-135m"),
            "{}",
            done.stderr
        );
        home
    }

    /// The same home for the library's functions.
    fn paths(&self) -> tenzro_node::Home {
        tenzro_node::Home::new(self.path().join("home"))
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The binary with nothing of this machine's environment but what it needs to start.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenzro-cli"));
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.path())
            .env("TENZRO_HOME", self.path().join("home"))
            .env("HF_HUB_CACHE", self.path().join("cache"))
            // Nothing listens there: a node that somebody runs must not be found.
            .env(
                "TENZRO_RPC",
                self.rpc.as_deref().unwrap_or("http://127.0.0.1:1"),
            )
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Done {
        Done::from(self.command(arguments).output().expect("the binary runs"))
    }

    fn run_with_input(&self, arguments: &[&str], input: &str) -> Done {
        use std::io::Write;
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).expect("it reads");
        drop(stdin);
        Done::from(child.wait_with_output().expect("it ends"))
    }

    /// Runs a command that has to succeed and returns its data.
    fn ok(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(
            done.code,
            Some(0),
            "{arguments:?}: {}{}",
            done.stdout,
            done.stderr
        );
        done.stdout
    }

    /// The same with `--json`.
    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let text = self.ok(&[&["--json"], arguments].concat());
        serde_json::from_str(&text).expect("one JSON document")
    }

    /// Starts a node in the background on a free port; later commands talk to it.
    fn start_node(&mut self, more: &[&str]) -> String {
        let start = ["node", "start", "--port", "0", "--detach"];
        let ready = self.json(&[&start, more].concat());
        let url = ready["node"]["rpc_url"]
            .as_str()
            .expect("an address")
            .to_owned();
        self.rpc = Some(url.clone());
        url
    }

    /// Serves the test model in the background and returns its address.
    fn serve(&self, more: &[&str]) -> String {
        let mut arguments = vec!["model", "serve", "smollm2-135m", "--port", "0", "--detach"];
        arguments.extend(["--threads", "1"]);
        arguments.extend(more);
        let done = self.run(&arguments);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let (_, address) = done.stdout.trim().split_once(" at ").expect("an address");
        address.to_owned()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = self
            .command(&["--quiet", "model", "stop", "--all"])
            .output();
        let _ = self.command(&["--quiet", "node", "stop"]).output();
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Kills a process and waits until it is gone.
fn kill(pid: &str, is_running: impl Fn() -> bool) {
    let killed = Command::new("kill").args(["-9", pid]).status();
    assert!(killed.expect("runs").success());
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while is_running() {
        assert!(std::time::Instant::now() < patience, "process {pid} lives");
        std::thread::yield_now();
    }
}
