//! EIP-1559: the base fee moves between estimate and block.

use std::time::Duration;

use alloy::primitives::{Address, U256, address};
use alloy::providers::Provider;
use serde_json::json;
use tenzro_ledger::contracts::TNZO;
use tenzro_ledger::{Account, SendError, connect, submit};

use super::proxy::{Fault, Proxy};
use super::scene::{CHAIN_ID, Scene, tnzo};

const PAID: Address = address!("00000000000000000000000000000000000000ff");

async fn base_fee(scene: &Scene) -> u64 {
    let block = scene
        .ledger
        .provider()
        .get_block_by_number(Default::default());
    let header = block.await.unwrap().unwrap().header;
    header.base_fee_per_gas.unwrap()
}

async fn set_base_fee(scene: &Scene, wei: u64) {
    let params = json!([U256::from(wei)]);
    scene
        .anvil
        .ask("anvil_setNextBlockBaseFeePerGas", params)
        .await;
}

fn pay() -> TNZO::transferCall {
    TNZO::transferCall {
        to: PAID,
        value: U256::from(1),
    }
}

#[tokio::test]
async fn a_base_fee_that_nearly_doubles_does_not_matter() {
    let scene = Scene::new(&[]).await;
    let account = scene.wallet(1).await;
    let signed = account.sign(scene.contracts().tnzo, pay()).await.unwrap();
    let fee = base_fee(&scene).await;
    set_base_fee(&scene, fee * 19 / 10).await;
    submit(scene.ledger.provider(), &signed.raw).await.unwrap();
}

#[tokio::test]
async fn a_base_fee_above_the_offer_is_told_or_offered() {
    let scene = Scene::new(&[]).await;
    let account = scene.wallet(10).await;
    // Signed long ago: nobody here may change it.
    let signed = account.sign(scene.contracts().tnzo, pay()).await.unwrap();
    let fee = base_fee(&scene).await;
    set_base_fee(&scene, fee * 10).await;
    scene.mine(1).await;
    let error = submit(scene.ledger.provider(), &signed.raw).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("fee"), "{error}");
    // Made here, it is made anew. The words are Arbitrum's.
    let proxy = Proxy::start(scene.anvil.url(), |call| {
        let words = "max fee per gas less than block base fee: maxFeePerGas: 1, baseFee: 2";
        let is_first = call.method == "eth_sendRawTransaction" && call.earlier == 0;
        is_first.then_some(Fault::Refusal(200, -32000, words))
    });
    let provider = connect(&proxy.await.url).unwrap();
    let account = Account::new(provider, CHAIN_ID, account.signer().clone());
    scene
        .operations(&account)
        .transfer(PAID, tnzo(1))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_pays_too_little_is_told_and_blocks_nothing_when_fees_fall() {
    let scene = Scene::new(&[]).await;
    let account = scene.wallet(10).await;
    let account = scene
        .account(account.signer().clone())
        .with_patience(Duration::from_millis(1_500));
    scene.anvil.ask("evm_setAutomine", json!([false])).await;
    let fee = base_fee(&scene).await;
    let operations = scene.operations(&account);
    let (one, other, ()) = tokio::join!(
        operations.transfer(PAID, tnzo(1)),
        operations.transfer(PAID, tnzo(2)),
        async {
            scene.until_pending(2).await;
            set_base_fee(&scene, fee * 100).await;
            scene.mine(1).await;
        }
    );
    for result in [one, other] {
        let error = result.unwrap_err();
        let SendError::NotMined(hash) = error else {
            panic!("{error:?}");
        };
        assert!(error.to_string().contains(&hash.to_string()), "{error}");
    }
    set_base_fee(&scene, fee).await;
    scene.anvil.ask("evm_setAutomine", json!([true])).await;
    // anvil drops what cannot pay for a block; what it keeps, or not, the next one gets through.
    operations.transfer(PAID, tnzo(3)).await.unwrap();
    let balance = scene.ledger.balance(PAID).await.unwrap();
    assert_eq!(balance, U256::from(tnzo(3).0));
}
