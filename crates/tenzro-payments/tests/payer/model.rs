//! Random lives of a payer, with crashes at any moment: what it signs is held against a model that knows
//! only what was bought, what arrived and what broke off.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use alloy::primitives::B256;
use proptest::prelude::*;
use tempfile::TempDir;
use tenzro_payments::payer::audit::PromptTokens;
use tenzro_payments::payer::budget::Limits;
use tenzro_payments::payer::{ChannelState, Credential, PaidRequest, PayError, Payer};
use tenzro_payments::price::Tokens;
use tenzro_protocol::amount::Wei;

use super::ledger::Ledger;
use super::losses::crash;
use super::payee::{Payee, WINDOW, cost};
use super::{chat, open, order, update};

/// Bytes of a token's text.
const TOKEN_BYTES: u32 = 3;

#[derive(Debug, Clone)]
enum Op {
    /// The payee counts `counted` of at most `likely + more` tokens.
    Start {
        likely: u32,
        more: u32,
        counted: u32,
    },
    /// The payee refuses with an error that is not about payment.
    Refused {
        likely: u32,
    },
    /// The credential never arrives.
    LostStart {
        likely: u32,
    },
    Deliver {
        which: usize,
        tokens: u32,
        arrives: bool,
    },
    /// A demand, `greed` wei above the honest one; its answer may get lost.
    Need {
        which: usize,
        greed: u128,
        arrives: bool,
    },
    /// The bill has more tokens than were delivered.
    Receipt {
        which: usize,
        more: u32,
    },
    Break {
        which: usize,
    },
    Crash,
    /// The payee goes to the ledger: an honest one with what it charged, another one with all that it can.
    Settle {
        which: usize,
    },
    Recover,
}

fn ops(is_honest: bool) -> impl Strategy<Value = Vec<Op>> {
    let most: u32 = if is_honest { 1 } else { 100_000 };
    let which = 0usize..4;
    let op = prop_oneof![
        3 => (1u32..200, 0u32..200, 0u32..400).prop_map(move |(likely, more, counted)| Op::Start {
            likely, more, counted: if is_honest { counted % (likely + more) + 1 } else { counted },
        }),
        1 => (1u32..200).prop_map(|likely| Op::Refused { likely }),
        1 => (1u32..200).prop_map(|likely| Op::LostStart { likely }),
        5 => (which.clone(), 1u32..60, any::<bool>())
            .prop_map(|(which, tokens, arrives)| Op::Deliver { which, tokens, arrives }),
        5 => (which.clone(), 0..u128::from(most), any::<bool>())
            .prop_map(|(which, greed, arrives)| Op::Need { which, greed, arrives }),
        2 => (which.clone(), 0..most)
            .prop_map(|(which, more)| Op::Receipt { which, more }),
        1 => which.clone().prop_map(|which| Op::Break { which }),
        1 => which.prop_map(|which| Op::Settle { which }),
        1 => Just(Op::Crash),
        1 => Just(Op::Recover),
    ];
    proptest::collection::vec(op, 1..40)
}

#[derive(Debug)]
struct Stream {
    number: u32,
    request: PaidRequest,
    most: u32,
    counted: u32,
    /// Tokens that the payee sent, and those of them that arrived.
    sent: u32,
    heard: u32,
}

impl Stream {
    /// Tokens that the text which arrived can hold.
    fn bound(&self) -> u32 {
        match self.heard {
            0 => 0,
            heard => heard * TOKEN_BYTES + 2,
        }
    }

    fn limit(&self) -> u128 {
        cost(self.most, self.bound() + WINDOW)
    }

    fn hear(&mut self) {
        let text = "x".repeat(((self.sent - self.heard) * TOKEN_BYTES) as usize);
        self.request.on_text(&text);
        self.heard = self.sent;
    }
}

/// What may have been earned on a channel, and the highest voucher.
#[derive(Debug, Default, Clone, Copy)]
struct Account {
    owed: u128,
    signed: u128,
}

struct World {
    home: TempDir,
    lives: u32,
    ledger: Arc<Ledger>,
    payee: Payee,
    payer: Payer,
    streams: Vec<Stream>,
    accounts: BTreeMap<B256, Account>,
    started: u32,
    is_honest: bool,
    limits: Limits,
}

