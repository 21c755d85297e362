//! Crashes, lost books, lost answers and deposits that did not come.

use std::path::Path;
use std::sync::Arc;

use alloy::primitives::B256;
use tempfile::TempDir;
use tenzro_payments::payer::audit::PromptTokens;
use tenzro_payments::payer::budget::{Bound, DepositRefused, Limits, Period};
use tenzro_payments::payer::{Channel, ChannelState, Credential, PayError, Payer, StoreError};
use tenzro_payments::price::Tokens;
use tenzro_payments::voucher::Voucher;
use tenzro_payments::wire::{OpenDeposit, Payload, Problem};
use tenzro_protocol::amount::Wei;

use super::ledger::Ledger;
use super::payee::{Payee, WINDOW, cost, market, signer};
use super::{agree, chat, open, open_at, order, scene, start};

const PROMPT: u32 = 20;
/// No deposit that was signed before can come any more: an authorization holds for a quarter of an hour.
const LATE: fn() -> u64 = || super::NOW + 901;

fn counted() -> (PromptTokens, u32) {
    (PromptTokens::counted(PROMPT), PROMPT)
}

/// The books as a crash leaves them: a copy of the files as they are now.
pub(super) fn crash(from: &Path, to: &Path) {
    for suffix in ["", "-wal"] {
        let name = |path: &Path| format!("{}{suffix}", path.display());
        std::fs::copy(name(from), name(to)).expect("copied");
    }
}

/// The payee submits a deposit that was sent to it; false where the ledger does not take it.
fn comes(ledger: &Ledger, payee: &Payee, (voucher, payload): (Voucher, Payload)) -> bool {
    let Payload::Open(open) = payload else {
        panic!("not an open")
    };
    let OpenDeposit::Authorization { authorization, .. } = open.deposit else {
        panic!("not signed")
    };
    let parties = (signer(1).address(), payee.signer.address());
    ledger.deposit(voucher.channel_id, parties, authorization.value.0, true)
}

async fn channel(payer: &Payer) -> Channel {
    let mut channels = payer.channels().await.expect("read");
    assert_eq!(channels.len(), 1);
    channels.remove(0)
}

#[tokio::test]
async fn m12_a_deposit_that_was_signed_before_a_crash_is_found_and_sent_again() {
    let home = tempfile::tempdir().expect("a folder");
    let ledger = Arc::new(Ledger::new(1_000_000));
    let mut payee = Payee::new(&ledger, 10_000);
    let (before, after) = (home.path().join("before.db"), home.path().join("after.db"));
    let payer = open(&before, &ledger, Limits::default());
    let order_ = || order(PromptTokens::counted(PROMPT), None);
    let prepared = payer.prepare(payee.terms(), order_()).await;
    let (_request, sent) = prepared.expect("signed");
    crash(&before, &after);

    let payer = open(&after, &ledger, Limits::default());
    payer.recover().await.expect("compared");
    let found = channel(&payer).await;
    assert_eq!(found.state, ChannelState::Opening);
    let prepared = payer.prepare(payee.terms(), order_()).await;
    let (request, again) = prepared.expect("signed");
    let deposit_of = |credential: &Credential| match Payee::read(credential).1 {
        Payload::Open(open) => (open.channel_id, open.salt, open.deposit),
        other => panic!("not an open: {other:?}"),
    };
    let (first, second) = (deposit_of(&sent), deposit_of(&again));
    assert_eq!((first.0, first.1), (second.0, second.1));
    payee.take(&sent, chat());
    payee.take(&again, chat());
    again.accepted().await.expect("written");
    assert_eq!(ledger.balance_now(), 1_000_000 - 10_000, "deposited once");
    let found = channel(&payer).await;
    assert_eq!((found.state, found.deposit), (ChannelState::Open, 10_000));
    assert_eq!(request.channel(), found.id);
}

#[tokio::test]
async fn m12_a_deposit_that_came_although_its_answer_got_lost_is_used() {
    let (_home, ledger, mut payee, payer) = scene(1_000_000, 10_000);
    let order = order(PromptTokens::counted(PROMPT), None);
    let (request, lost) = payer.prepare(payee.terms(), order).await.expect("signed");
    payee.take(&lost, chat());
    drop((request, lost));
    let request = start(&payer, &mut payee, 1, counted()).await.expect("paid");
    assert_eq!(ledger.ids(), [request.channel()]);
    assert_eq!(channel(&payer).await.deposit, 10_000);
}

