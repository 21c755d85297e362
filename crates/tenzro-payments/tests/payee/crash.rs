//! The payee dies at any step, or loses its books.

use std::pin::pin;

use futures::{FutureExt, poll};
use rusqlite::Connection;
use tenzro_payments::books::BooksError;
use tenzro_payments::payee::{Accepted, Charge, Refused};
use tenzro_payments::price::Tokens;
use tenzro_payments::settlement::Policy;

use crate::scene::{
    INPUT, OUTPUT, Scene, WEALTH, WINDOW, finish, open_payee, order, payee_address, purse,
};

const DEPOSIT: u128 = 100_000;

#[tokio::test]
async fn m12_after_a_crash_at_any_token_nothing_is_lost_or_charged_twice() {
    let mut scene = Scene::new();
    let mut signed = 20 * INPUT + u128::from(WINDOW) * OUTPUT;
    let mut spent = 0;
    let mut purse = scene.open(DEPOSIT, signed).await;
    for delivered in 1u32..40 {
        let mut meter = purse.start(order(20, 64)).expect("paid for");
        for token in 0..delivered.min(WINDOW) {
            let input = if token == 0 { 20 } else { 0 };
            let charge = meter.charge(Tokens { input, output: 1 }).await;
            assert_eq!(charge, Ok(Charge::Paid));
        }
        spent += 20 * INPUT + u128::from(delivered.min(WINDOW)) * OUTPUT;
        drop((meter, purse));
        scene.restart();
        let needed = spent + 20 * INPUT + u128::from(WINDOW) * OUTPUT;
        signed = signed.max(needed);
        purse = crate::scene::purse(scene.voucher(signed).await);
        let now = purse.receipt();
        assert_eq!((now.spent.0, now.accepted_cumulative.0), (spent, signed));
    }
    drop(purse);
    scene.restart();
    let closed = scene.pay(&scene.payer.close(spent)).await;
    closed.expect("closed");
    assert_eq!(scene.chain.balance(payee_address()), spent);
    assert_eq!(scene.chain.total(), WEALTH);
}

/// Tokens after which what was charged is written down again.
const STEP: u32 = WINDOW / 4;

/// Wei that may not be on the disk yet when so many tokens of an answer were delivered: those since the write
/// before the last one, at first with their prompt.
fn lag(delivered: u32, prompt: u32) -> u128 {
    match delivered <= STEP {
        true => u128::from(prompt) * INPUT + u128::from(delivered) * OUTPUT,
        false => u128::from(2 * STEP - 1) * OUTPUT,
    }
}

#[tokio::test]
async fn m12_a_crash_costs_the_payee_less_than_half_a_window_and_the_payer_nothing() {
    let scene = Scene::new();
    let signed = 20 * INPUT + u128::from(2 * WINDOW) * OUTPUT;
    let purse = scene.open(DEPOSIT, signed).await;
    let mut meter = purse.start(order(20, 2 * WINDOW)).expect("paid for");
    for delivered in 1..=2 * WINDOW {
        let input = if delivered == 1 { 20 } else { 0 };
        let charge = meter.charge(Tokens { input, output: 1 }).await;
        assert_eq!(charge, Ok(Charge::Paid));
        let spent = purse.receipt().spent.0;
        let copy = scene.copy();
        let now = spent_by(copy.pay_for(&copy.payer.voucher(0), b"").await);
        let least = spent - lag(delivered, 20);
        assert!((least..=spent).contains(&now), "{now} of {spent}");
    }
}

#[tokio::test]
async fn tokens_do_not_wait_for_the_disk_until_the_next_write_is_due() {
    let scene = Scene::new();
    let signed = 20 * INPUT + u128::from(2 * WINDOW) * OUTPUT;
    let purse = scene.open(DEPOSIT, signed).await;
    let mut meter = purse.start(order(20, 2 * WINDOW)).expect("paid for");
    let disk = Connection::open(&scene.books).expect("a file");
    disk.execute_batch("BEGIN IMMEDIATE").expect("busy");
    for token in 0..STEP {
        let input = if token == 0 { 20 } else { 0 };
        let charge = meter.charge(Tokens { input, output: 1 });
        assert_eq!(charge.now_or_never(), Some(Ok(Charge::Paid)));
    }
    let spent = purse.receipt().spent;
    // One token more, and then more than a step at once.
    for output in [1, STEP + 1] {
        let mut charge = pin!(meter.charge(Tokens::output(output)));
        assert!(poll!(charge.as_mut()).is_pending());
        disk.execute_batch("COMMIT").expect("free");
        assert_eq!(charge.await, Ok(Charge::Paid));
        disk.execute_batch("BEGIN IMMEDIATE").expect("busy");
    }
    let delivered = u128::from(1 + STEP + 1) * OUTPUT;
    assert_eq!(purse.receipt().spent.0, spent.0 + delivered);
    assert_eq!(on_disk(&disk), spent.0 + delivered);
}

