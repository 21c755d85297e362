//! Health, models, metrics and the end of a server.

use std::time::Duration;

use serde_json::{Value, json};
use tenzro_protocol::inference::ServerState;
use tenzro_testkit::fake_inference::{FakeInference, Script};

use crate::{CHAT, Setup, chat};

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
async fn a_server_that_stops_refuses_new_requests_and_lets_running_answers_finish() {
    for stream in [true, false] {
        let setup = Setup::new(FakeInference::new(Script::SayAndWait("x"))).await;
        let body = chat(json!({"stream": stream}));
        let running = setup.http.post(setup.url(CHAT)).json(&body).send();
        let running = tokio::spawn(running);
        setup.engine.wait_for_requests(1).await;
        let (engine, health, url) = (setup.engine.clone(), setup.url("/health"), setup.url(CHAT));
        let stopping = tokio::spawn(setup.server.shutdown(Duration::from_secs(10)));
        // Not the pooled connections: what a newcomer sees.
        let newcomer = reqwest::Client::new();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        loop {
            let answer = newcomer.get(&health).send().await.expect("an answer");
            if answer.status() == 503 {
                let answer: Value = answer.json().await.expect("JSON");
                assert_eq!(answer["status"], "draining");
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "still ready");
            tokio::task::yield_now().await;
        }
        let refused = newcomer.post(&url).json(&body).send().await;
        let refused = refused.expect("an answer");
        assert_eq!(refused.status(), 503);
        assert!(refused.headers().contains_key("retry-after"));
        assert_eq!(engine.requests().len(), 1);
        assert!(!stopping.is_finished());

        engine.release();
        let answer = running.await.expect("no panic").expect("an answer");
        let text = answer.text().await.expect("the whole answer");
        if stream {
            assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        } else {
            assert!(text.contains(r#""finish_reason":"stop""#), "{text}");
        }
        assert!(stopping.await.expect("no panic"), "nothing had to be cut");
        assert!(newcomer.get(&health).send().await.is_err(), "it is gone");
    }
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