/// A payee that delivered a window, and the payer with wiped books.
struct Wiped {
    _home: TempDir,
    ledger: Arc<Ledger>,
    payee: Payee,
    payer: Payer,
    /// Of their channel.
    id: B256,
    /// Wei that the payee delivered for.
    spent: u128,
}

impl Wiped {
    async fn new(limits: Limits) -> Self {
        let (home, ledger, mut payee, payer) = scene(1_000_000, 500_000);
        let request = start(&payer, &mut payee, 1, counted()).await.expect("paid");
        let id = request.channel();
        assert_eq!(payee.deliver(id, 1, PROMPT, WINDOW), WINDOW);
        let spent = payee.end(id, 1);
        drop(request);
        payer.shutdown().await;
        let payer = open(&home.path().join("new.db"), &ledger, limits);
        payer.recover().await.expect("compared");
        Self {
            _home: home,
            ledger,
            payee,
            payer,
            id,
            spent,
        }
    }

    /// The payee has a voucher of the old books, so much above what it delivered for.
    fn is_paid_ahead(&mut self, more: u128) {
        let domain = market().domain;
        let voucher = domain.sign_voucher(&signer(1), self.id, self.spent + more);
        let books = self.payee.books.get_mut(&self.id).expect("books");
        books.accepted = Some(voucher);
    }
}

#[tokio::test]
async fn m13_wiped_books_go_on_with_what_the_payee_shows_of_our_own_signature() {
    let wiped = Wiped::new(Limits::default()).await;
    let Wiped {
        ledger,
        mut payee,
        payer,
        id,
        spent,
        ..
    } = wiped;
    assert_eq!(
        channel(&payer).await.signed,
        0,
        "the ledger knows of no voucher"
    );
    // A prompt so short that its voucher is below the one that the payee has.
    let short = (PromptTokens::counted(1), 1);
    let request = start(&payer, &mut payee, 2, short).await.expect("paid");
    assert_eq!(request.channel(), id);
    let found = channel(&payer).await;
    assert_eq!(found.due, spent);
    assert_eq!(found.signed, spent + cost(1, WINDOW));
    assert_eq!(
        ledger.balance_now(),
        500_000,
        "no second channel was opened"
    );
}

#[tokio::test]
async fn m13_wiped_books_do_not_overtake_the_voucher_that_the_payee_has() {
    let wiped = Wiped::new(Limits::default()).await;
    let Wiped {
        mut payee,
        payer,
        spent,
        ..
    } = wiped;
    // Its voucher would be above the old one, which the payee would no longer show.
    let long = (PromptTokens::counted(10 * PROMPT), 10 * PROMPT);
    let request = start(&payer, &mut payee, 2, long).await.expect("paid");
    let found = channel(&payer).await;
    assert_eq!((found.due, found.id), (spent, request.channel()));
    assert_eq!(found.signed, spent + cost(10 * PROMPT, WINDOW));
}

#[tokio::test]
async fn m13_a_bill_is_agreed_although_the_ledger_knows_a_higher_voucher_than_wiped_books() {
    let mut wiped = Wiped::new(Limits::default()).await;
    // So much was paid ahead that nothing new has to be signed.
    wiped.is_paid_ahead(cost(1, WINDOW));
    let Wiped {
        ledger,
        mut payee,
        payer,
        id,
        spent,
        ..
    } = wiped;
    let small = (PromptTokens::counted(1), 1);
    let request = start(&payer, &mut payee, 2, small).await.expect("paid");
    payee.deliver(id, 2, 1, 1);
    ledger.change(id, |found| found.settled = spent);
    payer.recover().await.expect("compared");
    request.on_text("x");
    let charged = agree(&mut payee, &request, 2, (1, 1)).await;
    let found = channel(&payer).await;
    let due = spent + charged;
    assert_eq!((found.due, found.signed), (due, due));
    let rows = payer.spending(0).await.expect("read");
    assert_eq!(rows.iter().map(|row| row.charged).sum::<u128>(), due);
}