impl World {
    fn new(suggested: u128, is_honest: bool, budget: Option<u128>) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let ledger = Arc::new(Ledger::new(100_000_000));
        let limits = Limits {
            hour: budget,
            ..Limits::default()
        };
        Self {
            payer: open(&home.path().join("0.db"), &ledger, limits),
            payee: Payee::new(&ledger, suggested),
            home,
            lives: 0,
            ledger,
            streams: Vec::new(),
            accounts: BTreeMap::new(),
            started: 0,
            is_honest,
            limits,
        }
    }

    fn path(&self) -> PathBuf {
        self.home.path().join(format!("{}.db", self.lives))
    }

    /// What may be signed on a channel. What its payee took on the ledger does not count: taken is not earned.
    fn ceiling(&self, channel: B256, new: u128) -> u128 {
        let streams = self.streams.iter();
        let running = streams.filter(|stream| stream.request.channel() == channel);
        let limit: u128 = running.map(Stream::limit).sum();
        let owed = self
            .accounts
            .get(&channel)
            .map_or(0, |account| account.owed);
        owed + limit + new
    }

    /// Checks a voucher against the model. `new` is the limit of a request that is not in `streams` yet.
    fn check(&mut self, credential: &Credential, new: u128) {
        let voucher = Payee::read(credential).0;
        let ceiling = self.ceiling(voucher.channel_id, new);
        let account = self.accounts.entry(voucher.channel_id).or_default();
        assert!(voucher.amount.0 >= account.signed, "a voucher went down");
        assert!(
            voucher.amount.0 <= ceiling.max(account.signed),
            "{} signed, but only {ceiling} may be",
            voucher.amount.0
        );
        account.signed = voucher.amount.0;
    }

    /// A request broke off: what it may have cost, or all that was signed, may have been earned.
    fn lose(&mut self, channel: B256, limit: u128) {
        let account = self.accounts.entry(channel).or_default();
        account.owed = (account.owed + limit).max(account.signed);
    }

    async fn start(&mut self, likely: u32, most: u32, counted: u32) -> Result<(), PayError> {
        let prompt = PromptTokens { likely, most };
        self.started += 1;
        let (number, new) = (self.started, cost(most, WINDOW));
        let prepared = self
            .payer
            .prepare(self.payee.terms(), order(prompt, None))
            .await;
        let (request, mut credential) = prepared?;
        let channel = request.channel();
        let mut rounds = 0;
        loop {
            rounds += 1;
            assert!(rounds < 8, "it never ends");
            self.check(&credential, new);
            self.payee.take(&credential, chat());
            let Err(problem) = self.payee.begin(channel, number, counted) else {
                break;
            };
            drop(credential);
            let mut paid = request.retry(self.payee.terms(), &problem).await;
            if matches!(paid, Err(PayError::Behind)) {
                // Once all is read that was sent, it cannot be behind.
                self.streams.iter_mut().for_each(Stream::hear);
                paid = request.retry(self.payee.terms(), &problem).await;
            }
            credential = match paid {
                Ok(credential) => credential,
                Err(error) => {
                    request.not_served().await.expect("written");
                    return Err(error);
                }
            };
        }
        credential.accepted().await.expect("written");
        self.streams.push(Stream {
            number,
            request,
            most,
            counted,
            sent: 0,
            heard: 0,
        });
        Ok(())
    }

    async fn unserved(&mut self, likely: u32, arrives: bool) {
        let prompt = PromptTokens::counted(likely);
        let prepared = self
            .payer
            .prepare(self.payee.terms(), order(prompt, None))
            .await;
        let (request, credential) = match prepared {
            Err(PayError::Budget { .. }) if self.limits.hour.is_some() => return,
            prepared => prepared.expect("paid"),
        };
        let new = cost(likely, WINDOW);
        self.check(&credential, new);
        if arrives {
            self.payee.take(&credential, chat());
            request.not_served().await.expect("written");
        } else {
            self.lose(request.channel(), new);
            drop(request);
        }
    }

    async fn need(&mut self, which: usize, greed: u128, arrives: bool) {
        let Some(which) = which.checked_rem(self.streams.len()) else {
            return;
        };
        let stream = &mut self.streams[which];
        stream.hear();
        let (channel, number) = (stream.request.channel(), stream.number);
        let mut need = self.payee.need(channel, number, stream.counted);
        need.required_cumulative = Wei(need.required_cumulative.0 + greed);
        let answer = stream.request.on_need_voucher(&need, update()).await;
        let answer = match answer {
            Err(PayError::Budget { .. }) if self.limits.hour.is_some() => return,
            answer => answer.expect("decided"),
        };
        if let Some(credential) = answer.credential {
            self.check(&credential, 0);
            if arrives {
                self.payee.take(&credential, update());
                credential.accepted().await.expect("written");
            }
        }
    }

    async fn receipt(&mut self, which: usize, more: u32) {
        let Some(which) = which.checked_rem(self.streams.len()) else {
            return;
        };
        let mut stream = self.streams.swap_remove(which);
        stream.hear();
        let channel = stream.request.channel();
        let charged = self.payee.end(channel, stream.number) + cost(0, more);
        let books = self.payee.books.get_mut(&channel).expect("books");
        books.spent += cost(0, more);
        let tokens = Tokens {
            input: stream.counted,
            output: stream.sent + more,
        };
        let receipt = self.payee.receipt(channel, tokens, charged);
        let verdict = stream.request.on_receipt(&receipt).await.expect("audited");
        let input = if stream.heard == 0 { 0 } else { stream.most };
        let most = cost(input, stream.bound());
        assert!(verdict.agreed.charged.0 <= charged.min(most));
        self.accounts.entry(channel).or_default().owed += charged.min(most);
    }

    fn break_off(&mut self, which: usize) {
        let Some(which) = which.checked_rem(self.streams.len()) else {
            return;
        };
        let stream = self.streams.swap_remove(which);
        let channel = stream.request.channel();
        self.payee.end(channel, stream.number);
        self.lose(channel, stream.limit());
    }

    /// The process dies and starts again on what is on the disk.
    async fn crash(&mut self) {
        let before = self.payer.channels().await.expect("read");
        let old = self.path();
        self.lives += 1;
        crash(&old, &self.path());
        self.payer = open(&self.path(), &self.ledger, self.limits);
        for stream in std::mem::take(&mut self.streams) {
            let channel = stream.request.channel();
            self.payee.end(channel, stream.number);
            self.lose(channel, stream.limit());
        }
        let after = self.payer.channels().await.expect("read");
        for (before, after) in before.iter().zip(&after) {
            assert!(after.doubt >= before.doubt && after.doubt <= after.signed - after.due);
            let doubt = after.doubt;
            let before = before.clone();
            assert_eq!(*after, tenzro_payments::payer::Channel { doubt, ..before });
        }
        assert_eq!(before.len(), after.len());
    }

    fn settle(&mut self, which: usize) {
        let Some(which) = which.checked_rem(self.payee.books.len()) else {
            return;
        };
        let (id, books) = self.payee.books.iter().nth(which).expect("a channel");
        let amount = match self.is_honest {
            true => books.charged(),
            false => books.amount(),
        };
        self.ledger
            .change(*id, |found| found.settled = found.settled.max(amount));
    }

    async fn run(&mut self, op: &Op) {
        match *op {
            Op::Start {
                likely,
                more,
                counted,
            } => match self.start(likely, likely + more, counted).await {
                Ok(()) => {}
                // It counts more than there can be, or charged more before.
                Err(PayError::Overbilled { .. } | PayError::Behind) if !self.is_honest => {}
                Err(PayError::Budget { .. }) if self.limits.hour.is_some() => {}
                Err(error) => panic!("{error}"),
            },
            Op::Refused { likely } => self.unserved(likely, true).await,
            Op::LostStart { likely } => self.unserved(likely, false).await,
            Op::Deliver {
                which,
                tokens,
                arrives,
            } => {
                if let Some(which) = which.checked_rem(self.streams.len()) {
                    let stream = &mut self.streams[which];
                    let (channel, counted) = (stream.request.channel(), stream.counted);
                    let sent = self.payee.deliver(channel, stream.number, counted, tokens);
                    stream.sent += sent;
                    if arrives {
                        stream.hear();
                    }
                }
            }
            Op::Need {
                which,
                greed,
                arrives,
            } => self.need(which, greed, arrives).await,
            Op::Receipt { which, more } => self.receipt(which, more).await,
            Op::Break { which } => self.break_off(which),
            Op::Crash => self.crash().await,
            Op::Settle { which } => self.settle(which),
            Op::Recover => self.payer.recover().await.expect("compared"),
        }
        self.balance().await;
    }

    /// The books add up, and agree with the model and the ledger.
    async fn balance(&self) {
        let channels = self.payer.channels().await.expect("read");
        let (mut total, mut signed) = (0, 0);
        for channel in &channels {
            let account = self.accounts.get(&channel.id).copied().unwrap_or_default();
            assert_eq!(channel.signed, account.signed);
            assert!(channel.due + channel.doubt <= account.owed.max(account.signed));
            assert!(channel.due + channel.doubt <= channel.signed);
            if channel.state == ChannelState::Open {
                let held = self.ledger.get(channel.id).expect("a channel").deposit;
                assert!(
                    channel.deposit <= held,
                    "a deposit counts that is not there"
                );
            }
            total += channel.due + channel.doubt;
            signed += channel.signed;
        }
        // No time passes here, so that all that is signed is signed within an hour.
        assert!(self.limits.hour.is_none_or(|limit| signed <= limit));
        let spending = self.payer.spending(0).await.expect("read");
        let spent: u128 = spending.iter().map(|row| row.charged).sum();
        assert_eq!(spent, total);
        for books in self.payee.books.values() {
            assert!(
                !self.is_honest || books.charged() <= books.amount(),
                "the payee is owed nothing"
            );
        }
    }
}

