//! Channels from opening to closing, and what a wallet allows for them.

use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use futures::future::join_all;
use tenzro_ledger::channels::{
    Channel, ChannelRefusal, ChannelTerms, OpenRequest, RowOutcome, Settlement, TopUpRequest,
};
use tenzro_ledger::contracts::TNZO;

use super::channel_scene::{FUNDS, GRACE_SECONDS, Parties, refusal};
use super::scene::{CONTRACTS, START};
use super::vouchers::voucher;

#[tokio::test]
async fn a_channel_opened_by_authorization_is_topped_up_settled_and_closed() {
    let parties = Parties::new().await;
    let payee = parties.by(&parties.payee);
    let (payer, signer) = (parties.payer.signer(), &parties.stranger);
    let mut terms = parties.terms(1);
    terms.authorized_signer = signer.address();
    let request = OpenRequest::sign(payer, &parties.escrow, terms, 1_000, u64::MAX);
    request.verify(&parties.escrow).unwrap();
    let id = request.channel_id(&parties.escrow);
    assert_eq!(parties.channel(id).await, None);
    payee
        .open_channel_with_authorization(&request)
        .await
        .unwrap();
    let mut expected = Channel {
        id,
        payer: payer.address(),
        payee: parties.payee.address(),
        token: CONTRACTS.tnzo,
        authorized_signer: signer.address(),
        deposit: 1_000,
        settled: 0,
        close_requested_at: 0,
        finalized: false,
    };
    assert_eq!(parties.channel(id).await, Some(expected.clone()));
    assert_eq!(expected.signer(), signer.address());

    let salt = B256::repeat_byte(1);
    let more = TopUpRequest::sign(payer, &parties.escrow, id, 500, salt, u64::MAX);
    more.verify(&parties.escrow).unwrap();
    payee
        .top_up_channel_with_authorization(&more)
        .await
        .unwrap();
    let voucher = |amount| voucher(signer.signer(), &parties.escrow, id, amount);
    payee.settle_channel(&voucher(1_200)).await.unwrap();
    (expected.deposit, expected.settled) = (1_500, 1_200);
    assert_eq!(parties.channel(id).await, Some(expected.clone()));
    assert_eq!(
        parties.balances().await,
        [FUNDS - 1_500, FUNDS + 1_200, 300]
    );

    payee.close_channel(&voucher(1_201)).await.unwrap();
    (expected.settled, expected.finalized) = (1_201, true);
    assert_eq!(parties.channel(id).await, Some(expected));
    assert_eq!(parties.balances().await, [FUNDS - 1_201, FUNDS + 1_201, 0]);
    assert_eq!(parties.payer_nonce().await, 0, "it sent nothing");
}

#[tokio::test]
async fn a_payer_leaves_without_its_payee() {
    let parties = Parties::new().await;
    let (payer, payee) = (parties.by(&parties.payer), parties.by(&parties.payee));
    let rules = parties.ledger.channel_rules().await.unwrap();
    assert_eq!(rules.close_grace_seconds, GRACE_SECONDS);
    let id = parties.open(1, 1_000).await;
    let early = refusal(payer.withdraw_channel(id).await);
    assert_eq!(early, ChannelRefusal::CloseNotReady);

    // Topping up takes the wish back.
    payer.request_channel_close(id).await.unwrap();
    let channel = parties.channel(id).await.unwrap();
    assert_eq!(channel.close_requested_at, START);
    payer.top_up_channel(id, 10).await.unwrap();
    let channel = parties.channel(id).await.unwrap();
    assert_eq!((channel.deposit, channel.close_requested_at), (1_010, 0));

    payer.request_channel_close(id).await.unwrap();
    parties.wait(GRACE_SECONDS - 1).await;
    let early = refusal(payer.withdraw_channel(id).await);
    assert_eq!(early, ChannelRefusal::CloseNotReady);
    payee
        .settle_channel(&parties.voucher(id, 400))
        .await
        .unwrap();
    parties.wait(1).await;
    payer.withdraw_channel(id).await.unwrap();
    let channel = parties.channel(id).await.unwrap();
    assert_eq!((channel.settled, channel.finalized), (400, true));
    assert_eq!(parties.balances().await, [FUNDS - 400, FUNDS + 400, 0]);
}

