//! Serving with the real binary and a real model.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use super::{Done, Home, model_path};

/// Sends a request with a body and returns the reader of its answer.
fn post(address: &str, body: &str) -> BufReader<TcpStream> {
    let host = address
        .trim_start_matches("http://")
        .trim_end_matches("/v1");
    let mut stream = TcpStream::connect(host).expect("it listens");
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("sent");
    BufReader::new(stream)
}

fn story(tokens: u32) -> String {
    format!(
        r#"{{"model":"smollm2-135m","stream":true,"ignore_eos":true,"max_tokens":{tokens},
           "messages":[{{"role":"user","content":"Tell me a story."}}]}}"#
    )
}

#[test]
fn a_server_is_listed_answers_and_stops() {
    let home = Home::with_model();
    let address = home.serve(&["--ctx-size", "512", "--gpu-layers", "35"]);
    let list = home.run(&["model", "ps"]);
    assert!(list.stdout.contains(&address), "{}", list.stdout);
    let list = home.run(&["model", "list", "--local"]);
    assert!(list.stdout.contains(&address), "{}", list.stdout);

    let port = address
        .trim_end_matches("/v1")
        .rsplit(':')
        .next()
        .expect("a port")
        .to_owned();
    let again = home.run(&["model", "serve", "smollm2-135m", "--port", &port]);
    assert_eq!(again.code, Some(1));
    assert!(
        again.stderr.contains("serves smollm2-135m (process"),
        "{}",
        again.stderr
    );
    let remove = home.run(&["--yes", "model", "remove", "smollm2-135m"]);
    assert!(
        remove.stderr.contains("is being served"),
        "{}",
        remove.stderr
    );

    let stopped = home.run(&["model", "stop", "SmolLM2-135M-Instruct.Q4_1.gguf"]);
    assert_eq!(
        (stopped.code, stopped.stdout.trim()),
        (Some(0), "stopped smollm2-135m")
    );
    assert!(!home.run(&["model", "ps"]).stdout.contains(&address));
}

#[test]
fn a_server_with_an_alias_is_found_by_all_names_of_its_model() {
    let home = Home::with_model();
    let address = home.serve(&["--ctx-size", "512", "--alias", "mine"]);
    let list = home.run(&["model", "list", "--local"]);
    assert!(list.stdout.contains(&address), "{}", list.stdout);
    let remove = home.run(&["--yes", "model", "remove", "smollm2-135m"]);
    assert_eq!(remove.code, Some(1), "it is being served");
    // Another link to the file, as the one that was imported usually is.
    let list = home.run(&["--json", "model", "list", "--local"]);
    let list: serde_json::Value = serde_json::from_str(&list.stdout).expect("JSON");
    let kept = list[0]["model"]["files"][0]["path"].as_str();
    let path = home.path().join("link.gguf");
    std::fs::hard_link(kept.expect("a path"), &path).expect("linked");
    let path = path.display().to_string();
    for name in ["mine", "smollm2-135m", "SmolLM2-135M-Instruct.Q4_1", &path] {
        let done = home.run(&["chat", "--model", name, "--max-tokens", "2", "Hi"]);
        assert_eq!(done.code, Some(0), "{name}: {}", done.stderr);
    }
    for name in ["smollm2_135m", "SmolLM2-135M-Instruct.Q4_1", &path] {
        let done = home.run(&["model", "info", name]);
        assert_eq!(done.code, Some(0), "{name}: {}", done.stderr);
    }
    let stopped = home.run(&["model", "stop", &path]);
    assert_eq!(stopped.stdout.trim(), "stopped mine", "{}", stopped.stderr);
}

#[test]
fn a_second_start_on_a_port_leaves_the_log_of_the_first() {
    let home = Home::with_model();
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = free.local_addr().expect("bound").port().to_string();
    drop(free);
    let serve = ["model", "serve", "smollm2-135m", "--port", &port];
    let serve = [&serve[..], &["--threads", "1", "--detach"]].concat();
    let first = home.run(&serve);
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    let log = home.path().join("home/servers").join(&port).join("log");
    let before = std::fs::read_to_string(&log).expect("a log");
    assert!(!before.is_empty());
    assert_eq!(home.run(&serve).code, Some(1));
    let after = std::fs::read_to_string(&log).expect("a log");
    assert!(after.starts_with(&before), "{after}");
}

