//! Which channels there are, and what is new, whatever a node refuses and a chain takes back.

use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy::eips::Encodable2718;
use alloy::network::TxSignerSync;
use alloy::primitives::{Address, B256, TxKind, U256, keccak256};
use alloy::providers::Provider;
use alloy::sol_types::SolCall;
use serde_json::json;
use tenzro_ledger::channels::{
    Change, ChannelEvent, ChannelFollower, ChannelTerms, Party, channel_events,
};
use tenzro_ledger::contracts::PaymentChannels;
use tenzro_ledger::{Account, LedgerError};

use super::channel_scene::{allow_all, open, terms};
use super::proxy::{Call, Fault, Proxy};
use super::scene::{CHAIN_ID, Scene};
use super::vouchers::voucher;

const LOGS: &str = "eth_getLogs";
/// Channels that the larger payer opens.
const MANY: u64 = 1_200;
/// Channels of another payer among them.
const FEW: u64 = 100;

/// By chance, the same in every run.
fn random(number: u64, below: u64) -> u64 {
    let bits = keccak256(number.to_be_bytes());
    u64::from_be_bytes(bits[..8].try_into().unwrap()) % below
}

/// Opens channels as fast as anvil takes them.
struct Opener<'a> {
    scene: &'a Scene,
    account: Account,
    nonce: u64,
}

impl<'a> Opener<'a> {
    async fn new(scene: &'a Scene) -> Self {
        let account = scene.wallet(1).await;
        allow_all(&scene.ledger, &account).await;
        let nonce = scene.ledger.nonce(account.address()).await.unwrap();
        Self {
            scene,
            account,
            nonce,
        }
    }

    async fn send(&mut self, terms: &ChannelTerms) -> B256 {
        let escrow = self.scene.ledger.escrow();
        let call = PaymentChannels::openCall {
            payee: terms.payee,
            token_: escrow.token,
            deposit: 1,
            salt: terms.salt,
            authorizedSigner: terms.authorized_signer,
        };
        let mut transaction = TxEip1559 {
            chain_id: CHAIN_ID,
            nonce: self.nonce,
            gas_limit: 300_000,
            max_fee_per_gas: 20_000_000_000,
            to: TxKind::Call(escrow.address),
            input: call.abi_encode().into(),
            ..TxEip1559::default()
        };
        self.nonce += 1;
        let signer = self.account.signer();
        let signature = signer.sign_transaction_sync(&mut transaction).unwrap();
        let envelope = TxEnvelope::from(transaction.into_signed(signature));
        let provider = self.scene.ledger.provider();
        let sent = provider
            .send_raw_transaction(&envelope.encoded_2718())
            .await;
        let _ = sent.unwrap();
        terms.id(self.account.address(), &escrow)
    }
}

fn opened(events: &[ChannelEvent]) -> Vec<B256> {
    let mut before = (0, 0);
    events
        .iter()
        .map(|event| {
            let place = (event.block, event.log_index + 1);
            assert!(place > before, "oldest first");
            before = place;
            assert!(matches!(event.change, Change::Opened { deposit: 1, .. }));
            event.id
        })
        .collect()
}

