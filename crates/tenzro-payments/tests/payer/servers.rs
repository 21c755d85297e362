//! Several model servers of one payee, each with a channel of its own, and servers that turn theirs away.

use std::sync::Arc;

use alloy::primitives::B256;
use tenzro_payments::payer::audit::PromptTokens;
use tenzro_payments::payer::budget::Limits;
use tenzro_payments::payer::{ChannelState, Order, PaidRequest, PayError, Payer};
use tenzro_payments::wire::Problem;

use super::ledger::Ledger;
use super::payee::{Payee, WINDOW, cost};
use super::{PLACE, chat, open, order, scene};

const OTHER: &str = "https://other.example/v1";
const PROMPT: u32 = 20;

fn order_at(place: &str) -> Order {
    Order {
        place: place.into(),
        ..order(PromptTokens::counted(PROMPT), None)
    }
}

/// What a server says of a channel that another one has.
fn gone(id: B256, name: &str) -> Problem {
    Problem {
        kind: format!("https://paymentauth.org/problems/session/{name}"),
        title: String::new(),
        status: 410,
        detail: String::new(),
        channel_id: Some(id),
        required_cumulative: None,
        channel: None,
    }
}

/// Pays at a server that takes no channels but its own and new ones. How often it turned one away.
async fn start_at(
    payer: &Payer,
    server: &mut Payee,
    place: &str,
    foreign: &[B256],
) -> (PaidRequest, usize) {
    for turned_away in 0..4 {
        let prepared = payer.prepare(server.terms(), order_at(place)).await;
        let (request, mut credential) = prepared.expect("paid");
        let id = request.channel();
        if foreign.contains(&id) {
            drop(credential);
            let gone = gone(id, "channel-not-found");
            let refused = request.retry(server.terms(), &gone).await.map(drop);
            assert_eq!(refused, Err(PayError::NoChannel));
            request.not_served().await.expect("written");
            continue;
        }
        server.take(&credential, chat());
        if let Err(problem) = server.begin(id, 1, PROMPT) {
            drop(credential);
            let paid = request.retry(server.terms(), &problem).await;
            credential = paid.expect("paid");
            server.take(&credential, chat());
            server.begin(id, 1, PROMPT).expect("paid for");
        }
        credential.accepted().await.expect("written");
        return (request, turned_away);
    }
    panic!("too many channels were turned away")
}

/// Ids with their places, in the order of the ids.
async fn places(payer: &Payer) -> Vec<(B256, Option<String>)> {
    let channels = payer.channels().await.expect("read");
    let place = |place: Arc<str>| place.to_string();
    let rows = channels
        .into_iter()
        .map(|channel| (channel.id, channel.place.map(place)));
    rows.collect()
}

#[tokio::test]
async fn each_server_of_a_payee_has_its_own_channel_also_with_wiped_books() {
    let home = tempfile::tempdir().expect("a folder");
    let ledger = Arc::new(Ledger::new(1_000_000));
    let (mut first, mut second) = (Payee::new(&ledger, 5_000), Payee::new(&ledger, 5_000));
    let payer = open(&home.path().join("old.db"), &ledger, Limits::default());
    let (a, _) = start_at(&payer, &mut first, PLACE, &[]).await;
    let (b, _) = start_at(&payer, &mut second, OTHER, &[]).await;
    let (a_id, b_id) = (a.channel(), b.channel());
    let mut expected = vec![
        (a_id, Some(PLACE.to_owned())),
        (b_id, Some(OTHER.to_owned())),
    ];
    expected.sort();
    assert_eq!(places(&payer).await, expected);
    let (again, _) = start_at(&payer, &mut first, PLACE, &[]).await;
    assert_eq!(again.channel(), a_id);
    // So that the next requests need new vouchers.
    for (server, id) in [(&mut first, a_id), (&mut second, b_id)] {
        for tokens in [WINDOW, 1] {
            server.deliver(id, 1, PROMPT, tokens);
        }
        server.end(id, 1);
    }
    drop((a, b, again));
    payer.shutdown().await;

    let payer = open(&home.path().join("new.db"), &ledger, Limits::default());
    payer.recover().await.expect("compared");
    let unknown: Vec<_> = expected.iter().map(|(id, _)| (*id, None)).collect();
    assert_eq!(places(&payer).await, unknown);
    // The one with the higher id: the other one's channel is tried before.
    let (tried, server, place) = match a_id > b_id {
        true => (b_id, &mut first, PLACE),
        false => (a_id, &mut second, OTHER),
    };
    let (request, turned_away) = start_at(&payer, server, place, &[tried]).await;
    assert_eq!((request.channel(), turned_away), (a_id.max(b_id), 1));
    server.end(request.channel(), 1);
    drop(request);
    let (server, place) = match a_id > b_id {
        true => (&mut second, OTHER),
        false => (&mut first, PLACE),
    };
    let (request, turned_away) = start_at(&payer, server, place, &[a_id.max(b_id)]).await;
    assert_eq!((request.channel(), turned_away), (a_id.min(b_id), 0));
    assert_eq!(places(&payer).await, expected);
    assert_eq!(
        ledger.balance_now(),
        1_000_000 - 2 * 5_000,
        "no other channel was opened"
    );
}

