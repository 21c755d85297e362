//! Streams, headers and what happens on the connection around an answer.

use super::*;

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
