//! What was mined and failed, and what was never mined, is never told as done.

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{B256, keccak256};
use serde_json::json;
use tenzro_ledger::channels::{
    Change, ChannelEvent, ChannelRefusal, ChannelTerms, Funding, Settlement,
};
use tenzro_ledger::{
    Account, Ledger, Operations, Rules, SendError, TransactionReceipt, connect, deploy,
};
use tokio::sync::Notify;
use tokio::task::yield_now;

use super::channel_scene::{allow_all, open, terms};
use super::proxy::{Fault, Proxy};
use super::scene::{CHAIN_ID, Scene, tnzo};
use super::vouchers::voucher;

type Sent = Result<TransactionReceipt, SendError>;

const SEND: &str = "eth_sendRawTransaction";
/// Below the second after which the same bytes are sent again.
const IMPATIENCE: Duration = Duration::from_millis(800);

/// Why the contract refused in the block, and the transaction.
fn failed(result: Sent) -> (ChannelRefusal, B256) {
    let error = result.unwrap_err();
    let refusal = error.channel_refusal();
    let SendError::Reverted {
        transaction: Some(hash),
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    (refusal.unwrap(), hash)
}

/// One block has both transactions, the first one first. Nothing is known of it when the second is made,
/// which would be refused then.
async fn in_one_block(
    scene: &Scene,
    (one, first): (&Account, Action),
    (other, second): (&Account, Action),
) -> (Sent, Sent) {
    let until = Arc::new(Notify::new());
    let proxy = Proxy::start(scene.anvil.url(), {
        let until = Arc::clone(&until);
        move |call| {
            let is_first = call.method == SEND && call.earlier == 0;
            is_first.then(|| Fault::Hold(Arc::clone(&until)))
        }
    });
    let proxy = proxy.await;
    let provider = connect(&proxy.url).unwrap();
    let other = Account::new(provider, CHAIN_ID, other.signer().clone());
    scene.anvil.ask("evm_setAutomine", json!([false])).await;
    let first = async {
        while proxy.calls(SEND).is_empty() {
            yield_now().await;
        }
        act(scene.operations(one), first).await
    };
    let (first, second, ()) = tokio::join!(first, act(scene.operations(&other), second), async {
        scene.until_pending(1).await;
        until.notify_one();
        scene.until_pending(2).await;
        scene.mine(1).await;
    });
    scene.anvil.ask("evm_setAutomine", json!([true])).await;
    (first, second)
}

/// Something that moves money.
#[derive(Debug, Clone)]
enum Action {
    Open(ChannelTerms),
    TopUp(B256),
    Close(Settlement),
}

async fn act(operations: Operations<'_>, action: Action) -> Sent {
    match action {
        Action::Open(terms) => operations.open_channel(&terms, 1_000).await,
        Action::TopUp(id) => operations.top_up_channel(id, 50).await,
        Action::Close(voucher) => operations.close_channel(&voucher).await,
    }
}

#[tokio::test]
async fn m34_what_is_mined_and_fails_is_an_error() {
    let scene = Scene::new(&["--order", "fifo"]).await;
    let (payer, payee) = (scene.wallet(10).await, scene.wallet(0).await);
    allow_all(&scene.ledger, &payer).await;
    let ledger = &scene.ledger;
    let escrow = ledger.escrow();

    // The wallet is another program's as well.
    let first = terms(payee.address(), 1);
    let id = first.id(payer.address(), &escrow);
    let opening = Action::Open(first);
    let [one, other] = [opening.clone(), opening].map(|opening| (&payer, opening));
    let (opened, result) = in_one_block(&scene, one, other).await;
    let (refusal, hash) = failed(result);
    assert_eq!(refusal, ChannelRefusal::AlreadyExists);
    assert_eq!(ledger.funding(hash).await.unwrap(), Funding::Failed);
    let receipt = opened.unwrap();
    let funding = ledger.funding(receipt.transaction_hash).await.unwrap();
    assert_eq!(ids(&funding), [id]);
    assert_eq!(scene.wei_of(payer.address()).await, tnzo(10).0 - 1_000);

    let close = Action::Close(voucher(payer.signer(), &escrow, id, 300));
    let top_up = Action::TopUp(id);
    let (closed, result) = in_one_block(&scene, (&payee, close), (&payer, top_up)).await;
    closed.unwrap();
    let (refusal, hash) = failed(result);
    assert_eq!(refusal, ChannelRefusal::Finalized);
    assert_eq!(ledger.funding(hash).await.unwrap(), Funding::Failed);
    let channel = ledger.channel_now(id).await.unwrap().unwrap();
    assert_eq!((channel.deposit, channel.settled), (1_000, 300));
    assert_eq!(scene.wei_of(payer.address()).await, tnzo(10).0 - 300);

    let id = open(scene.operations(&payer), &terms(payee.address(), 2), 1_000).await;
    let close = Action::Close(voucher(payer.signer(), &escrow, id, 400));
    let [one, other] = [close.clone(), close].map(|close| (&payee, close));
    let (closed, result) = in_one_block(&scene, one, other).await;
    closed.unwrap();
    assert_eq!(failed(result).0, ChannelRefusal::Finalized);
    assert_eq!(scene.wei_of(payee.address()).await, 700);
}

fn again(scene: &Scene, account: &Account) -> Account {
    scene.account(account.signer().clone())
}

fn ids(funding: &Funding) -> Vec<B256> {
    let Funding::Mined { events, .. } = funding else {
        panic!("{funding:?}");
    };
    events.iter().map(|event| event.id).collect()
}

#[tokio::test]
async fn m34_what_is_never_mined_is_an_error() {
    let scene = Scene::new(&[]).await;
    let (payer, payee) = (scene.wallet(10).await, scene.wallet(0).await);
    allow_all(&scene.ledger, &payer).await;
    let escrow = scene.ledger.escrow();
    let id = open(scene.operations(&payer), &terms(payee.address(), 1), 1_000).await;
    let other = terms(payee.address(), 2);
    let actions = [
        (&payer, Action::Open(other)),
        (&payer, Action::TopUp(id)),
        (
            &payee,
            Action::Close(voucher(payer.signer(), &escrow, id, 300)),
        ),
    ];
    let state = async || {
        let mut channels = Vec::new();
        for id in [id, other.id(payer.address(), &escrow)] {
            channels.push(scene.ledger.channel_now(id).await.unwrap());
        }
        let paid = scene.wei_of(payee.address()).await;
        (channels, scene.wei_of(payer.address()).await, paid)
    };
    let before = state().await;
    let cut = Proxy::start(scene.anvil.url(), |call| {
        (call.method == SEND).then_some(Fault::Cut)
    });
    let cut = cut.await;
    for (account, action) in &actions {
        // The chain forgets it.
        let impatient = again(&scene, account).with_patience(IMPATIENCE);
        scene.anvil.ask("evm_setAutomine", json!([false])).await;
        let acting = act(scene.operations(&impatient), action.clone());
        let (result, ()) = tokio::join!(acting, async {
            scene.until_pending(1).await;
            scene
                .anvil
                .ask("anvil_dropAllTransactions", json!([]))
                .await;
        });
        scene.anvil.ask("evm_setAutomine", json!([true])).await;
        scene.mine(1).await;
        assert_never(&scene, result, action).await;
        assert_eq!(state().await, before, "{action:?}");

        // It never arrives.
        let provider = connect(&cut.url).unwrap();
        let signer = account.signer().clone();
        let lost = Account::new(provider, CHAIN_ID, signer).with_patience(IMPATIENCE);
        let result = act(scene.operations(&lost), action.clone()).await;
        assert_never(&scene, result, action).await;
        assert_eq!(state().await, before, "{action:?}");
    }
    // All of that can be done, were it not for the chain.
    for (account, action) in actions {
        let done = act(scene.operations(account), action).await;
        assert!(done.unwrap().status());
    }
}

async fn assert_never(scene: &Scene, result: Sent, action: &Action) {
    let error = result.unwrap_err();
    assert_eq!(error.channel_refusal(), None, "{action:?}");
    let SendError::NotMined(hash) = error else {
        panic!("{action:?}: {error:?}");
    };
    assert_eq!(scene.ledger.funding(hash).await.unwrap(), Funding::NotMined);
}

#[tokio::test]
async fn what_a_transaction_put_into_channels_is_told_exactly() {
    let scene = Scene::new(&[]).await;
    let (payer, payee) = (scene.wallet(10).await, scene.wallet(0).await);
    let ledger = &scene.ledger;
    let operations = scene.operations(&payer);
    let terms = terms(payee.address(), 1);
    let opened = operations.open_channel(&terms, 1_000).await.unwrap();
    let id = terms.id(payer.address(), &ledger.escrow());
    let event = ChannelEvent {
        id,
        payer: payer.address(),
        payee: payee.address(),
        change: Change::Opened {
            token: scene.contracts().tnzo,
            authorized_signer: terms.authorized_signer,
            salt: terms.salt,
            deposit: 1_000,
        },
        block: opened.block_number.unwrap(),
        time: scene.now().await,
        transaction: opened.transaction_hash,
        log_index: opened.logs()[0].log_index.unwrap(),
    };
    let expected = |confirmations| Funding::Mined {
        confirmations,
        events: vec![event.clone()],
    };
    let hash = opened.transaction_hash;
    assert_eq!(ledger.funding(hash).await.unwrap(), expected(0));
    scene.mine(3).await;
    assert_eq!(ledger.funding(hash).await.unwrap(), expected(3));

    let topped_up = operations.top_up_channel(id, 5).await.unwrap();
    let funding = ledger.funding(topped_up.transaction_hash).await.unwrap();
    let Funding::Mined { events, .. } = funding else {
        panic!("{funding:?}");
    };
    let change = Change::ToppedUp {
        from: payer.address(),
        added: 5,
        deposit: 1_005,
    };
    assert_eq!((events[0].id, &events[0].change), (id, &change));

    // What puts nothing in, and what does so at another contract.
    let developer = &scene.developer;
    let rules = Rules::standard(developer.address(), developer.address());
    let addresses = deploy(developer, rules, None, |_, _| {}).await.unwrap();
    let elsewhere = Ledger::open(scene.anvil.provider(), addresses).await;
    let elsewhere = Operations {
        ledger: &elsewhere.unwrap(),
        account: developer,
    };
    let foreign = elsewhere.open_channel(&terms, 1_000).await.unwrap();
    let nothing = operations.request_channel_close(id).await.unwrap();
    for receipt in [&foreign, &nothing] {
        let funding = ledger.funding(receipt.transaction_hash).await.unwrap();
        assert_eq!(ids(&funding), [B256::ZERO; 0]);
    }
    let unknown = ledger.funding(keccak256("unknown")).await.unwrap();
    assert_eq!(unknown, Funding::NotMined);

    // Taken back by the chain: as if it had never been.
    scene.anvil.ask("anvil_reorg", json!([1, []])).await;
    let gone = ledger.funding(nothing.transaction_hash).await.unwrap();
    assert_eq!(gone, Funding::NotMined);
    let on_top = nothing.block_number.unwrap() - opened.block_number.unwrap();
    assert_eq!(ledger.funding(hash).await.unwrap(), expected(on_top));
}
