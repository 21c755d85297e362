//! Payees that ask for more than they may.

use std::sync::Arc;

use alloy::primitives::B256;
use tenzro_payments::payer::audit::{Overbill, PromptTokens, Recount};
use tenzro_payments::payer::budget::{Limits, Period};
use tenzro_payments::payer::{Order, PaidRequest, PayError, Spending};
use tenzro_payments::price::Tokens;
use tenzro_payments::wire::Problem;
use tenzro_protocol::amount::Wei;

use super::ledger::Ledger;
use super::payee::{PRICING, Payee, WINDOW, cost, market, signer};
use super::{agree, amount, chat, open, order, scene, start, update};

const PROMPT: u32 = 20;

fn counted() -> (PromptTokens, u32) {
    (PromptTokens::counted(PROMPT), PROMPT)
}

#[tokio::test]
async fn m08_at_each_demand_at_most_prompt_and_window_are_outstanding() {
    let (_home, _ledger, mut payee, payer) = scene(1_000_000, 500_000);
    let words = Recount::new(|text| u32::try_from(text.split_whitespace().count()).ok());
    let order = order(PromptTokens::counted(PROMPT), Some(words));
    let prepared = payer.prepare(payee.terms(), order).await;
    let (request, credential) = prepared.expect("paid");
    assert_eq!(
        payee.take(&credential, chat()).amount.0,
        cost(PROMPT, WINDOW)
    );
    credential.accepted().await.expect("written");

    let mut delivered = 0;
    for words in [0u32, 1, 7, 40, 0, 100] {
        request.on_text(&"word ".repeat(words as usize));
        delivered += words;
        payee
            .books
            .get_mut(&request.channel())
            .expect("books")
            .streams
            .insert(1, (0, 0));
        let mut need = payee.need(request.channel(), 1, PROMPT);
        need.required_cumulative = Wei(400_000);
        let answer = request
            .on_need_voucher(&need, update())
            .await
            .expect("decided");
        assert!(answer.is_overbill);
        if let Some(credential) = answer.credential {
            let signed = payee.take(&credential, update()).amount.0;
            // What counting may be wrong by: two tokens, one in 32, and two that end the answer.
            let tolerance = if delivered == 0 {
                0
            } else {
                4 + delivered / 32
            };
            assert_eq!(signed, cost(PROMPT, delivered + WINDOW + tolerance));
        }
    }
    let evidence = payer.evidence(5).await.expect("read");
    assert_eq!(evidence.len(), 1);
    let limit = cost(PROMPT, delivered + WINDOW + 4 + delivered / 32);
    let expected = format!(r#"{{"requiredCumulative":"400000","limit":"{limit}"}}"#);
    assert_eq!(evidence[0].overbill, expected);
    drop(request);
    payer.shutdown().await;
}

#[tokio::test]
async fn m08_a_demand_that_was_met_already_is_answered_with_the_same_voucher_or_with_none() {
    let (_home, _ledger, mut payee, payer) = scene(1_000_000, 500_000);
    let request = start(&payer, &mut payee, 1, counted()).await.expect("paid");
    let mut need = payee.need(request.channel(), 1, PROMPT);
    let answer = request
        .on_need_voucher(&need, update())
        .await
        .expect("decided");
    assert!(answer.credential.is_none() && !answer.is_overbill);
    need.accepted_cumulative = Wei(0);
    let answer = request
        .on_need_voucher(&need, update())
        .await
        .expect("decided");
    let again = answer.credential.expect("the voucher got lost");
    assert_eq!(amount(&again), cost(PROMPT, WINDOW));
    need.channel_id = B256::ZERO;
    let refused = request.on_need_voucher(&need, update()).await;
    assert_eq!(
        refused.expect_err("refused"),
        PayError::Message("another channel")
    );
}

#[tokio::test]
async fn m19_a_receipt_with_more_tokens_than_arrived_is_paid_as_counted_and_kept() {
    let (_home, _ledger, mut payee, payer) = scene(1_000_000, 500_000);
    let request = start(&payer, &mut payee, 1, counted()).await.expect("paid");
    request.on_text("0123456789");
    let charged = cost(PROMPT, 13);
    payee
        .books
        .get_mut(&request.channel())
        .expect("books")
        .streams
        .insert(1, (charged, 0));
    payee.end(request.channel(), 1);
    let tokens = Tokens {
        input: PROMPT,
        output: 13,
    };
    let receipt = payee.receipt(request.channel(), tokens, charged);
    let verdict = request.on_receipt(&receipt).await.expect("audited");
    // Ten bytes hold ten tokens, and two may have ended the answer.
    let Overbill { asked, most } = verdict.overbill.expect("flagged");
    assert_eq!(
        (asked.charged.0, most.charged.0),
        (charged, cost(PROMPT, 12))
    );
    assert_eq!(verdict.agreed, most);
    assert_eq!(verdict.flaw, None);
    let spending = payer.spending(0).await.expect("read");
    let expected = Spending {
        payee: payee.signer.address(),
        model: "m".to_owned(),
        requests: 1,
        input_tokens: u64::from(PROMPT),
        output_tokens: 12,
        charged: cost(PROMPT, 12),
        overbills: 1,
    };
    assert_eq!(spending, [expected]);
    let evidence = payer.evidence(1).await.expect("read");
    assert_eq!(
        serde_json::from_str::<Overbill>(&evidence[0].overbill).expect("JSON"),
        Overbill { asked, most }
    );
    assert!(
        evidence[0]
            .receipt
            .as_deref()
            .expect("kept")
            .contains("request-1")
    );
}

#[tokio::test]
async fn a_receipt_that_others_could_have_written_is_told_apart() {
    let (_home, _ledger, mut payee, payer) = scene(1_000_000, 500_000);
    let request = start(&payer, &mut payee, 1, counted()).await.expect("paid");
    payee.end(request.channel(), 1);
    let honest = payee.receipt(request.channel(), Tokens::default(), 0);
    type Change = fn(&mut tenzro_payments::wire::Receipt);
    let changes: [(&str, Change); 3] = [
        ("a receipt for another channel", |receipt| {
            receipt.channel_id = B256::ZERO;
        }),
        ("a receipt for another chain", |receipt| {
            receipt.chain_id = 1;
        }),
        ("a receipt of more than 8 KiB", |receipt| {
            receipt.timestamp = "x".repeat(9_000);
        }),
    ];
    for (reason, change) in changes {
        let mut receipt = honest.clone();
        change(&mut receipt);
        let refused = request.on_receipt(&receipt).await.expect_err(reason);
        assert_eq!(refused, PayError::Message(reason));
    }
    let mut forged = honest;
    forged.usage.as_mut().expect("usage").request_id = "another".to_owned();
    let verdict = request.on_receipt(&forged).await.expect("audited");
    assert_eq!(verdict.flaw, Some("is not signed by the provider"));
    assert_eq!(verdict.overbill, None);
    type Prepare = fn(&mut Payee, &PaidRequest);
    let flaws: [(Prepare, &str); 3] = [
        (
            |_, request| request.answered("request-7"),
            "is for another request",
        ),
        (|payee, _| payee.price_version = 4, "is for another price"),
        (
            |payee, _| payee.model_hash = B256::ZERO,
            "is for another model file",
        ),
    ];
    for (prepare, flaw) in flaws {
        let mut payee = payee.clone();
        let request = start(&payer, &mut payee, 2, counted()).await.expect("paid");
        payee.end(request.channel(), 2);
        prepare(&mut payee, &request);
        let receipt = payee.receipt(request.channel(), Tokens::default(), 0);
        let verdict = request.on_receipt(&receipt).await.expect("audited");
        assert_eq!(verdict.flaw, Some(flaw));
    }
}

#[tokio::test]
async fn a_payee_that_needs_more_than_was_bought_gets_nothing_more() {
    let (_home, _ledger, mut payee, payer) = scene(1_000_000, 500_000);
    let prompt = PromptTokens {
        likely: 10,
        most: 20,
    };
    // The payee counts as many tokens as there may be: one more round pays for them.
    let request = start(&payer, &mut payee, 1, (prompt, 20))
        .await
        .expect("paid");
    assert_eq!(payee.books[&request.channel()].amount(), cost(20, WINDOW));
    request.not_served().await.expect("written");
    payee.end(payee.ledger.ids()[0], 1);
    let refused = start(&payer, &mut payee, 2, (prompt, 21)).await;
    let (required, signed) = (cost(21, WINDOW), cost(20, WINDOW));
    assert_eq!(
        refused.expect_err("refused"),
        PayError::Overbilled { required, signed }
    );
}

#[tokio::test]
async fn budgets_end_what_they_do_not_cover() {
    let home = tempfile::tempdir().expect("a folder");
    let ledger = Arc::new(Ledger::new(1_000_000));
    let mut payee = Payee::new(&ledger, 500_000);
    let limits = Limits {
        hour: Some(cost(PROMPT, WINDOW) + 100),
        day: None,
        deposit: Some(5_000),
    };
    let payer = open(&home.path().join("payer.db"), &ledger, limits);
    let request = start(&payer, &mut payee, 1, counted()).await.expect("paid");
    let held = ledger.get(request.channel()).expect("a channel").deposit;
    assert_eq!(
        held,
        cost(PROMPT, WINDOW) + 100,
        "no more is locked up than may be spent"
    );
    let second = start(&payer, &mut payee, 2, counted()).await.map(drop);
    let (period, left) = (Period::Hour, 100);
    assert_eq!(second, Err(PayError::Budget { period, left }));

    let tokens = payee.deliver(request.channel(), 1, PROMPT, WINDOW);
    request.on_text(&"x".repeat(tokens as usize));
    let need = payee.need(request.channel(), 1, PROMPT);
    let answer = request
        .on_need_voucher(&need, update())
        .await
        .expect("decided");
    let last = answer.credential.expect("what is left");
    assert_eq!(
        payee.take(&last, update()).amount.0,
        cost(PROMPT, WINDOW) + 100
    );
    let need = payee.need(request.channel(), 1, PROMPT);
    let over = request.on_need_voucher(&need, update()).await.map(drop);
    let left = 0;
    assert_eq!(over, Err(PayError::Budget { period, left }));
}

#[tokio::test]
async fn what_is_signed_and_what_the_payee_takes_count_for_the_budget() {
    let home = tempfile::tempdir().expect("a folder");
    let ledger = Arc::new(Ledger::new(1_000_000));
    let mut payee = Payee::new(&ledger, 500_000);
    let one = cost(PROMPT, WINDOW);
    let limits = Limits {
        hour: Some(2 * one + 100),
        ..Limits::default()
    };
    let payer = open(&home.path().join("payer.db"), &ledger, limits);
    let request = start(&payer, &mut payee, 1, counted()).await.expect("paid");
    let id = request.channel();
    payee.end(id, 1);
    request.not_served().await.expect("written");
    let at = |place: &str| Order {
        place: place.into(),
        ..order(PromptTokens::counted(PROMPT), None)
    };
    let period = Period::Hour;
    // What is signed already is used by its own server, and reserved for it at others.
    let (other, credential) = payer
        .prepare(payee.terms(), at("https://other.example/v1"))
        .await
        .expect("paid");
    drop(credential);
    let third = payer.prepare(payee.terms(), at("https://third.example/v1"));
    let left = 100;
    assert_eq!(
        third.await.map(drop),
        Err(PayError::Budget { period, left })
    );
    let again = start(&payer, &mut payee, 2, counted()).await.expect("paid");
    payee.end(id, 2);
    again.not_served().await.expect("written");
    other.not_served().await.expect("written");
    // The payee takes it without having served anything: it is still what pays the next request.
    ledger.change(id, |found| found.settled = one);
    payer.recover().await.expect("compared");
    assert_eq!(payer.spending(0).await.expect("read"), []);
    let third = payer.prepare(payee.terms(), at("https://third.example/v1"));
    assert_eq!(
        third.await.map(drop),
        Err(PayError::Budget { period, left })
    );
    let again = start(&payer, &mut payee, 3, counted()).await.expect("paid");
    assert_eq!((again.channel(), payee.books[&id].amount()), (id, one));
    again.not_served().await.expect("written");
    // It ends the channel, and keeps it.
    ledger.change(id, |found| found.is_final = true);
    payer.recover().await.expect("compared");
    let spending = payer.spending(0).await.expect("read");
    assert_eq!(
        (spending[0].charged, spending[0].model.as_str()),
        (one, "m")
    );
    let next = payer.prepare(payee.terms(), order(PromptTokens::counted(PROMPT), None));
    assert_eq!(next.await.map(drop), Err(PayError::Budget { period, left }));
}

#[tokio::test]
async fn m08_what_a_payee_takes_ahead_pays_the_next_requests() {
    let (_home, ledger, mut payee, payer) = scene(1_000_000, 500_000);
    let mut owed = 0;
    for stream in 0..5 {
        let request = start(&payer, &mut payee, stream, counted()).await;
        let request = request.expect("paid");
        let id = request.channel();
        let signed = payee.books[&id].amount();
        assert_eq!(signed, owed + cost(PROMPT, WINDOW));
        ledger.change(id, |found| found.settled = signed);
        payer.recover().await.expect("compared");
        let output = payee.deliver(id, stream, PROMPT, 1);
        request.on_text("x");
        owed += agree(&mut payee, &request, stream, (PROMPT, output)).await;
        payer.recover().await.expect("compared");
        let channels = payer.channels().await.expect("read");
        assert_eq!((channels[0].due, channels[0].doubt), (owed, 0));
    }
}

#[tokio::test]
async fn what_lost_requests_did_not_cost_is_free_again() {
    let home = tempfile::tempdir().expect("a folder");
    let ledger = Arc::new(Ledger::new(1_000_000));
    let mut payee = Payee::new(&ledger, 500_000);
    let limits = Limits {
        hour: Some(cost(PROMPT, WINDOW)),
        ..Limits::default()
    };
    let payer = open(&home.path().join("payer.db"), &ledger, limits);
    for _ in 0..6 {
        let lost = start(&payer, &mut payee, 1, counted()).await.expect("paid");
        let id = lost.channel();
        payee.end(id, 1);
        drop(lost);
        let request = start(&payer, &mut payee, 2, counted()).await.expect("paid");
        payee.end(id, 2);
        let receipt = payee.receipt(id, Tokens::default(), 0);
        request.on_receipt(&receipt).await.expect("audited");
    }
}

#[tokio::test]
async fn m08_a_payee_that_settles_and_answers_409_gets_no_other_voucher() {
    let (_home, ledger, mut payee, payer) = scene(1_000_000, 500_000);
    let order = order(PromptTokens::counted(PROMPT), None);
    let (request, mut credential) = payer.prepare(payee.terms(), order).await.expect("paid");
    let one = cost(PROMPT, WINDOW);
    for _ in 0..3 {
        assert_eq!(payee.take(&credential, chat()).amount.0, one);
        let id = request.channel();
        ledger.change(id, |found| found.settled = one);
        drop(credential);
        let conflict = Problem {
            kind: "about:blank".to_owned(),
            title: String::new(),
            status: 409,
            detail: String::new(),
            channel_id: Some(id),
            required_cumulative: None,
            channel: Some(payee.state(id)),
        };
        let paid = request.retry(payee.terms(), &conflict).await;
        credential = paid.expect("the same voucher");
    }
    drop((request, credential));
}

#[tokio::test]
async fn deposits_keep_to_the_limit_of_a_channel_and_to_the_wallet() {
    let home = tempfile::tempdir().expect("a folder");
    let ledger = Arc::new(Ledger::new(1_500));
    let mut payee = Payee::new(&ledger, 500_000);
    let limits = Limits {
        deposit: Some(2_000),
        ..Limits::default()
    };
    let payer = open(&home.path().join("payer.db"), &ledger, limits);
    let refused = start(&payer, &mut payee, 1, (PromptTokens::counted(200), 200)).await;
    let text = refused.expect_err("refused").to_string();
    assert_eq!(
        text,
        "2960 wei are needed in the channel, but only 2000 more may be put in"
    );
    let refused = start(&payer, &mut payee, 1, (PromptTokens::counted(60), 60)).await;
    let text = refused.expect_err("refused").to_string();
    assert_eq!(
        text,
        "1560 wei are needed in the channel, but the wallet holds 1500 wei"
    );
    let request = start(&payer, &mut payee, 1, counted()).await.expect("paid");
    assert_eq!(
        ledger.get(request.channel()).expect("a channel").deposit,
        1_500
    );
}

#[tokio::test]
async fn closing_pays_exactly_what_is_due_and_ends_the_channel() {
    let (_home, ledger, mut payee, payer) = scene(1_000_000, 500_000);
    let request = start(&payer, &mut payee, 1, counted()).await.expect("paid");
    let channel = request.channel();
    let hash = B256::repeat_byte(9);
    let busy = payer.close(channel, &payee.terms(), hash).await;
    let busy = busy.map(drop);
    assert_eq!(busy, Err(PayError::Busy));
    let tokens = payee.deliver(channel, 1, PROMPT, 7);
    request.on_text(&"x".repeat(tokens as usize));
    let charged = payee.end(channel, 1);
    let tokens = Tokens {
        input: PROMPT,
        output: tokens,
    };
    let receipt = payee.receipt(channel, tokens, charged);
    request.on_receipt(&receipt).await.expect("audited");
    let closing = payer.close(channel, &payee.terms(), hash).await;
    // Bound to the request that carries it.
    let last = payee.take(&closing.expect("signed"), hash);
    assert_eq!(last.amount.0, PRICING.cost(tokens).expect("small"));
    assert_eq!(
        market().domain.voucher_signer(&last),
        Ok(signer(1).address())
    );
    let next = start(&payer, &mut payee, 2, counted()).await.expect("paid");
    assert_ne!(next.channel(), channel, "a closing channel pays no more");
    // Asked again, it is the same voucher; once the ledger has closed it, there is none.
    let again = payer.close(channel, &payee.terms(), hash).await;
    assert_eq!(payee.take(&again.expect("signed"), hash), last);
    ledger.change(channel, |found| {
        found.settled = last.amount.0;
        found.is_final = true;
    });
    payer.recover().await.expect("compared");
    let closed = payer.close(channel, &payee.terms(), hash).await.map(drop);
    assert_eq!(closed, Err(PayError::NoChannel));
}

#[tokio::test]
async fn m19_a_demand_that_ends_a_request_is_kept_as_evidence() {
    let (_home, _ledger, mut payee, payer) = scene(1_000_000, 500_000);
    let order = order(PromptTokens::counted(PROMPT), None);
    let (request, credential) = payer.prepare(payee.terms(), order).await.expect("paid");
    payee.take(&credential, chat());
    drop(credential);
    let problem = payee.begin(request.channel(), 1, 5_000).expect_err("more");
    let refused = request.retry(payee.terms(), &problem).await.map(drop);
    let (required, signed) = (cost(5_000, WINDOW), cost(PROMPT, WINDOW));
    assert_eq!(refused, Err(PayError::Overbilled { required, signed }));
    request.not_served().await.expect("written");
    let evidence = payer.evidence(9).await.expect("read");
    assert_eq!(evidence.len(), 1);
    let expected = format!(r#"{{"requiredCumulative":"{required}","limit":"{signed}"}}"#);
    assert_eq!(evidence[0].overbill, expected);
}

#[tokio::test]
async fn m31_what_pays_is_not_shown_in_logs() {
    let (_home, _ledger, payee, payer) = scene(1_000_000, 500_000);
    let order = order(PromptTokens::counted(PROMPT), None);
    let (_request, credential) = payer.prepare(payee.terms(), order).await.expect("paid");
    let value = credential.value().trim_start_matches("Payment ");
    assert!(!format!("{credential:?}").contains(value));
}