#[tokio::test]
async fn m35_of_a_thousand_channels_none_is_missed_whatever_ranges_a_node_takes() {
    let scene = Scene::new(&["--order", "fifo"]).await;
    let (mut payer, mut other) = (Opener::new(&scene).await, Opener::new(&scene).await);
    let payees = [Address::repeat_byte(1), Address::repeat_byte(2)];
    scene.anvil.ask("evm_setAutomine", json!([false])).await;
    let (mut of_payer, mut of_other, mut of_payee) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..MANY {
        let payee = payees[random(number, 2) as usize];
        let id = payer.send(&terms(payee, number)).await;
        of_payer.push(id);
        if payee == payees[0] {
            of_payee.push(id);
        }
        if number % (MANY / FEW) == 0 {
            let id = other.send(&terms(payees[0], number)).await;
            of_other.push(id);
            of_payee.push(id);
        }
        if random(number + MANY, 20) == 0 {
            scene.mine(1 + random(number, 12)).await;
        }
    }
    scene.mine(1).await;
    let head = scene.ledger.provider().get_block_number().await.unwrap();
    let first = scene.contracts().first_block;

    for seed in 0..3_u64 {
        // The longest range that is taken is another one each time.
        let limit = move |call: &Call| 1 + random((seed << 32) + call.earlier as u64, 40 << seed);
        let proxy = Proxy::start(scene.anvil.url(), move |call| {
            (call.method == LOGS && call.range() > limit(call)).then_some(Fault::Refusal(
                200,
                -32005,
                "query returned more than 10000 results",
            ))
        });
        let proxy = proxy.await;
        let ledger = scene.ledger_at(&proxy.url).await;
        let of = async |who| channel_events(&ledger, who, first, head).await.unwrap();
        let found = of(Party::Payer(payer.account.address())).await;
        assert_eq!(opened(&found), of_payer);
        let found = of(Party::Payer(other.account.address())).await;
        assert_eq!(opened(&found), of_other);
        let found = of(Party::Payee(payees[0])).await;
        assert_eq!(opened(&found), of_payee);
        let calls = proxy.calls(LOGS);
        let refused = calls.iter().filter(|call| call.range() > limit(call));
        assert!(refused.count() > 3, "the limits matter");
    }
    // A part of the blocks, and what is not there yet.
    let who = Party::Payer(payer.account.address());
    let all = channel_events(&scene.ledger, who, 0, u64::MAX)
        .await
        .unwrap();
    let middle = all[MANY as usize / 2].block;
    let part = channel_events(&scene.ledger, who, middle, middle).await;
    let expected = all.iter().filter(|event| event.block == middle);
    assert_eq!(part.unwrap(), expected.cloned().collect::<Vec<_>>());
    let none = channel_events(&scene.ledger, who, head + 1, u64::MAX).await;
    assert_eq!(none.unwrap(), []);
    // "None" of a node that lags is no answer.
    let proxy = Proxy::start(scene.anvil.url(), |call| {
        (call.method == "eth_getBlockByNumber").then_some(Fault::Null)
    });
    let ledger = scene.ledger_at(&proxy.await.url).await;
    let error = channel_events(&ledger, who, first, head).await.unwrap_err();
    assert!(matches!(error, LedgerError::Lagging), "{error:?}");
    assert!(error.is_retryable());
}

/// What happened, without where.
fn changes(events: &[ChannelEvent]) -> Vec<Change> {
    events.iter().map(|event| event.change.clone()).collect()
}

#[tokio::test]
async fn every_change_of_a_channel_is_told_to_both_sides() {
    let scene = Scene::new(&[]).await;
    let (payer, payee) = (scene.wallet(1).await, scene.wallet(0).await);
    let operations = scene.operations(&payer);
    let terms = terms(payee.address(), 1);
    let id = open(operations, &terms, 1_000).await;
    operations.request_channel_close(id).await.unwrap();
    let withdrawable_at = scene.now().await + 3_600;
    operations.top_up_channel(id, 10).await.unwrap();
    let pay = |amount| voucher(payer.signer(), &scene.ledger.escrow(), id, amount);
    let by_payee = scene.operations(&payee);
    by_payee.settle_channels(&[pay(100), pay(1)]).await.unwrap();
    by_payee.close_channel(&pay(250)).await.unwrap();
    let expected = [
        Change::Opened {
            token: scene.contracts().tnzo,
            authorized_signer: Address::ZERO,
            salt: terms.salt,
            deposit: 1_000,
        },
        Change::CloseRequested { withdrawable_at },
        Change::ToppedUp {
            from: payer.address(),
            added: 10,
            deposit: 1_010,
        },
        Change::CloseRequestCancelled,
        Change::Settled {
            amount: 100,
            settled: 100,
        },
        Change::Settled {
            amount: 150,
            settled: 250,
        },
        Change::Closed {
            settled: 250,
            refunded: 760,
        },
    ];
    let of = async |who| {
        channel_events(&scene.ledger, who, 0, u64::MAX)
            .await
            .unwrap()
    };
    let told = of(Party::Payer(payer.address())).await;
    assert_eq!(changes(&told), expected);
    assert_eq!(of(Party::Payee(payee.address())).await, told);
    assert_eq!(of(Party::Payer(payee.address())).await, []);
    assert_eq!(of(Party::Payee(payer.address())).await, []);
}

fn follower(scene: &Scene, account: &Account, confirmations: u64) -> ChannelFollower {
    let who = Party::Payer(account.address());
    let first = scene.contracts().first_block;
    ChannelFollower::new(scene.ledger.clone(), who, first, confirmations)
}

