//! Both sides play by the rules: what is asked, charged, settled and left over is the same number everywhere.

use serde_json::json;
use tenzro_node::operator_token;
use tenzro_payments::books::earnings;

use super::hand_payer::HandPayer;
use super::http::{Answer, Streamed, post};
use super::market::{
    ChainOf, INPUT, MODEL, Market, OUTPUT, STAKE, WEALTH, chat, cost, cost_of, rpc, wait_until,
};
use crate::Home;
use crate::ledger::{Anvil, FUNDED};

#[test]
fn m01_what_every_endpoint_charges_is_what_the_provider_gets() {
    let market = Market::new(ChainOf::Consumer);
    let serving = market.serve(0);
    let text = json!({"model": MODEL, "prompt": "Once upon", "max_tokens": 9, "ignore_eos": true});
    let mut charged = Vec::new();
    let seller = market.payee.address().to_string();
    let stream = market.ask("v1/chat/completions", &chat(70, true));
    let head = |answer: &Answer| {
        let header = |name| answer.header(name).map(str::to_owned);
        (header("x-tenzro-provider"), header("x-tenzro-cost"))
    };
    // What a stream costs is known at its end.
    assert_eq!(head(&stream), (Some(seller.clone()), None));
    let streamed = stream.streamed();
    assert!(
        streamed.is_complete && !streamed.text.is_empty(),
        "{streamed:?}"
    );
    assert_eq!(streamed.usage["completion_tokens"], 70);
    charged.push(cost_of(&streamed.usage));
    charged.push(market.buy());
    let whole = market.ask("v1/completions", &text);
    let told = head(&whole);
    let whole = whole.json();
    let paid = cost_of(&whole["usage"]).to_string();
    assert_eq!(told, (Some(seller.clone()), Some(paid)));
    assert_eq!(whole["usage"]["completion_tokens"], 9);
    charged.push(cost_of(&whole["usage"]));
    let params = json!({"model": MODEL, "max_tokens": 7, "messages": chat(1, false)["messages"]});
    let answer = rpc(&market.node, "tenzro_chat", &params);
    assert_eq!(answer["provider"], json!(seller), "{answer}");
    let mut usage = answer["usage"].clone();
    usage["cost"] = answer["cost"].clone();
    charged.push(cost_of(&usage));
    let texts = json!({"model": MODEL, "input": ["Once upon", "a time"]});
    // Each text is a request of its own.
    let embedded = market.ask("v1/embeddings", &texts).json();
    assert_eq!(embedded["data"].as_array().map(Vec::len), Some(2));
    let tokens = embedded["usage"]["prompt_tokens"]
        .as_u64()
        .expect("a number");
    charged.push(cost(tokens.into(), 0));

    let total: u128 = charged.iter().sum();
    let books = earnings(&market.payee_books()).expect("read");
    assert_eq!(
        (books.requests, books.unsettled, books.settled),
        (6, total, 0)
    );
    let channel = market.payee_channel();
    assert_eq!(channel.spent, total);
    let (payer, payee, escrow) = market.balances();
    assert_eq!(
        (payer, payee, escrow),
        (WEALTH - channel.deposit, WEALTH - STAKE, channel.deposit)
    );

    // A server that stops settles what is earned in full: the highest voucher that is not paid ahead.
    market.provider.ok(&["model", "stop", MODEL]);
    let settled = market.payee_channel().settled;
    assert!(settled > 0 && settled <= total, "{settled} of {total}");
    assert_eq!(
        market.balance(market.payee.address()),
        WEALTH - STAKE + settled
    );
    market.assert_conserved();

    // The rest comes with a last voucher of exactly what was used.
    let serving = market.serve(serving.port);
    HandPayer::new(&market, &serving, 0)
        .close(channel.id, total)
        .taken();
    let now = (WEALTH - total, WEALTH - STAKE + total, 0);
    assert_eq!(market.balances(), now);
    let books = earnings(&market.payee_books()).expect("read");
    assert_eq!(
        (books.unsettled, books.settled, books.channels),
        (0, total, 0)
    );

    // The node does not know yet that its channel is closed: it opens another one.
    let more = market.buy();
    let open = market.payee_channels();
    let open = open
        .iter()
        .find(|one| one.id != channel.id)
        .expect("a new channel");
    assert_eq!(open.spent, more);
    market.assert_conserved();
}

