//! No TNZO appears or vanishes, whatever is done in whatever order.

use std::collections::BTreeSet;

use alloy::primitives::{Address, B256, TxKind, U256, keccak256};
use alloy::providers::Provider;
use alloy::rpc::types::{Filter, Log};
use alloy::signers::SignerSync;
use alloy::sol;
use alloy::sol_types::{SolCall, SolEvent, SolStruct};
use proptest::prelude::*;
use tenzro_ledger::contracts::{Faucet, ProviderRegistry, TNZO};

use super::scene::{CONTRACTS, Scene, TNZO_WEI, draft, signed, transfer, wallet};

const WALLETS: u64 = 4;

#[derive(Debug, Clone)]
enum Step {
    Drip(u64),
    Transfer(u64, u64, u128),
    Approve(u64, u128),
    Stake(u64, u128),
    Unstake(u64, u128),
    Withdraw(u64),
    Pass(u64),
    Restart,
    GoBack,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = 0..WALLETS;
    let amount = prop_oneof![0..3 * TNZO_WEI, 0..40_000 * TNZO_WEI];
    let step = prop_oneof![
        3 => who.clone().prop_map(Step::Drip),
        4 => (who.clone(), who.clone(), amount.clone()).prop_map(|(a, b, c)| Step::Transfer(a, b, c)),
        2 => (who.clone(), amount.clone()).prop_map(|(a, b)| Step::Approve(a, b)),
        3 => (who.clone(), amount.clone()).prop_map(|(a, b)| Step::Stake(a, b)),
        2 => (who.clone(), amount).prop_map(|(a, b)| Step::Unstake(a, b)),
        2 => who.prop_map(Step::Withdraw),
        2 => (0..8 * 24 * 3_600_u64).prop_map(Step::Pass),
        1 => Just(Step::Restart),
        1 => Just(Step::GoBack),
    ];
    prop::collection::vec(step, 1..40)
}

fn call(step: &Step) -> Option<(u64, Address, Vec<u8>)> {
    let registry = CONTRACTS.provider_registry;
    Some(match *step {
        Step::Drip(who) => {
            let to = wallet(who).address();
            let call = Faucet::dripCall { to };
            (who, CONTRACTS.faucet.unwrap(), call.abi_encode())
        }
        Step::Transfer(who, to, value) => {
            let to = wallet(to).address();
            let value = U256::from(value);
            let call = TNZO::transferCall { to, value };
            (who, CONTRACTS.tnzo, call.abi_encode())
        }
        Step::Approve(who, value) => {
            let value = U256::from(value);
            let spender = registry;
            let call = TNZO::approveCall { spender, value };
            (who, CONTRACTS.tnzo, call.abi_encode())
        }
        Step::Stake(who, amount) => {
            let amount = U256::from(amount);
            let call = ProviderRegistry::stakeCall { amount };
            (who, registry, call.abi_encode())
        }
        Step::Unstake(who, amount) => {
            let amount = U256::from(amount);
            let call = ProviderRegistry::requestUnstakeCall { amount };
            (who, registry, call.abi_encode())
        }
        Step::Withdraw(who) => (
            who,
            registry,
            ProviderRegistry::withdrawStakeCall {}.abi_encode(),
        ),
        Step::Pass(_) | Step::Restart | Step::GoBack => return None,
    })
}

async fn nonce(scene: &Scene, who: u64) -> u64 {
    let address = wallet(who).address();
    scene.provider.get_transaction_count(address).await.unwrap()
}