#[tokio::test]
async fn m13_requests_that_begin_together_with_wiped_books_are_all_paid() {
    let wiped = Wiped::new(Limits::default()).await;
    let Wiped {
        mut payee,
        payer,
        spent,
        ..
    } = wiped;
    let mut waiting = Vec::new();
    for stream in 2..10 {
        let prompt = PromptTokens::counted(PROMPT);
        let prepared = payer.prepare(payee.terms(), order(prompt, None)).await;
        let (request, credential) = prepared.expect("paid");
        payee.take(&credential, chat());
        let problem = payee.begin(request.channel(), stream, PROMPT);
        waiting.push((stream, request, problem.expect_err("not paid for")));
    }
    // Each is told the same, before any of them answers.
    let mut running = Vec::new();
    for (stream, request, problem) in waiting {
        let paid = request.retry(payee.terms(), &problem).await;
        let credential = paid.expect("paid");
        payee.take(&credential, chat());
        let id = request.channel();
        payee.begin(id, stream, PROMPT).expect("paid for");
        credential.accepted().await.expect("written");
        running.push(request);
    }
    let found = channel(&payer).await;
    assert_eq!(found.signed, spent + 8 * cost(PROMPT, WINDOW));
}

#[tokio::test]
async fn m13_wiped_books_agree_to_what_is_served_for_what_they_do_not_know() {
    let mut wiped = Wiped::new(Limits::default()).await;
    // The credit that is left is enough for two short requests.
    wiped.is_paid_ahead(cost(1, WINDOW) + cost(1, 1));
    let Wiped {
        mut payee,
        payer,
        id,
        spent,
        ..
    } = wiped;
    for stream in 2..4 {
        let request = start(&payer, &mut payee, stream, (PromptTokens::counted(1), 1)).await;
        let request = request.expect("paid");
        let output = payee.deliver(id, stream, 1, 1);
        request.on_text("x");
        agree(&mut payee, &request, stream, (1, output)).await;
    }
    let found = channel(&payer).await;
    let due = 2 * cost(1, 1);
    assert_eq!((found.due, found.signed, found.place), (due, due, None));
    // One that needs more is told all of it.
    let request = start(&payer, &mut payee, 4, counted()).await.expect("paid");
    assert_eq!(request.channel(), id);
    let found = channel(&payer).await;
    assert_eq!((found.due, found.place.is_some()), (spent + due, true));
}

#[tokio::test]
async fn m32_what_is_served_on_trust_keeps_to_the_budget() {
    let one = cost(PROMPT, WINDOW);
    let limits = Limits {
        hour: Some(one),
        ..Limits::default()
    };
    let wiped = Wiped::new(limits).await;
    let Wiped {
        mut payee,
        payer,
        id,
        ..
    } = wiped;
    let order = || order(PromptTokens::counted(PROMPT), None);
    let (request, credential) = payer.prepare(payee.terms(), order()).await.expect("paid");
    assert_eq!(payee.take(&credential, chat()).amount.0, 0);
    // Another one would be more than the hour's budget.
    let left = one;
    let beside = payer.prepare(payee.terms(), order()).await.map(drop);
    let period = Period::Hour;
    assert_eq!(beside, Err(PayError::Budget { period, left }));
    // Served for nothing, and twice as long as what was reserved.
    request.on_text(&"x".repeat(3 * WINDOW as usize));
    let tokens = Tokens {
        input: PROMPT,
        output: 2 * WINDOW,
    };
    let receipt = payee.receipt(id, tokens, cost(PROMPT, 2 * WINDOW));
    let verdict = request.on_receipt(&receipt).await.expect("audited");
    assert_eq!(verdict.agreed.charged.0, one);
    let next = payer.prepare(payee.terms(), order()).await.map(drop);
    let left = 0;
    assert_eq!(next, Err(PayError::Budget { period, left }));
}

