//! The payee dies at any step, or loses its books.

use tenzro_payments::payee::{Accepted, Charge, Outcome, Refused};
use tenzro_payments::price::Tokens;
use tenzro_payments::settlement::Policy;

use crate::scene::{INPUT, OUTPUT, Scene, WEALTH, WINDOW, order, payee_address, purse};

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

#[tokio::test]
async fn m12_a_crash_costs_the_payee_less_than_a_quarter_of_a_window_and_the_payer_nothing() {
    let quarter = u128::from(WINDOW / 4) * OUTPUT;
    for delivered in 0..=WINDOW {
        let mut scene = Scene::new();
        let signed = 20 * INPUT + u128::from(WINDOW) * OUTPUT;
        let purse = scene.open(DEPOSIT, signed).await;
        let mut meter = purse.start(order(20, 64)).expect("paid for");
        for token in 0..delivered {
            let input = if token == 0 { 20 } else { 0 };
            let charge = meter.charge(Tokens { input, output: 1 }).await;
            assert_eq!(charge, Ok(Charge::Paid));
        }
        let spent = purse.receipt().spent.0;
        // Nothing is done any more for what ran.
        std::mem::forget(meter);
        drop(purse);
        scene.restart();
        let now = spent_by(scene.voucher(signed).await);
        assert!(now <= spent && spent < now + quarter, "{now} of {spent}");
        // At the latest with the first token the prompt is paid for.
        assert_eq!(now > 0, delivered > 0);
    }
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
    let finish = "stop".to_owned();
    meter
        .finish(Outcome {
            cached_tokens: 0,
            finish,
        })
        .await;
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