#[tokio::test]
async fn nothing_is_charged_after_a_write_that_failed_and_the_end_is_written_all_the_same() {
    let scene = Scene::new();
    let signed = 20 * INPUT + u128::from(2 * WINDOW) * OUTPUT;
    let purse = scene.open(DEPOSIT, signed).await;
    let mut meter = purse.start(order(20, 2 * WINDOW)).expect("paid for");
    let first = Tokens {
        input: 20,
        output: 1,
    };
    assert_eq!(meter.charge(first).await, Ok(Charge::Paid));
    // What is written later is there later.
    drop(crate::scene::purse(scene.voucher(signed + 1).await));
    let disk = Connection::open(&scene.books).expect("a file");
    let rename = |from, to| {
        let sql = format!("ALTER TABLE {from} RENAME TO {to}");
        disk.execute_batch(&sql).expect("renamed");
    };
    rename("request", "elsewhere");
    for _ in 0..2 * STEP - 1 {
        assert_eq!(meter.charge(Tokens::output(1)).await, Ok(Charge::Paid));
    }
    let spent = purse.receipt().spent;
    let failed = meter.charge(Tokens::output(1)).await;
    assert!(matches!(failed, Err(BooksError::Io(_))), "{failed:?}");
    assert_eq!(purse.receipt().spent, spent);
    rename("elsewhere", "request");
    assert!(on_disk(&disk) < spent.0);
    finish(meter, "error").await;
    assert_eq!(on_disk(&disk), spent.0);
}

/// Wei that the only channel of a file was charged.
fn on_disk(disk: &Connection) -> u128 {
    let spent = disk.query_row("SELECT spent FROM channel", [], |row| row.get(0));
    u128::from_be_bytes(spent.expect("a channel"))
}

/// What a channel's books say was spent.
fn spent_by(accepted: Result<Accepted, Refused>) -> u128 {
    purse(accepted).receipt().spent.0
}

#[tokio::test]
async fn m07_a_payer_that_leaves_while_the_payee_is_down_is_settled_at_its_start() {
    let mut scene = Scene::new();
    let purse = scene.open(DEPOSIT, 3_000).await;
    let mut meter = purse.start(order(10, 64)).expect("paid for");
    let delivered = Tokens {
        input: 10,
        output: 30,
    };
    assert_eq!(meter.charge(delivered).await, Ok(Charge::Paid));
    drop((meter, purse));
    scene.chain.request_close(scene.payer.channel());
    scene.restart();
    scene.payee.take_news().await.expect("read");
    let round = scene
        .payee
        .settle_due(&Policy::default())
        .await
        .expect("settled");
    assert_eq!(round.amount, 3_000);
    scene.chain.withdraw(scene.payer.channel());
    assert_eq!(scene.chain.balance(scene.payer.address()), WEALTH - 3_000);
}

#[tokio::test]
async fn m13_a_payer_that_lost_its_books_gets_its_own_last_voucher_back() {
    let scene = Scene::new();
    let purse_before = scene.open(DEPOSIT, 2_000).await;
    let mut meter = purse_before.start(order(10, 190)).expect("paid for");
    let delivered = Tokens {
        input: 10,
        output: 190,
    };
    assert_eq!(meter.charge(delivered).await, Ok(Charge::Paid));
    finish(meter, "stop").await;
    // It knows the channel from the ledger, and nothing else.
    let purse = purse(scene.voucher(0).await);
    let refused = purse.begin(order(10, 300)).expect_err("not covered");
    let channel = refused.problem.channel.expect("its state");
    assert_eq!(channel.voucher, Some(scene.payer.sign(2_000)));
    assert_eq!(channel.spent.0, 10 * INPUT + 190 * OUTPUT);
}

#[tokio::test]
async fn m12_a_payee_that_lost_its_books_goes_on_from_what_was_settled() {
    let scene = Scene::new();
    let purse = scene.open(DEPOSIT, 1_030).await;
    let mut meter = purse.start(order(10, 100)).expect("paid for");
    let delivered = Tokens {
        input: 10,
        output: 100,
    };
    assert_eq!(meter.charge(delivered).await, Ok(Charge::Paid));
    drop((meter, purse));
    assert_eq!(
        scene.payee.settle_all().await.expect("settled").amount,
        1_030
    );
    // Another machine with the same wallet and the same ledger.
    let other = Scene::new();
    *other.chain.state() = std::mem::take(&mut *scene.chain.state());
    let purse = crate::scene::purse(other.voucher(2_000).await);
    assert_eq!(purse.receipt().spent.0, 1_030);
    let refused = purse.begin(order(10, 1)).map(drop);
    refused.expect("970 wei are left");
}

