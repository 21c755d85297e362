//! Every example of the draft is read into our types, and comes out of them with the same fields and values.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tenzro_payments::wire::{
    DepositAction, MergedDeposit, NeedVoucher, OpenDeposit, Payload, Problem, Receipt,
    SessionRequest, TopUpDeposit,
};

pub(crate) const CHANNEL: &str =
    "0x6d0f4fdf1f2f6a1f6c1b0fbd6a7d5c2c0a8d3d7b1f6a9c1b3e2d4a5b6c7d8e9f";
const PAYER: &str = "0xaabbccddee11223344556677889900aabbccddee";
const SIGNER: &str = "0x742d35cc6634c0532925a3b844bc9e7595f8fe00";
const ESCROW: &str = "0x1234567890abcdef1234567890abcdef12345678";
const SALT: &str = "0xaaaa1234bbbb5678cccc9012dddd3456eeee7890ffff1234aaaa5678bbbb9012";
const TOP_UP_SALT: &str = "0xcccc5678dddd9012eeee3456ffff7890aaaa1234bbbb5678cccc9012dddd3456";
const TRANSACTION: &str = "0x1a2b3c4d5e6f7890abcdef1234567890abcdef1234567890abcdef1234567890";

/// 65 bytes that begin as in the draft.
pub(crate) fn signature(start: &str) -> String {
    format!("0x{start:0<130}")
}

fn nonce(digit: &str) -> String {
    format!("0x{}", digit.repeat(64))
}

/// Reads an example and writes it again.
#[track_caller]
pub(crate) fn same<T: DeserializeOwned + Serialize>(example: &Value) -> T {
    let read: T = serde_json::from_value(example.clone()).expect("the draft's example is read");
    let written = serde_json::to_value(&read).expect("plain data");
    assert_eq!(&written, example);
    read
}

/// "Open Payload (feePayer: false)".
pub(crate) fn open_by_hash() -> Value {
    json!({
        "action": "open",
        "type": "hash",
        "channelId": CHANNEL,
        "hash": "0x9f8e7d6c5b4a39281700abcdef1234567890abcdef1234567890abcdef123456",
        "cumulativeAmount": "0",
        "signature": signature("abcdef1234567890"),
        "authorizedSigner": SIGNER,
        "salt": SALT
    })
}

/// "Open Payload (feePayer: true)", EIP-3009.
pub(crate) fn open_by_authorization() -> Value {
    json!({
        "action": "open",
        "type": "authorization",
        "channelId": CHANNEL,
        "authorization": {
            "from": PAYER,
            "to": ESCROW,
            "value": "10000000",
            "validAfter": "0",
            "validBefore": "1743523500",
            "nonce": nonce("a")
        },
        "signature": signature("abcdef"),
        "cumulativeAmount": "0",
        "voucherSignature": signature("123456"),
        "authorizedSigner": SIGNER,
        "salt": SALT
    })
}

/// "TopUp Payload", from its table: no example is printed.
pub(crate) fn top_up_by_authorization() -> Value {
    json!({
        "action": "topUp",
        "type": "authorization",
        "channelId": CHANNEL,
        "salt": TOP_UP_SALT,
        "authorization": {
            "from": PAYER,
            "to": ESCROW,
            "value": "5000000",
            "validAfter": "0",
            "validBefore": "1743523500",
            "nonce": nonce("b")
        },
        "signature": signature("789abc"),
        "additionalDeposit": "5000000"
    })
}

/// The same, for a transaction of the payer's.
pub(crate) fn top_up_by_hash() -> Value {
    json!({
        "action": "topUp",
        "type": "hash",
        "channelId": CHANNEL,
        "hash": TRANSACTION,
        "additionalDeposit": "5000000"
    })
}

/// "Voucher Payload", voucher only.
pub(crate) fn voucher() -> Value {
    json!({
        "action": "voucher",
        "channelId": CHANNEL,
        "cumulativeAmount": "250000",
        "signature": signature("abcdef1234567890")
    })
}

