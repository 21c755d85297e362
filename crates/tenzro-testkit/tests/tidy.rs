//! Rules that a reader relies on, checked over the whole workspace.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the workspace")
}

/// Tracked text files with their paths.
fn files() -> Vec<(String, String)> {
    let listed = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root())
        .output();
    let listed = listed.expect("git runs").stdout;
    let paths = String::from_utf8(listed).expect("paths are text");
    let read = |path: &str| {
        Some((
            path.to_owned(),
            std::fs::read_to_string(root().join(path)).ok()?,
        ))
    };
    paths
        .split('\0')
        .filter(|path| !path.is_empty())
        .filter_map(read)
        .collect()
}

#[test]
fn crates_depend_on_each_other_in_one_direction() {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&metadata.stdout).expect("JSON");
    let mut edges = BTreeSet::new();
    for package in metadata["packages"].as_array().expect("packages") {
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let name = dependency["name"].as_str().expect("a name");
            if name.starts_with("tenzro-") && dependency["kind"].is_null() {
                let from = package["name"].as_str().expect("a name");
                edges.insert(format!("{from} > {name}"));
            }
        }
    }
    let allowed = [
        "tenzro-api > tenzro-protocol",
        "tenzro-bench > tenzro-protocol",
        "tenzro-cli > tenzro-hub",
        "tenzro-cli > tenzro-ledger",
        "tenzro-cli > tenzro-node",
        "tenzro-cli > tenzro-protocol",
        "tenzro-engine > tenzro-protocol",
        "tenzro-hub > tenzro-protocol",
        "tenzro-ledger > tenzro-protocol",
        "tenzro-ledger-bench > tenzro-ledger",
        "tenzro-node > tenzro-api",
        "tenzro-node > tenzro-engine",
        "tenzro-node > tenzro-hub",
        "tenzro-node > tenzro-ledger",
        "tenzro-node > tenzro-payments",
        "tenzro-node > tenzro-protocol",
        "tenzro-payments > tenzro-protocol",
        "tenzro-payments-bench > tenzro-ledger",
        "tenzro-payments-bench > tenzro-node",
        "tenzro-payments-bench > tenzro-payments",
        "tenzro-payments-bench > tenzro-protocol",
        "tenzro-testkit > tenzro-api",
        "tenzro-testkit > tenzro-protocol",
    ];
    assert_eq!(edges, allowed.map(str::to_owned).into());
}

#[test]
fn every_source_file_says_what_it_is_for() {
    for (path, text) in files() {
        if path.ends_with(".rs") {
            assert!(text.starts_with("//!"), "{path} does not open with //!");
            assert!(
                !path.ends_with("mod.rs"),
                "{path}: use name.rs beside name/"
            );
        }
    }
}

#[test]
fn unsafe_stays_in_one_module() {
    for (path, text) in files() {
        let is_home = path.starts_with("crates/tenzro-engine/src/llama");
        let uses = text.lines().any(|line| {
            let code = line.split("//").next().unwrap_or("");
            code.contains("unsafe {")
                || code.contains("unsafe impl")
                || code.contains("unsafe extern")
        });
        let is_this = path.ends_with("tests/tidy.rs");
        assert!(
            !path.ends_with(".rs") || is_home || is_this || !uses,
            "{path} uses unsafe"
        );
    }
}

#[test]
fn paths_in_the_architecture_page_exist() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the page");
    let separators = |character: char| character.is_whitespace() || "`(),|".contains(character);
    let paths = text.split(separators).filter(|word| {
        [
            "crates/",
            "contracts/",
            "docs/",
            "script/",
            "benches/",
            ".cargo/",
        ]
        .iter()
        .any(|start| word.starts_with(start))
    });
    for path in paths {
        assert!(root().join(path).exists(), "{path} does not exist");
    }
}
