//! Payers and ledgers that do not play by the rules.

use alloy::primitives::B256;
use mpp::protocol::core::{PaymentCredential, format_authorization, parse_www_authenticate};
use serde_json::json;
use tenzro_payments::escrow::EscrowError;
use tenzro_payments::payee::{Charge, Meter, Outcome, Purse, Shortage};
use tenzro_payments::price::Tokens;
use tenzro_payments::voucher::Domain;
use tenzro_payments::wire::Payload;

use crate::ledger::{CHAIN_ID, ESCROW, reverted};
use crate::scene::{
    BODY, INPUT, OUTPUT, PATIENCE, Payer, Scene, WEALTH, WINDOW, order, payee_address, purse,
};

const DEPOSIT: u128 = 100_000;

/// Status, and the last part of the type.
pub(crate) fn problem(refused: &tenzro_payments::payee::Refused) -> (u16, &str) {
    let name = refused.problem.kind.rsplit('/').next().unwrap_or_default();
    (refused.problem.status, name)
}

#[tokio::test]
async fn m02_one_voucher_on_64_connections_is_spent_once() {
    let scene = Scene::new();
    let voucher = 10 * INPUT + u128::from(WINDOW) * OUTPUT;
    drop(scene.open(DEPOSIT, voucher * 3).await);
    let tries = (0..64).map(|_| async {
        // Some are too many at once.
        let purse = purse(Ok(scene.voucher(voucher * 3).await.ok()?));
        purse.start(order(10, 10_000)).ok()
    });
    let started = futures::future::join_all(tries).await;
    let started: Vec<Meter> = started.into_iter().flatten().collect();
    assert_eq!(started.len(), 3, "a window each");
    let served = started.into_iter().map(|mut meter| async move {
        let mut delivered = 0;
        let token = Tokens {
            input: 10,
            output: 1,
        };
        while meter.charge(token).await == Ok(Charge::Paid) {
            delivered += 1;
        }
        delivered
    });
    let delivered: u128 = futures::future::join_all(served).await.into_iter().sum();
    assert_eq!(3 * 10 * INPUT + delivered * OUTPUT, voucher * 3);
}

#[tokio::test]
async fn m17_a_payer_that_stops_paying_gets_no_more_than_it_paid_for() {
    let scene = Scene::new();
    let paid = 20 * INPUT + u128::from(WINDOW) * OUTPUT;
    let purse = scene.open(DEPOSIT, paid).await;
    let order = order(20, 500);
    let budget = order.budget.clone();
    let mut meter = purse.start(order).expect("paid for");
    for _ in 0..WINDOW {
        assert!(budget.take(), "an engine computes what is granted");
        assert_eq!(
            meter
                .charge(Tokens {
                    input: 20,
                    output: 1
                })
                .await,
            Ok(Charge::Paid)
        );
    }
    assert!(meter.ask().is_some());
    assert!(!budget.take());
    assert_eq!(meter.charge(Tokens::output(1)).await, Ok(Charge::Short));
    assert_eq!(meter.shortage().await, Shortage::TooLate);
    let finish = "payment_required".to_owned();
    let outcome = Outcome {
        cached_tokens: 0,
        finish,
    };
    let receipt = meter.finish(outcome).await;
    assert_eq!(receipt.spent.0, paid);
    scene.payee.settle_all().await.expect("settled");
    assert_eq!(scene.chain.balance(payee_address()), paid);
}

/// A stream that has delivered all that was paid for, and asked for more.
async fn used_up(purse: &Purse) -> Meter {
    let order = order(20, 500);
    let budget = order.budget.clone();
    let mut meter = purse.start(order).expect("paid for");
    let window = Tokens {
        input: 20,
        output: WINDOW,
    };
    assert_eq!(meter.charge(window).await, Ok(Charge::Paid));
    while budget.take() {}
    assert!(meter.ask().is_some());
    meter
}

