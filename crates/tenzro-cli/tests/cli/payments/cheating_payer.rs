//! Payers that want more than they pay for, against a real model server. The provider loses nothing.

use std::time::Instant;

use serde_json::Value;
use tenzro_node::operator_token;
use tenzro_payments::payee::PATIENCE;

use super::hand_payer::HandPayer;
use super::http::{Answer, Streamed, post};
use super::market::{
    ChainOf, MODEL, Market, PayeeChannel, STAKE, Serving, TNZO, WEALTH, chat, cost, wait_until,
};

/// Wei in a channel.
const DEPOSIT: u128 = TNZO;

/// Tokens of the prompt, by the server itself, for free.
fn prompt_tokens(market: &Market, serving: &Serving) -> u128 {
    let token = operator_token(&market.provider.paths()).expect("a token");
    let bearer = format!("Bearer {token}");
    let url = format!("{}/chat/completions", serving.url);
    let answer = post(
        &url,
        &[("authorization", &bearer)],
        &chat(1, false).to_string(),
    )
    .json();
    answer["usage"]["prompt_tokens"]
        .as_u64()
        .expect("a number")
        .into()
}

/// A status and the last part of the problem's type.
fn problem(answer: Answer) -> (u16, String) {
    let status = answer.status;
    let problem: Value = serde_json::from_str(&answer.text()).expect("JSON");
    let kind = problem["type"].as_str().unwrap_or_default();
    (
        status,
        kind.rsplit('/').next().unwrap_or_default().to_owned(),
    )
}

fn refusal(status: u16, kind: &str) -> (u16, String) {
    (status, kind.to_owned())
}

/// The server stops, and has all that it delivered.
fn stop_and_count(market: &Market, channel: PayeeChannel) {
    market.provider.ok(&["model", "stop", MODEL]);
    assert_eq!(market.payee_channel().settled, channel.spent);
    let payee = WEALTH - STAKE + channel.spent;
    let left = DEPOSIT - channel.spent;
    assert_eq!(market.balances(), (WEALTH - DEPOSIT, payee, left));
}

#[test]
fn m17_a_payer_that_stops_paying_gets_what_it_paid_for_and_frees_the_slot() {
    let market = Market::new(ChainOf::Consumer);
    let serving = market.serve_with(0, &["--parallel", "1"]);
    let prompt = prompt_tokens(&market, &serving);
    let payer = HandPayer::new(&market, &serving, 1);
    let paid = cost(prompt, 40);
    let began = Instant::now();
    let mut answer = payer.open(DEPOSIT, paid, &chat(200, true).to_string());
    assert_eq!(answer.status, 200);
    assert!(answer.header("payment-receipt").is_some());
    let mut streamed = Streamed::default();
    answer.read_pieces(&mut streamed, u128::MAX);
    assert!(began.elapsed() >= PATIENCE, "it was given time to pay");
    assert_eq!(streamed.finish.as_deref(), Some("payment_required"));
    let names: Vec<&str> = streamed
        .named
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names.first(), Some(&"payment-need-voucher"));
    assert_eq!(names.last(), Some(&"payment-receipt"));
    let receipt = &streamed.named.last().expect("a receipt").1;
    assert_eq!(receipt["usage"]["charged"], paid.to_string());
    assert_eq!(receipt["usage"]["outputTokens"], 40);

    let channel = market.payee_channel();
    assert_eq!((channel.spent, channel.accepted), (paid, paid));
    assert_eq!(
        prompt_tokens(&market, &serving),
        prompt,
        "the only slot is free"
    );
    stop_and_count(&market, channel);
}