#[tokio::test]
async fn exactly_the_deposit_is_allowed_and_nothing_that_cannot_be_drawn() {
    let parties = Parties::new().await;
    let payer = parties.by(&parties.payer);
    let id = parties.open(1, 1_000).await;
    assert_eq!(parties.payer_nonce().await, 2, "approve and open");
    assert_eq!(parties.allowance().await, U256::ZERO);

    // Refused before anything is sent or allowed.
    let none = payer.open_channel(&parties.terms(2), 0).await;
    assert_eq!(refusal(none), ChannelRefusal::ZeroDeposit);
    let again = payer.open_channel(&parties.terms(1), 5).await;
    assert_eq!(refusal(again), ChannelRefusal::AlreadyExists);
    let much = payer.open_channel(&parties.terms(2), FUNDS).await;
    assert_eq!(refusal(much), ChannelRefusal::InsufficientFunds);
    let much = payer.top_up_channel(id, FUNDS).await.unwrap_err();
    assert_eq!(
        much.to_string(),
        "the wallet has 99.999999999999999 TNZO, but 100 are needed"
    );
    assert_eq!(parties.payer_nonce().await, 2);
    assert_eq!(parties.allowance().await, U256::ZERO);

    // What is allowed already is used.
    let approve = TNZO::approveCall {
        spender: parties.escrow.address,
        value: U256::from(70),
    };
    let approved = parties.payer.call(CONTRACTS.tnzo, approve).await;
    approved.unwrap();
    parties.open(2, 60).await;
    assert_eq!(parties.payer_nonce().await, 4);
    assert_eq!(parties.allowance().await, U256::from(10));
    payer.top_up_channel(id, 11).await.unwrap();
    assert_eq!(parties.payer_nonce().await, 6);
    assert_eq!(parties.allowance().await, U256::ZERO);
}

#[tokio::test]
async fn deposits_of_one_wallet_at_once_do_not_take_each_others_allowance() {
    let parties = Parties::new().await;
    join_all((1..=6).map(|salt| parties.open(salt, 100 + u128::from(salt)))).await;
    assert_eq!(parties.balances().await, [FUNDS - 621, FUNDS, 621]);
    assert_eq!(parties.allowance().await, U256::ZERO);
}

