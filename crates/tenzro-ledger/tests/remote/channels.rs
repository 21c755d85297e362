//! Channels on a chain where gas costs coin, and on more than one chain.

use std::time::Duration;

use alloy::primitives::U256;
use alloy::providers::Provider;
use tenzro_ledger::channels::{ChannelRefusal, OpenRequest, RowOutcome, Settlement, TopUpRequest};
use tenzro_ledger::{
    Account, Ledger, Operations, PrivateKeySigner, Rules, SendError, TransactionReceipt, deploy,
};

use super::anvil::Anvil;
use super::channel_scene::{open, terms};
use super::scene::{CHAIN_ID, Scene, developer, tnzo};
use super::vouchers::voucher;

fn refusal(result: Result<TransactionReceipt, SendError>) -> ChannelRefusal {
    let error = result.unwrap_err();
    error
        .channel_refusal()
        .unwrap_or_else(|| panic!("{error:?}"))
}

#[tokio::test]
async fn a_wallet_without_gas_coin_opens_tops_up_and_is_paid_back() {
    let scene = Scene::new(&[]).await;
    let payer = scene.wallet_without_gas(100).await;
    let payee = scene.wallet(0).await;
    let operations = scene.operations(&payee);
    let escrow = scene.ledger.escrow();
    let until = scene.now().await + 600;
    let ten = tnzo(10).0;
    let request = OpenRequest::sign(&payer, &escrow, terms(payee.address(), 1), ten, until);
    let opened = operations.open_channel_with_authorization(&request).await;
    assert!(opened.unwrap().status());
    let id = request.channel_id(&escrow);
    let salt = id;
    let more = TopUpRequest::sign(&payer, &escrow, id, ten + 7, salt, until);
    let topped_up = operations.top_up_channel_with_authorization(&more).await;
    assert!(topped_up.unwrap().status());

    let first = voucher(&payer, &escrow, id, 3);
    operations.settle_channel(&first).await.unwrap();
    let second = voucher(&payer, &escrow, id, ten + 1);
    let batch = operations.settle_channels(&[first, second]).await.unwrap();
    let expected = [
        RowOutcome::Skipped(ChannelRefusal::AmountNotIncreasing),
        RowOutcome::Settled { amount: ten - 2 },
    ];
    assert_eq!(batch.rows, expected);
    let last = voucher(&payer, &escrow, id, ten + 5);
    operations.close_channel(&last).await.unwrap();
    let channel = scene.ledger.channel_now(id).await.unwrap().unwrap();
    assert_eq!(
        (channel.deposit, channel.settled, channel.finalized),
        (2 * ten + 7, ten + 5, true)
    );
    assert_eq!(scene.wei_of(payer.address()).await, tnzo(90).0 - 5);
    assert_eq!(scene.wei_of(payee.address()).await, ten + 5);
    assert_eq!(scene.wei_of(escrow.address).await, 0);
    let provider = scene.ledger.provider();
    let coin = provider.get_balance(payer.address()).await.unwrap();
    assert_eq!(coin, U256::ZERO);
    assert_eq!(scene.ledger.nonce(payer.address()).await.unwrap(), 0);

    let early = scene.now().await - 1;
    let terms = terms(payee.address(), 2);
    let late = OpenRequest::sign(&payer, &escrow, terms, ten, early);
    let result = operations.open_channel_with_authorization(&late).await;
    assert_eq!(refusal(result), ChannelRefusal::AuthorizationExpired);
}

