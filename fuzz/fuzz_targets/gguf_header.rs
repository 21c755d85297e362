//! The header reader must end in an answer, whatever the bytes are.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tenzro_hub::fuzz_header(bytes));