#[tokio::test]
async fn m13_wiped_books_sign_nothing_for_a_demand_that_they_cannot_know() {
    let mut wiped = Wiped::new(Limits::default()).await;
    wiped.is_paid_ahead(cost(1, WINDOW));
    let Wiped {
        mut payee,
        payer,
        id,
        spent,
        ..
    } = wiped;
    let request = start(&payer, &mut payee, 2, (PromptTokens::counted(1), 1)).await;
    let request = request.expect("paid");
    let output = payee.deliver(id, 2, 1, WINDOW);
    request.on_text(&"x".repeat(output as usize));
    let need = payee.need(id, 2, 1);
    let answer = request
        .on_need_voucher(&need, chat())
        .await
        .expect("decided");
    assert!(answer.credential.is_none() && !answer.is_overbill);
    let charged = agree(&mut payee, &request, 2, (1, output)).await;
    let request = start(&payer, &mut payee, 3, counted()).await.expect("paid");
    assert_eq!(channel(&payer).await.due, spent + charged);
    drop(request);
}

#[tokio::test]
async fn m13_wiped_books_are_right_after_the_provider_settled_all_of_it() {
    let mut wiped = Wiped::new(Limits::default()).await;
    // Its last voucher is earned in full.
    wiped.is_paid_ahead(0);
    let Wiped {
        ledger,
        mut payee,
        payer,
        id,
        spent,
        ..
    } = wiped;
    ledger.change(id, |found| found.settled = spent);
    payer.recover().await.expect("compared");
    let request = start(&payer, &mut payee, 2, counted()).await.expect("paid");
    let found = channel(&payer).await;
    let one = cost(PROMPT, WINDOW);
    assert_eq!((found.due, found.signed), (spent, spent + one));
    drop(request);
}

#[tokio::test]
async fn m08_a_payee_that_settles_and_claims_it_for_nothing_gets_no_other_voucher() {
    let (_home, ledger, mut payee, payer) = scene(1_000_000, 500_000);
    let prompt = PromptTokens::counted(PROMPT);
    for _ in 0..3 {
        let prepared = payer.prepare(payee.terms(), order(prompt, None)).await;
        let (request, credential) = prepared.expect("paid");
        let (id, signed) = (request.channel(), payee.take(&credential, chat()).amount.0);
        assert_eq!(signed, cost(PROMPT, WINDOW));
        ledger.change(id, |found| found.settled = signed);
        payee.books.get_mut(&id).expect("books").spent = signed;
        drop(credential);
        let problem = payee.begin(id, 1, PROMPT).expect_err("nothing is left");
        let refused = request.retry(payee.terms(), &problem).await.map(drop);
        let required = signed + cost(PROMPT, WINDOW);
        assert_eq!(refused, Err(PayError::Overbilled { required, signed }));
        request.not_served().await.expect("written");
        payer.recover().await.expect("compared");
    }
    assert_eq!(payer.evidence(10).await.expect("read").len(), 3);
}

#[tokio::test]
async fn a_channel_that_was_given_up_and_comes_all_the_same_is_found() {
    let (home, ledger, payee, payer) = scene(1_000_000, 10_000);
    let order = order(PromptTokens::counted(PROMPT), None);
    let (request, credential) = payer.prepare(payee.terms(), order).await.expect("signed");
    let sent = Payee::read(&credential);
    drop(credential);
    request.not_served().await.expect("written");
    payer.shutdown().await;
    let path = home.path().join("payer.db");
    let payer = open_at(&path, &ledger, Limits::default(), LATE);
    payer.recover().await.expect("compared");
    assert_eq!(channel(&payer).await.state, ChannelState::Closed);
    // The clock here was ahead of the chain's.
    assert!(comes(&ledger, &payee, sent));
    payer.recover().await.expect("compared");
    let found = channel(&payer).await;
    assert_eq!((found.state, found.deposit), (ChannelState::Open, 10_000));
}

#[tokio::test]
async fn m13_a_state_without_our_own_signature_is_not_believed() {
    let (_home, _ledger, mut payee, payer) = scene(1_000_000, 500_000);
    let forgers: [fn(&Voucher) -> Voucher; 3] = [
        // Signed by the payee itself.
        |real| {
            market()
                .domain
                .sign_voucher(&signer(9), real.channel_id, 90_000)
        },
        // Ours, with another amount.
        |real| Voucher {
            amount: Wei(90_000),
            ..*real
        },
        // Ours, of another channel.
        |_| market().domain.sign_voucher(&signer(1), B256::ZERO, 90_000),
    ];
    for forge in forgers {
        let order = order(PromptTokens::counted(PROMPT), None);
        let prepared = payer.prepare(payee.terms(), order).await;
        let (request, credential) = prepared.expect("signed");
        let real = payee.take(&credential, chat());
        let before = channel(&payer).await;
        let mut problem = payee
            .begin(request.channel(), 1, 10_000)
            .expect_err("too little");
        let state = problem.channel.as_mut().expect("a state");
        state.voucher = Some(forge(&real));
        state.spent = Wei(80_000);
        problem.required_cumulative = Some(Wei(80_000 + cost(PROMPT, WINDOW)));
        drop(credential);
        let refused = request.retry(payee.terms(), &problem).await;
        assert_eq!(
            refused.map(drop),
            Err(PayError::Message("a voucher that is not ours"))
        );
        assert_eq!(channel(&payer).await, before);
        request.not_served().await.expect("written");
    }
}

