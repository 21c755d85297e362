//! An honest payer, to the wei.

use alloy::primitives::B256;
use mpp::protocol::core::parse_www_authenticate;
use tenzro_payments::payee::{Accepted, Charge, Meter, Outcome, Shortage};
use tenzro_payments::price::Tokens;
use tenzro_payments::settlement::Policy;
use tenzro_payments::voucher::{Domain, Usage};
use tenzro_payments::wire::SessionRequest;
use tenzro_protocol::amount::Wei;

use crate::ledger::{CHAIN_ID, ESCROW, TOKEN};
use crate::scene::{INPUT, OUTPUT, Scene, WEALTH, WINDOW, order, payee_address, purse};

const DEPOSIT: u128 = 100_000;

fn done(finish: &str) -> Outcome {
    Outcome {
        cached_tokens: 4,
        finish: finish.to_owned(),
    }
}

#[tokio::test]
async fn a_challenge_says_what_a_payer_has_to_know() {
    let scene = Scene::new();
    let refused = scene.payee.challenge();
    assert_eq!(refused.problem.status, 402);
    assert_eq!(
        refused.problem.kind,
        "https://paymentauth.org/problems/payment-required"
    );
    let header = refused.challenge.expect("a challenge");
    let challenge = parse_www_authenticate(&header).expect("read by mpp");
    assert_eq!(
        (challenge.method.as_str(), challenge.intent.as_str()),
        ("evm", "session")
    );
    assert!(!challenge.is_expired());
    let request: SessionRequest = challenge.request.decode().expect("ours");
    assert_eq!(request.amount, Wei(OUTPUT));
    assert_eq!(
        (request.currency, request.recipient),
        (TOKEN, payee_address())
    );
    assert_eq!(request.method_details.chain_id, CHAIN_ID);
    let again = scene.payee.challenge().challenge.expect("a challenge");
    assert_eq!(header, again, "made once for many");
    scene.pricing.send_replace(None);
    let unpriced = scene.payee.challenge();
    assert_eq!((unpriced.problem.status, unpriced.challenge), (503, None));
}

#[tokio::test]
async fn a_payer_that_is_slow_is_asked_twice_a_window_and_not_for_every_token() {
    let scene = Scene::new();
    let first = 20 * INPUT + u128::from(WINDOW) * OUTPUT;
    let purse = scene.open(DEPOSIT, first).await;
    let mut meter = purse.start(order(20, 200)).expect("paid for");
    let mut asked: Vec<(u32, u128)> = Vec::new();
    for delivered in 1..=2 * WINDOW {
        if delivered == WINDOW + 1 {
            // The answer to the first request comes when all that was paid for is out, the other one later.
            assert_eq!(meter.charge(Tokens::output(1)).await, Ok(Charge::Short));
            scene.voucher(asked[0].1).await.expect("accepted");
            assert_eq!(meter.shortage().await, Shortage::Over);
        }
        if delivered == WINDOW + 2 {
            scene.voucher(asked[1].1).await.expect("accepted");
        }
        let input = if delivered == 1 { 20 } else { 0 };
        let charge = meter.charge(Tokens { input, output: 1 }).await;
        assert_eq!(charge, Ok(Charge::Paid), "token {delivered}");
        if let Some(need) = meter.ask() {
            asked.push((delivered, need.required_cumulative.0));
        }
    }
    let half = WINDOW / 2;
    let steps = [half, WINDOW, WINDOW + half, 2 * WINDOW];
    let expected = steps.map(|at| (at, first + u128::from(at) * OUTPUT));
    assert_eq!(asked, expected);
}