#[tokio::test]
async fn a_payer_takes_back_what_is_left_after_the_grace_period() {
    let scene = Scene::new(&[]).await;
    let (payer, payee) = (scene.wallet(10).await, scene.wallet(0).await);
    let operations = scene.operations(&payer);
    let id = open(operations, &terms(payee.address(), 1), tnzo(4).0).await;
    operations.top_up_channel(id, 5).await.unwrap();
    let rules = scene.ledger.channel_rules().await.unwrap();
    let grace = Duration::from_secs(rules.close_grace_seconds);
    scene.pass(grace).await;
    let result = operations.withdraw_channel(id).await;
    assert_eq!(refusal(result), ChannelRefusal::CloseNotReady);
    operations.request_channel_close(id).await.unwrap();
    // The second that anvil itself counts must not end it.
    scene.pass(grace - Duration::from_secs(60)).await;
    let result = operations.withdraw_channel(id).await;
    assert_eq!(refusal(result), ChannelRefusal::CloseNotReady);
    let signed = voucher(payer.signer(), &scene.ledger.escrow(), id, tnzo(1).0 + 1);
    let settled = scene.operations(&payee).settle_channel(&signed).await;
    settled.unwrap();
    scene.pass(Duration::from_secs(60)).await;
    operations.withdraw_channel(id).await.unwrap();
    assert_eq!(scene.wei_of(payer.address()).await, tnzo(9).0 - 1);
    assert_eq!(scene.wei_of(payee.address()).await, tnzo(1).0 + 1);
    let escrow = scene.ledger.escrow();
    assert_eq!(scene.wei_of(escrow.address).await, 0);
}

/// Contracts of their own, and a channel there between the same two with the same terms.
struct Place {
    ledger: Ledger,
    payee: Account,
    channel: Settlement,
}

/// What the payer's voucher is for, in wei.
const PAID: u128 = 100;

impl Place {
    async fn new(anvil: &Anvil, chain_id: u64, payer: &PrivateKeySigner) -> Self {
        let account = |signer| Account::new(anvil.provider(), chain_id, signer);
        let developer = account(developer());
        let rules = Rules::standard(developer.address(), developer.address());
        let addresses = deploy(&developer, rules, None, |_, _| {}).await.unwrap();
        let ledger = Ledger::open(anvil.provider(), addresses).await.unwrap();
        let payee = account(super::scene::developer());
        let operations = Operations {
            ledger: &ledger,
            account: &payee,
        };
        let paid = operations.transfer(payer.address(), tnzo(1)).await;
        paid.unwrap();
        let escrow = ledger.escrow();
        let terms = terms(payee.address(), 1);
        let request = OpenRequest::sign(payer, &escrow, terms, 1_000, u64::MAX);
        let opened = operations.open_channel_with_authorization(&request).await;
        opened.unwrap();
        let channel = voucher(payer, &escrow, request.channel_id(&escrow), PAID);
        Self {
            ledger,
            payee,
            channel,
        }
    }

    fn operations(&self) -> Operations<'_> {
        Operations {
            ledger: &self.ledger,
            account: &self.payee,
        }
    }
}

#[tokio::test]
async fn m03_a_voucher_is_good_on_one_chain_and_at_one_contract() {
    let payer = PrivateKeySigner::random();
    let [one, other] = [
        Anvil::start(&[]).await,
        Anvil::start(&["--chain-id", "4242"]).await,
    ];
    let places = [
        Place::new(&one, CHAIN_ID, &payer).await,
        Place::new(&other, 4242, &payer).await,
        Place::new(&one, CHAIN_ID, &payer).await,
    ];
    let escrows = places.each_ref().map(|place| place.ledger.escrow());
    assert_eq!(escrows[0].address, escrows[1].address, "another chain only");
    assert_ne!(
        escrows[0].address, escrows[2].address,
        "another contract only"
    );
    for (here, place) in places.iter().enumerate() {
        let operations = place.operations();
        for (there, from) in places
            .iter()
            .enumerate()
            .filter(|(there, _)| *there != here)
        {
            let result = operations.settle_channel(&from.channel).await;
            assert_eq!(
                refusal(result),
                ChannelRefusal::NotFound,
                "{there} at {here}"
            );
            let id = place.channel.channel_id;
            let moved = Settlement {
                channel_id: id,
                ..from.channel.clone()
            };
            // Even one that names this channel, but is signed for the other contract.
            let signed = voucher(&payer, &escrows[there], id, PAID);
            for row in [moved, signed] {
                let expected = ChannelRefusal::InvalidSignature;
                let result = operations.settle_channel(&row).await;
                assert_eq!(refusal(result), expected, "{there} at {here}");
                let result = operations.close_channel(&row).await;
                assert_eq!(refusal(result), expected, "{there} at {here}");
            }
        }
        operations.settle_channel(&place.channel).await.unwrap();
        let channel = place.ledger.channel_now(place.channel.channel_id).await;
        assert_eq!(channel.unwrap().unwrap().settled, PAID);
    }
}
