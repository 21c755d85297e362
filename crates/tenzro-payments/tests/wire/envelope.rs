//! Headers by the `mpp` crate, read by us, and the other way round.

use alloy::primitives::Address;
use mpp::protocol::core::{
    Base64UrlJson, PaymentChallenge, PaymentCredential, Receipt as MppReceipt,
    format_authorization, format_receipt, format_www_authenticate, parse_authorization,
    parse_receipt, parse_www_authenticate,
};
use mpp::protocol::intents::SessionRequest as MppRequest;
use serde_json::{Value, json};
use tenzro_payments::price::Pricing;
use tenzro_payments::signature::Signature;
use tenzro_payments::wire::{
    METHOD, MethodDetails, ModelTerms, Payload, Receipt, SessionRequest, UsageReceipt,
};
use tenzro_protocol::amount::Wei;

use crate::draft;

/// A request as our payees make them, with everything that is ours.
fn terms() -> SessionRequest {
    SessionRequest {
        amount: Wei(300),
        unit_type: Some("llm_token".to_owned()),
        suggested_deposit: Some(Wei(20_000_000)),
        currency: Address::repeat_byte(0xAB),
        recipient: Address::repeat_byte(0xCD),
        method_details: MethodDetails {
            chain_id: 1337,
            escrow_contract: Address::repeat_byte(0xEF),
            channel_id: None,
            min_voucher_delta: None,
            fee_payer: Some(true),
            credential_types: Some(vec!["authorization".to_owned(), "hash".to_owned()]),
        },
        pricing: Some(Pricing {
            input_per_token: Wei(100),
            output_per_token: Wei(300),
            price_version: 7,
            window_tokens: 32,
        }),
        model: Some(ModelTerms {
            id: "someone/model".to_owned(),
            hash: None,
        }),
    }
}

fn challenge(request: Base64UrlJson) -> PaymentChallenge {
    let expires = Some("2026-04-01T12:05:00Z");
    PaymentChallenge::with_secret_key_full(
        "secret",
        "api.llm-service.com",
        METHOD,
        "session",
        request,
        expires,
        None,
        None,
        None,
        None,
    )
}

#[test]
fn challenges_go_both_ways() {
    let ours = Base64UrlJson::from_typed(&terms()).expect("plain data");
    let header = format_www_authenticate(&challenge(ours)).expect("a header");
    let read = parse_www_authenticate(&header).expect("read by mpp");
    assert!(read.verify("secret"), "the same bytes");
    assert_eq!(
        (read.method.as_str(), read.intent.as_str()),
        ("evm", "session")
    );
    assert_eq!(
        read.request.decode::<SessionRequest>().expect("read by us"),
        terms()
    );

    // Their type of the request has what is not ours.
    let theirs: MppRequest = read.request.decode().expect("read by mpp");
    assert_eq!(theirs.amount, "300");
    assert_eq!(theirs.unit_type.as_deref(), Some("llm_token"));
    assert_eq!(theirs.suggested_deposit.as_deref(), Some("20000000"));
    let details = theirs.method_details.clone().expect("details");
    assert_eq!(details["chainId"], json!(1337));
    let written = Base64UrlJson::from_typed(&theirs).expect("plain data");
    let again: SessionRequest = written.decode().expect("read by us");
    assert_eq!(
        again,
        SessionRequest {
            pricing: None,
            model: None,
            ..terms()
        }
    );
}

/// The draft demands RFC 8785: with ASCII names and no fractions that is names in order and no spaces.
#[test]
fn requests_are_written_canonically() {
    let request = Base64UrlJson::from_typed(&terms()).expect("plain data");
    let bytes = mpp::protocol::core::base64url_decode(request.raw()).expect("base64url");
    let text = String::from_utf8(bytes).expect("UTF-8");
    let expected = concat!(
        r#"{"amount":"300","currency":"0xABaBaBaBABabABabAbAbABAbABabababaBaBABaB","#,
        r#""methodDetails":{"chainId":1337,"credentialTypes":["authorization","hash"],"#,
        r#""escrowContract":"0xEFeFeFEFeFEFEfEfefefEFeFEfEFEFEFEfEfeFef","feePayer":true},"#,
        r#""model":{"id":"someone/model"},"#,
        r#""pricing":{"inputPerToken":"100","outputPerToken":"300","priceVersion":7,"windowTokens":32},"#,
        r#""recipient":"0xCdCdCDCDcDcdCdcdCdcdCDcdcDcdcDCDcdcDCdcD","#,
        r#""suggestedDeposit":"20000000","unitType":"llm_token"}"#,
    );
    // Case aside, which is EIP-55's and tested in draft.rs.
    assert_eq!(text.to_lowercase(), expected.to_lowercase());
}

#[test]
fn credentials_go_both_ways() {
    let request = Base64UrlJson::from_typed(&terms()).expect("plain data");
    let echo = challenge(request).to_echo();
    let source = "did:pkh:eip155:196:0xaabbccddee11223344556677889900aabbccddee";
    for example in [
        draft::open_by_hash(),
        draft::open_by_authorization(),
        draft::top_up_by_authorization(),
        draft::top_up_by_hash(),
        draft::voucher(),
        draft::voucher_with_deposit(),
        draft::close(),
    ] {
        let ours: Payload = draft::same(&example);
        let credential = PaymentCredential::with_source(echo.clone(), source, &ours);
        let header = format_authorization(&credential).expect("a header");
        let read = parse_authorization(&header).expect("read by mpp");
        assert_eq!(read.payload, example);
        assert_eq!(read.source.as_deref(), Some(source));
        assert_eq!(read.payload_as::<Payload>().expect("read by us"), ours);
    }
}

#[test]
fn receipts_go_both_ways() {
    let ours: Receipt = draft::same(&draft::receipt());
    let ours = Receipt {
        usage: Some(usage()),
        ..ours
    };
    let value = serde_json::to_value(&ours).expect("plain data");
    let theirs: MppReceipt = serde_json::from_value(value.clone()).expect("read by mpp");
    assert!(theirs.is_success());
    assert_eq!(
        (theirs.method.as_str(), theirs.reference.as_str()),
        ("evm", draft::CHANNEL)
    );
    let header = format_receipt(&theirs).expect("a header");
    let read = parse_receipt(&header).expect("read by mpp");
    let read: Receipt = serde_json::from_value(serde_json::to_value(&read).expect("plain data"))
        .expect("read by us");
    assert_eq!(read, ours);
    let mut usage = value["usage"].as_object().cloned().expect("an object");
    assert_eq!(usage.remove("charged"), Some(json!(u128::MAX.to_string())));
    assert_eq!(
        Value::Object(usage),
        json!({
            "requestId": "req-1",
            "inputTokens": 20,
            "outputTokens": 100,
            "cachedTokens": 3,
            "priceVersion": 7,
            "ttftMs": 5,
            "durationMs": 90,
            "finish": "stop",
            "signature": draft::signature("12"),
        })
    );
}

fn usage() -> UsageReceipt {
    UsageReceipt {
        request_id: "req-1".to_owned(),
        model_hash: None,
        input_tokens: 20,
        output_tokens: 100,
        cached_tokens: 3,
        charged: Wei(u128::MAX),
        price_version: 7,
        ttft_ms: 5,
        duration_ms: 90,
        finish: "stop".to_owned(),
        signature: draft::signature("12")
            .parse::<Signature>()
            .expect("65 bytes"),
    }
}
