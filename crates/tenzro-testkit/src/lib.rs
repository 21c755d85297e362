//! For tests only: a writer of model files, a real one, a stand-in for the hub and a fake engine.

use std::path::PathBuf;

pub mod fake_inference;
pub mod gguf;
pub mod hub;

/// The model of `script/fetch-test-model`.
///
/// # Panics
///
/// Panics where it was not fetched, and says so.
pub fn model_path() -> PathBuf {
    let path = std::env::var_os("TENZRO_TEST_MODEL").map_or_else(
        || {
            PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("../../.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
        },
        PathBuf::from,
    );
    assert!(
        path.is_file(),
        "{} is missing: run script/fetch-test-model",
        path.display()
    );
    path
}