/// "Voucher Payload", voucher and deposit.
pub(crate) fn voucher_with_deposit() -> Value {
    json!({
        "action": "voucher",
        "channelId": CHANNEL,
        "cumulativeAmount": "15000000",
        "signature": signature("abcdef"),
        "deposit": {
            "action": "topUp",
            "type": "authorization",
            "salt": TOP_UP_SALT,
            "authorization": {
                "from": PAYER,
                "to": ESCROW,
                "value": "5000000",
                "validAfter": "0",
                "validBefore": "1743523500",
                "nonce": nonce("b")
            },
            "signature": signature("789abc")
        }
    })
}

/// "Close Payload".
pub(crate) fn close() -> Value {
    json!({
        "action": "close",
        "channelId": CHANNEL,
        "cumulativeAmount": "500000",
        "signature": signature("abcdef1234567890")
    })
}

/// "Request Schema", new channel. EIP-55 is what the draft recommends for addresses; its examples mix.
pub(crate) fn request() -> Value {
    json!({
        "amount": "100",
        "unitType": "llm_token",
        "suggestedDeposit": "5000000",
        "currency": "0x74b7F16337b8972027F6196A17a631aC6dE26d22",
        "recipient": "0x742d35Cc6634c0532925a3b844bC9e7595F8fE00",
        "methodDetails": {
            "escrowContract": "0x1234567890AbcdEF1234567890aBcdef12345678",
            "chainId": 196,
            "minVoucherDelta": "10000"
        }
    })
}

/// "Receipt Generation", per request.
pub(crate) fn receipt() -> Value {
    json!({
        "method": "evm",
        "intent": "session",
        "status": "success",
        "timestamp": "2026-04-01T12:08:30Z",
        "challengeId": "kM9xPqWvT2nJrHsY4aDfEb",
        "reference": CHANNEL,
        "channelId": CHANNEL,
        "chainId": 196,
        "acceptedCumulative": "250000",
        "spent": "237500",
        "units": 500
    })
}

#[test]
fn what_opens_a_channel() {
    let Payload::Open(open) = same(&open_by_hash()) else {
        panic!("open")
    };
    assert!(matches!(open.deposit, OpenDeposit::Hash { .. }));
    let Payload::Open(open) = same(&open_by_authorization()) else {
        panic!("open")
    };
    let OpenDeposit::Authorization { authorization, .. } = open.deposit else {
        panic!("authorization")
    };
    assert_eq!(authorization.value.0, 10_000_000);
    assert_eq!(authorization.from.to_string().to_lowercase(), PAYER);
}

#[test]
fn what_is_optional_may_be_missing() {
    for mut payload in [open_by_hash(), open_by_authorization()] {
        let fields = payload.as_object_mut().expect("an object");
        fields.remove("authorizedSigner").expect("it was there");
        let Payload::Open(open) = same(&payload) else {
            panic!("open")
        };
        assert_eq!(open.authorized_signer, None);
    }
}

#[test]
fn what_adds_to_a_channel() {
    let Payload::TopUp(top_up) = same(&top_up_by_authorization()) else {
        panic!("topUp")
    };
    assert!(matches!(top_up.deposit, TopUpDeposit::Authorization { .. }));
    let Payload::TopUp(top_up) = same(&top_up_by_hash()) else {
        panic!("topUp")
    };
    assert!(matches!(top_up.deposit, TopUpDeposit::Hash { .. }));
    assert_eq!(top_up.additional_deposit.0, 5_000_000);
}

#[test]
fn what_pays() {
    let Payload::Voucher(update) = same(&voucher()) else {
        panic!("voucher")
    };
    assert_eq!(update.voucher.amount.0, 250_000);
    assert_eq!((&update.deposit, &update.request_auth), (&None, &None));
    let Payload::Voucher(update) = same(&voucher_with_deposit()) else {
        panic!("voucher")
    };
    let deposit = update.deposit.expect("a deposit");
    assert_eq!(deposit.action, DepositAction::TopUp);
    let mut opening = voucher_with_deposit()["deposit"].clone();
    opening["action"] = json!("open");
    opening["authorizedSigner"] = json!(SIGNER);
    let deposit: MergedDeposit = same(&opening);
    assert_eq!(deposit.action, DepositAction::Open);
}

