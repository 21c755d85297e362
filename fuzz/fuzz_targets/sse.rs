//! The event parser must end in events or an error, whatever a server sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut parser = tenzro_protocol::sse::SseParser::default();
    for piece in bytes.chunks(7) {
        let _ = parser.push(piece);
    }
});