#[test]
fn a_terminated_server_finishes_running_answers_and_exits_with_0() {
    let home = Home::with_model();
    let mut child = home
        .command(&[
            "--json",
            "model",
            "serve",
            "smollm2-135m",
            "--port",
            "0",
            "--threads",
            "1",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let address = loop {
        let line = lines.next().expect("it becomes ready").expect("text");
        let event: serde_json::Value = serde_json::from_str(&line).expect("JSON lines");
        if event["event"] == "ready" {
            break event["server"]["base_url"]
                .as_str()
                .expect("an address")
                .to_owned();
        }
    };
    let mut answer = post(&address, &story(150));
    let mut line = String::new();
    while !line.contains("\"content\":\"") || line.contains("\"role\"") {
        line.clear();
        answer.read_line(&mut line).expect("a stream");
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("sent");
    let mut rest = String::new();
    answer.read_to_string(&mut rest).expect("the whole answer");
    assert!(
        rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"),
        "{rest}"
    );
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

#[test]
fn a_path_is_served_and_another_server_can_stand_in_front() {
    let home = Home::new();
    let path = model_path().display().to_string();
    let serve = [
        "model",
        "serve",
        &path,
        "--port",
        "0",
        "--detach",
        "--threads",
        "1",
        "--alias",
        "inner",
    ];
    let done = home.run(&serve);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let (_, inner) = done.stdout.trim().split_once(" at ").expect("an address");
    let front = [
        "model",
        "serve",
        "front",
        "--upstream",
        inner,
        "--port",
        "0",
        "--detach",
    ];
    let done = home.run(&front);
    assert_eq!(done.code, Some(0), "{}", done.stderr);

    let question = "What is the capital of France? One word.";
    let ask = |model: &str| {
        home.run(&[
            "--quiet",
            "chat",
            "--model",
            model,
            "--temperature",
            "0",
            question,
        ])
    };
    let direct = ask("inner");
    assert!(
        direct.stdout.contains("Paris"),
        "{}{}",
        direct.stdout,
        direct.stderr
    );
    assert_eq!(ask("front").stdout, direct.stdout);
    let json = home.run(&[
        "--json",
        "chat",
        "--model",
        "front",
        "--temperature",
        "0",
        question,
    ]);
    let answer: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert!(
        answer["usage"]["prompt_tokens"].as_u64().expect("a number") > 20,
        "{answer}"
    );
    let stopped = home.run(&["model", "stop", "inner"]);
    assert_eq!(stopped.stdout.trim(), "stopped inner", "the front goes on");
    let dead = home.run(&[
        "model",
        "serve",
        "x",
        "--upstream",
        "http://127.0.0.1:9/v1",
        "--port",
        "0",
    ]);
    assert_eq!(dead.code, Some(1));
    assert!(dead.stderr.contains("hint:"), "{}", dead.stderr);
}

#[test]
fn a_file_that_was_changed_is_not_served() {
    let home = Home::with_model();
    let info = home.run(&["--json", "model", "list", "--local"]);
    let list: serde_json::Value = serde_json::from_str(&info.stdout).expect("JSON");
    let path = list[0]["model"]["files"][0]["path"]
        .as_str()
        .expect("a path");
    // A copy, so that the test model itself, which may be linked, stays as it is.
    let mut content = std::fs::read(path).expect("readable");
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::remove_file(path).expect("removed");
    std::fs::write(path, content).expect("written");
    let done: Done = home.run(&["model", "serve", "smollm2-135m", "--port", "0"]);
    assert_eq!(done.code, Some(1));
    assert!(done.stderr.contains("is damaged"), "{}", done.stderr);
}
