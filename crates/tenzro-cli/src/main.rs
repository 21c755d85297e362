//! The `tenzro-cli` binary.
fn main() {}