#[tokio::test]
async fn m34_a_top_up_counts_when_it_is_said_to_be_there_and_no_longer_when_the_ledger_has_none() {
    let (_home, ledger, mut payee, payer) = scene(1_000_000, cost(PROMPT, WINDOW));
    let first = start(&payer, &mut payee, 1, counted()).await.expect("paid");
    let one = cost(PROMPT, WINDOW);
    assert_eq!(channel(&payer).await.deposit, one);
    // The second request needs as much again, and tops up; the payee's answer gets lost.
    let again = order(PromptTokens::counted(PROMPT), None);
    let prepared = payer.prepare(payee.terms(), again.clone()).await;
    let (second, refused) = prepared.expect("signed");
    let top_up = |credential: &Credential| match Payee::read(credential).1 {
        Payload::Voucher(update) => update.deposit.expect("a deposit").authorization.nonce,
        other => panic!("not a voucher: {other:?}"),
    };
    let nonce = top_up(&refused);
    drop(refused);
    second.not_served().await.expect("written");
    assert_eq!(channel(&payer).await.deposit, one, "it is not there yet");
    let (third, repeated) = payer.prepare(payee.terms(), again).await.expect("signed");
    assert_eq!(
        top_up(&repeated),
        nonce,
        "the same deposit, not another one"
    );
    payee.take(&repeated, chat());
    repeated.accepted().await.expect("written");
    assert_eq!(channel(&payer).await.deposit, 2 * one);
    // The chain takes the channel's top-up back; a view that lags is not believed for a while.
    ledger.change(third.channel(), |found| found.deposit = one);
    payer.recover().await.expect("compared");
    assert_eq!(channel(&payer).await.deposit, 2 * one);
    drop((first, third));
}

#[tokio::test]
async fn channels_that_the_ledger_closes_are_not_paid_through() {
    let (_home, ledger, mut payee, payer) = scene(1_000_000, 10_000);
    let request = start(&payer, &mut payee, 1, counted()).await.expect("paid");
    let old = request.channel();
    ledger.change(old, |found| {
        found.settled = cost(PROMPT, WINDOW);
        found.is_final = true;
    });
    payer.recover().await.expect("compared");
    let found = channel(&payer).await;
    assert_eq!(found.state, ChannelState::Closed);
    assert_eq!(found.due, cost(PROMPT, WINDOW), "what was settled is gone");
    let need = payee.need(old, 1, PROMPT);
    let refused = request.on_need_voucher(&need, chat()).await.map(drop);
    assert_eq!(refused, Err(PayError::NoChannel));
    drop(request);
    let next = start(&payer, &mut payee, 2, counted()).await.expect("paid");
    assert_ne!(next.channel(), old);
}

#[tokio::test]
async fn the_ledger_is_asked_for_closed_channels_once_after_a_start() {
    let (home, ledger, mut payee, payer) = scene(1_000_000, 10_000);
    let mut ids = Vec::new();
    for is_final in [true, false] {
        let request = start(&payer, &mut payee, 1, counted()).await.expect("paid");
        ids.push(request.channel());
        ledger.change(request.channel(), |found| found.is_final = is_final);
        request.not_served().await.expect("written");
        payer.recover().await.expect("compared");
    }
    let [closed, open] = ids[..] else {
        panic!("two channels")
    };
    ledger.asked();
    payer.recover().await.expect("compared");
    assert_eq!(ledger.asked(), [open]);
    payer.shutdown().await;
    let payer = super::open(&home.path().join("payer.db"), &ledger, Limits::default());
    payer.recover().await.expect("compared");
    let mut asked = ledger.asked();
    asked.sort_by_key(|id| *id != closed);
    assert_eq!(asked, [closed, open]);
}

