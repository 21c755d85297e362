//! How a channel ends, who may end it, and what the payee takes.

use std::sync::Arc;

use alloy::primitives::B256;
use tenzro_payments::escrow::EscrowError;
use tenzro_payments::payee::Accepted;
use tenzro_payments::settlement::Policy;
use tokio::sync::Notify;

use crate::dishonest::problem;
use crate::ledger::reverted;
use crate::scene::{BODY, INPUT, OUTPUT, Scene, WEALTH, order, payee_address, purse};

const DEPOSIT: u128 = 100_000;

/// Wei for an answer of so many tokens to [`Scene::deliver`].
fn price(output: u32) -> u128 {
    10 * INPUT + u128::from(output) * OUTPUT
}

#[tokio::test]
async fn m34_a_closing_under_way_is_not_undone_by_what_the_ledger_says_meanwhile() {
    let scene = Scene::new();
    let opened = scene.open(DEPOSIT, 1_000).await;
    let spent = scene.deliver(&opened, 20).await;
    let miner = Arc::new(Notify::new());
    scene.chain.state().miner = Some(Arc::clone(&miner));
    let last = scene.payer.close(spent);
    let meanwhile = async {
        for _ in 0..3 {
            scene.chain.state().news.push(scene.payer.channel());
            scene.payee.take_news().await.expect("read");
            scene.payee.settle_all().await.expect("nothing");
            scene.payee.finish_closings().await;
            assert!(opened.start(order(1, 1)).is_err(), "it is being closed");
            let refused = scene.voucher(2_000).await.expect_err("closing");
            assert_eq!(problem(&refused), (410, "channel-finalized"));
            let refused = scene.pay(&scene.payer.top_up(9_000, 1)).await;
            let refused = refused.expect_err("closing");
            assert_eq!(problem(&refused), (410, "channel-finalized"));
            assert_eq!(scene.chain.state().sent, 1, "the opening");
        }
        miner.notify_one();
    };
    let (closed, ()) = tokio::join!(scene.pay(&last), meanwhile);
    let Accepted::Done(receipt) = closed.expect("closed") else {
        panic!("no receipt")
    };
    assert!(receipt.tx_hash.is_some());
    assert_eq!(scene.chain.balance(payee_address()), spent);
    assert_eq!(scene.chain.total(), WEALTH);
}

#[tokio::test]
async fn m34_a_closing_that_nobody_answered_is_finished_later() {
    let scene = Scene::new();
    let opened = scene.open(DEPOSIT, 1_000).await;
    let spent = scene.deliver(&opened, 20).await;
    scene.chain.state().fail = Some(EscrowError::Unavailable("not mined yet".to_owned()));
    let refused = scene.pay(&scene.payer.close(spent)).await;
    assert_eq!(refused.expect_err("nobody knows").problem.status, 503);
    scene.chain.state().news.push(scene.payer.channel());
    scene.payee.take_news().await.expect("read");
    assert!(opened.start(order(1, 1)).is_err(), "it may be closed soon");
    assert_eq!(scene.payee.settle_all().await.expect("none").channels, 0);
    scene.payee.finish_closings().await;
    assert_eq!(scene.chain.balance(payee_address()), spent);
    assert_eq!(scene.chain.balance(scene.payer.address()), WEALTH - spent);
    scene.payee.finish_closings().await;
    assert_eq!(scene.chain.state().sent, 2, "the opening and the closing");
}

#[tokio::test]
async fn m34_a_channel_whose_closing_failed_is_served_again_once_the_ledger_says_so() {
    let scene = Scene::new();
    let opened = scene.open(DEPOSIT, 1_000).await;
    let spent = scene.deliver(&opened, 20).await;
    {
        let mut state = scene.chain.state();
        state.is_unreadable = true;
        state.fail = Some(reverted("out of gas", false));
    }
    let refused = scene.pay(&scene.payer.close(spent)).await;
    assert_eq!(
        problem(&refused.expect_err("failed")),
        (409, "transaction-reverted")
    );
    assert!(opened.start(order(1, 1)).is_err(), "nobody knows");
    {
        let mut state = scene.chain.state();
        state.is_unreadable = false;
        state.fail = Some(reverted("out of gas", false));
    }
    scene.payee.finish_closings().await;
    drop(opened.start(order(1, 1)).expect("it is open"));
}

#[tokio::test]
async fn m07_news_that_cannot_be_taken_in_are_not_lost() {
    let scene = Scene::new();
    let opened = scene.open(DEPOSIT, 1_000).await;
    scene.deliver(&opened, 20).await;
    scene.chain.request_close(scene.payer.channel());
    // Another payee's, or one that nobody knows: it keeps nobody waiting.
    scene.chain.state().news.push(B256::repeat_byte(9));
    scene.chain.state().is_unreadable = true;
    scene.payee.take_news().await.expect_err("down");
    drop(opened.start(order(1, 1)).expect("nothing is known yet"));
    scene.chain.state().is_unreadable = false;
    scene.payee.take_news().await.expect("up again");
    assert!(opened.start(order(1, 1)).is_err());
    let settled = scene.payee.settle_due(&Policy::default()).await;
    assert_eq!(settled.expect("settled").amount, 1_000);
}

