//! Files that are no models, settings that do not fit, and the end of an engine.

use std::io::Write;

use tenzro_engine::{Engine, EngineConfig, LoadError};
use tenzro_protocol::inference::GenerateError;

use super::{ask, config, load, model_path, read};

#[test]
fn files_that_are_no_models_are_refused_with_a_reason() {
    let missing = Engine::load(&EngineConfig::new("/nonexistent/model.gguf".into()), |_| {
        true
    });
    assert!(matches!(missing, Err(LoadError::Read { .. })));

    let mut garbage = tempfile::NamedTempFile::new().expect("a temporary file");
    garbage.write_all(b"this is not a model").expect("written");
    let refused = Engine::load(&EngineConfig::new(garbage.path().into()), |_| true);
    assert!(matches!(refused, Err(LoadError::Model { .. })));

    let mut truncated = tempfile::NamedTempFile::new().expect("a temporary file");
    let whole = std::fs::read(model_path()).expect("the model");
    truncated
        .write_all(&whole[..whole.len() / 2])
        .expect("written");
    let refused = Engine::load(&EngineConfig::new(truncated.path().into()), |_| true);
    assert!(matches!(refused, Err(LoadError::Model { .. })));
}

#[test]
fn settings_out_of_range_name_the_range() {
    let mut too_long = config(1_000_000, 1);
    let error = Engine::load(&too_long, |_| true).expect_err("more than it was trained for");
    assert!(
        error.to_string().contains("--ctx-size is 1000000"),
        "{error}"
    );
    too_long.ctx_size = Some(8192);
    too_long.parallel = Some(0);
    let error = Engine::load(&too_long, |_| true).expect_err("nobody could be served");
    assert!(error.to_string().contains("--parallel"), "{error}");
}

#[test]
fn loading_can_be_cancelled() {
    let mut seen = Vec::new();
    let cancelled = Engine::load(&config(256, 1), |share| {
        seen.push(share);
        false
    });
    assert!(matches!(cancelled, Err(LoadError::Cancelled)));
    assert!(!seen.is_empty());
}

#[tokio::test]
async fn stopping_ends_running_streams_with_an_error() {
    let engine = load(512, 1);
    let running = engine
        .generate(ask("Tell me a very long story.", 400))
        .expect("admitted");
    let other = engine.clone();
    tokio::task::spawn_blocking(move || other.shutdown())
        .await
        .expect("no panic");
    let error = read(running).await.expect_err("broken off");
    assert!(matches!(error, GenerateError::Unavailable { .. }));
    let refused = engine.generate(ask("One more?", 5)).expect_err("stopped");
    assert!(matches!(refused, GenerateError::Unavailable { .. }));
}
