//! Streams, headers and what happens on the connection around an answer.

use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};
use tenzro_protocol::inference::GenerateError;
use tenzro_testkit::fake_inference::{FakeInference, Script};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{CHAT, Setup, chat, config};

#[tokio::test]
async fn an_error_after_the_start_ends_the_stream_without_done() {
    let broken = GenerateError::Internal {
        message: "secret detail".to_owned(),
    };
    let setup = Setup::new(FakeInference::new(Script::Break(broken))).await;
    let events = setup.events(CHAT, &chat(json!({"stream": true}))).await;
    let last: Value = serde_json::from_str(events.last().expect("events")).expect("JSON");
    assert_eq!(last["error"]["type"], "server_error");
    assert!(!events.concat().contains("secret detail") && !events.concat().contains("[DONE]"));
}

#[tokio::test]
async fn silence_is_filled_with_comments_and_a_client_that_leaves_is_noticed() {
    let setup = Setup::new(FakeInference::new(Script::SayAndWait("x"))).await;
    let response = setup.post(CHAT, &chat(json!({"stream": true}))).await;
    let mut bytes = response.bytes_stream();
    let mut text = String::new();
    while !text.contains(": keep-alive\n\n") {
        let piece = bytes.next().await.expect("more").expect("bytes");
        text.push_str(&String::from_utf8_lossy(&piece));
    }
    assert!(text.contains("\"x\""));
    drop(bytes);
    setup.engine.wait_for_dropped(1).await;

    let url = setup.url(CHAT);
    let request = setup
        .http
        .post(url)
        .json(&chat(json!({})))
        .timeout(Duration::from_millis(100));
    assert!(
        request.send().await.is_err(),
        "gives up waiting for the whole answer"
    );
    setup.engine.wait_for_dropped(2).await;
}

/// Reads one chunked answer from a connection that stays open.
async fn read_chunked(connection: &mut TcpStream) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.ends_with("\r\n0\r\n\r\n") {
        let read = tokio::time::timeout(Duration::from_secs(10), connection.read(&mut buffer));
        let count = read.await.expect("in time").expect("readable");
        assert_ne!(count, 0, "closed after {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    text
}

#[tokio::test]
async fn a_connection_serves_on_after_a_stream() {
    let setup = Setup::saying(&["one", "two"]).await;
    let body = chat(json!({"stream": true})).to_string();
    let request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let address = setup.server.local_addr();
    let mut connection = TcpStream::connect(address).await.expect("connected");
    for _ in 0..3 {
        connection
            .write_all(request.as_bytes())
            .await
            .expect("written");
        let answer = read_chunked(&mut connection).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("data: [DONE]\n\n"), "{answer}");
    }
    assert_eq!(setup.engine.requests().len(), 3);
}

#[tokio::test]
async fn a_request_keeps_the_id_that_its_client_gave_it() {
    let setup = Setup::saying(&["x"]).await;
    let given = async |id: &str| {
        let request = setup.http.post(setup.url(CHAT)).header("x-request-id", id);
        let response = request.json(&chat(json!({}))).send().await;
        let response = response.expect("an answer");
        let milliseconds = response.headers()["openai-processing-ms"].to_str();
        assert!(milliseconds.expect("text").parse::<u64>().is_ok());
        let id = response.headers()["x-request-id"].to_str();
        id.expect("text").to_owned()
    };
    assert_eq!(given("mine-7").await, "mine-7");
    for unfit in ["", "a b", &"x".repeat(129)] {
        let id = given(unfit).await;
        assert!(id.starts_with("req-"), "{id}");
    }
    assert_ne!(given("").await, given("").await);
}

