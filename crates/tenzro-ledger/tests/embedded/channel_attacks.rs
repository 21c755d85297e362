//! What nobody can do with a channel, whoever it is and whatever they signed.

use alloy::primitives::{Address, B256, Bytes, Signature, U256, keccak256, uint};
use serde_json::json;
use tenzro_ledger::channels::{Authorization, ChannelRefusal, OpenRequest, RowOutcome, Settlement};
use tenzro_ledger::{Account, SendError, TransactionReceipt};

use super::channel_scene::{GRACE_SECONDS, Parties, refusal};

type Sent = Result<TransactionReceipt, SendError>;

#[tokio::test]
async fn m04_a_closed_channel_is_never_opened_again_and_its_vouchers_draw_on_no_other() {
    let parties = Parties::new().await;
    let (payer, payee) = (parties.by(&parties.payer), parties.by(&parties.payee));
    let id = parties.open(1, 1_000).await;
    let old = parties.voucher(id, 900);
    payee.close_channel(&parties.voucher(id, 0)).await.unwrap();
    let again = payer.open_channel(&parties.terms(1), 1_000).await;
    assert_eq!(refusal(again), ChannelRefusal::AlreadyExists);
    let terms = parties.terms(1);
    let signer = parties.payer.signer();
    let request = OpenRequest::sign(signer, &parties.escrow, terms, 1_000, u64::MAX);
    let again = payee.open_channel_with_authorization(&request).await;
    assert_eq!(refusal(again), ChannelRefusal::AlreadyExists);

    let other = parties.open(2, 1_000).await;
    let moved = Settlement {
        channel_id: other,
        ..old.clone()
    };
    let result = payee.settle_channel(&moved).await;
    assert_eq!(refusal(result), ChannelRefusal::InvalidSignature);
    let result = payee.close_channel(&moved).await;
    assert_eq!(refusal(result), ChannelRefusal::InvalidSignature);
    let result = payee.settle_channel(&old).await;
    assert_eq!(refusal(result), ChannelRefusal::Finalized);
    assert_eq!(parties.channel(other).await.unwrap().settled, 0);
}

/// Of the group of secp256k1. Source: SEC 2, 2.4.1.
const ORDER: U256 = uint!(0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141_U256);

/// Signatures made of a good one that are none, and garbage.
fn bad_signatures(good: &[u8]) -> Vec<(String, Bytes)> {
    let signature = Signature::from_raw(good).unwrap();
    let twin = Signature::new(signature.r(), ORDER - signature.s(), !signature.v());
    let with_v = |v: u8| [&good[..64], &[v]].concat();
    let mut bad = vec![
        ("high s".to_owned(), twin.as_bytes().to_vec()),
        ("compact".to_owned(), signature.as_erc2098().to_vec()),
        ("64 bytes".to_owned(), good[..64].to_vec()),
        ("66 bytes".to_owned(), [good, &[0]].concat()),
        ("empty".to_owned(), Vec::new()),
        ("zero".to_owned(), vec![0; 65]),
        ("zero r".to_owned(), [&[0; 32], &good[32..]].concat()),
        (
            "zero s".to_owned(),
            [&good[..32], &[0; 32], &good[64..]].concat(),
        ),
        ("other parity".to_owned(), with_v(good[64] ^ 7)),
    ];
    for v in [0, 1, 26, 29, 255] {
        bad.push((format!("v {v}"), with_v(v)));
    }
    for number in 0..100_u64 {
        let halves = [0, 1].map(|half| keccak256([number.to_be_bytes(), [half; 8]].concat()));
        let garbage = [&halves[0][..], &halves[1][..], &[27 + (number % 2) as u8]].concat();
        bad.push((format!("garbage {number}"), garbage));
    }
    bad.into_iter()
        .map(|(name, bytes)| (name, bytes.into()))
        .collect()
}

#[tokio::test]
async fn m06_signatures_that_are_none_are_refused() {
    let parties = Parties::new().await;
    let payee = parties.by(&parties.payee);
    let id = parties.open(1, 1_000).await;
    let good = parties.voucher(id, 100);
    let bad = bad_signatures(&good.signature);
    let mut rows = Vec::new();
    for (name, signature) in bad {
        let row = Settlement {
            signature,
            ..good.clone()
        };
        for result in [
            payee.settle_channel(&row).await,
            payee.close_channel(&row).await,
        ] {
            assert_eq!(refusal(result), ChannelRefusal::InvalidSignature, "{name}");
        }
        rows.push(row);
    }
    let batch = payee.settle_channels(&rows).await.unwrap();
    let skipped = RowOutcome::Skipped(ChannelRefusal::InvalidSignature);
    assert_eq!(batch.rows, vec![skipped; rows.len()]);
    payee.settle_channel(&good).await.unwrap();
}

#[tokio::test]
async fn m06_deposits_with_signatures_that_are_none_are_refused() {
    let parties = Parties::new().await;
    let payee = parties.by(&parties.payee);
    let (escrow, terms) = (&parties.escrow, parties.terms(1));
    let good = OpenRequest::sign(parties.payer.signer(), escrow, terms, 1_000, u64::MAX);
    for (name, signature) in bad_signatures(&good.authorization.signature) {
        // The others cannot be put into a request.
        let Ok(signature) = <[u8; 65]>::try_from(&signature[..]) else {
            continue;
        };
        let mut request = good.clone();
        request.authorization.signature = signature;
        let expected = ChannelRefusal::InvalidSignature;
        assert_eq!(request.verify(escrow), Err(expected), "{name}");
        let result = payee.open_channel_with_authorization(&request).await;
        assert_eq!(refusal(result), expected, "{name}");
    }
    // What recovers to nobody is not the zero address' signature.
    let from = Address::ZERO;
    let nobody = OpenRequest {
        terms,
        authorization: Authorization {
            from,
            nonce: terms.open_nonce(from, escrow),
            signature: [0; 65],
            ..good.authorization.clone()
        },
    };
    let expected = ChannelRefusal::InvalidSignature;
    assert_eq!(nobody.verify(escrow), Err(expected));
    let result = payee.open_channel_with_authorization(&nobody).await;
    assert_eq!(refusal(result), expected);
    payee.open_channel_with_authorization(&good).await.unwrap();
}