#[tokio::test]
async fn a_stream_is_paid_window_by_window() {
    let scene = Scene::new();
    let first = 20 * INPUT + u128::from(WINDOW) * OUTPUT;
    let purse = scene.open(DEPOSIT, first).await;
    let order = order(20, 100);
    let budget = order.budget.clone();
    let mut meter = purse.start(order).expect("paid for");
    assert_eq!(budget.left(), u64::from(WINDOW));
    let mut signed = first;
    for delivered in 1u32..=100 {
        let input = if delivered == 1 { 20 } else { 0 };
        let charge = meter.charge(Tokens { input, output: 1 }).await;
        assert_eq!(charge, Ok(Charge::Paid), "token {delivered}");
        let spent = purse.receipt().spent.0;
        assert_eq!(spent, 20 * INPUT + u128::from(delivered) * OUTPUT);
        // m08: what is signed is never more than a window ahead.
        assert!(signed - spent <= u128::from(WINDOW) * OUTPUT);
        if let Some(need) = meter.ask() {
            assert_eq!(need.accepted_cumulative, Wei(signed));
            assert_eq!(need.spent, Some(Wei(spent)));
            signed = need.required_cumulative.0;
            assert_eq!(meter.ask(), None, "asked once");
            assert!(signed - spent <= u128::from(WINDOW) * OUTPUT);
            scene.voucher(signed).await.expect("accepted");
            assert_eq!(meter.shortage().await, Shortage::Over);
        }
    }
    let receipt = meter.finish(done("stop")).await;
    let total = 20 * INPUT + 100 * OUTPUT;
    assert_eq!(receipt.spent, Wei(total));
    assert_eq!(receipt.accepted_cumulative, Wei(signed));
    assert_eq!(signed, total, "nothing was paid ahead of the end");
    let usage = receipt.usage.expect("a request");
    assert_eq!(
        (usage.input_tokens, usage.output_tokens, usage.cached_tokens),
        (20, 100, 4)
    );
    let said = Usage {
        channel_id: receipt.channel_id,
        request_id: &usage.request_id,
        model_hash: B256::repeat_byte(5),
        input_tokens: 20,
        output_tokens: 100,
        charged: total,
        spent: total,
        price_version: 7,
    };
    let signer = Domain::new(CHAIN_ID, ESCROW).usage_signer(&said, &usage.signature);
    assert_eq!(signer, Ok(payee_address()));
    let round = scene.payee.settle_all().await.expect("settled");
    assert_eq!((round.channels, round.amount), (1, total));
    assert_eq!(scene.chain.balance(payee_address()), total);
}

#[tokio::test]
async fn a_stream_whose_money_another_one_had_asks_again() {
    let scene = Scene::new();
    let window = u128::from(WINDOW) * OUTPUT;
    let purse = scene.open(DEPOSIT, 2 * window).await;
    let orders = [order(0, 200), order(0, 200)];
    let budgets = orders.clone().map(|order| order.budget);
    let mut streams = orders.map(|order| purse.start(order).expect("paid for"));
    for (meter, budget) in streams.iter_mut().zip(&budgets) {
        let delivered = Tokens::output(WINDOW);
        assert_eq!(meter.charge(delivered).await, Ok(Charge::Paid));
        while budget.take() {}
    }
    let [a, b] = &mut streams;
    let asked = |meter: &mut Meter| meter.ask().map(|need| need.required_cumulative.0);
    assert_eq!(
        (asked(a), asked(b)),
        (Some(3 * window), Some(3 * window)),
        "neither knows of the other"
    );
    scene.voucher(3 * window).await.expect("accepted");
    assert_eq!(b.shortage().await, Shortage::Over);
    assert_eq!(b.ahead(), WINDOW);
    assert_eq!(a.shortage().await, Shortage::Over);
    assert_eq!((a.ahead(), asked(a)), (0, Some(4 * window)));
    scene.voucher(4 * window).await.expect("accepted");
    assert_eq!(a.shortage().await, Shortage::Over);
    assert_eq!(a.ahead(), WINDOW);
}

#[tokio::test]
async fn what_comes_of_an_answer_beyond_its_order_is_not_waited_for() {
    let scene = Scene::new();
    let purse = scene.open(DEPOSIT, 1_000).await;
    for is_stream in [true, false] {
        let mut order = order(10, 5);
        order.is_stream = is_stream;
        let mut meter = purse.start(order).expect("paid for");
        for (input, output) in [(4, 3), (0, 30), (90, 1)] {
            let charge = meter.charge(Tokens { input, output }).await;
            assert_eq!(charge, Ok(Charge::Paid));
        }
        let receipt = meter.finish(done("length")).await;
        let charged = receipt.usage.expect("a request").charged;
        assert_eq!(charged, Wei(10 * INPUT + 5 * OUTPUT));
    }
    assert_eq!(purse.receipt().spent.0, 2 * (10 * INPUT + 5 * OUTPUT));
}