#[test]
fn what_closes() {
    let Payload::Close(last) = same(&close()) else {
        panic!("close")
    };
    assert_eq!(last.voucher.amount.0, 500_000);
    assert_eq!(last.request_auth, None);
}

#[test]
fn what_is_asked_for() {
    let read: SessionRequest = same(&request());
    assert_eq!(
        read.method_details.min_voucher_delta.map(|wei| wei.0),
        Some(10_000)
    );
    // As the draft prints them; what counts are the bytes.
    let mut printed = request();
    printed["currency"] = json!("0x74b7F16337b8972027F6196A17a631ac6dE26d22");
    printed["recipient"] = json!(SIGNER);
    printed["methodDetails"]["escrowContract"] = json!(ESCROW);
    let printed: SessionRequest = serde_json::from_value(printed).expect("read");
    assert_eq!(printed, read);

    // "Existing channel".
    let read: SessionRequest = same(&json!({
        "amount": "25",
        "unitType": "llm_token",
        "currency": "0xA8CE8aee21bC2A48a5EF670afCc9274C7bbbC035",
        "recipient": "0x742d35Cc6634c0532925a3b844bC9e7595F8fE00",
        "methodDetails": {
            "escrowContract": "0x1234567890AbcdEF1234567890aBcdef12345678",
            "channelId": CHANNEL,
            "chainId": 196
        }
    }));
    assert!(read.method_details.channel_id.is_some());
    assert_eq!(read.suggested_deposit, None);
}

#[test]
fn what_is_received() {
    let read: Receipt = same(&receipt());
    assert_eq!(
        (read.units, read.tx_hash, read.reference),
        (Some(500), None, read.channel_id)
    );
    let mut closed = receipt();
    let fields = closed.as_object_mut().expect("an object");
    fields.remove("units").expect("it was there");
    closed["timestamp"] = json!("2026-04-01T12:10:00Z");
    closed["spent"] = json!("250000");
    closed["txHash"] = json!(TRANSACTION);
    let read: Receipt = same(&closed);
    assert!(read.tx_hash.is_some());
}

#[test]
fn what_is_needed_to_go_on() {
    let read: NeedVoucher = same(&json!({
        "channelId": CHANNEL,
        "requiredCumulative": "250025",
        "acceptedCumulative": "250000",
        "deposit": "500000"
    }));
    assert_eq!((read.spent, read.charged_tokens), (None, None));
}

#[test]
fn what_is_wrong() {
    let read: Problem = same(&json!({
        "type": "https://paymentauth.org/problems/session/invalid-signature",
        "title": "Invalid Signature",
        "status": 402,
        "detail": "Voucher signature could not be verified",
        "channelId": CHANNEL
    }));
    assert_eq!(read.status, 402);
}

#[test]
fn fields_that_nobody_knows_are_skipped() {
    let mut more = receipt();
    more["confirmations"] = json!(3);
    let read: Receipt = serde_json::from_value(more).expect("read");
    assert_eq!(serde_json::to_value(read).expect("plain data"), receipt());
    let mut more = request();
    more["description"] = json!("Tokens");
    more["externalId"] = json!("order-1");
    more["methodDetails"]["permit2Contract"] = json!(ESCROW);
    let read: SessionRequest = serde_json::from_value(more).expect("read");
    assert_eq!(serde_json::to_value(read).expect("plain data"), request());
}

#[test]
fn permit2_is_not_taken() {
    for mut payload in [open_by_authorization(), top_up_by_authorization()] {
        payload["type"] = json!("permit2");
        assert!(serde_json::from_value::<Payload>(payload).is_err());
    }
    let mut payload = voucher_with_deposit();
    payload["deposit"]["type"] = json!("permit2");
    assert!(serde_json::from_value::<Payload>(payload).is_err());
}