#[tokio::test]
async fn a_follower_tells_what_is_confirmed_once_and_anew_after_a_reorganisation() {
    let scene = Scene::new(&[]).await;
    let payer = scene.wallet(1).await;
    allow_all(&scene.ledger, &payer).await;
    let operations = scene.operations(&payer);
    let mut follower = follower(&scene, &payer, 2);
    let stays = open(operations, &terms(Address::repeat_byte(1), 1), 1_000).await;
    for blocks_on_top in 0..2 {
        let news = follower.catch_up().await.unwrap();
        assert_eq!(news.events, [], "{blocks_on_top} blocks on top");
        scene.mine(1).await;
    }
    let news = follower.catch_up().await.unwrap();
    let all = async || {
        let who = Party::Payer(payer.address());
        channel_events(&scene.ledger, who, 0, u64::MAX)
            .await
            .unwrap()
    };
    let first = all().await;
    assert_eq!(first[0].id, stays);
    assert_eq!((news.is_anew, &news.events), (false, &first));
    let kept = news.last.unwrap();
    assert_eq!(kept.number, first[0].block);
    assert_eq!(follower.catch_up().await.unwrap().events, []);

    let goes = open(operations, &terms(Address::repeat_byte(1), 2), 5).await;
    scene.mine(2).await;
    let news = follower.catch_up().await.unwrap();
    assert!(!news.is_anew);
    assert_eq!(news.events[..], all().await[1..]);
    assert_eq!(news.events[0].id, goes);

    // Taken back, with what was told before that block.
    scene.anvil.ask("anvil_reorg", json!([3, []])).await;
    scene.mine(1).await;
    let news = follower.catch_up().await.unwrap();
    assert_eq!((news.is_anew, news.events), (true, first.clone()));
    let news = follower.catch_up().await.unwrap();
    assert_eq!((news.is_anew, news.events), (false, Vec::new()));

    // Another one goes on where the news were kept.
    operations.top_up_channel(stays, 9).await.unwrap();
    scene.mine(2).await;
    let mut resumed = self::follower(&scene, &payer, 2).resume(kept);
    let news = resumed.catch_up().await.unwrap();
    assert!(!news.is_anew);
    assert_eq!(news.events[..], all().await[1..]);
    // What was kept is no block of this chain any more.
    let mut foreign = kept;
    foreign.hash = B256::repeat_byte(1);
    let mut resumed = self::follower(&scene, &payer, 2).resume(foreign);
    let news = resumed.catch_up().await.unwrap();
    assert_eq!((news.is_anew, news.events), (true, all().await));
}

#[tokio::test]
async fn what_is_read_before_an_error_is_told_after_it() {
    let scene = Scene::new(&[]).await;
    let payer = scene.wallet(1).await;
    allow_all(&scene.ledger, &payer).await;
    let payee = Address::repeat_byte(1);
    for salt in 0..5 {
        let operations = scene.operations(&payer);
        open(operations, &terms(payee, salt), 1).await;
        scene.mine(20).await;
    }
    // Five ranges are told, then none.
    let proxy = Proxy::start(scene.anvil.url(), |call| {
        if call.method != LOGS {
            return None;
        }
        if call.range() > 10 {
            return Some(Fault::Refusal(200, -32005, "limit exceeded"));
        }
        (call.earlier > 12).then_some(Fault::Status(403, None))
    });
    let proxy = proxy.await;
    let ledger = scene.ledger_at(&proxy.url).await;
    let first = scene.contracts().first_block;
    let mut follower = ChannelFollower::new(ledger, Party::Payee(payee), first, 0);
    let error = follower.catch_up().await.unwrap_err();
    assert!(matches!(error, LedgerError::Transport(_)), "{error:?}");
    let before = proxy.calls(LOGS).len();
    proxy.set(|_| None);
    let news = follower.catch_up().await.unwrap();
    let who = Party::Payer(payer.address());
    let all = channel_events(&scene.ledger, who, 0, u64::MAX).await;
    assert_eq!((news.is_anew, news.events), (false, all.unwrap()));
    let after = &proxy.calls(LOGS)[before..];
    let from = after[0].params[0]["fromBlock"].as_str().unwrap().to_owned();
    let from: U256 = from.parse().unwrap();
    assert!(from > U256::from(first), "it goes on where it was");
}
