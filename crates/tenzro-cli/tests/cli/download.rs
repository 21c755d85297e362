//! Downloads with the real binary: killed, damaged, twice at once.

use std::process::{Command, Stdio};

use tenzro_testkit::gguf::pretend_model;
use tenzro_testkit::hub::{Faults, HubStandIn, sha256};

use super::{Done, Home};

const REPO: &str = "unsloth/gemma-3-270m-it-GGUF";

fn download(home: &Home, hub: &HubStandIn) -> Command {
    let mut command = home.command(&["model", "download", REPO]);
    command.env("HF_ENDPOINT", hub.endpoint());
    command
}

fn setup(bytes: usize) -> (Home, HubStandIn, Vec<u8>) {
    let hub = HubStandIn::start();
    let content = pretend_model(bytes);
    hub.put(REPO, "gemma-3-270m-it-Q4_K_M.gguf", content.clone());
    (Home::new(), hub, content)
}

#[test]
fn the_seeds_commands_run_as_written() {
    let (home, hub, content) = setup(300_000);
    hub.put(
        "TheBloke/Mistral-7B-Instruct-v0.2-GGUF",
        "mistral-7b-instruct-v0.2.Q4_K_M.gguf",
        pretend_model(200_000),
    );
    let done = Done::from(download(&home, &hub).output().expect("runs"));
    assert_eq!(
        (done.code, done.stdout.trim()),
        (Some(0), "gemma3-270m"),
        "{}",
        done.stderr
    );
    let mistral = [
        "model",
        "download",
        "TheBloke/Mistral-7B-Instruct-v0.2-GGUF",
        "--filename",
        "mistral-7b-instruct-v0.2.Q4_K_M.gguf",
    ];
    let mut command = home.command(&mistral);
    command.env("HF_ENDPOINT", hub.endpoint());
    assert!(command.status().expect("runs").success());

    let list = home.run(&["model", "list", "--local"]);
    assert!(list.stdout.contains("gemma3-270m") && list.stdout.contains("mistral-7b-v0.2"));
    let info = home.run(&["model", "info", REPO]);
    assert_eq!(info.code, Some(0), "{}", info.stderr);
    assert!(info.stdout.contains(&sha256(&content)) && info.stdout.contains("equal to the hub's"));

    let path = info
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix("file"))
        .expect("a file");
    let mut damaged = content;
    damaged[200_000] ^= 1;
    std::fs::write(path.trim(), damaged).expect("written");
    let info = home.run(&["model", "info", REPO]);
    assert_eq!(info.code, Some(1));
    assert!(info.stdout.contains("MISMATCH"), "{}", info.stdout);

    let removed = home.run(&["--yes", "model", "remove", REPO]);
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    assert!(
        !home
            .run(&["model", "list", "--local"])
            .stdout
            .contains("gemma3-270m")
    );
}

#[test]
fn a_killed_download_goes_on_and_ends_byte_identical() {
    let (home, hub, content) = setup(40 << 20);
    let half = content.len() as u64 / 2;
    hub.set(Faults {
        hold_at_bytes: Some(half),
        ..Faults::default()
    });
    let mut child = download(&home, &hub)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("runs");
    hub.wait_for_sent(half);
    child.kill().expect("kill -9");
    child.wait().expect("dead");
    hub.set(Faults::default());
    hub.release();

    let done = Done::from(download(&home, &hub).arg("--json").output().expect("runs"));
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let events: Vec<serde_json::Value> = done
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON lines"))
        .collect();
    let plan = events
        .iter()
        .find(|event| event["event"] == "plan")
        .expect("a plan");
    assert_eq!(plan["total_bytes"], content.len());
    let model = &events.last().expect("a last event")["model"];
    let path = model["files"][0]["path"].as_str().expect("a path");
    assert_eq!(std::fs::read(path).expect("the file"), content);
    assert_eq!(model["files"][0]["sha256"], sha256(&content));
}

#[test]
fn a_flipped_bit_shows_both_hashes_and_keeps_nothing() {
    let (home, hub, content) = setup(300_000);
    hub.set(Faults {
        bit_flip: true,
        ..Faults::default()
    });
    let done = Done::from(download(&home, &hub).output().expect("runs"));
    assert_eq!(done.code, Some(1));
    assert!(done.stderr.contains(&sha256(&content)) && done.stderr.contains("nothing was kept"));
    let blobs = home
        .path()
        .join("cache/models--unsloth--gemma-3-270m-it-GGUF/blobs");
    assert_eq!(std::fs::read_dir(blobs).expect("a directory").count(), 0);
    assert_eq!(
        home.run(&["--json", "model", "list", "--local"])
            .stdout
            .trim(),
        "[]"
    );
}

#[test]
fn two_downloads_at_once_are_one_transfer() {
    let (home, hub, content) = setup(4 << 20);
    hub.set(Faults {
        hold_at_bytes: Some(1 << 20),
        ..Faults::default()
    });
    let spawn = || {
        download(&home, &hub)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("runs")
    };
    let first = spawn();
    hub.wait_for_sent(1 << 20);
    let second = spawn();
    hub.release();
    for child in [first, second] {
        let done = Done::from(child.wait_with_output().expect("ends"));
        assert_eq!(
            (done.code, done.stdout.trim()),
            (Some(0), "gemma3-270m"),
            "{}",
            done.stderr
        );
    }
    assert_eq!(hub.sent_bytes(), content.len() as u64);
}
