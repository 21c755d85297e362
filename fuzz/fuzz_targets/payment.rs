//! Payment headers and messages must be read or refused, whatever a payer or a payee sends.
#![no_main]

use mpp::protocol::core::{parse_authorization, parse_www_authenticate};
use tenzro_payments::wire::{NeedVoucher, Payload, Problem, Receipt, SessionRequest};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = std::str::from_utf8(bytes) {
        let _ = parse_authorization(header);
        let _ = parse_www_authenticate(header);
    }
    // What is read can be written, and is then read as the same.
    if let Ok(payload) = serde_json::from_slice::<Payload>(bytes) {
        let written = serde_json::to_vec(&payload).expect("it can be written");
        let again: Payload = serde_json::from_slice(&written).expect("it can be read");
        assert_eq!(payload, again);
    }
    let _ = serde_json::from_slice::<SessionRequest>(bytes);
    let _ = serde_json::from_slice::<Receipt>(bytes);
    let _ = serde_json::from_slice::<NeedVoucher>(bytes);
    let _ = serde_json::from_slice::<Problem>(bytes);
});