fn run(suggested: u128, ops: &[Op], is_honest: bool, budget: Option<u128>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut world = World::new(suggested, is_honest, budget);
        for op in ops {
            world.run(op).await;
        }
        if !is_honest {
            return;
        }
        // Whatever went wrong, an honest payee is paid on, and both sides agree in the end.
        while !world.streams.is_empty() {
            world.receipt(0, 0).await;
        }
        world.start(10, 20, 20).await.expect("paid");
        world
            .run(&Op::Deliver {
                which: 0,
                tokens: 5,
                arrives: true,
            })
            .await;
        let channel = world.streams[0].request.channel();
        world.receipt(0, 0).await;
        world.balance().await;
        let channels = world.payer.channels().await.expect("read");
        let found = channels
            .iter()
            .find(|found| found.id == channel)
            .expect("a channel");
        assert_eq!(
            (found.due, found.doubt),
            (world.payee.books[&channel].charged(), 0)
        );
    });
}

#[test]
fn m12_a_request_that_broke_off_may_have_used_what_others_did_not_need() {
    let start = |likely, most: u32| Op::Start {
        likely,
        more: most - likely,
        counted: 1,
    };
    let deliver = |tokens| Op::Deliver {
        which: 0,
        tokens,
        arrives: false,
    };
    for last in [Op::Receipt { which: 0, more: 0 }, Op::Refused { likely: 1 }] {
        let ops = [
            start(1, 1),
            deliver(1),
            start(1, 1),
            // So much more was signed for it than it takes, that the first one goes on with it.
            start(113, 229),
            deliver(32),
            Op::Break { which: 0 },
            last,
        ];
        run(0, &ops, true, None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn m12_honest_payees_are_paid_on_whatever_breaks(
        suggested in prop_oneof![Just(0u128), Just(2_000), Just(1_000_000)], ops in ops(true),
    ) {
        run(suggested, &ops, true, None);
    }

    #[test]
    fn m08_hostile_payees_get_no_more_than_the_model_allows(
        suggested in prop_oneof![Just(0u128), Just(2_000), Just(1_000_000)], ops in ops(false),
    ) {
        run(suggested, &ops, false, None);
    }

    #[test]
    fn m08_m32_no_more_is_signed_than_the_budget_allows_whatever_payees_take(
        suggested in prop_oneof![Just(0u128), Just(2_000), Just(1_000_000)], ops in ops(false),
        budget in 0u128..40_000,
    ) {
        run(suggested, &ops, false, Some(budget));
    }
}
