//! `chat`: one answer, piped, and sessions that survive.

use super::Home;

#[test]
fn one_answer_for_a_prompt_or_for_piped_input() {
    let home = Home::with_model();
    home.serve(&["--ctx-size", "512"]);
    let question = "What is the capital of France? One word.";
    let done = home.run(&["chat", "--model", "SmolLM2", "--temperature", "0", question]);
    assert_eq!(
        done.code,
        Some(1),
        "an incomplete name is not guessed: {}",
        done.stdout
    );
    let done = home.run(&[
        "chat",
        "--model",
        "smollm2-135m",
        "--temperature",
        "0",
        question,
    ]);
    assert!(
        done.stdout.contains("Paris"),
        "{}{}",
        done.stdout,
        done.stderr
    );
    assert!(done.stderr.contains("tok/s") && done.stderr.contains("free (local)"));
    let piped = home.run_with_input(&["--quiet", "chat", "--temperature", "0"], question);
    assert_eq!(piped.stdout, done.stdout);
    assert_eq!(piped.stderr, "");
    let long = "apple ".repeat(3000);
    let refused = home.run_with_input(&["chat"], &long);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains("maximum context length"),
        "{}",
        refused.stderr
    );
    assert!(refused.stderr.contains("hint:"), "{}", refused.stderr);
}
