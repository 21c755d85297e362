//! What a request can ask for, and what is refused.

use tenzro_protocol::inference::{
    EmbedRequest, FinishReason, GenerateError, GenerateRequest, Prompt, Sampling,
};

use super::{answer, ask, chat, load, long_text, message, read, request};

#[tokio::test]
async fn an_answer_ends_by_itself_at_a_stop_string_or_at_its_limit() {
    let engine = load(512, 2);
    let whole = answer(
        &engine,
        ask("What is the capital of France? One word.", 200),
    )
    .await;
    assert_eq!(whole.finished.reason, FinishReason::Stop);
    assert!(whole.text.contains("Paris"), "{}", whole.text);

    let at = whole.text.find("Paris").expect("checked above");
    let stopped = answer(
        &engine,
        GenerateRequest {
            stop: vec!["Paris".to_owned()],
            ..ask("What is the capital of France? One word.", 200)
        },
    )
    .await;
    assert_eq!(stopped.text, whole.text[..at]);
    assert_eq!(stopped.finished.reason, FinishReason::Stop);

    let cut = answer(
        &engine,
        GenerateRequest {
            ignore_eos: true,
            ..ask("What is the capital of France? One word.", 77)
        },
    )
    .await;
    assert_eq!(cut.finished.reason, FinishReason::Length);
    assert_eq!(cut.finished.usage.completion_tokens, 77);
}

#[tokio::test]
async fn an_answer_without_limit_ends_with_the_context() {
    let engine = load(128, 1);
    let endless = answer(
        &engine,
        GenerateRequest {
            max_tokens: None,
            ignore_eos: true,
            ..ask("Count.", 1)
        },
    )
    .await;
    let usage = endless.finished.usage;
    assert_eq!(usage.prompt_tokens + usage.completion_tokens, 128);
    assert_eq!(endless.finished.reason, FinishReason::Length);
}

#[tokio::test]
async fn log_probabilities_are_those_of_the_unmodified_distribution() {
    let engine = load(512, 1);
    let plain = GenerateRequest {
        logprobs: Some(5),
        ..ask("Name a fruit.", 8)
    };
    let free = answer(&engine, plain.clone()).await;
    for token in &free.tokens {
        assert_eq!(token.top.len(), 5);
        assert_eq!(token.chosen, token.top[0], "greedy chooses the likeliest");
        let sum: f32 = token.top.iter().map(|top| top.logprob.exp()).sum();
        assert!(sum > 0.0 && sum <= 1.001);
        assert!(
            token
                .top
                .is_sorted_by(|left, right| left.logprob >= right.logprob)
        );
    }
    // A penalty changes the choice, never the reported probabilities.
    let penalised = answer(
        &engine,
        GenerateRequest {
            sampling: Sampling {
                temperature: Some(0.0),
                presence_penalty: Some(2.0),
                ..Sampling::default()
            },
            ..plain
        },
    )
    .await;
    assert_eq!(free.tokens[0].top, penalised.tokens[0].top);
}

#[tokio::test]
async fn the_same_seed_gives_the_same_answer() {
    let engine = load(512, 1);
    let seeded = |seed| GenerateRequest {
        sampling: Sampling {
            temperature: Some(1.2),
            seed,
            ..Sampling::default()
        },
        ..ask("Tell me a story.", 24)
    };
    let first = answer(&engine, seeded(Some(1))).await.text;
    assert_eq!(first, answer(&engine, seeded(Some(1))).await.text);
    let unseeded = answer(&engine, seeded(None)).await.text;
    assert_ne!(unseeded, answer(&engine, seeded(None)).await.text);
}

#[tokio::test]
async fn text_that_spells_a_control_token_stays_text() {
    let engine = load(512, 1);
    let count = |content: &'static str| {
        let engine = engine.clone();
        async move {
            let messages = vec![message("user", content)];
            answer(&engine, chat(messages, 1))
                .await
                .started
                .prompt_tokens
        }
    };
    let plain = count("a b").await;
    let spelled = count("a <|im_end|> b").await;
    assert!(
        spelled > plain + 3,
        "the spelling became one control token: {spelled} against {plain}"
    );
    // Whoever writes the whole prompt means its control tokens.
    let raw = answer(&engine, request(Prompt::Text("<|im_start|>".to_owned()), 1)).await;
    assert_eq!(raw.started.prompt_tokens, 1);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_says_why() {
    let engine = load(128, 1);
    let error = engine.generate(ask(&long_text("A", 400), 5)).unwrap_err();
    assert!(matches!(
        error,
        GenerateError::ContextLength { prompt_tokens, context_tokens: 128 } if prompt_tokens > 300
    ));
    let error = engine
        .generate(request(Prompt::Tokens(vec![1, 9_999_999]), 5))
        .unwrap_err();
    assert!(matches!(
        error,
        GenerateError::Invalid {
            param: "prompt",
            ..
        }
    ));
    let error = engine
        .generate(request(Prompt::Tokens(Vec::new()), 5))
        .unwrap_err();
    assert!(matches!(
        error,
        GenerateError::Invalid {
            param: "prompt",
            ..
        }
    ));
    let error = engine
        .generate(GenerateRequest {
            sampling: Sampling {
                logit_bias: vec![(9_999_999, 1.0)],
                ..Sampling::default()
            },
            ..ask("x", 5)
        })
        .unwrap_err();
    assert!(matches!(
        error,
        GenerateError::Invalid {
            param: "logit_bias",
            ..
        }
    ));
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let mut config = super::config(256, 1);
    config.queue_size = 1;
    let engine = tenzro_engine::Engine::load(&config, |_| true).expect("loads");
    let first = engine.generate(ask("One", 100)).expect("runs");
    let second = engine.generate(ask("Two", 5)).expect("waits");
    let error = engine.generate(ask("Three", 5)).unwrap_err();
    assert!(matches!(
        error,
        GenerateError::QueueFull { waiting_max: 1, .. }
    ));
    drop(first);
    read(second).await.expect("its turn comes");
    // Its place is given back a moment after its last event.
    while engine.generate(ask("Four", 1)).is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn embeddings_have_length_one_and_put_like_texts_near() {
    let engine = load(512, 2);
    let inputs = [
        "The cat sits on the mat.",
        "A cat is sitting on a mat.",
        "Interest rates rose by two percent.",
    ];
    let running = engine
        .generate(ask("Tell me a story.", 60))
        .expect("admitted");
    let embeddings = engine
        .embed(EmbedRequest {
            inputs: inputs
                .iter()
                .map(|&text| Prompt::Text(text.to_owned()))
                .collect(),
        })
        .await
        .expect("embeds beside a running answer");
    read(running).await.expect("not disturbed");
    let cosine = |a: usize, b: usize| -> f32 {
        let (a, b) = (&embeddings.vectors[a], &embeddings.vectors[b]);
        a.iter().zip(b).map(|(x, y)| x * y).sum()
    };
    for index in 0..3 {
        assert_eq!(embeddings.vectors[index].len(), 576);
        assert!((cosine(index, index) - 1.0).abs() < 1e-4);
    }
    assert!(
        cosine(0, 1) > cosine(0, 2) + 0.05,
        "{} {}",
        cosine(0, 1),
        cosine(0, 2)
    );
    assert!(embeddings.prompt_tokens > 15);

    let error = engine
        .embed(EmbedRequest {
            inputs: vec![Prompt::Text(long_text("A", 900))],
        })
        .await
        .unwrap_err();
    assert!(matches!(error, GenerateError::ContextLength { .. }));
}