#[test]
fn m02_m24_vouchers_and_credentials_are_good_for_what_they_are_for_only() {
    let market = Market::new(ChainOf::Consumer);
    let serving = market.serve(0);
    let payer = HandPayer::new(&market, &serving, 2);
    let body = chat(4, false).to_string();
    let price = cost(prompt_tokens(&market, &serving), 4);
    payer.open(DEPOSIT, price, &body).taken();
    assert_eq!(market.payee_channel().spent, price);

    // One voucher for three answers, on 64 connections.
    let credential = payer.paying(4 * price);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let send = || {
            let answer = payer.send(&credential, &body);
            let status = answer.status;
            answer.text();
            status
        };
        let sending: Vec<_> = (0..64).map(|_| scope.spawn(send)).collect();
        sending
            .into_iter()
            .map(|one| one.join().expect("sent"))
            .collect()
    });
    assert_eq!(
        statuses.iter().filter(|status| **status == 200).count(),
        3,
        "{statuses:?}"
    );
    assert!(
        statuses
            .iter()
            .all(|status| [200, 402, 429].contains(status)),
        "{statuses:?}"
    );
    let channel = market.payee_channel();
    assert_eq!((channel.spent, channel.accepted), (4 * price, 4 * price));
    assert_eq!(market.charged(), (4, 4 * price));

    // The server allows 50 vouchers a second; after that, a voucher above the deposit is no money.
    wait_until("a new allowance", || payer.pay(4 * price).status == 200);
    assert_eq!(
        problem(payer.pay(DEPOSIT + 1)),
        refusal(402, "amount-exceeds-deposit")
    );
    assert_eq!(market.payee_channel(), channel);

    // A credential for one request is nothing for another one, nor for the same one again.
    let bound = payer.paying_for(5 * price, &body, 1);
    let other = chat(3, false).to_string();
    let elsewhere = payer.send_to("completions", &bound, &body);
    for refused in [payer.send(&bound, &other), elsewhere] {
        assert_eq!(problem(refused), refusal(402, "verification-failed"));
    }
    assert_eq!(
        market.payee_channel(),
        channel,
        "not even its voucher counts"
    );
    // So many unpaid prompts were counted that the next one may have to wait, with another credential.
    let nonce = std::cell::Cell::new(1);
    let bound = || payer.paying_for(5 * price, &body, nonce.get());
    wait_until("prompts are counted", || {
        nonce.set(nonce.get() + 1);
        payer.send(&bound(), &body).status == 200
    });
    assert_eq!(
        problem(payer.send(&bound(), &body)),
        refusal(402, "verification-failed")
    );
    let unbound = payer.send(&payer.paying(6 * price), &body);
    assert_eq!(problem(unbound), refusal(402, "verification-failed"));
    let channel = market.payee_channel();
    assert_eq!((channel.spent, channel.accepted), (5 * price, 5 * price));
    stop_and_count(&market, channel);
}

#[test]
fn m07_a_payer_that_closes_early_pays_for_what_it_had() {
    let market = Market::new(ChainOf::Consumer);
    let serving = market.serve(0);
    let body = chat(4, false).to_string();
    let price = cost(prompt_tokens(&market, &serving), 4);
    let (cheap, gone) = (
        HandPayer::new(&market, &serving, 3),
        HandPayer::new(&market, &serving, 4),
    );
    for payer in [&cheap, &gone] {
        payer.open(DEPOSIT, price, &body).json();
        assert_eq!(payer.pay(2 * price).status, 200);
        payer.send(&payer.paying(2 * price), &body).json();
    }
    // A last voucher that is lower than what was delivered closes with the highest one.
    cheap.close(cheap.id(), price).taken();
    let now = (
        WEALTH - DEPOSIT - 2 * price,
        WEALTH - STAKE + 2 * price,
        DEPOSIT,
    );
    assert_eq!(market.balances(), now);
    assert_eq!(
        problem(cheap.pay(3 * price)),
        refusal(410, "channel-finalized")
    );

    // On the ledger, behind the provider's back.
    let leave = async |operations: tenzro_ledger::Operations<'_>| {
        operations.request_channel_close(gone.id()).await
    };
    market.as_payer(leave).expect("asked");
    wait_until("the settlement", || {
        market.balance(market.payee.address()) == WEALTH - STAKE + 4 * price
    });
    assert_eq!(
        problem(gone.pay(3 * price)),
        refusal(410, "channel-finalized")
    );
    assert_eq!(gone.send(&gone.paying(3 * price), &body).status, 410);
    // The ledger has it a moment before the books do.
    let is_settled = |one: &PayeeChannel| (one.spent, one.settled) == (2 * price, 2 * price);
    wait_until("the books", || {
        market.payee_channels().iter().all(is_settled)
    });
    market.assert_conserved();
}
