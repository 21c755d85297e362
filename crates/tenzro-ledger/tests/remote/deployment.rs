//! Contracts are put on a chain, and found there or not.

use alloy::primitives::{Address, address};
use tenzro_ledger::{Addresses, Ledger, LedgerError, SendError, chain_id};

use super::anvil::Anvil;
use super::scene::{CHAIN_ID, Scene, developer, tnzo};

const NOBODY: Address = address!("00000000000000000000000000000000000000ff");

#[tokio::test]
async fn deployed_contracts_have_the_rules_and_the_money() {
    let scene = Scene::new(&[]).await;
    let rules = scene.ledger.rules().await.unwrap();
    assert_eq!(rules.minimum_stake, tnzo(1_000));
    assert_eq!(rules.unbonding_seconds, 7 * 24 * 3600);
    assert_eq!(rules.price_delay_seconds, 60);
    assert_eq!(scene.contracts().first_block, 1);
    assert_eq!(scene.ledger.chain_id(), CHAIN_ID);
    let faucet = scene.contracts().faucet.unwrap();
    let treasury = scene.developer.address();
    for account in [faucet, treasury] {
        let balance = scene.ledger.balance(account).await.unwrap();
        assert_eq!(tenzro_ledger::wei(balance), tnzo(500_000_000));
    }
}

#[tokio::test]
async fn every_address_without_its_contract_is_named() {
    let scene = Scene::new(&[]).await;
    let right = *scene.contracts();
    type Spoil = fn(&mut Addresses);
    let cases: [(&str, Spoil); 4] = [
        ("TNZO", |addresses| addresses.tnzo = NOBODY),
        ("ProviderRegistry", |addresses| {
            addresses.provider_registry = NOBODY;
        }),
        ("PaymentChannels", |addresses| {
            addresses.payment_channels = NOBODY;
        }),
        ("Faucet", |addresses| addresses.faucet = Some(NOBODY)),
    ];
    for (expected, spoil) in cases {
        let mut addresses = right;
        spoil(&mut addresses);
        let error = Ledger::open(scene.anvil.provider(), addresses).await;
        let error = error.unwrap_err();
        assert!(!error.is_retryable());
        let LedgerError::NoContract { name, address, .. } = error else {
            panic!("{error}");
        };
        assert_eq!((name, address), (expected, NOBODY));
    }
}

#[tokio::test]
async fn another_chain_has_another_id_and_takes_no_transaction_of_this_one() {
    let other = Anvil::start(&["--chain-id", "4242"]).await;
    assert_eq!(chain_id(&other.provider()).await.unwrap(), 4242);
    let account = tenzro_ledger::Account::new(other.provider(), CHAIN_ID, developer());
    let error = account.deploy(vec![0x00].into()).await.unwrap_err();
    let SendError::Transport(_) = &error else {
        panic!("{error:?}");
    };
    let text = error.to_string().to_lowercase();
    assert!(text.contains("chain"), "{text}");
}