#[tokio::test]
async fn authorizations_are_for_one_deposit_only() {
    let parties = Parties::new().await;
    let payee = parties.by(&parties.payee);
    let (escrow, payer) = (&parties.escrow, parties.payer.signer());
    let terms = parties.terms(1);
    let open = OpenRequest::sign(payer, escrow, terms, 1_000, u64::MAX);
    type Change = fn(&mut OpenRequest);
    let changes: [(Change, ChannelRefusal); 8] = [
        (
            |open| open.terms.payee = Address::repeat_byte(1),
            ChannelRefusal::NonceMismatch,
        ),
        (
            |open| open.terms.salt = B256::ZERO,
            ChannelRefusal::NonceMismatch,
        ),
        (
            |open| open.terms.authorized_signer = Address::repeat_byte(1),
            ChannelRefusal::NonceMismatch,
        ),
        (
            |open| open.authorization.from = Address::repeat_byte(1),
            ChannelRefusal::NonceMismatch,
        ),
        (
            |open| open.authorization.nonce = B256::ZERO,
            ChannelRefusal::NonceMismatch,
        ),
        (
            |open| open.authorization.value += 1,
            ChannelRefusal::InvalidSignature,
        ),
        (
            |open| open.authorization.valid_after += 1,
            ChannelRefusal::InvalidSignature,
        ),
        (
            |open| open.authorization.valid_before -= 1,
            ChannelRefusal::InvalidSignature,
        ),
    ];
    for (number, (change, expected)) in changes.into_iter().enumerate() {
        let mut changed = open.clone();
        change(&mut changed);
        assert_eq!(changed.verify(escrow), Err(expected), "{number}");
        let result = payee.open_channel_with_authorization(&changed).await;
        assert_eq!(refusal(result), expected, "{number}");
    }
    let expired = OpenRequest::sign(payer, escrow, terms, 1_000, START);
    let result = payee.open_channel_with_authorization(&expired).await;
    assert_eq!(refusal(result), ChannelRefusal::AuthorizationExpired);
    let large = OpenRequest::sign(payer, escrow, terms, u128::MAX, u64::MAX);
    let result = payee.open_channel_with_authorization(&large).await;
    assert_eq!(refusal(result), ChannelRefusal::InsufficientFunds);

    payee.open_channel_with_authorization(&open).await.unwrap();
    let result = payee.open_channel_with_authorization(&open).await;
    assert_eq!(refusal(result), ChannelRefusal::AlreadyExists);

    let id = open.channel_id(escrow);
    let salt = B256::repeat_byte(7);
    let more = TopUpRequest::sign(payer, escrow, id, 10, salt, u64::MAX);
    for change in [
        (|more| more.authorization.value += 1) as fn(&mut TopUpRequest),
        |more| more.salt = B256::ZERO,
        |more| more.authorization.from = Address::repeat_byte(1),
    ] {
        let mut changed = more.clone();
        change(&mut changed);
        let expected = ChannelRefusal::NonceMismatch;
        assert_eq!(changed.verify(escrow), Err(expected));
        let result = payee.top_up_channel_with_authorization(&changed).await;
        assert_eq!(refusal(result), expected);
    }
    payee
        .top_up_channel_with_authorization(&more)
        .await
        .unwrap();
    let result = payee.top_up_channel_with_authorization(&more).await;
    assert_eq!(refusal(result), ChannelRefusal::AuthorizationUsed);
    let channel = parties.channel(id).await.unwrap();
    assert_eq!(channel.deposit, 1_010);
}

#[tokio::test]
async fn each_row_of_a_batch_tells_what_became_of_it() {
    let parties = Parties::new().await;
    let payee = parties.by(&parties.payee);
    let [one, two, closed] = [
        parties.open(1, 1_000).await,
        parties.open(2, 1_000).await,
        parties.open(3, 1_000).await,
    ];
    let last = parties.voucher(closed, 0);
    payee.close_channel(&last).await.unwrap();
    let elsewhere = ChannelTerms {
        payee: parties.stranger.address(),
        ..parties.terms(4)
    };
    let opened = parties.by(&parties.payer).open_channel(&elsewhere, 1_000);
    opened.await.unwrap();
    let foreign = elsewhere.id(parties.payer.address(), &parties.escrow);
    let unknown = keccak256("unknown");
    let unsigned = Settlement {
        signature: Bytes::new(),
        ..parties.voucher(two, 300)
    };
    let before = parties.balances().await;
    let rows = [
        parties.voucher(one, 100),
        parties.voucher(one, 100),
        parties.voucher(one, 250),
        parties.voucher(two, 1_001),
        unsigned,
        parties.voucher(foreign, 10),
        parties.voucher(closed, 10),
        parties.voucher(unknown, 10),
        parties.voucher(two, 1_000),
    ];
    let batch = payee.settle_channels(&rows).await.unwrap();
    assert!(batch.receipt.status());
    let expected = [
        RowOutcome::Settled { amount: 100 },
        RowOutcome::Skipped(ChannelRefusal::AmountNotIncreasing),
        RowOutcome::Settled { amount: 150 },
        RowOutcome::Skipped(ChannelRefusal::AmountExceedsDeposit),
        RowOutcome::Skipped(ChannelRefusal::InvalidSignature),
        RowOutcome::Skipped(ChannelRefusal::NotPayee),
        RowOutcome::Skipped(ChannelRefusal::Finalized),
        RowOutcome::Skipped(ChannelRefusal::NotFound),
        RowOutcome::Settled { amount: 1_000 },
    ];
    assert_eq!(batch.rows, expected);
    let [payer, paid, held] = parties.balances().await;
    assert_eq!(
        [payer, paid, held],
        [before[0], before[1] + 1_250, before[2] - 1_250]
    );
}
