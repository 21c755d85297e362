//! Providers that want more than they deliver, against a real node. They get no more than the prompt, what
//! arrived, and one window.

use serde_json::{Value, json};

use super::fake_provider::{FakeProvider, PROMPT, Trick};
use super::http::{Answer, Streamed, post};
use super::market::{ChainOf, MODEL, Market, STAKE, TNZO, WEALTH, WINDOW, cost, rpc, wait_until};

/// Tokens without text that end an answer, which a provider may count.
const END_TOKENS: u128 = 2;

fn ask(market: &Market, is_stream: bool) -> Answer {
    let body = json!({
        "model": MODEL, "prompt": [1, 2, 3], "max_tokens": 1_000, "stream": is_stream,
        "stream_options": is_stream.then(|| json!({"include_usage": true})),
    });
    market.ask("v1/completions", &body)
}

/// Tokens that an engine may put around those of a prompt.
const PROMPT_ENDS: u128 = 4;

/// The most that may be signed for a request whose answer had so many bytes.
fn most(arrived: u128) -> u128 {
    let ends = if arrived > 0 { END_TOKENS } else { 0 };
    cost(PROMPT + PROMPT_ENDS, arrived + ends + WINDOW)
}

/// An honest answer: exactly what was delivered is charged, and what was in doubt is settled.
fn buy_honestly(market: &Market, fake: &FakeProvider) {
    fake.till().trick = Trick::Honest;
    let answer = ask(market, false).json();
    assert_eq!(answer["choices"][0]["text"], "a".repeat(100));
    assert_eq!(answer["usage"]["cost"], cost(PROMPT, 100).to_string());
}

fn error_of(answer: Answer) -> (u16, String) {
    let status = answer.status;
    let error: Value = serde_json::from_str(&answer.text()).expect("JSON");
    (
        status,
        error["error"]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
    )
}

#[test]
fn m08_m18_m19_a_provider_that_cheats_gets_what_arrived_and_a_window_at_most() {
    let market = Market::new(ChainOf::Consumer);
    let fake = FakeProvider::start(&market);

    // Whoever asks for something else than the registry shows gets no voucher at all.
    for (trick, reason) in [
        (Trick::Dearer, "its registered price is"),
        (Trick::OtherPayee, "payment to another payee"),
    ] {
        fake.till().trick = trick;
        for is_stream in [false, true] {
            let (status, message) = error_of(ask(&market, is_stream));
            assert!(
                status == 502 && message.contains(reason),
                "{status} {message}"
            );
        }
        let call = json!({
            "jsonrpc": "2.0", "id": 1, "method": "tenzro_chat",
            "params": {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]},
        });
        let answer = post(&market.node, &[], &call.to_string()).json();
        let message = answer["error"]["message"].as_str().expect("an error");
        assert!(message.contains(reason), "{message}");
    }
    assert_eq!(fake.till().paid_requests, 0);
    assert_eq!(fake.paid(), 0);
    assert_eq!(market.balances(), (WEALTH, WEALTH - STAKE, 0));

    buy_honestly(&market, &fake);
    for trick in [
        Trick::Overbill,
        Trick::Demand,
        Trick::BreakOff,
        Trick::FallSilent,
    ] {
        let before = fake.till().earned;
        let signed = fake.paid();
        fake.till().trick = trick;
        let mut answer = ask(&market, true);
        assert_eq!(answer.status, 200);
        let mut streamed = Streamed::default();
        let silent_after = if trick == Trick::FallSilent {
            5
        } else {
            u128::MAX
        };
        answer.read_pieces(&mut streamed, silent_after);
        drop(answer);
        let arrived = streamed.text.len() as u128;
        match trick {
            Trick::Overbill => {
                // The bill says 130.
                let paid = cost(PROMPT, 100 + END_TOKENS);
                assert_eq!(streamed.usage["cost"], paid.to_string());
                fake.till().earned = before + paid;
                assert!(streamed.is_complete && arrived == 100, "{streamed:?}");
            }
            Trick::FallSilent => {
                assert_eq!(arrived, 5);
                wait_until("the end of the stream", || fake.till().ended == 2);
            }
            _ => assert!(
                streamed.error.is_some() && !streamed.is_complete,
                "{streamed:?}"
            ),
        }
        let limit = signed.max(before + most(arrived));
        assert!(
            fake.paid() <= limit,
            "{trick:?}: {} of {limit}",
            fake.paid()
        );
        // What is due and a window are given, and no more; where nothing was asked for, the first window.
        let given = match trick {
            Trick::Demand => limit,
            _ => signed.max(before + cost(PROMPT, WINDOW)),
        };
        if trick != Trick::Overbill {
            assert_eq!(fake.paid(), given, "{trick:?}");
        }
        // The first may begin before the node has seen its client leave; the second settles all doubt.
        buy_honestly(&market, &fake);
        buy_honestly(&market, &fake);
    }

    let channels = rpc(&market.node, "tenzro_listPaymentChannels", &json!([]));
    let overbills = channels[0]["overbills"].as_u64();
    assert!(overbills.is_some_and(|count| count > 0), "{channels}");

    // All that it was given is all that it can take.
    let earned = fake.till().earned;
    assert!(fake.paid() <= earned + cost(0, WINDOW));
    // A voucher from before is no money beside the last one, whichever comes first.
    let stale = fake.till().stale.expect("an earlier voucher");
    fake.settle(&stale).expect("the first settlement");
    let paid = fake.paid();
    let last = fake.till().voucher.expect("a voucher");
    fake.settle(&last).expect("the rest");
    fake.settle(&stale).expect_err("nothing more");
    fake.settle(&last).expect_err("twice");
    let now = (WEALTH - TNZO, WEALTH - STAKE + paid, TNZO - paid);
    assert_eq!(market.balances(), now);
    assert_eq!(
        rpc(&market.node, "tenzro_networkInfo", &json!([]))["chain"],
        "embedded"
    );
}
