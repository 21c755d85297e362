//! Health, models, metrics and the end of a server.

use super::*;

#[tokio::test]
async fn health_models_and_metrics_tell_the_state() {
    let loading = ServerState::Loading { progress: 0.5 };
    let setup = Setup::new(FakeInference::in_state(Script::Say(Vec::new()), loading)).await;
    let health = setup
        .http
        .get(setup.url("/health"))
        .send()
        .await
        .expect("an answer");
    assert_eq!(health.status(), 503);
    assert_eq!(health.json::<Value>().await.expect("JSON")["progress"], 0.5);
    assert_eq!(setup.error(CHAT, &chat(json!({}))).await.0, 503);

    let setup = Setup::saying(&["a", "b"]).await;
    setup.post(CHAT, &chat(json!({}))).await;
    let get = async |path: &str| {
        let response = setup
            .http
            .get(setup.url(path))
            .send()
            .await
            .expect("an answer");
        response.text().await.expect("text")
    };
    assert_eq!(get("/health").await, r#"{"status":"ok"}"#);
    let model: Value =
        serde_json::from_str(&get("/v1/models/maker/Fake-GGUF").await).expect("JSON");
    assert_eq!(
        (&model["id"], &model["object"]),
        (&json!("fake"), &json!("model"))
    );
    let metrics = get("/metrics").await;
    for line in [
        "tenzro_requests_total{endpoint=\"/v1/chat/completions\",status=\"200\"} 1",
        "tenzro_generation_tokens_total 2",
        "tenzro_time_to_first_token_seconds_count 1",
        "tenzro_inter_token_latency_seconds_count 1",
        "tenzro_e2e_request_latency_seconds_count 1",
        "tenzro_request_queue_time_seconds_count 1",
        "tenzro_num_requests_running 1",
        "# EOF",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
}

#[tokio::test]
async fn a_server_that_stops_lets_running_answers_finish() {
    let setup = Setup::new(FakeInference::new(Script::SayAndWait("x"))).await;
    let body = chat(json!({"stream": true}));
    let response = setup.post(CHAT, &body).await;
    let (engine, http, url) = (setup.engine.clone(), setup.http.clone(), setup.url(CHAT));
    let stopping = tokio::spawn(setup.server.shutdown(Duration::from_secs(10)));
    // New requests are refused or find nobody listening.
    loop {
        match http.post(&url).json(&body).send().await {
            Err(_) => break,
            Ok(answer) if answer.status() == 503 => break,
            Ok(_) => tokio::task::yield_now().await,
        }
    }
    engine.release();
    let bytes = response.bytes().await.expect("the whole answer");
    assert!(String::from_utf8_lossy(&bytes).ends_with("data: [DONE]\n\n"));
    assert!(stopping.await.expect("no panic"), "nothing had to be cut");
}

#[tokio::test]
async fn an_answer_that_does_not_end_is_cut_after_the_grace() {
    let setup = Setup::new(FakeInference::new(Script::SayAndWait("x"))).await;
    let response = setup.post(CHAT, &chat(json!({"stream": true}))).await;
    let finished = setup.server.shutdown(Duration::from_millis(50)).await;
    assert!(!finished);
    let bytes = response.bytes().await.expect("the rest");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(
        text.contains("the server was stopped") && !text.contains("[DONE]"),
        "{text}"
    );
}