#[tokio::test]
async fn what_was_paid_ahead_stays_the_payers() {
    let scene = Scene::new();
    let purse = scene.open(DEPOSIT, 5_000).await;
    let mut meter = purse.start(order(10, 1_000)).expect("paid for");
    let delivered = Tokens {
        input: 10,
        output: 32,
    };
    assert_eq!(meter.charge(delivered).await, Ok(Charge::Paid));
    meter.finish(done("length")).await;
    let spent = 10 * INPUT + 32 * OUTPUT;
    // No voucher is earned in full, so none is settled while the channel is open.
    assert_eq!(scene.payee.settle_all().await.expect("done").channels, 0);
    // The next request lives on what is left.
    let mut meter = purse.start(order(10, 16)).expect("paid for");
    let delivered = Tokens {
        input: 10,
        output: 16,
    };
    assert_eq!(meter.charge(delivered).await, Ok(Charge::Paid));
    meter.finish(done("length")).await;
    let spent = spent + 10 * INPUT + 16 * OUTPUT;
    // The last voucher is for exactly what was delivered.
    let closed = scene.pay(&scene.payer.close(spent)).await.expect("closed");
    let Accepted::Done(receipt) = closed else {
        panic!("{closed:?}");
    };
    assert!(receipt.tx_hash.is_some());
    assert_eq!(scene.chain.balance(payee_address()), spent);
    assert_eq!(scene.chain.balance(scene.payer.address()), WEALTH - spent);
    let refused = scene.voucher(90_000).await.expect_err("closed");
    assert_eq!(refused.problem.status, 410);
}

#[tokio::test]
async fn an_answer_in_one_piece_is_covered_before_and_charged_once() {
    let scene = Scene::new();
    let purse = scene.open(DEPOSIT, 2_000).await;
    let mut whole = order(10, 300);
    whole.is_stream = false;
    let refused = purse.begin(whole.clone()).expect_err("not covered");
    assert_eq!(
        refused.problem.required_cumulative,
        Some(Wei(10 * INPUT + 300 * OUTPUT))
    );
    assert!(refused.challenge.is_some());
    scene
        .voucher(10 * INPUT + 300 * OUTPUT)
        .await
        .expect("accepted");
    let mut meter = purse.start(whole).expect("covered");
    let delivered = Tokens {
        input: 10,
        output: 120,
    };
    assert_eq!(meter.charge(delivered).await, Ok(Charge::Paid));
    assert_eq!(meter.ask(), None);
    let receipt = meter.finish(done("stop")).await;
    assert_eq!(receipt.spent, Wei(10 * INPUT + 120 * OUTPUT));
    // The rest of what was held is free for the next one.
    let again = purse.start(order(10, 100)).expect("paid for");
    drop(again);
}

#[tokio::test]
async fn a_channel_is_topped_up_and_several_streams_share_it() {
    let scene = Scene::new();
    let purse_a = scene.open(7_000, 6_000).await;
    let refused = scene.voucher(9_000).await.expect_err("above the deposit");
    assert!(
        refused
            .problem
            .kind
            .ends_with("/session/amount-exceeds-deposit")
    );
    let topped = scene
        .pay(&scene.payer.top_up(6_500, 1))
        .await
        .expect("topped up");
    assert!(matches!(topped, Accepted::Done(_)));
    let purse_b = purse(scene.voucher(12_000).await);
    let mut a = purse_a.start(order(10, 400)).expect("paid for");
    let mut b = purse_b.start(order(20, 400)).expect("paid for");
    for _ in 0..50 {
        assert_eq!(
            a.charge(Tokens {
                input: 10,
                output: 4
            })
            .await,
            Ok(Charge::Paid)
        );
        assert_eq!(
            b.charge(Tokens {
                input: 20,
                output: 4
            })
            .await,
            Ok(Charge::Paid)
        );
    }
    let spent = 30 * INPUT + 400 * OUTPUT;
    assert_eq!(purse_a.receipt().spent, Wei(spent));
    a.finish(done("stop")).await;
    let receipt = b.finish(done("stop")).await;
    assert_eq!(receipt.spent, Wei(spent));
    assert_eq!(
        receipt.usage.expect("a request").charged,
        Wei(20 * INPUT + 200 * OUTPUT)
    );
}

#[tokio::test]
async fn m07_a_payer_that_leaves_is_settled_and_served_no_more() {
    let scene = Scene::new();
    let purse = scene.open(DEPOSIT, 1_000).await;
    let mut meter = purse.start(order(10, 64)).expect("paid for");
    assert_eq!(
        meter
            .charge(Tokens {
                input: 10,
                output: 20
            })
            .await,
        Ok(Charge::Paid)
    );
    scene.chain.request_close(scene.payer.channel());
    scene.payee.take_news().await.expect("read");
    let round = scene
        .payee
        .settle_due(&Policy::default())
        .await
        .expect("settled");
    assert_eq!((round.channels, round.amount), (1, 1_000));
    let refused = scene.voucher(2_000).await.expect_err("leaving");
    assert_eq!(refused.problem.status, 410);
    drop(meter);
    assert!(purse.start(order(10, 64)).is_err());
    scene.chain.withdraw(scene.payer.channel());
    assert_eq!(scene.chain.balance(scene.payer.address()), WEALTH - 1_000);
    assert_eq!(scene.chain.total(), WEALTH);
}