#[derive(Debug, Clone, Copy)]
enum State {
    None,
    Open,
    Requested,
    GraceOver,
    Closed,
    Withdrawn,
}

const STATES: [State; 6] = [
    State::None,
    State::Open,
    State::Requested,
    State::GraceOver,
    State::Closed,
    State::Withdrawn,
];

async fn bring(parties: &Parties, state: State) {
    let (payer, payee) = (parties.by(&parties.payer), parties.by(&parties.payee));
    if matches!(state, State::None) {
        return;
    }
    let id = parties.open(1, 1_000).await;
    match state {
        State::None | State::Open => return,
        State::Closed => {
            let voucher = parties.voucher(id, 10);
            payee.close_channel(&voucher).await.unwrap();
            return;
        }
        State::Requested | State::GraceOver | State::Withdrawn => {
            payer.request_channel_close(id).await.unwrap();
        }
    }
    if !matches!(state, State::Requested) {
        parties.wait(GRACE_SECONDS).await;
    }
    if matches!(state, State::Withdrawn) {
        payer.withdraw_channel(id).await.unwrap();
    }
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Settle,
    SettleNoMore,
    SettleTooMuch,
    Close,
    CloseWithoutVoucher,
    TopUp,
    RequestClose,
    Withdraw,
}

async fn act(parties: &Parties, caller: &Account, action: Action, id: B256) -> Sent {
    let operations = parties.by(caller);
    match action {
        Action::Settle => operations.settle_channel(&parties.voucher(id, 100)).await,
        Action::SettleNoMore => operations.settle_channel(&parties.voucher(id, 0)).await,
        Action::SettleTooMuch => operations.settle_channel(&parties.voucher(id, 1_001)).await,
        Action::Close => operations.close_channel(&parties.voucher(id, 100)).await,
        Action::CloseWithoutVoucher => {
            let nothing = Settlement {
                channel_id: id,
                cumulative: 0,
                signature: Bytes::new(),
            };
            operations.close_channel(&nothing).await
        }
        Action::TopUp => operations.top_up_channel(id, 5).await,
        Action::RequestClose => operations.request_channel_close(id).await,
        Action::Withdraw => operations.withdraw_channel(id).await,
    }
}

/// For each state, in their order: done, or why not. Written out, so that nothing is derived from what
/// is tested.
type Row = [Option<ChannelRefusal>; 6];

#[tokio::test]
async fn m09_every_action_by_everybody_in_every_state() {
    use ChannelRefusal as No;
    let parties = Parties::new().await;
    let all = |no: No| [Some(No::NotFound), Some(no), Some(no), Some(no)];
    let [unknown, closed] = [Some(No::NotFound), Some(No::Finalized)];
    let done: Row = [unknown, None, None, None, closed, closed];
    let never = |no: No| -> Row {
        let [unknown, open, requested, over] = all(no);
        [unknown, open, requested, over, closed, closed]
    };
    let (payee, payer) = (never(No::NotPayee), never(No::NotPayer));
    let early = Some(No::CloseNotReady);
    // By the payer, the payee, a stranger.
    let table: [(Action, [Row; 3]); 8] = [
        (Action::Settle, [payee, done, payee]),
        (
            Action::SettleNoMore,
            [payee, never(No::AmountNotIncreasing), payee],
        ),
        (
            Action::SettleTooMuch,
            [payee, never(No::AmountExceedsDeposit), payee],
        ),
        (Action::Close, [payee, done, payee]),
        (Action::CloseWithoutVoucher, [payee, done, payee]),
        (Action::TopUp, [done, payer, payer]),
        (Action::RequestClose, [done, payer, payer]),
        (
            Action::Withdraw,
            [[unknown, early, early, None, closed, closed], payer, payer],
        ),
    ];
    let callers = [&parties.payer, &parties.payee, &parties.stranger];
    let id = parties
        .terms(1)
        .id(parties.payer.address(), &parties.escrow);
    for (index, state) in STATES.into_iter().enumerate() {
        let start = parties.scene.get("evm_snapshot", json!([])).await;
        bring(&parties, state).await;
        let before = (parties.channel(id).await, parties.balances().await);
        for (action, rows) in &table {
            for (caller, row) in callers.into_iter().zip(rows) {
                let there = parties.scene.get("evm_snapshot", json!([])).await;
                let result = act(&parties, caller, *action, id).await;
                let expected = row[index];
                let case = format!("{action:?} by {} when {state:?}", caller.address());
                match (result, expected) {
                    (Ok(receipt), None) => assert!(receipt.status(), "{case}"),
                    (Err(error), Some(expected)) => {
                        assert_eq!(error.channel_refusal(), Some(expected), "{case}");
                        assert_eq!(error.to_string(), expected.to_string(), "{case}");
                        let after = (parties.channel(id).await, parties.balances().await);
                        assert_eq!(after, before, "{case}");
                    }
                    (result, expected) => panic!("{case}: {result:?}, not {expected:?}"),
                }
                let back = parties.scene.get("evm_revert", json!([there])).await;
                assert_eq!(back, json!(true));
            }
        }
        let back = parties.scene.get("evm_revert", json!([start])).await;
        assert_eq!(back, json!(true));
    }
}
