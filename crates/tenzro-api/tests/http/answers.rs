//! What answers look like, whole and streamed.

use serde_json::{Value, json};
use tenzro_protocol::inference::{Prompt, Sampling};

use crate::{CHAT, Setup, chat};

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

#[tokio::test]
async fn a_streamed_completion_has_usage_null_until_the_end() {
    let setup = Setup::saying(&["a", "b"]).await;
    let body = json!({
        "model": "fake", "prompt": "x", "stream": true,
        "stream_options": {"include_usage": true},
    });
    let mut events = setup.events("/v1/completions", &body).await;
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let chunks: Vec<Value> = events
        .iter()
        .map(|event| serde_json::from_str(event).expect("JSON"))
        .collect();
    let (usage, chunks) = chunks.split_last().expect("chunks");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["total_tokens"], 7);
    assert_eq!(chunks.len(), 3, "{chunks:?}");
    for chunk in chunks {
        assert_eq!(chunk.get("usage"), Some(&Value::Null), "{chunk}");
    }
    let plain = json!({"model": "fake", "prompt": "x", "stream": true});
    let events = setup.events("/v1/completions", &plain).await;
    assert!(!events.concat().contains("usage"));
}

#[tokio::test]
async fn log_probabilities_have_the_exact_bytes() {
    let setup = Setup::saying(&["é", "!"]).await;
    let token = json!({"token": "é", "logprob": -0.5, "bytes": [195, 169]});
    let part = json!({"token": "\u{fffd}", "logprob": -1.5, "bytes": [195]});
    let body = chat(json!({"logprobs": true, "top_logprobs": 2}));
    let answer: Value = setup.post(CHAT, &body).await.json().await.expect("JSON");
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["refusal"], Value::Null);
    let mut first = logprobs["content"][0].clone();
    assert_eq!(first["top_logprobs"].take(), json!([token, part]));
    first
        .as_object_mut()
        .expect("an object")
        .remove("top_logprobs");
    assert_eq!(first, token);
    assert_eq!(logprobs["content"].as_array().map(Vec::len), Some(2));

    let body = json!({"model": "fake", "prompt": "x", "logprobs": 1});
    let answer: Value = setup
        .post("/v1/completions", &body)
        .await
        .json()
        .await
        .expect("JSON");
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({
            "tokens": ["é", "!"],
            "token_logprobs": [-0.5, -0.5],
            "top_logprobs": [{"é": -0.5}, {"!": -0.5}],
            "text_offset": [0, 1],
        })
    );
}

#[tokio::test]
async fn every_parameter_reaches_the_engine() {
    let setup = Setup::saying(&["x"]).await;
    let body = chat(json!({
        "messages": [
            {"role": "developer", "content": [
                {"type": "text", "text": "a"}, {"type": "text", "text": "b"},
            ]},
            {"role": "user", "content": "Hi", "name": "Ann"},
        ],
        "n": 2, "max_completion_tokens": 9, "max_tokens": 3, "temperature": 0.5, "top_p": 0.25,
        "top_k": 7, "min_p": 0.125, "repetition_penalty": 1.5, "presence_penalty": -1,
        "frequency_penalty": 2, "logit_bias": {"5": -100}, "seed": -1, "stop": "END",
        "ignore_eos": true, "logprobs": true, "top_logprobs": 3,
        "chat_template_kwargs": {"enable_thinking": false},
    }));
    assert_eq!(setup.post(CHAT, &body).await.status(), 200);
    let requests = setup.engine.requests();
    let [first, second] = &requests[..] else {
        panic!("{requests:?}");
    };
    let Prompt::Chat(prompt) = &first.prompt else {
        panic!("{first:?}");
    };
    assert_eq!(
        serde_json::to_value(&prompt.messages).expect("JSON"),
        json!([
            {"role": "system", "content": "a\nb"},
            {"role": "user", "content": "Hi", "name": "Ann"},
        ])
    );
    assert_eq!(prompt.template_kwargs["enable_thinking"], false);
    let expected = Sampling {
        temperature: Some(0.5),
        top_k: Some(7),
        top_p: Some(0.25),
        min_p: Some(0.125),
        repeat_penalty: Some(1.5),
        presence_penalty: Some(-1.0),
        frequency_penalty: Some(2.0),
        logit_bias: vec![(5, -100.0)],
        seed: Some(u64::MAX),
    };
    assert_eq!(first.sampling, expected);
    assert_eq!(
        second.sampling.seed,
        Some(0),
        "each answer has its own seed"
    );
    assert_eq!((first.max_tokens, first.logprobs), (Some(9), Some(3)));
    assert_eq!(
        (&first.stop[..], first.ignore_eos),
        (&["END".to_owned()][..], true)
    );

    // vLLM's and llama-server's way to turn it off.
    assert_eq!(
        setup.post(CHAT, &chat(json!({"top_k": -1}))).await.status(),
        200
    );
    assert_eq!(setup.engine.requests()[2].sampling.top_k, Some(0));
}