#[test]
fn m18_an_answer_is_charged_at_the_price_at_which_it_began() {
    let market = Market::new(ChainOf::Consumer);
    let serving = market.serve(0);
    let payer = HandPayer::new(&market, &serving, 0);
    let mut answer = market.ask("v1/chat/completions", &chat(200, true));
    let mut streamed = Streamed::default();
    answer.read_pieces(&mut streamed, 2);
    // Lower prices hold at once.
    let cheaper = "provider pricing set --model smollm2-135m --input 0.00001 --output 0.00002";
    market.provider.ok(&cheaper.split(' ').collect::<Vec<_>>());
    let shown = || {
        let endpoint = market
            .consumer
            .json(&["model", "endpoint", "--model", MODEL]);
        endpoint["price_per_output_token"] == "20000000000000"
    };
    wait_until("the new price", shown);
    // The server looks at the ledger every few seconds.
    let asked = || payer.price() == OUTPUT / 10;
    wait_until("the server's new price", asked);
    assert!(!streamed.is_complete);
    answer.read_pieces(&mut streamed, u128::MAX);
    assert_eq!(streamed.usage["completion_tokens"], 200);
    let first = cost_of(&streamed.usage);

    let next = market.ask("v1/chat/completions", &chat(4, false)).json();
    let number = |name: &str| u128::from(next["usage"][name].as_u64().expect("a number"));
    let second = number("prompt_tokens") * INPUT / 5 + number("completion_tokens") * OUTPUT / 10;
    assert_eq!(next["usage"]["cost"], second.to_string());
    assert_eq!(market.payee_channel().spent, first + second);
}

#[test]
fn a_stranger_gets_a_clean_402_and_the_operator_is_served_for_free() {
    let market = Market::new(ChainOf::Consumer);
    let serving = market.serve(0);
    let url = format!("{}/chat/completions", serving.url);
    for key in ["Bearer sk-of-somebody", "Bearer "] {
        let refused = post(&url, &[("authorization", key)], &chat(4, false).to_string());
        assert_eq!(refused.status, 402);
        let challenge = refused.header("www-authenticate").expect("a challenge");
        assert!(challenge.starts_with("Payment ") && challenge.contains("intent=\"session\""));
        assert_eq!(refused.header("cache-control"), Some("no-store"), "m25");
        assert_eq!(
            refused.header("content-type"),
            Some("application/problem+json")
        );
        let problem: serde_json::Value = serde_json::from_str(&refused.text()).expect("JSON");
        let kind = "https://paymentauth.org/problems/payment-required";
        assert_eq!(
            (&problem["type"], &problem["status"]),
            (&json!(kind), &json!(402))
        );
    }
    let token = operator_token(&market.provider.paths()).expect("a token");
    let bearer = format!("Bearer {token}");
    for is_stream in [false, true] {
        let body = chat(4, is_stream).to_string();
        let answer = post(&url, &[("authorization", &bearer)], &body);
        assert_eq!(
            (answer.status, answer.header("payment-receipt")),
            (200, None)
        );
        let text = answer.text();
        assert!(
            !text.contains("payment") && !text.contains("cost"),
            "{text}"
        );
    }
    assert_eq!(market.payee_channels(), []);
    assert_eq!(market.balances(), (WEALTH, WEALTH - STAKE, 0));
}

/// The second key that anvil funds with its gas coin.
const ALSO_FUNDED: &str = "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d";

#[test]
fn the_same_flow_is_paid_on_anvil_by_configuration_only() {
    let anvil = Anvil::start(31337);
    let (mut provider, mut consumer) = (Home::with_model(), Home::new());
    for (home, key) in [(&provider, ALSO_FUNDED), (&consumer, FUNDED)] {
        let imported = home.run_with_input(&["wallet", "import"], key);
        assert_eq!(imported.code, Some(0), "{}", imported.stderr);
    }
    consumer.ok(&["chain", "deploy", "--rpc", &anvil.url, "--development"]);
    provider.rpc = Some(consumer.start_node(&[]));
    provider.ok(&["wallet", "faucet"]);
    consumer.ok(&["wallet", "faucet"]);
    let market = Market::of(provider, consumer);
    let (payer, payee, _) = market.balances();
    let serving = market.serve(0);
    let streamed = market
        .ask("v1/chat/completions", &chat(70, true))
        .streamed();
    let total = cost_of(&streamed.usage) + market.buy();
    let channel = market.payee_channel();
    assert_eq!(channel.spent, total);
    assert_eq!(
        market.balances(),
        (payer - channel.deposit, payee, channel.deposit)
    );

    market.provider.ok(&["model", "stop", MODEL]);
    let settled = market.payee_channel().settled;
    assert!(settled > 0 && settled <= total, "{settled} of {total}");
    assert_eq!(market.balances().1, payee + settled);
    let serving = market.serve(serving.port);
    HandPayer::new(&market, &serving, 0)
        .close(channel.id, total)
        .taken();
    assert_eq!(market.balances(), (payer - total, payee + total, 0));
}
