//! The API over real HTTP, with an engine that does as it is told.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use tenzro_api::{Inference, Limits, Server, ServerConfig};
use tenzro_protocol::inference::{GenerateError, ServerState};
use tenzro_protocol::sse::SseParser;
use tenzro_testkit::fake_inference::{FakeInference, Script};

struct Setup {
    server: Server,
    engine: Arc<FakeInference>,
    http: reqwest::Client,
}

impl Setup {
    async fn new(engine: FakeInference) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let engine = Arc::new(engine);
        let config = ServerConfig {
            listen: "127.0.0.1:0".parse().expect("an address"),
            cors: false,
            fingerprint: "test".to_owned(),
            limits: Limits {
                keep_alive: Duration::from_millis(50),
                ..Limits::default()
            },
        };
        let inference: Arc<dyn Inference> = engine.clone();
        Self {
            server: Server::bind(config, inference).await.expect("a free port"),
            engine,
            http: reqwest::Client::new(),
        }
    }

    async fn saying(pieces: &[&'static str]) -> Self {
        Self::new(FakeInference::new(Script::Say(pieces.to_vec()))).await
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.local_addr())
    }

    async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        let request = self.http.post(self.url(path)).json(body);
        request.send().await.expect("an answer")
    }

    async fn error(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = self.post(path, body).await;
        let status = response.status().as_u16();
        let body: Value = response.json().await.expect("JSON");
        let error = body["error"].clone();
        assert!(
            error["message"].is_string() && error["type"].is_string(),
            "{body}"
        );
        assert!(
            error.get("param").is_some() && error.get("code").is_some(),
            "{body}"
        );
        (status, error)
    }

    async fn events(&self, path: &str, body: &Value) -> Vec<String> {
        let bytes = self.post(path, body).await.bytes().await.expect("a body");
        SseParser::default().push(&bytes).expect("events")
    }
}

fn chat(more: Value) -> Value {
    let mut body = json!({"model": "fake", "messages": [{"role": "user", "content": "Hi"}]});
    let fields = body.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    body
}

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_chat_has_the_shape_that_clients_read() {
    let setup = Setup::saying(&["Hel", "lo"]).await;
    let response = setup.post(CHAT, &chat(json!({}))).await;
    assert!(response.headers().contains_key("x-request-id"));
    let answer: Value = response.json().await.expect("JSON");
    assert!(
        answer["id"]
            .as_str()
            .expect("an id")
            .starts_with("chatcmpl-")
    );
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "fake");
    let choice = &answer["choices"][0];
    assert_eq!(
        choice["message"],
        json!({"role": "assistant", "content": "Hello", "refusal": null})
    );
    assert_eq!(
        (&choice["finish_reason"], &choice["logprobs"]),
        (&json!("stop"), &Value::Null)
    );
    assert_eq!(answer["usage"]["total_tokens"], 7);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
}

#[tokio::test]
async fn a_stream_begins_with_the_role_and_ends_with_usage_and_done() {
    let setup = Setup::saying(&["Hel", "lo"]).await;
    let body = chat(json!({"stream": true, "stream_options": {"include_usage": true}, "n": 2}));
    let mut events = setup.events(CHAT, &body).await;
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let chunks: Vec<Value> = events
        .iter()
        .map(|event| serde_json::from_str(event).expect("JSON"))
        .collect();
    let (usage, chunks) = chunks.split_last().expect("chunks");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 4);
    assert_eq!(
        usage["usage"]["prompt_tokens"], 5,
        "a shared prompt is counted once"
    );
    for index in 0..2 {
        let own: Vec<&Value> = chunks
            .iter()
            .map(|chunk| &chunk["choices"][0])
            .filter(|c| c["index"] == index)
            .collect();
        assert_eq!(own[0]["delta"], json!({"role": "assistant", "content": ""}));
        assert_eq!(own[1]["delta"], json!({"content": "Hel"}));
        assert_eq!(own[3]["delta"], json!({}));
        assert_eq!(own[3]["finish_reason"], "stop");
    }
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some())
    );
    let plain = setup.events(CHAT, &chat(json!({"stream": true}))).await;
    assert!(!plain[0].contains("usage"));
}

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