#[tokio::test]
async fn a_channel_that_its_server_turns_away_is_kept_and_may_be_another_servers() {
    let (_home, ledger, mut payee, payer) = scene(1_000_000, 5_000);
    let (request, _) = start_at(&payer, &mut payee, PLACE, &[]).await;
    let old = request.channel();
    payee.end(old, 1);
    drop(request);
    let (request, turned_away) = start_at(&payer, &mut payee, PLACE, &[old]).await;
    let new = request.channel();
    assert_eq!((turned_away, ledger.ids().len()), (1, 2));
    let mut expected = vec![(old, None), (new, Some(PLACE.to_owned()))];
    expected.sort();
    assert_eq!(places(&payer).await, expected);
    let (request, _) = start_at(&payer, &mut payee, OTHER, &[]).await;
    assert_eq!(request.channel(), old);
    let mut expected = vec![(old, Some(OTHER.to_owned())), (new, Some(PLACE.to_owned()))];
    expected.sort();
    assert_eq!(places(&payer).await, expected);
}

#[tokio::test]
async fn only_one_server_at_a_time_is_asked_whether_a_channel_is_its_own() {
    let home = tempfile::tempdir().expect("a folder");
    let ledger = Arc::new(Ledger::new(1_000_000));
    let mut payee = Payee::new(&ledger, 5_000);
    let payer = open(&home.path().join("old.db"), &ledger, Limits::default());
    let (request, _) = start_at(&payer, &mut payee, PLACE, &[]).await;
    let old = request.channel();
    drop(request);
    payer.shutdown().await;
    let payer = open(&home.path().join("new.db"), &ledger, Limits::default());
    payer.recover().await.expect("compared");
    let prepared = payer.prepare(payee.terms(), order_at(PLACE)).await;
    let (asked, credential) = prepared.expect("paid");
    assert_eq!(asked.channel(), old);
    let prepared = payer.prepare(payee.terms(), order_at(OTHER)).await;
    let (meanwhile, opening) = prepared.expect("paid");
    assert_ne!(meanwhile.channel(), old);
    drop((asked, credential, meanwhile, opening));
}

