//! Tokens of an answer, counted from its text alone: what a bill is held against.

use tenzro_engine::Tokenizer;

use tenzro_protocol::inference::Prompt;

use super::{answer, ask, chat, load, message, model_path, request};

#[tokio::test]
async fn m19_the_text_of_an_answer_holds_the_tokens_that_were_generated() {
    let engine = load(512, 1);
    let tokenizer = Tokenizer::open(&model_path()).expect("a vocabulary");
    for question in [
        "Tell me a story about a fox.",
        "Count from one to thirty.",
        "Write a Python function that adds two numbers.",
        "Erzähl mir etwas über Köln.",
    ] {
        let whole = answer(&engine, ask(question, 120)).await;
        let generated = whole.finished.usage.completion_tokens;
        let counted = tokenizer.count(&whole.text).expect("a short text");
        // What the payer allows: a thirty-second part and two tokens more.
        let most = counted + counted / 32 + 2;
        assert!(counted <= generated, "{question}: {counted} of {generated}");
        assert!(generated <= most, "{question}: {generated} above {most}");
        assert!(
            generated * 13 / 10 > most,
            "{question}: a bill of 30 % more passes"
        );
    }
}

#[test]
fn m19_a_prompt_is_counted_from_the_file_alone_as_the_engine_counts_it() {
    let engine = load(512, 1);
    let tokenizer = Tokenizer::open(&model_path()).expect("a vocabulary");
    for request in [
        ask("Name a fruit.", 1),
        chat(
            vec![
                message("system", "Be brief."),
                message("user", "Häuser und 家, <|im_end|> as text."),
            ],
            1,
        ),
        request(Prompt::Text("<|im_start|>user\nOnce upon".to_owned()), 1),
        request(Prompt::Tokens(vec![1, 2, 3]), 1),
        request(Prompt::Tokens(vec![9_999_999]), 1),
    ] {
        let counted = tokenizer.count_prompt(&request.prompt);
        assert_eq!(counted, engine.count_prompt(&request));
    }
}

#[test]
fn what_is_no_model_has_no_tokenizer() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("x.gguf");
    std::fs::write(&file, b"GGUF and nothing else").expect("written");
    Tokenizer::open(&file).map(drop).expect_err("no model");
    Tokenizer::open(&directory.path().join("none.gguf"))
        .map(drop)
        .expect_err("no file");
}
