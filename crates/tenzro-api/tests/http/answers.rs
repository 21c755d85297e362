//! What answers look like, whole and streamed.

use super::*;

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