#[tokio::test]
async fn m17_a_payer_that_pays_token_by_token_does_not_keep_its_place() {
    let scene = Scene::new();
    let paid = 20 * INPUT + u128::from(WINDOW) * OUTPUT;
    let purse = scene.open(DEPOSIT, paid).await;
    let mut meter = used_up(&purse).await;
    let half = u128::from(WINDOW / 2);
    for tokens in 1..half {
        let voucher = scene.voucher(paid + tokens * OUTPUT).await;
        voucher.expect("accepted");
        assert_eq!(meter.ahead(), 0, "{tokens} tokens are too few");
    }
    let voucher = scene.voucher(paid + half * OUTPUT).await;
    voucher.expect("accepted");
    assert_eq!(meter.shortage().await, Shortage::Over);
    assert_eq!(meter.ahead(), WINDOW / 2);

    // The rest of an answer may be less than that.
    drop(meter);
    let spent = purse.receipt().spent.0;
    let first = spent + 20 * INPUT + u128::from(WINDOW) * OUTPUT;
    scene.voucher(first).await.expect("accepted");
    let mut meter = purse.start(order(20, WINDOW + 2)).expect("paid for");
    let window = Tokens {
        input: 20,
        output: WINDOW,
    };
    assert_eq!(meter.charge(window).await, Ok(Charge::Paid));
    assert_eq!(meter.ahead(), 0);
    scene.voucher(first + 2 * OUTPUT).await.expect("accepted");
    assert_eq!(meter.ahead(), 2);
}

#[tokio::test]
async fn m17_a_payer_that_always_pays_at_the_last_moment_is_not_waited_for_for_ever() {
    let scene = Scene::new();
    let mut paid = 20 * INPUT + u128::from(WINDOW) * OUTPUT;
    let purse = scene.open(DEPOSIT, paid).await;
    let order = order(20, 5_000);
    let budget = order.budget.clone();
    let mut meter = purse.start(order).expect("paid for");
    let late = PATIENCE * 3 / 4;
    for round in 0.. {
        assert!(round < 10, "it ends");
        let ahead = meter.ahead();
        assert_eq!(meter.charge(Tokens::output(ahead)).await, Ok(Charge::Paid));
        while budget.take() {}
        match tokio::time::timeout(late, meter.shortage()).await {
            Ok(Shortage::TooLate) => break,
            Ok(Shortage::Over) => assert!(meter.ask().is_some()),
            Err(_) => {
                paid += u128::from(WINDOW / 2) * OUTPUT;
                scene.voucher(paid).await.expect("accepted");
            }
        }
    }
}

