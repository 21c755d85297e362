//! What is refused, and how; no body makes the server fail.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use tenzro_protocol::inference::GenerateError;
use tenzro_testkit::fake_inference::{FakeInference, Script};

use crate::{CHAT, Setup, chat};

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
        (
            chat(json!({"response_format": {"type": "json_object"}})),
            400,
            json!("response_format"),
            json!("unsupported_parameter"),
        ),
        (
            chat(json!({"stop": ["a", "b", "c", "d", "e"]})),
            400,
            json!("stop"),
            Value::Null,
        ),
        (chat(json!({"stop": 5})), 400, json!("stop"), Value::Null),
    ];
    for (body, status, param, code) in cases {
        let (got, error) = setup.error(CHAT, &body).await;
        assert_eq!(
            (got, &error["param"], &error["code"]),
            (status, &param, &code),
            "{body}"
        );
    }
    assert!(setup.engine.requests().is_empty());
    let tolerated = chat(json!({
        "user": "u", "metadata": {}, "store": false, "tools": [], "response_format": {"type": "text"},
        "cache_prompt": true, "made_up": 1,
    }));
    assert_eq!(setup.post(CHAT, &tolerated).await.status(), 200);
    for name in ["MAKER/fake-gguf", "Fake_Instruct", "fake-it-GGUF"] {
        let named = chat(json!({"model": name}));
        assert_eq!(setup.post(CHAT, &named).await.status(), 200, "{name}");
    }
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
    let unreadable = setup.http.get(setup.url("/v1/models/%ff")).send().await;
    let unreadable: Value = unreadable.expect("an answer").json().await.expect("JSON");
    assert_eq!(unreadable["error"]["code"], "model_not_found");
    let packed = setup
        .http
        .post(setup.url(CHAT))
        .header("content-encoding", "gzip")
        .json(&chat(json!({})));
    assert_eq!(packed.send().await.expect("an answer").status(), 415);
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
async fn the_text_of_a_refusal_is_for_people() {
    let setup = Setup::saying(&["x"]).await;
    let wrong = chat(json!({"messages": [{"role": "user", "content": 7}]}));
    let (_, error) = setup.error(CHAT, &wrong).await;
    assert_eq!(error["message"], "messages[0].content has the wrong type");
    let body = json!({"model": "fake", "prompt": "x", "echo": true, "logprobs": 1});
    let (status, error) = setup.error("/v1/completions", &body).await;
    assert_eq!((status, &error["param"]), (400, &json!("echo")));
    let body = json!({"model": "fake", "prompt": "x", "best_of": 2});
    let (status, error) = setup.error("/v1/completions", &body).await;
    assert_eq!((status, &error["param"]), (400, &json!("best_of")));
    for (field, value, text) in [
        ("temperature", json!("hot"), "a number"),
        (
            "max_tokens",
            json!(-1),
            "a whole number from 0 to 4294967295",
        ),
        ("seed", json!(1.5), "a whole number of 64 bits"),
        ("stream", json!(1), "true or false"),
        ("model", json!(7), "text"),
        ("messages", json!({}), "a list"),
        ("messages[0]", json!([1]), "an object"),
        ("stream_options", json!("x"), "an object"),
        ("logit_bias", json!([]), "an object"),
    ] {
        let name = field.split('[').next().expect("a name");
        let (status, error) = setup.error(CHAT, &chat(json!({name: value}))).await;
        assert_eq!((status, &error["param"]), (400, &json!(field)));
        assert_eq!(error["message"], format!("{field} must be {text}"));
    }
    let body = json!({"model": "fake", "input": "x", "encoding_format": "int8"});
    let (_, error) = setup.error("/v1/embeddings", &body).await;
    assert_eq!(
        error["message"],
        "encoding_format must be \"float\" or \"base64\""
    );
    let long = "x".repeat(100_000);
    let (_, error) = setup.error(CHAT, &chat(json!({"seed": long}))).await;
    assert!(error["message"].as_str().expect("text").len() < 100);
    let missing = setup.error(CHAT, &json!({"messages": []})).await;
    assert_eq!((missing.0, &missing.1["param"]), (400, &json!("model")));
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
