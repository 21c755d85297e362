//! Random lives of a payee with its books and its ledger, against a reference that adds up on its own: what was
//! delivered, what was signed, who has the money.

use proptest::prelude::*;
use tenzro_payments::payee::{Charge, Meter, Outcome, Purse};
use tenzro_payments::price::Tokens;
use tenzro_payments::settlement::Policy;

use crate::scene::{INPUT, OUTPUT, Scene, WEALTH, WINDOW, order, payee_address};

#[derive(Debug, Clone)]
enum Step {
    /// A voucher of that much above what was spent; may be an old one.
    Voucher(u128),
    Start {
        input: u32,
        output: u32,
        is_stream: bool,
    },
    /// The stream of that number delivers so many tokens.
    Deliver {
        stream: usize,
        tokens: u32,
    },
    Finish(usize),
    Leave(usize),
    TopUp(u128),
    Settle,
    Crash,
    RequestClose,
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u128..1_500).prop_map(Step::Voucher),
        4 => (1u32..30, 1u32..80, any::<bool>())
            .prop_map(|(input, output, is_stream)| Step::Start { input, output, is_stream }),
        8 => (0usize..4, 1u32..12).prop_map(|(stream, tokens)| Step::Deliver { stream, tokens }),
        2 => (0usize..4).prop_map(Step::Finish),
        2 => (0usize..4).prop_map(Step::Leave),
        1 => (6_500u128..8_000).prop_map(Step::TopUp),
        2 => Just(Step::Settle),
        1 => Just(Step::Crash),
        1 => Just(Step::RequestClose),
        1 => Just(Step::Close),
    ]
}

struct Running {
    meter: Meter,
    input: u32,
    output: u32,
    delivered: u32,
}

/// What has to be true whatever happens.
struct Reference {
    spent: u128,
    /// Highest amount that was ever signed.
    signed: u128,
    is_over: bool,
}

async fn live(steps: Vec<Step>) {
    let mut scene = Scene::new();
    let mut purse: Option<Purse> = Some(scene.open(20_000, 0).await);
    let mut running: Vec<Running> = Vec::new();
    let mut reference = Reference {
        spent: 0,
        signed: 0,
        is_over: false,
    };
    for (number, step) in steps.into_iter().enumerate() {
        take(
            &mut scene,
            &mut purse,
            &mut running,
            &mut reference,
            (number, step),
        )
        .await;
        check(&scene, purse.as_ref(), &running, &reference);
    }
    // The end: whatever is owed is paid, and the rest goes back.
    running.clear();
    drop(purse);
    scene.restart();
    if !reference.is_over {
        scene.chain.request_close(scene.payer.channel());
        scene.payee.take_news().await.expect("read");
        scene
            .payee
            .settle_due(&Policy::default())
            .await
            .expect("settled");
        scene.chain.withdraw(scene.payer.channel());
    }
    let earned = scene.chain.balance(payee_address());
    assert!(
        reference.spent <= earned,
        "the payee is paid for all that it delivered"
    );
    assert!(
        earned <= reference.signed,
        "and nothing that was not signed"
    );
    assert_eq!(scene.chain.total(), WEALTH);
}

async fn take(
    scene: &mut Scene,
    purse: &mut Option<Purse>,
    running: &mut Vec<Running>,
    reference: &mut Reference,
    (number, step): (usize, Step),
) {
    match step {
        Step::Voucher(ahead) => {
            let amount = reference.spent + ahead;
            if let Ok(tenzro_payments::payee::Accepted::Purse(new)) = scene.voucher(amount).await {
                reference.signed = reference.signed.max(amount);
                *purse = Some(new);
            }
        }
        Step::Start {
            input,
            output,
            is_stream,
        } => {
            let mut order = order(input, output);
            order.is_stream = is_stream;
            let started = purse.as_ref().and_then(|purse| purse.start(order).ok());
            running.extend(started.map(|meter| Running {
                meter,
                input,
                output,
                delivered: 0,
            }));
        }
        Step::Deliver { stream, tokens } => {
            let Some(one) = running.get_mut(stream) else {
                return;
            };
            let first = one.delivered == 0;
            let input = if first { one.input } else { 0 };
            let charge = one
                .meter
                .charge(Tokens {
                    input,
                    output: tokens,
                })
                .await;
            // Nobody pays for more than was ordered.
            let tokens = tokens.min(one.output - one.delivered);
            if charge == Ok(Charge::Paid) {
                one.delivered += tokens;
                reference.spent += u128::from(input) * INPUT + u128::from(tokens) * OUTPUT;
            }
            if let Some(need) = one.meter.ask() {
                let ahead = need.required_cumulative.0.saturating_sub(reference.spent);
                let held: u128 = running.len() as u128 * (u128::from(WINDOW) * OUTPUT + 30 * INPUT);
                assert!(
                    ahead <= held + 80 * OUTPUT * running.len() as u128,
                    "asked for too much"
                );
            }
        }
        Step::Finish(stream) if stream < running.len() => {
            let one = running.remove(stream);
            let outcome = Outcome {
                cached_tokens: 0,
                finish: "stop".to_owned(),
            };
            let receipt = one.meter.finish(outcome).await;
            assert_eq!(receipt.spent.0, reference.spent);
            assert_eq!(
                receipt.usage.expect("a request").output_tokens,
                one.delivered
            );
        }
        Step::Leave(stream) if stream < running.len() => drop(running.remove(stream)),
        Step::Finish(_) | Step::Leave(_) => {}
        Step::TopUp(amount) => {
            let nonce = u64::try_from(number).expect("small") + 1;
            let _ = scene.pay(&scene.payer.top_up(amount, nonce)).await;
        }
        Step::Settle => {
            scene.payee.take_news().await.expect("read");
            scene.payee.settle_all().await.expect("settled");
        }
        Step::Crash => {
            running.clear();
            *purse = None;
            scene.restart();
        }
        Step::RequestClose if !reference.is_over => {
            scene.chain.request_close(scene.payer.channel());
            reference.is_over = true;
            scene.payee.take_news().await.expect("read");
            scene
                .payee
                .settle_due(&Policy::default())
                .await
                .expect("settled");
            running.clear();
            scene.chain.withdraw(scene.payer.channel());
        }
        Step::Close if running.is_empty() && !reference.is_over => {
            let closed = scene.pay(&scene.payer.close(reference.spent)).await;
            reference.is_over = closed.is_ok();
            reference.signed = reference.signed.max(reference.spent);
        }
        Step::RequestClose | Step::Close => {}
    }
}

fn check(scene: &Scene, purse: Option<&Purse>, running: &[Running], reference: &Reference) {
    let state = scene.chain.state();
    let channel = state
        .channels
        .get(&scene.payer.channel())
        .expect("the channel");
    let deposit = channel.deposit;
    assert!(channel.settled <= reference.signed && reference.signed <= deposit);
    assert!(reference.spent <= reference.signed);
    if let Some(purse) = purse {
        let receipt = purse.receipt();
        assert_eq!(receipt.spent.0, reference.spent, "spent what was delivered");
        if !reference.is_over {
            assert_eq!(receipt.accepted_cumulative.0, reference.signed);
        }
    }
    assert!(running.len() <= 16);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn m01_money_is_conserved_and_never_counted_twice(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(live(steps));
    }
}