#[tokio::test]
async fn a_deposit_that_is_too_small_is_not_made_again_and_a_larger_one_is() {
    let (_home, ledger, mut payee, payer) = scene(1_500, 10_000);
    let order_ = || order(PromptTokens::counted(PROMPT), None);
    let prepared = payer.prepare(payee.terms(), order_()).await;
    let (request, credential) = prepared.expect("signed");
    let refused_id = request.channel();
    let problem = Problem {
        kind: "https://paymentauth.org/problems/payment-insufficient".to_owned(),
        title: String::new(),
        status: 402,
        detail: String::new(),
        channel_id: Some(refused_id),
        required_cumulative: None,
        channel: None,
    };
    let sent = Payee::read(&credential);
    drop(credential);
    let refused = request.retry(payee.terms(), &problem).await.map(drop);
    assert_eq!(refused, Err(PayError::NoChannel));
    request.not_served().await.expect("written");
    let refused = payer.prepare(payee.terms(), order_()).await.map(drop);
    let small = DepositRefused::Small {
        offered: 1_500,
        suggested: 10_000,
        bound: Bound::Funds,
    };
    assert_eq!(refused, Err(PayError::Deposit(small)));
    ledger.give(20_000);
    let request = start(&payer, &mut payee, 1, counted()).await.expect("paid");
    assert_ne!(request.channel(), refused_id);
    assert_eq!(ledger.balance_now(), 11_500);
    // The first one comes all the same: its money is not lost.
    assert!(comes(&ledger, &payee, sent));
    payer.recover().await.expect("compared");
    let channels = payer.channels().await.expect("read");
    let found = channels.iter().find(|found| found.id == refused_id);
    let found = found.expect("it is known");
    assert_eq!((found.state, found.deposit), (ChannelState::Open, 1_500));
}

#[tokio::test]
async fn what_a_lost_request_cost_counts_once_when_the_next_receipt_tells() {
    let (_home, ledger, mut payee, payer) = scene(1_000_000, 10_000);
    let request = start(&payer, &mut payee, 1, counted()).await.expect("paid");
    let id = request.channel();
    payee.deliver(id, 1, PROMPT, 10);
    let charged = payee.end(id, 1);
    drop(request);
    let is = |due, doubt| {
        let payer = &payer;
        async move {
            let found = channel(payer).await;
            assert_eq!((found.due, found.doubt), (due, doubt));
            let rows = payer.spending(0).await.expect("read");
            assert_eq!(
                rows.iter().map(|row| row.charged).sum::<u128>(),
                due + doubt
            );
        }
    };
    is(0, cost(PROMPT, WINDOW)).await;
    // Payees settle what they like, so that it proves nothing.
    for settled in [cost(PROMPT, 4), charged] {
        ledger.change(id, |found| found.settled = settled);
        payer.recover().await.expect("compared");
        is(0, cost(PROMPT, WINDOW)).await;
    }
    // The next receipt says what all of it was.
    let request = start(&payer, &mut payee, 2, counted()).await.expect("paid");
    request.on_text("x");
    let tokens = Tokens {
        input: PROMPT,
        output: payee.deliver(id, 2, PROMPT, 1),
    };
    payee.end(id, 2);
    let receipt = payee.receipt(id, tokens, cost(PROMPT, 1));
    let verdict = request.on_receipt(&receipt).await.expect("audited");
    assert_eq!(verdict.overbill, None);
    is(charged + cost(PROMPT, 1), 0).await;
}

#[tokio::test]
async fn what_is_settled_while_a_request_runs_is_not_due_twice() {
    let (_home, ledger, mut payee, payer) = scene(1_000_000, 10_000);
    let request = start(&payer, &mut payee, 1, counted()).await.expect("paid");
    let id = request.channel();
    let tokens = Tokens {
        input: PROMPT,
        output: payee.deliver(id, 1, PROMPT, 10),
    };
    let charged = cost(PROMPT, 10);
    ledger.change(id, |found| found.settled = charged);
    payer.recover().await.expect("compared");
    request.on_text("ten tokens");
    payee.end(id, 1);
    let receipt = payee.receipt(id, tokens, charged);
    request.on_receipt(&receipt).await.expect("audited");
    payer.recover().await.expect("compared");
    let found = channel(&payer).await;
    assert_eq!((found.due, found.doubt), (charged, 0));
}