#[tokio::test]
async fn m05_who_reads_a_settled_voucher_on_the_chain_can_neither_close_nor_spend_with_it() {
    let scene = Scene::new();
    let first = price(20);
    let opened = scene.open(DEPOSIT, first).await;
    scene.deliver(&opened, 20).await;
    let settled = scene.payee.settle_all().await.expect("settled");
    assert_eq!(settled.amount, first);
    // More is bought, and more signed than that.
    let opened = purse(scene.voucher(5_000).await);
    let spent = scene.deliver(&opened, 30).await;
    for stolen in [scene.payer.close(first), scene.payer.voucher(first)] {
        let refused = scene.pay(&stolen).await.expect_err("public");
        assert_eq!(problem(&refused), (402, "verification-failed"));
        assert_eq!(refused.problem.channel, None, "m13");
    }
    // Without a request it is acknowledged, and nothing else.
    let told = scene.pay_for(&scene.payer.voucher(first), b"").await;
    drop(purse(told));
    scene.chain.request_close(scene.payer.channel());
    scene.payee.take_news().await.expect("read");
    let refused = scene.voucher(first).await.expect_err("public");
    assert_eq!(refused.problem.channel, None, "m13");
    // Its payer is served and closes as before.
    scene.pay(&scene.payer.close(spent)).await.expect("closed");
    assert_eq!(scene.chain.balance(payee_address()), spent);
}

#[tokio::test]
async fn m24_a_channel_that_binds_requests_is_closed_by_a_bound_request_only() {
    let scene = Scene::new();
    let id = scene.challenge_id();
    let bind = |body: &[u8], nonce| Some(scene.payer.bind(&id, body, nonce));
    let opened = scene.payer.open_with(DEPOSIT, 1_000, bind(BODY, 1));
    let opened = purse(scene.pay(&opened).await);
    let spent = scene.deliver(&opened, 20).await;
    let unbound = scene.payer.close(spent);
    let other = scene.payer.close_with(spent, bind(b"another", 2));
    let used = scene.payer.close_with(spent, bind(BODY, 1));
    for (stolen, body) in [
        (&unbound, BODY),
        (&unbound, b""),
        (&other, BODY),
        (&used, BODY),
    ] {
        let refused = scene.pay_for(stolen, body).await.expect_err("stolen");
        assert_eq!(problem(&refused), (402, "verification-failed"));
    }
    let own = scene.payer.close_with(spent, bind(b"", 3));
    scene.pay_for(&own, b"").await.expect("closed");
    assert_eq!(scene.chain.balance(payee_address()), spent);
}

#[tokio::test]
async fn m01_a_payer_that_closes_or_leaves_pays_for_what_it_received() {
    for leaves in [false, true] {
        let scene = Scene::new();
        scene.open(DEPOSIT, 200).await;
        for amount in (400..=5_000).step_by(200) {
            scene
                .pay_for(&scene.payer.voucher(amount), b"")
                .await
                .expect("accepted");
        }
        let opened = purse(scene.pay_for(&scene.payer.voucher(0), b"").await);
        let spent = scene.deliver(&opened, 20).await;
        let lowest = spent.next_multiple_of(200);
        if leaves {
            scene.chain.request_close(scene.payer.channel());
            scene.payee.take_news().await.expect("read");
            let settled = scene.payee.settle_due(&Policy::default()).await;
            assert_eq!(settled.expect("settled").amount, lowest);
        } else {
            // It signs away all that it ever did.
            scene.pay(&scene.payer.close(5_000)).await.expect("closed");
        }
        assert_eq!(scene.chain.balance(payee_address()), lowest);
    }
}

#[tokio::test]
async fn what_is_not_earned_in_full_is_settled_once_it_is_too_much() {
    let scene = Scene::new();
    let opened = scene.open(DEPOSIT, 100).await;
    scene
        .pay_for(&scene.payer.voucher(10_000), b"")
        .await
        .expect("accepted");
    let spent = scene.deliver(&opened, 50).await;
    let policy = |amount| Policy {
        amount,
        age: std::time::Duration::MAX,
    };
    let settled = scene.payee.settle_due(&policy(spent + 1)).await;
    assert_eq!(settled.expect("none").amount, 0);
    // Of what is due nothing but the first voucher is earned in full; beyond it waits less than the policy's.
    let settled = scene.payee.settle_due(&policy(spent)).await;
    assert_eq!(settled.expect("settled").amount, 100);
    let spent = spent.max(scene.deliver(&opened, 50).await);
    let settled = scene.payee.settle_due(&policy(spent - 100)).await;
    assert_eq!(settled.expect("settled").amount, 9_900);
}

#[tokio::test]
async fn m17_closing_what_bought_nothing_costs_the_payee_no_gas() {
    let scene = Scene::new();
    drop(scene.open(DEPOSIT, 1_000).await);
    for amount in [0, 1_000] {
        let refused = scene.pay(&scene.payer.close(amount)).await;
        let refused = refused.expect_err("unused");
        assert_eq!(problem(&refused), (409, "about:blank"));
        assert!(refused.problem.detail.contains("channel close --force"));
    }
    assert_eq!(scene.chain.state().sent, 1, "the opening");
    let opened = purse(scene.voucher(1_000).await);
    let spent = scene.deliver(&opened, 1).await;
    scene.pay(&scene.payer.close(spent)).await.expect("closed");
}