#[tokio::test]
async fn every_refusal_has_its_status_code_and_field() {
    let setup = Setup::saying(&["x"]).await;
    let cases = [
        (
            chat(json!({"model": "other"})),
            404,
            json!("model"),
            json!("model_not_found"),
        ),
        (chat(json!({"model": ""})), 400, json!("model"), Value::Null),
        (
            chat(json!({"messages": []})),
            400,
            json!("messages"),
            Value::Null,
        ),
        (
            chat(json!({"temperature": 2.5})),
            400,
            json!("temperature"),
            Value::Null,
        ),
        (
            chat(json!({"max_tokens": 0})),
            400,
            json!("max_tokens"),
            Value::Null,
        ),
        (
            chat(json!({"max_tokens": -1})),
            400,
            json!("max_tokens"),
            Value::Null,
        ),
        (chat(json!({"n": 1000})), 400, json!("n"), Value::Null),
        (
            chat(json!({"stream_options": {}})),
            400,
            json!("stream_options"),
            Value::Null,
        ),
        (
            chat(json!({"top_logprobs": 21, "logprobs": true})),
            400,
            json!("top_logprobs"),
            Value::Null,
        ),
        (
            chat(json!({"logit_bias": {"x": 1}})),
            400,
            json!("logit_bias"),
            Value::Null,
        ),
        (
            chat(json!({"tools": [{}]})),
            400,
            json!("tools"),
            json!("unsupported_parameter"),
        ),
        (
            chat(json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})),
            400,
            json!("messages[0].content[0].type"),
            json!("unsupported_parameter"),
        ),
        (
            chat(json!({"messages": [{"role": "boss", "content": "x"}]})),
            400,
            json!("messages[0].role"),
            Value::Null,
        ),
    ];
    for (body, status, param, code) in cases {
        let (got, error) = setup.error(CHAT, &body).await;
        assert_eq!(
            (got, &error["param"], &error["code"]),
            (status, &param, &code),
            "{body}"
        );
    }
    assert_eq!(setup.engine.asked(), 0);
    let tolerated = chat(json!({
        "user": "u", "metadata": {}, "store": false, "tools": [], "response_format": {"type": "text"},
        "cache_prompt": true, "made_up": 1,
    }));
    assert_eq!(setup.post(CHAT, &tolerated).await.status(), 200);
    let alias = chat(json!({"model": "MAKER/fake-gguf"}));
    assert_eq!(setup.post(CHAT, &alias).await.status(), 200);
}

#[tokio::test]
async fn what_the_engine_says_becomes_a_status_that_clients_act_on() {
    let context = GenerateError::ContextLength {
        prompt_tokens: 99,
        context_tokens: 64,
    };
    let full = GenerateError::QueueFull {
        waiting_max: 2,
        retry_after: Duration::from_millis(1500),
    };
    let cases = [
        (context, 400, "context_length_exceeded"),
        (full.clone(), 429, "queue_full"),
        (
            GenerateError::Unavailable {
                message: "x".to_owned(),
            },
            503,
            "unavailable",
        ),
        (
            GenerateError::Upstream {
                status: Some(500),
                message: "x".to_owned(),
            },
            502,
            "upstream_error",
        ),
    ];
    for (refusal, status, code) in cases {
        let setup = Setup::new(FakeInference::new(Script::Refuse(refusal))).await;
        let (got, error) = setup.error(CHAT, &chat(json!({}))).await;
        assert_eq!((got, &error["code"]), (status, &json!(code)));
    }
    let setup = Setup::new(FakeInference::new(Script::Refuse(full))).await;
    let response = setup.post(CHAT, &chat(json!({"stream": true}))).await;
    assert_eq!(
        (
            response.status().as_u16(),
            &response.headers()["retry-after"]
        ),
        (429, &"2".parse().expect("a header"))
    );
}