/// Supply as the contract says, as balances add up, and as transfers tell.
async fn check(scene: &Scene) {
    let token = TNZO::new(CONTRACTS.tnzo, scene.provider.clone());
    let supply = token.totalSupply().call().await.unwrap();
    assert_eq!(supply, U256::from(1_000_000_000 * TNZO_WEI));
    let filter = Filter::new()
        .address(CONTRACTS.tnzo)
        .event_signature(TNZO::Transfer::SIGNATURE_HASH)
        .from_block(0);
    let logs = scene.provider.get_logs(&filter).await.unwrap();
    let transfers: Vec<TNZO::Transfer> = logs
        .iter()
        .map(|log: &Log| log.log_decode().unwrap().inner.data)
        .collect();
    let parties: BTreeSet<Address> = transfers
        .iter()
        .flat_map(|transfer| [transfer.from, transfer.to])
        .filter(|party| !party.is_zero())
        .collect();
    let mut total = U256::ZERO;
    for party in parties {
        let sum = |pick: fn(&TNZO::Transfer) -> Address| -> U256 {
            let own = transfers.iter().filter(|transfer| pick(transfer) == party);
            own.fold(U256::ZERO, |sum, transfer| sum + transfer.value)
        };
        let told = sum(|transfer| transfer.to) - sum(|transfer| transfer.from);
        let balance = scene.balance(party).await;
        assert_eq!(balance, told, "{party}");
        total += balance;
    }
    assert_eq!(total, supply);
}

async fn play(steps: Vec<Step>) {
    let mut scene = Scene::new();
    let snapshot = serde_json::json!([]);
    let mut back = scene.get("evm_snapshot", snapshot.clone()).await;
    for step in &steps {
        if let Some((who, to, input)) = call(step) {
            let draft = draft(nonce(&scene, who).await, TxKind::Call(to), input.into());
            let (_, raw) = signed(&wallet(who), draft);
            scene.send(&raw).await.unwrap();
        }
        match *step {
            Step::Pass(seconds) => scene.pass(seconds),
            Step::Restart => scene = scene.reopen(),
            Step::GoBack => {
                scene.get("evm_revert", serde_json::json!([back])).await;
                back = scene.get("evm_snapshot", snapshot.clone()).await;
            }
            _ => {}
        }
    }
    check(&scene).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_supply_stays_what_it_is(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(play(steps));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_wallets_send_at_once() {
    let scene = std::sync::Arc::new(Scene::new());
    let funds = U256::from(1_000);
    for who in 0..8 {
        let raw = transfer(
            &super::scene::developer(),
            5 + who,
            wallet(who).address(),
            funds,
        );
        scene.send(&raw).await.unwrap();
    }
    let sink = wallet(99).address();
    let tasks: Vec<_> = (0..8)
        .map(|who| {
            let scene = scene.clone();
            tokio::spawn(async move {
                for nonce in 0..25 {
                    let raw = transfer(&wallet(who), nonce, sink, U256::from(1));
                    scene.send(&raw).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(scene.balance(sink).await, U256::from(8 * 25));
    for who in 0..8 {
        assert_eq!(nonce(&scene, who).await, 25);
        assert_eq!(scene.balance(wallet(who).address()).await, U256::from(975));
    }
    check(&scene).await;
}

sol! {
    /// Source: ERC-3009.
    struct ReceiveWithAuthorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }
}

#[tokio::test]
async fn a_signature_moves_the_money_of_a_wallet_that_sends_nothing() {
    let scene = Scene::new();
    let (payer, payee) = (wallet(1), wallet(2));
    let funds = transfer(
        &super::scene::developer(),
        5,
        payer.address(),
        U256::from(100),
    );
    scene.send(&funds).await.unwrap();
    let permission = ReceiveWithAuthorization {
        from: payer.address(),
        to: payee.address(),
        value: U256::from(60),
        validAfter: U256::ZERO,
        validBefore: U256::MAX,
        nonce: B256::repeat_byte(7),
    };
    let token = TNZO::new(CONTRACTS.tnzo, scene.provider.clone());
    let domain = token.DOMAIN_SEPARATOR().call().await.unwrap();
    let content = permission.eip712_hash_struct();
    let digest = keccak256([&[0x19, 0x01], domain.as_slice(), content.as_slice()].concat());
    let call = TNZO::receiveWithAuthorization_0Call {
        from: permission.from,
        to: permission.to,
        value: permission.value,
        validAfter: permission.validAfter,
        validBefore: permission.validBefore,
        nonce: permission.nonce,
        signature: payer.sign_hash_sync(&digest).unwrap().as_bytes().into(),
    };
    let payee = scene.account(payee);
    payee.call(CONTRACTS.tnzo, call).await.unwrap();
    assert_eq!(scene.balance(payee.address()).await, U256::from(60));
    assert_eq!(scene.balance(payer.address()).await, U256::from(40));
}