#[tokio::test]
async fn a_finalized_channel_is_looked_up_and_replaced() {
    let (_home, ledger, mut payee, payer) = scene(1_000_000, 5_000);
    let (request, _) = start_at(&payer, &mut payee, PLACE, &[]).await;
    let old = request.channel();
    payee.end(old, 1);
    request.not_served().await.expect("written");
    ledger.change(old, |found| {
        found.settled = cost(PROMPT, WINDOW);
        found.is_final = true;
    });
    let prepared = payer.prepare(payee.terms(), order_at(PLACE)).await;
    let (request, credential) = prepared.expect("signed");
    assert_eq!(
        request.channel(),
        old,
        "nobody has said yet that it is over"
    );
    drop(credential);
    let gone = gone(old, "channel-finalized");
    let refused = request.retry(payee.terms(), &gone).await.map(drop);
    assert_eq!(refused, Err(PayError::NoChannel));
    request.not_served().await.expect("written");
    let channels = payer.channels().await.expect("read");
    assert_eq!(
        (channels.len(), channels[0].state, channels[0].due),
        (1, ChannelState::Closed, cost(PROMPT, WINDOW))
    );
    let (request, turned_away) = start_at(&payer, &mut payee, PLACE, &[]).await;
    assert_eq!(turned_away, 0);
    assert_ne!(request.channel(), old);
}

#[tokio::test]
async fn m08_a_server_that_closes_what_it_was_asked_to_open_gets_no_other_channel_for_the_request()
{
    let (_home, ledger, mut payee, payer) = scene(1_000_000, 5_000);
    for is_asked_for_more in [false, true] {
        let before = spent(&payer).await;
        let prepared = payer.prepare(payee.terms(), order_at(PLACE)).await;
        let (request, mut credential) = prepared.expect("paid");
        let id = request.channel();
        payee.take(&credential, chat());
        if is_asked_for_more {
            // The deposit is there by now, so that the second credential opens nothing any more.
            let problem = payee.begin(id, 1, PROMPT).map(|()| payee.state(id));
            let state = problem.expect("paid for");
            drop(credential);
            let problem = Problem {
                status: 402,
                channel: Some(state),
                ..gone(id, "insufficient-balance")
            };
            let paid = request.retry(payee.terms(), &problem).await;
            credential = paid.expect("the same voucher");
            payee.take(&credential, chat());
            payee.end(id, 1);
        }
        let taken = payee.books[&id].amount();
        ledger.change(id, |found| {
            found.settled = taken;
            found.is_final = true;
        });
        drop(credential);
        let gone = gone(id, "channel-finalized");
        let refused = request.retry(payee.terms(), &gone).await.map(drop);
        assert_eq!(refused, Err(PayError::TurnedAway));
        request.not_served().await.expect("written");
        assert_eq!(spent(&payer).await, before + taken);
    }
}

/// Wei that the books say were spent.
async fn spent(payer: &Payer) -> u128 {
    let rows = payer.spending(0).await.expect("read");
    rows.iter().map(|row| row.charged).sum()
}

#[tokio::test]
async fn m08_a_server_that_takes_no_channel_gets_no_more_than_sixteen_deposits() {
    let (_home, ledger, mut payee, payer) = scene(1_000_000, 5_000);
    for _ in 0..16 {
        let prepared = payer.prepare(payee.terms(), order_at(PLACE)).await;
        let (request, credential) = prepared.expect("paid");
        payee.take(&credential, chat());
        drop(credential);
        let gone = gone(request.channel(), "channel-not-found");
        let refused = request.retry(payee.terms(), &gone).await.map(drop);
        assert_eq!(refused, Err(PayError::TurnedAway));
        request.not_served().await.expect("written");
    }
    let refused = payer.prepare(payee.terms(), order_at(PLACE)).await;
    assert_eq!(refused.map(drop), Err(PayError::Strays(16)));
    assert_eq!(ledger.balance_now(), 1_000_000 - 16 * 5_000);
    // Closed ones do not count.
    ledger.change(ledger.ids()[0], |found| found.is_final = true);
    payer.recover().await.expect("compared");
    start_at(&payer, &mut payee, PLACE, &[]).await;
}

#[tokio::test]
async fn an_address_that_is_too_long_is_refused() {
    let (_home, _ledger, payee, payer) = scene(1_000_000, 5_000);
    let refused = payer.prepare(payee.terms(), order_at(&"x".repeat(257)));
    assert_eq!(refused.await.map(drop), Err(PayError::Place));
    let taken = payer.prepare(payee.terms(), order_at(&"x".repeat(256)));
    assert!(taken.await.is_ok());
}