#[tokio::test]
async fn other_paths_methods_types_and_sizes_have_the_same_error_shape() {
    let setup = Setup::saying(&["x"]).await;
    let large = chat(json!({"user": "x".repeat(10 << 20)}));
    assert_eq!(setup.error(CHAT, &large).await.0, 413);
    assert_eq!(setup.error("/v1/nothing", &json!({})).await.0, 404);
    assert_eq!(setup.error("/v1/models", &json!({})).await.0, 405);
    let plain = setup
        .http
        .post(setup.url(CHAT))
        .header("content-type", "text/plain")
        .body("x");
    let response = plain.send().await.expect("an answer");
    assert_eq!(response.status(), 415);
    assert!(response.json::<Value>().await.expect("JSON")["error"]["message"].is_string());
    let broken = setup.http.post(setup.url(CHAT)).body("{\"model\": ");
    assert_eq!(broken.send().await.expect("an answer").status(), 400);
    // The process lives.
    assert_eq!(setup.post(CHAT, &chat(json!({}))).await.status(), 200);
}

#[tokio::test]
async fn completions_and_embeddings_take_all_four_shapes() {
    let setup = Setup::saying(&[" there"]).await;
    for (prompt, choices) in [
        (json!("Hi"), 1),
        (json!(["Hi", "Ho"]), 2),
        (json!([1, 2]), 1),
        (json!([[1], [2], [3]]), 3),
    ] {
        let body = json!({"model": "fake", "prompt": prompt, "input": prompt});
        let answer: Value = setup
            .post("/v1/completions", &body)
            .await
            .json()
            .await
            .expect("JSON");
        assert_eq!(
            answer["choices"].as_array().map(Vec::len),
            Some(choices),
            "{answer}"
        );
        assert_eq!(answer["object"], "text_completion");
        assert_eq!(answer["usage"]["prompt_tokens"], 5 * choices);
        let answer: Value = setup
            .post("/v1/embeddings", &body)
            .await
            .json()
            .await
            .expect("JSON");
        assert_eq!(answer["data"].as_array().map(Vec::len), Some(choices));
        assert_eq!(answer["data"][0]["embedding"][0], 0.6f32);
    }
    let echo = json!({"model": "fake", "prompt": "Hi", "echo": true});
    let answer: Value = setup
        .post("/v1/completions", &echo)
        .await
        .json()
        .await
        .expect("JSON");
    assert_eq!(answer["choices"][0]["text"], "Hi there");
    let base64 = json!({"model": "fake", "input": "x", "encoding_format": "base64"});
    let answer: Value = setup
        .post("/v1/embeddings", &base64)
        .await
        .json()
        .await
        .expect("JSON");
    assert_eq!(answer["data"][0]["embedding"], "mpkZP83MTD8=");
    for (body, param) in [
        (
            json!({"model": "fake", "input": "x", "dimensions": 7}),
            "dimensions",
        ),
        (json!({"model": "fake", "input": []}), "input"),
        (json!({"model": "fake", "input": {"a": 1}}), "input"),
    ] {
        let (status, error) = setup.error("/v1/embeddings", &body).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{body}");
    }
}

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

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!("fake")),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(
                (
                    "(model|messages|role|content|n|stop|prompt|logit_bias|seed|stream|[a-z]{1,4})",
                    inner
                ),
                0..5
            )
            .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_body_makes_the_server_fail(fields in prop::collection::vec(
        ("(model|messages|prompt|input|n|stop|temperature|seed|logprobs|top_logprobs|stream|echo|tools|stream_options)",
         any_json()), 0..6))
    {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let setup = Setup::saying(&["x"]).await;
            let mut body = chat(json!({"prompt": "x", "input": "x"}));
            body.as_object_mut().expect("an object").extend(fields);
            for path in [CHAT, "/v1/completions", "/v1/embeddings"] {
                let status = setup.post(path, &body).await.status().as_u16();
                prop_assert!(status < 500, "{} for {}", status, body);
            }
            Ok(())
        })?;
    }
}
