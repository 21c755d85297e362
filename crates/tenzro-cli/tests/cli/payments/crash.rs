//! kill -9 of either side at every moment of a paid stream. Between the processes there are only files.

use tenzro_node::{is_node_running, running_node};

use super::hand_payer::HandPayer;
use super::http::{Streamed, post};
use super::market::{
    ChainOf, MODEL, Market, OUTPUT, PayeeChannel, STAKE, Serving, WEALTH, WINDOW, chat, wait_until,
};
use crate::kill;

/// When a process is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// The channel is in the provider's books; nobody has told the payer.
    Opened,
    /// After the 402.
    Challenged,
    /// That many pieces of the answer have come.
    Streaming(u128),
    /// The last token has come; the receipt may have.
    Finished,
}

const MOMENTS: [Moment; 5] = [
    Moment::Opened,
    Moment::Challenged,
    Moment::Streaming(1),
    Moment::Streaming(45),
    Moment::Finished,
];

/// Asks for an answer and kills at that moment; what came of it.
fn break_off(market: &Market, serving: &Serving, moment: Moment, kill: impl Fn()) -> Streamed {
    let mut streamed = Streamed::default();
    match moment {
        Moment::Opened => std::thread::scope(|scope| {
            let asking = scope.spawn(|| market.ask("v1/chat/completions", &chat(90, true)));
            wait_until("the channel", || !market.payee_channels().is_empty());
            kill();
            drop(asking.join());
        }),
        Moment::Challenged => {
            let url = format!("{}/chat/completions", serving.url);
            assert_eq!(post(&url, &[], "{}").status, 402);
            kill();
        }
        Moment::Streaming(pieces) => {
            let mut answer = market.ask("v1/chat/completions", &chat(90, true));
            answer.read_pieces(&mut streamed, pieces);
            assert_eq!(streamed.pieces, pieces, "{streamed:?}");
            kill();
            answer.read_pieces(&mut streamed, u128::MAX);
        }
        Moment::Finished => {
            let mut answer = market.ask("v1/chat/completions", &chat(40, true));
            while streamed.finish.is_none() {
                let before = streamed.pieces;
                answer.read_pieces(&mut streamed, before + 1);
                assert!(streamed.error.is_none(), "{streamed:?}");
            }
            kill();
        }
    }
    streamed
}

/// After everything: exactly what was delivered is paid.
fn settle(market: &Market, channel: PayeeChannel) {
    market.provider.ok(&["model", "stop", MODEL]);
    let settled = market.payee_channel().settled;
    assert!(settled <= channel.spent, "nothing that is only paid ahead");
    assert_eq!(
        market.balance(market.payee.address()),
        WEALTH - STAKE + settled
    );
    let serving = market.serve(0);
    HandPayer::new(market, &serving, 0)
        .close(channel.id, channel.spent)
        .taken();
    let now = (WEALTH - channel.spent, WEALTH - STAKE + channel.spent, 0);
    assert_eq!(market.balances(), now);
}

#[test]
fn m12_a_provider_that_is_killed_at_any_moment_keeps_its_books_and_goes_on() {
    let market = Market::new(ChainOf::Consumer);
    let mut serving = market.serve(0);
    let mut before: Option<PayeeChannel> = None;
    for moment in MOMENTS {
        let streamed = break_off(&market, &serving, moment, || market.kill(&serving));
        let killed = market.payee_channel();
        if let Some(before) = before {
            // What was delivered was written down, but for less than half a window; no voucher is forgotten.
            assert!(killed.accepted >= before.accepted, "{moment:?}");
            let written = killed.spent - before.spent;
            let lag = WINDOW / 2 * OUTPUT;
            assert!(
                written + lag > streamed.pieces * OUTPUT,
                "{moment:?}: {written}"
            );
        }
        serving = market.serve(serving.port);
        assert_eq!(market.payee_channel(), killed, "{moment:?}");
        let price = market.buy();
        let now = market.payee_channel();
        assert_eq!(now.spent, killed.spent + price, "{moment:?}");
        assert!(now.accepted >= killed.accepted, "{moment:?}");
        before = Some(now);
    }
    let channel = market.payee_channel();
    assert_eq!(market.charged().1, channel.spent);
    settle(&market, channel);
}

#[test]
fn m12_a_payer_that_is_killed_at_any_moment_pays_nothing_twice() {
    let market = Market::new(ChainOf::Provider);
    let serving = market.serve(0);
    let home = market.consumer.paths();
    let node = running_node(&home).expect("it runs");
    let (port, chain) = (
        node.port.to_string(),
        market.provider.rpc.clone().expect("a chain"),
    );
    for moment in MOMENTS {
        if matches!(moment, Moment::Challenged) {
            continue;
        }
        let pid = running_node(&home).expect("it runs").pid.to_string();
        let killing = || kill(&pid, || is_node_running(&home));
        break_off(&market, &serving, moment, killing);
        let [ours] = market.payer_channels()[..] else {
            panic!("one channel")
        };
        let theirs = market.payee_channel();
        assert_eq!(ours.id, theirs.id, "{moment:?}");
        assert!(
            theirs.accepted <= ours.signed && ours.signed <= theirs.deposit,
            "{moment:?}"
        );
        assert!(ours.due + ours.doubt <= ours.signed, "{moment:?}");
        market.consumer.ok(&[
            "node", "start", "--port", &port, "--chain", &chain, "--detach",
        ]);
        market.wait_for_endpoint();
        let spent = market.payee_channel().spent;
        let price = market.buy();
        assert_eq!(market.payee_channel().spent, spent + price, "{moment:?}");
    }
    market.consumer.ok(&["node", "stop"]);
    let [ours] = market.payer_channels()[..] else {
        panic!("one channel")
    };
    let channel = market.payee_channel();
    // Whatever was in doubt, both sides agree in the end.
    assert_eq!(
        (ours.due, ours.doubt, ours.deposit),
        (channel.spent, 0, channel.deposit)
    );
    assert!(ours.signed >= channel.accepted);
    assert_eq!(market.charged().1, channel.spent);
    market.consumer.ok(&[
        "node", "start", "--port", &port, "--chain", &chain, "--detach",
    ]);
    settle(&market, channel);
}