#[tokio::test]
async fn m17_dust_and_nonsense_cost_no_transaction() {
    let scene = Scene::new();
    for deposit in 0..1_000 {
        let refused = scene
            .pay(&scene.payer.open(deposit, 0))
            .await
            .expect_err("dust");
        assert_eq!(problem(&refused), (402, "payment-insufficient"));
    }
    let mut other = scene.payer.open(DEPOSIT, 0);
    if let Payload::Open(open) = &mut other {
        open.channel_id = B256::repeat_byte(9);
    }
    assert_eq!(
        problem(&scene.pay(&other).await.expect_err("wrong")),
        (400, "malformed-credential")
    );
    let poor = Payer::new(0x33);
    let refused = scene.pay(&poor.open(DEPOSIT, 0)).await.expect_err("poor");
    assert_eq!(problem(&refused), (402, "insufficient-balance"));
    assert_eq!(scene.chain.state().channels.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn m17_vouchers_come_at_a_limited_rate() {
    let scene = Scene::new();
    drop(scene.open(DEPOSIT, 1_000).await);
    let mut refused = 0;
    for amount in 1_001..1_200 {
        if let Err(error) = scene.voucher(amount).await {
            assert_eq!((error.problem.status, error.retry_after), (429, Some(1)));
            refused += 1;
        }
    }
    // No time passes: the first of 50 was the opening's.
    assert_eq!(refused, 199 - 49);
    tokio::time::advance(std::time::Duration::from_millis(30)).await;
    scene.voucher(2_000).await.expect("a moment later");
}

#[tokio::test]
async fn m17_somebody_elses_vouchers_do_not_use_up_the_payers_rate() {
    let scene = Scene::new();
    drop(scene.open(DEPOSIT, 1_000).await);
    let thief = crate::scene::signer(0x44);
    let domain = Domain::new(CHAIN_ID, ESCROW);
    for amount in 0..200 {
        let mut payload = scene.payer.voucher(amount);
        if let Payload::Voucher(update) = &mut payload {
            update.voucher = domain.sign_voucher(&thief, scene.payer.channel(), amount);
        }
        let refused = scene.pay(&payload).await.expect_err("stolen");
        assert_eq!(problem(&refused), (402, "signer-mismatch"));
    }
    scene.voucher(2_000).await.expect("the payer pays on");
}

#[tokio::test]
async fn m17_prompts_that_nobody_pays_for_are_counted_at_a_limited_rate() {
    let scene = Scene::new();
    let purse = scene.open(DEPOSIT, 1_000).await;
    for _ in 0..100 {
        purse.allows_count().expect("paid for each time");
        drop(purse.start(order(10, 32)).expect("paid for"));
    }
    let mut refused = 0;
    for _ in 0..100 {
        match purse.allows_count() {
            Ok(()) => assert!(purse.start(order(10_000, 32)).is_err()),
            Err(error) => {
                assert_eq!((error.problem.status, error.retry_after), (429, Some(1)));
                refused += 1;
            }
        }
    }
    assert!(refused > 50, "{refused}");
}

#[tokio::test]
async fn m05_the_signer_is_checked_before_anything_is_told_or_spent() {
    let scene = Scene::new();
    drop(scene.open(DEPOSIT, 1_000).await);
    let thief = Payer {
        signer: crate::scene::signer(0x44),
        salt: scene.payer.salt,
    };
    for amount in [0, 999, 1_000, 1_001, 500_000] {
        let mut payload = scene.payer.voucher(amount);
        let domain = Domain::new(CHAIN_ID, ESCROW);
        if let Payload::Voucher(update) = &mut payload {
            update.voucher = domain.sign_voucher(&thief.signer, scene.payer.channel(), amount);
        }
        let refused = scene.pay(&payload).await.expect_err("stolen");
        assert_eq!(problem(&refused), (402, "signer-mismatch"));
        assert_eq!(
            refused.problem.channel, None,
            "m13: nothing is told to strangers"
        );
    }
}

#[tokio::test]
async fn m24_a_credential_serves_one_request_only() {
    let mut scene = Scene::new();
    drop(scene.open(DEPOSIT, 5_000).await);
    let challenge = scene.payee.challenge().challenge.expect("a challenge");
    let challenge = parse_www_authenticate(&challenge).expect("read by mpp");
    let auth = scene.payer.bind(&challenge.id, BODY, 1);
    let bound = scene.payer.voucher_with(5_000, Some(auth));
    let swapped = scene.pay_for(&bound, b"{\"model\":\"other\"}").await;
    assert_eq!(
        problem(&swapped.expect_err("swapped")),
        (402, "verification-failed")
    );
    drop(purse(scene.pay(&bound).await));
    let replayed = scene.pay(&bound).await.expect_err("replayed");
    assert_eq!(problem(&replayed), (402, "verification-failed"));
    // A payer that binds its requests never sends unbound ones: this is somebody who saw a voucher. The one
    // that bound the channel was no new money.
    let unbound = scene.voucher(5_000).await.expect_err("unbound");
    assert_eq!(problem(&unbound), (402, "verification-failed"));
    scene.restart();
    let unbound = scene.voucher(5_000).await.expect_err("unbound");
    assert_eq!(problem(&unbound), (402, "verification-failed"));
    // Without a request it is only a voucher.
    scene
        .pay_for(&scene.payer.voucher(5_200), b"")
        .await
        .expect("accepted");
}

#[tokio::test]
async fn challenges_of_others_and_broken_credentials_are_refused() {
    let mut scene = Scene::new();
    drop(scene.open(DEPOSIT, 1_000).await);
    for header in ["", "Payment", "Payment !!!", "Payment e30", "Bearer x"] {
        let early = scene.payee.check(header).expect_err(header);
        assert_eq!(problem(&early), (402, "malformed-credential"), "{header}");
        let refused = scene.send(header, BODY).await.expect_err(header);
        assert_eq!(problem(&refused), (402, "malformed-credential"), "{header}");
        assert!(refused.challenge.is_some());
    }
    let challenge = scene.payee.challenge().challenge.expect("a challenge");
    let challenge = parse_www_authenticate(&challenge).expect("read by mpp");
    for payload in [
        json!({}),
        json!({"action": "steal"}),
        json!({"action": "voucher", "channelId": 5}),
    ] {
        let credential = PaymentCredential::new(challenge.to_echo(), payload);
        let header = format_authorization(&credential).expect("a header");
        let refused = scene.send(&header, BODY).await.expect_err("nonsense");
        assert_eq!(problem(&refused), (400, "malformed-credential"));
    }
    // m18: a price that the payer wrote itself is not the payee's.
    let mut echo = challenge.to_echo();
    let mut request: serde_json::Value = echo.request.decode().expect("JSON");
    request["pricing"]["outputPerToken"] = json!("1");
    echo.request = mpp::protocol::core::Base64UrlJson::from_value(&request).expect("JSON");
    let credential = PaymentCredential::new(echo, scene.payer.voucher(1_000));
    let header = format_authorization(&credential).expect("a header");
    let early = scene.payee.check(&header).expect_err("forged");
    assert_eq!(problem(&early), (402, "challenge-not-found"));
    assert_eq!(
        problem(&scene.send(&header, BODY).await.expect_err("forged")),
        (402, "challenge-not-found")
    );
    let honest = scene.header(&scene.payer.voucher(1_000));
    scene.payee.check(&honest).expect("ours");
    // m12: so are those from before a restart, which says how to go on.
    let old = scene.header(&scene.payer.voucher(1_000));
    scene.restart();
    let refused = scene.send(&old, BODY).await.expect_err("old");
    assert_eq!(problem(&refused), (402, "challenge-not-found"));
    assert!(refused.challenge.is_some());
}

#[tokio::test]
async fn m34_a_deposit_or_a_close_that_failed_is_never_reported_as_done() {
    let scene = Scene::new();
    scene.chain.state().fail = Some(reverted("NonceMismatch", false));
    let refused = scene
        .pay(&scene.payer.open(DEPOSIT, 0))
        .await
        .expect_err("reverted");
    assert_eq!(problem(&refused), (409, "transaction-reverted"));
    scene.chain.state().fail = Some(EscrowError::Unavailable("429".to_owned()));
    let refused = scene
        .pay(&scene.payer.open(DEPOSIT, 0))
        .await
        .expect_err("no answer");
    assert_eq!(
        (refused.problem.status, refused.retry_after),
        (503, Some(5))
    );
    assert!(!refused.problem.detail.contains("429"), "only for the log");
    let purse = scene.open(DEPOSIT, 1_000).await;
    scene.deliver(&purse, 1).await;
    let before = purse.receipt();
    scene.chain.state().fail = Some(reverted("AmountExceedsDeposit", false));
    let refused = scene
        .pay(&scene.payer.top_up(9_000, 1))
        .await
        .expect_err("reverted");
    assert_eq!(problem(&refused), (409, "transaction-reverted"));
    assert_eq!(
        scene
            .voucher(DEPOSIT + 1)
            .await
            .expect_err("not there")
            .problem
            .status,
        402
    );
    scene.chain.state().fail = Some(reverted("out of gas", false));
    let refused = scene
        .pay(&scene.payer.close(0))
        .await
        .expect_err("reverted");
    assert_eq!(problem(&refused), (409, "transaction-reverted"));
    // The channel goes on as before.
    assert_eq!(
        purse.receipt().accepted_cumulative,
        before.accepted_cumulative
    );
    purse.start(order(10, 32)).expect("still open");
    // And the settlement that failed comes again.
    scene.chain.state().fail = Some(EscrowError::Unavailable("down".to_owned()));
    scene.chain.request_close(scene.payer.channel());
    scene.payee.take_news().await.expect("read");
    scene.payee.settle_all().await.expect_err("down");
    assert_eq!(
        scene.payee.settle_all().await.expect("up again").amount,
        1_000
    );
    assert_eq!(scene.chain.total(), WEALTH);
}

#[tokio::test]
async fn m26_what_was_not_delivered_is_not_charged() {
    let scene = Scene::new();
    let purse = scene.open(DEPOSIT, 1_000).await;
    for delivered in [0u32, 1, 5] {
        let before = purse.receipt().spent.0;
        let mut meter = purse.start(order(10, 12)).expect("paid for");
        for _ in 0..delivered {
            let tokens = Tokens {
                input: 10,
                output: 1,
            };
            assert_eq!(meter.charge(tokens).await, Ok(Charge::Paid));
        }
        // The client leaves.
        drop(meter);
        let prompt = if delivered == 0 { 0 } else { 10 * INPUT };
        let spent = purse.receipt().spent.0 - before;
        assert_eq!(spent, prompt + u128::from(delivered) * OUTPUT);
    }
    let rest = 1_000 - purse.receipt().spent.0;
    let tokens = u32::try_from((rest - 10 * INPUT) / OUTPUT).expect("few");
    let mut all = order(10, tokens);
    all.is_stream = false;
    drop(purse.start(all).expect("nothing is held any more"));
    let mut beyond = order(10, tokens + 1);
    beyond.is_stream = false;
    assert!(purse.start(beyond).is_err());
}

#[tokio::test]
async fn m32_a_request_that_no_amount_can_pay_for_is_refused() {
    let scene = Scene::new();
    let mut pricing = (*scene.pricing.borrow()).expect("a price");
    pricing.output_per_token.0 = u128::MAX / 2;
    drop(scene.open(DEPOSIT, 1_000).await);
    scene.pricing.send_replace(Some(pricing));
    let purse = purse(scene.voucher(1_000).await);
    let refused = purse.begin(order(1, 5)).expect_err("out of bounds");
    assert_eq!(refused.problem.status, 400);
}
