//! What a deposit costs the payee, and which ones count.

use std::sync::Arc;

use alloy::primitives::B256;
use tenzro_payments::escrow::EscrowChannel;
use tenzro_payments::payee::Purse;
use tenzro_payments::voucher::{Domain, Voucher};
use tenzro_payments::wire::{OpenDeposit, Payload};
use tokio::sync::Notify;

use crate::dishonest::problem;
use crate::ledger::{CHAIN_ID, ESCROW};
use crate::scene::{BODY, INPUT, OUTPUT, Payer, Scene, order, payee_address, purse, signer};

const DEPOSIT: u128 = 100_000;
/// What 500 tokens in both directions cost.
const MINIMUM: u128 = 500 * (INPUT + OUTPUT);

/// A channel of the scene's payer that the payer opened itself.
fn on_ledger(scene: &Scene, deposit: u128) {
    let payer = scene.payer.address();
    let channel = EscrowChannel {
        payer,
        payee: payee_address(),
        signer: payer,
        deposit,
        settled: 0,
        is_closing: false,
        is_final: false,
    };
    let id = scene.payer.channel();
    scene.chain.state().channels.insert(id, channel);
}

#[tokio::test]
async fn m17_gas_is_only_for_who_can_pay_with_the_channel() {
    let scene = Scene::new();
    let forged = |amount| {
        let domain = Domain::new(CHAIN_ID, ESCROW);
        let forged: Voucher = domain.sign_voucher(&signer(0x44), scene.payer.channel(), amount);
        let mut payload = scene.payer.open(DEPOSIT, amount);
        if let Payload::Open(open) = &mut payload
            && let OpenDeposit::Authorization {
                voucher_signature, ..
            } = &mut open.deposit
        {
            *voucher_signature = forged.signature;
        }
        payload
    };
    let refused = scene.pay(&forged(500)).await.expect_err("forged");
    assert_eq!(problem(&refused), (402, "signer-mismatch"));
    let bound = scene.payer.bind(&scene.challenge_id(), b"another", 1);
    let other = scene.payer.open_with(DEPOSIT, 500, Some(bound));
    let refused = scene.pay(&other).await.expect_err("another request's");
    assert_eq!(problem(&refused), (402, "verification-failed"));
    let beyond = scene.payer.open(DEPOSIT, DEPOSIT + 1);
    let refused = scene.pay(&beyond).await.expect_err("above the deposit");
    assert_eq!(problem(&refused), (402, "amount-exceeds-deposit"));
    assert_eq!(scene.chain.state().sent, 0);
    let bound = scene.payer.bind(&scene.challenge_id(), BODY, 1);
    drop(purse(
        scene
            .pay(&scene.payer.open_with(DEPOSIT, 500, Some(bound)))
            .await,
    ));
}

#[tokio::test]
async fn m17_a_payer_has_one_deposit_under_way_and_others_theirs() {
    let mut scene = Scene::new();
    let miner = Arc::new(Notify::new());
    scene.chain.state().miner = Some(Arc::clone(&miner));
    let first = scene.payer.open(DEPOSIT, 0);
    let twice = scene.payer.open(DEPOSIT, 0);
    scene.payer.salt = B256::repeat_byte(0x77);
    let second = scene.payer.open(DEPOSIT, 0);
    let other = Payer::new(0x33);
    let balance = DEPOSIT;
    scene
        .chain
        .state()
        .balances
        .insert(other.address(), balance);
    let other = other.open(DEPOSIT, 0);
    let meanwhile = async {
        let refused = scene.pay(&second).await.expect_err("one at a time");
        assert_eq!((problem(&refused).0, refused.retry_after), (429, Some(1)));
        miner.notify_one();
        miner.notify_one();
        scene.chain.state().miner = None;
        miner.notify_waiters();
    };
    let payments = futures::future::join3(scene.pay(&first), scene.pay(&twice), scene.pay(&other));
    let ((first, twice, other), ()) = tokio::join!(payments, meanwhile);
    for opened in [first, twice, other] {
        drop(purse(opened));
    }
    assert_eq!(scene.chain.state().sent, 2, "the same one is sent once");
    drop(purse(scene.pay(&second).await));
}

#[tokio::test]
async fn m17_a_channel_needs_a_deposit_however_it_was_opened() {
    let scene = Scene::new();
    for (deposit, amount) in [(0, 0), (1, 1), (MINIMUM - 1, 0)] {
        on_ledger(&scene, deposit);
        let expected = match deposit {
            // No channel is opened with nothing: it is not confirmed.
            0 => (409, "about:blank"),
            _ => (402, "payment-insufficient"),
        };
        for payload in [scene.payer.opened(amount), scene.payer.voucher(amount)] {
            let refused = scene.pay(&payload).await.expect_err("dust");
            assert_eq!(problem(&refused), expected, "{deposit}");
        }
    }
    on_ledger(&scene, MINIMUM);
    let opened: Purse = purse(scene.pay(&scene.payer.opened(MINIMUM)).await);
    drop(opened.start(order(1, 1)).expect("paid for"));
}

#[tokio::test]
async fn m17_a_flood_of_unknown_channels_keeps_nobody_from_paying_in() {
    let scene = Scene::new();
    let unknown = |number: u8| {
        let mut payload = scene.payer.voucher(0);
        if let Payload::Voucher(update) = &mut payload {
            update.voucher.channel_id = B256::repeat_byte(number);
        }
        payload
    };
    let ids = (0..=64).map(B256::repeat_byte);
    scene.chain.state().unanswered.extend(ids);
    let payloads: Vec<Payload> = (0..=64).map(unknown).collect();
    let mut flood: Vec<_> = payloads
        .iter()
        .map(|one| Box::pin(scene.pay(one)))
        .collect();
    let last = flood.pop().expect("65");
    for one in &mut flood {
        assert!(futures::poll!(one.as_mut()).is_pending(), "64 at a time");
    }
    let refused = last.await.expect_err("too many");
    assert_eq!((problem(&refused).0, refused.retry_after), (429, Some(1)));
    drop(scene.open(DEPOSIT, 0).await);
    // So are the ledger's news.
    scene.chain.request_close(scene.payer.channel());
    scene.payee.take_news().await.expect("read");
    drop(flood);
    scene.chain.state().unanswered.clear();
    let refused = scene.pay(&payloads[64]).await.expect_err("unknown");
    assert_eq!(problem(&refused), (410, "channel-not-found"));
}

#[tokio::test]
async fn m17_a_channel_pays_for_16_answers_at_the_same_time() {
    let scene = Scene::new();
    let opened = scene.open(DEPOSIT, DEPOSIT).await;
    let mut running = Vec::new();
    for _ in 0..16 {
        running.push(opened.start(order(1, 1)).expect("paid for"));
    }
    let refused = opened.begin(order(1, 1)).expect_err("too many");
    assert_eq!(
        (refused.problem.status, refused.retry_after),
        (429, Some(1))
    );
    running.pop();
    drop(opened.begin(order(1, 1)).expect("one has ended"));
}