#[tokio::test]
async fn pages_of_other_origins_may_call_only_when_that_is_on() {
    for cors in [true, false] {
        let engine = FakeInference::new(Script::Say(vec!["x"]));
        let mut config = config();
        config.cors = cors;
        let setup = Setup::with(config, engine).await;
        let preflight = setup
            .http
            .request(reqwest::Method::OPTIONS, setup.url(CHAT))
            .header("origin", "https://page.example")
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "authorization,content-type",
            )
            .send()
            .await
            .expect("an answer");
        assert_eq!(preflight.status().is_success(), cors);
        // Browsers do not count `*` for this one, and every OpenAI client sends it.
        let headers = preflight.headers().get("access-control-allow-headers");
        let is_named = headers.is_some_and(|names| {
            let names = names.to_str().expect("text").to_ascii_lowercase();
            names.contains("authorization")
        });
        assert_eq!(is_named, cors);
        let allowed = |response: &reqwest::Response| {
            response
                .headers()
                .contains_key("access-control-allow-origin")
        };
        assert_eq!(allowed(&preflight), cors);
        for body in [chat(json!({})), json!({})] {
            let request = setup.http.post(setup.url(CHAT)).json(&body);
            let request = request.header("origin", "https://page.example");
            let response = request.send().await.expect("an answer");
            assert_eq!(allowed(&response), cors, "{body}");
        }
        let health = setup.http.get(setup.url("/health"));
        let health = health.header("origin", "https://page.example").send().await;
        assert!(!allowed(&health.expect("an answer")));
    }
}

async fn connect(setup: &Setup) -> TcpStream {
    let connection = TcpStream::connect(setup.server.local_addr()).await;
    connection.expect("connected")
}

/// All that the server still says before it closes the connection.
async fn read_to_end(connection: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = connection.read_to_end(&mut bytes);
    let read = tokio::time::timeout(Duration::from_secs(10), read).await;
    // A close with unread bytes is a reset: what came before it counts.
    let _ = read.expect("closed in time");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_client_that_never_ends_its_request_is_cut_off() {
    let mut config = config();
    config.limits.head_timeout = Duration::from_millis(200);
    config.limits.body_timeout = Duration::from_millis(200);
    let setup = Setup::with(config, FakeInference::new(Script::Say(vec!["x"]))).await;

    let mut head = connect(&setup).await;
    let sent = head.write_all(b"GET /health HTTP/1.1\r\nx-slow: 1");
    sent.await.expect("written");
    let answer = read_to_end(&mut head).await;
    assert!(!answer.contains("200 OK"), "{answer}");

    let mut body = connect(&setup).await;
    let request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: 100\r\n\r\n{{"
    );
    let sent = body.write_all(request.as_bytes());
    sent.await.expect("written");
    let answer = read_to_end(&mut body).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("did not arrive in time"), "{answer}");
    assert!(setup.engine.requests().is_empty());
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_cut_off() {
    let mut config = config();
    config.limits.write_timeout = Duration::from_millis(200);
    // More than the system keeps for a connection.
    let large = "x".repeat(64 << 20).leak();
    let setup = Setup::with(config, FakeInference::new(Script::SayAndWait(large))).await;
    let mut deaf = connect(&setup).await;
    let body = chat(json!({"stream": true})).to_string();
    let request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let sent = deaf.write_all(request.as_bytes());
    sent.await.expect("written");
    setup.engine.wait_for_dropped(1).await;
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_a_free_place() {
    let mut config = config();
    config.limits.connections_max = 2;
    let setup = Setup::with(config, FakeInference::new(Script::Say(vec!["x"]))).await;
    let request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut places = [connect(&setup).await, connect(&setup).await];
    let mut buffer = [0; 1024];
    for place in &mut places {
        place.write_all(request).await.expect("written");
        assert_ne!(place.read(&mut buffer).await.expect("an answer"), 0);
    }
    let mut third = connect(&setup).await;
    third.write_all(request).await.expect("written");
    let early = tokio::time::timeout(Duration::from_millis(100), third.read(&mut buffer)).await;
    assert!(early.is_err(), "answered beside two open connections");
    drop(places);
    let late = tokio::time::timeout(Duration::from_secs(10), third.read(&mut buffer)).await;
    assert_ne!(late.expect("in time").expect("an answer"), 0);
}