/// What was answered before a crash holds on a copy of the disk and the ledger of that moment, and both get
/// what is theirs. `lag` wei of a running stream need not be written down yet, which is the provider's loss.
async fn assert_survives(scene: &Scene, spent: u128, signed: u128, lag: u128) {
    let copy = scene.copy();
    let purse = purse(copy.pay_for(&copy.payer.voucher(0), b"").await);
    let receipt = purse.receipt();
    assert_eq!(receipt.accepted_cumulative.0, signed);
    let (least, known) = (spent - lag, receipt.spent.0);
    assert!((least..=spent).contains(&known), "{known} of {spent}");
    copy.chain.request_close(copy.payer.channel());
    copy.payee.take_news().await.expect("read");
    let settled = copy.payee.settle_due(&Policy::default()).await;
    settled.expect("settled");
    copy.chain.withdraw(copy.payer.channel());
    let earned = copy.chain.balance(payee_address());
    assert!((least..=signed).contains(&earned), "{earned} of {spent}");
    assert_eq!(copy.chain.total(), WEALTH);
}

#[tokio::test]
async fn m12_a_crash_after_any_write_loses_nothing_that_was_answered() {
    let scene = Scene::new();
    let (mut spent, mut signed) = (0, 0);
    let opened = scene.open(DEPOSIT, 0).await;
    assert_survives(&scene, spent, signed, 0).await;
    for round in 0..3u128 {
        signed = spent + 20 * INPUT + u128::from(WINDOW) * OUTPUT;
        drop(crate::scene::purse(scene.voucher(signed).await));
        assert_survives(&scene, spent, signed, 0).await;
        let mut meter = opened.start(order(20, 40)).expect("paid for");
        for token in 0..40 {
            let input = if token == 0 { 20 } else { 0 };
            let charge = meter.charge(Tokens { input, output: 1 }).await;
            assert_eq!(charge, Ok(Charge::Paid));
            spent += u128::from(input) * INPUT + OUTPUT;
            let lag = lag(token + 1, 20);
            assert_survives(&scene, spent, signed, lag).await;
            if let Some(need) = meter.ask() {
                signed = need.required_cumulative.0;
                drop(crate::scene::purse(scene.voucher(signed).await));
                assert_survives(&scene, spent, signed, lag).await;
            }
        }
        finish(meter, "length").await;
        assert_survives(&scene, spent, signed, 0).await;
        scene.payee.settle_all().await.expect("settled");
        assert_survives(&scene, spent, signed, 0).await;
        let nonce = u64::try_from(round).expect("small") + 1;
        let topped = scene.pay(&scene.payer.top_up(DEPOSIT, nonce)).await;
        topped.expect("topped up");
        assert_survives(&scene, spent, signed, 0).await;
    }
    scene.pay(&scene.payer.close(spent)).await.expect("closed");
    let copy = scene.copy();
    let refused = copy.voucher(signed + 1).await.expect_err("closed");
    assert_eq!(refused.problem.status, 410);
    assert_eq!(copy.chain.balance(payee_address()), spent);
}

#[tokio::test]
async fn m12_model_servers_that_start_in_another_order_find_their_own_channels() {
    let scene = Scene::new();
    let opened = scene.open(DEPOSIT, 3_000).await;
    let spent = scene.deliver(&opened, 30).await;
    drop(opened);
    let Scene {
        chain,
        books,
        pricing,
        payee,
        payer,
        ..
    } = &scene;
    let _keeps_the_file = payee;
    // The first one again is another model's. It is told of all channels that there are.
    let other = open_payee(chain, books, pricing, ("other", &[]));
    chain.state().news.push(payer.channel());
    other.take_news().await.expect("read");
    assert_eq!(other.settle_all().await.expect("none").channels, 0);
    let own = open_payee(chain, books, pricing, ("server", &["other"]));
    assert_eq!(
        own.settle_all().await.expect("none").channels,
        0,
        "paid ahead"
    );
    // A payer that leaves is settled, whoever runs.
    chain.request_close(payer.channel());
    other.take_news().await.expect("read");
    let settled = other.settle_due(&Policy::default()).await;
    let settled = settled.expect("settled").amount;
    assert!((spent..=3_000).contains(&settled));
}