#[tokio::test]
async fn a_deposit_that_never_came_cost_nothing() {
    let home = tempfile::tempdir().expect("a folder");
    let ledger = Arc::new(Ledger::new(1_000_000));
    let payee = Payee::new(&ledger, 10_000);
    let path = home.path().join("payer.db");
    let payer = open(&path, &ledger, Limits::default());
    let order = order(PromptTokens::counted(PROMPT), None);
    let (request, lost) = payer.prepare(payee.terms(), order).await.expect("signed");
    drop((request, lost));
    assert_eq!(channel(&payer).await.doubt, cost(PROMPT, WINDOW));
    payer.shutdown().await;
    let payer = open_at(&path, &ledger, Limits::default(), LATE);
    payer.recover().await.expect("compared");
    let found = channel(&payer).await;
    assert_eq!((found.state, found.doubt), (ChannelState::Closed, 0));
    let spending = payer.spending(0).await.expect("read");
    assert_eq!(spending.iter().map(|row| row.charged).sum::<u128>(), 0);
}

#[tokio::test]
async fn m31_nobody_else_reads_the_books() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().expect("a folder");
    let path = home.path().join("payer.db");
    let payer = open(&path, &Arc::new(Ledger::new(0)), Limits::default());
    for suffix in ["", "-wal"] {
        let found = std::fs::metadata(format!("{}{suffix}", path.display()));
        let mode = found.expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{suffix}");
    }
    drop(payer);
}

#[tokio::test]
async fn two_payers_never_have_the_same_books() {
    let home = tempfile::tempdir().expect("a folder");
    let ledger = Arc::new(Ledger::new(0));
    let path = home.path().join("payer.db");
    let payer = open(&path, &ledger, Limits::default());
    let config = || tenzro_payments::payer::PayerConfig {
        path: path.clone(),
        market: market(),
        signer: signer(1),
        limits: Limits::default(),
        clock: || super::NOW,
    };
    let second = Payer::open(config(), Arc::clone(&ledger) as _).map(drop);
    let in_use = PayError::Store(StoreError::InUse(path.clone()));
    assert_eq!(second, Err(in_use));
    payer.shutdown().await;
    Payer::open(config(), Arc::clone(&ledger) as _).expect("free again");
    std::fs::write(
        home.path().join("other.db"),
        "not a database, but longer than a header of one ".repeat(9),
    )
    .expect("written");
    let foreign = tenzro_payments::payer::PayerConfig {
        path: home.path().join("other.db"),
        ..config()
    };
    let refused = Payer::open(foreign, Arc::clone(&ledger) as _).map(drop);
    assert_eq!(
        refused,
        Err(PayError::Store(StoreError::Foreign(
            home.path().join("other.db")
        )))
    );
}

#[tokio::test]
async fn concurrent_requests_open_one_channel_and_share_it() {
    let home = tempfile::tempdir().expect("a folder");
    let ledger = Arc::new(Ledger::new(1_000_000));
    let payee = Arc::new(tokio::sync::Mutex::new(Payee::new(&ledger, 500_000)));
    let payer = open(&home.path().join("payer.db"), &ledger, Limits::default());
    let tasks = (0..16).map(|_| {
        let (payer, payee) = (payer.clone(), Arc::clone(&payee));
        tokio::spawn(async move {
            let terms = payee.lock().await.terms();
            let order = order(PromptTokens::counted(PROMPT), None);
            let (request, credential) = payer.prepare(terms, order).await.expect("paid");
            payee.lock().await.take(&credential, chat());
            credential.accepted().await.expect("written");
            request
        })
    });
    let requests = futures::future::join_all(tasks).await;
    let requests: Vec<_> = requests
        .into_iter()
        .map(|task| task.expect("ran"))
        .collect();
    assert_eq!(ledger.ids().len(), 1);
    assert_eq!(channel(&payer).await.signed, 16 * cost(PROMPT, WINDOW));
    drop(requests);
}
