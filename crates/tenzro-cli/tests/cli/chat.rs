//! `chat`: one answer, piped, and sessions that survive.

use std::io::Read;
use std::process::Stdio;

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

#[test]
fn an_answer_that_nobody_reads_any_more_ends() {
    let home = Home::with_model();
    home.serve(&["--ctx-size", "2048"]);
    let mut child = home
        .command(&["chat", "--temperature", "0", "Tell me a long story."])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut first = [0];
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut first).expect("a first character");
    drop(stdout);
    let done = child.wait_with_output().expect("it ends");
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(
        !stderr.contains("tok/s"),
        "it was computed to its end: {stderr}"
    );
}
