//! What a provider does from its first TNZO to its last, and what everybody else sees of it.

use std::collections::BTreeSet;
use std::time::Duration;

use alloy::primitives::{Address, U256, address};
use alloy::providers::Provider;
use alloy::rpc::types::Filter;
use alloy::sol_types::SolEvent;
use tenzro_ledger::contracts::{ProviderRegistry, TNZO};
use tenzro_ledger::registry::{FollowConfig, Price, Registry};
use tenzro_ledger::{Account, SendError, wei};
use tenzro_protocol::schedule::Schedule;

use super::scene::{MODEL, Scene, agree, endpoint_of, offer, price, tnzo};

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
const NOBODY: Address = address!("00000000000000000000000000000000000000ff");

#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Register,
    Stake,
    Price,
    Serve,
}

const STEPS: [Step; 4] = [Step::Register, Step::Stake, Step::Price, Step::Serve];

async fn take(scene: &Scene, account: &Account, step: Step) {
    let operations = scene.operations(account);
    let result = match step {
        Step::Register => operations.register("somebody").await,
        Step::Stake => operations.stake(tnzo(1_000)).await,
        Step::Price => operations.set_pricing(MODEL, price()).await,
        Step::Serve => operations.serve_model(&offer()).await,
    };
    result.unwrap_or_else(|error| panic!("{step:?}: {error}"));
}

async fn is_active(scene: &Scene, account: &Account) -> bool {
    let registry = scene.ledger.registry();
    let answer = registry.isActive(endpoint_of(account)).call().await;
    answer.unwrap()
}

/// Whoever ever had TNZO has all of it together; stakes are what the registry has.
async fn money_is_constant(scene: &Scene) {
    let filter = Filter::new()
        .address(scene.contracts().tnzo)
        .event_signature(TNZO::Transfer::SIGNATURE_HASH)
        .from_block(0);
    let mut holders = BTreeSet::new();
    for log in scene.ledger.provider().get_logs(&filter).await.unwrap() {
        holders.insert(TNZO::Transfer::decode_log(&log.inner).unwrap().to);
    }
    let (mut held, mut staked) = (U256::ZERO, U256::ZERO);
    for holder in holders {
        held += scene.ledger.balance(holder).await.unwrap();
        staked += scene.ledger.provider_now(holder).await.unwrap().staked;
    }
    assert_eq!(wei(held), tnzo(1_000_000_000));
    let registry = scene.contracts().provider_registry;
    assert_eq!(scene.ledger.balance(registry).await.unwrap(), staked);
}

fn permutations(steps: &[Step]) -> Vec<Vec<Step>> {
    if steps.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for &first in steps {
        let rest: Vec<Step> = steps
            .iter()
            .copied()
            .filter(|step| *step != first)
            .collect();
        for mut tail in permutations(&rest) {
            tail.insert(0, first);
            all.push(tail);
        }
    }
    all
}

#[tokio::test]
async fn in_whatever_order_an_endpoint_is_active_when_all_is_done_and_not_before() {
    let scene = Scene::new(&[]).await;
    let view = scene.view(0);
    let orders = permutations(&STEPS);
    assert_eq!(orders.len(), 24);
    for order in orders {
        let account = scene.wallet(1_000).await;
        for (done, step) in order.iter().enumerate() {
            take(&scene, &account, *step).await;
            let expected = done + 1 == STEPS.len();
            assert_eq!(is_active(&scene, &account).await, expected, "{order:?}");
        }
    }
    view.catch_up().await.unwrap();
    agree(&view, &scene.ledger).await;
    money_is_constant(&scene).await;
}

#[tokio::test]
async fn with_any_one_step_left_out_an_endpoint_is_not_active() {
    let scene = Scene::new(&[]).await;
    let view = scene.view(0);
    for omitted in STEPS {
        let account = scene.wallet(1_000).await;
        for step in STEPS.into_iter().filter(|step| *step != omitted) {
            take(&scene, &account, step).await;
        }
        assert!(!is_active(&scene, &account).await, "without {omitted:?}");
    }
    view.catch_up().await.unwrap();
    agree(&view, &scene.ledger).await;
}

#[tokio::test]
async fn a_provider_comes_earns_trust_and_leaves_with_its_stake() {
    let scene = Scene::new(&[]).await;
    let account = scene.wallet(1_500).await;
    let operations = scene.operations(&account);
    let directory = tempfile::tempdir().unwrap();
    let config = FollowConfig {
        confirmations: 0,
        file: Some(directory.path().join("registry.json")),
    };
    let view = Registry::open(scene.ledger.clone(), config.clone());
    let seen = async || {
        view.catch_up().await.unwrap();
        agree(&view, &scene.ledger).await;
        money_is_constant(&scene).await;
    };

    operations.stake(tnzo(1_200)).await.unwrap();
    seen().await;
    operations.register("somebody").await.unwrap();
    let schedule = Schedule {
        timezone: "Europe/Vienna".to_owned(),
        start_minute: 1_320,
        end_minute: 360,
        days_mask: 0x1f,
    };
    operations.set_schedule(&schedule).await.unwrap();
    let mut priced = offer();
    priced.price = Some(price());
    operations.serve_model(&priced).await.unwrap();
    seen().await;
    assert!(is_active(&scene, &account).await);
    let snapshot = view.snapshot();
    let provider = snapshot.provider(account.address()).unwrap();
    assert_eq!(provider.schedule.as_ref(), Some(&schedule));

    // A price rise is seen before it holds.
    let higher = Price {
        input: 101,
        output: 300,
    };
    operations.set_pricing(MODEL, higher).await.unwrap();
    seen().await;
    let pricing = view.snapshot().pricing(account.address(), MODEL).unwrap();
    let now = scene.now().await;
    assert_eq!(pricing.at(now), price());
    assert_eq!(pricing.at(now + 60), higher);
    scene.pass(Duration::from_secs(61)).await;
    seen().await;
    assert_eq!(pricing.at(scene.now().await), higher);

    operations.clear_schedule().await.unwrap();
    operations.stop_model(endpoint_of(&account)).await.unwrap();
    seen().await;
    assert!(!is_active(&scene, &account).await);
    operations.serve_model(&offer()).await.unwrap();
    assert!(is_active(&scene, &account).await);

    // Asking for too much of the stake de-lists at once, and pays out a week later.
    operations.unstake(Some(tnzo(201))).await.unwrap();
    seen().await;
    assert!(!is_active(&scene, &account).await);
    scene.pass(WEEK - Duration::from_secs(60)).await;
    let early = operations.withdraw_stake().await.unwrap_err();
    assert!(early.to_string().contains("unbonding until"), "{early}");
    scene.pass(Duration::from_secs(61)).await;
    operations.unstake(None).await.unwrap();
    let balance = scene.ledger.balance(account.address()).await.unwrap();
    assert_eq!(wei(balance), tnzo(501));
    seen().await;

    operations.unstake(None).await.unwrap();
    operations.deregister().await.unwrap();
    scene.pass(WEEK).await;
    operations.unstake(None).await.unwrap();
    let balance = scene.ledger.balance(account.address()).await.unwrap();
    assert_eq!(wei(balance), tnzo(1_500));
    seen().await;

    // A view of another process that goes on from the file has the same.
    let restarted = Registry::open(scene.ledger.clone(), config);
    assert_eq!(restarted.block(), view.block());
    assert_eq!(*restarted.snapshot(), *view.snapshot());
    restarted.catch_up().await.unwrap();
    agree(&restarted, &scene.ledger).await;
}

#[tokio::test]
async fn a_slash_below_the_minimum_delists() {
    let scene = Scene::new(&[]).await;
    let account = scene.wallet(2_000).await;
    let view = scene.view(0);
    for step in STEPS {
        take(&scene, &account, step).await;
    }
    assert!(is_active(&scene, &account).await);
    let slash = ProviderRegistry::slashCall {
        provider_: account.address(),
        amount: U256::from(1),
        evidence: "proof".to_owned(),
    };
    let registry = scene.contracts().provider_registry;
    let stranger = account.call(registry, slash.clone()).await;
    assert!(matches!(stranger, Err(SendError::Reverted { .. })));
    scene.developer.call(registry, slash).await.unwrap();
    assert!(!is_active(&scene, &account).await);
    view.catch_up().await.unwrap();
    agree(&view, &scene.ledger).await;
    money_is_constant(&scene).await;

    // Bonding again what was taken lists it again.
    scene.operations(&account).stake(tnzo(1)).await.unwrap();
    assert!(is_active(&scene, &account).await);
}

#[tokio::test]
async fn the_faucet_gives_and_others_can_be_paid() {
    let scene = Scene::new(&[]).await;
    let account = scene.wallet(0).await;
    let operations = scene.operations(&account);
    operations.drip(account.address()).await.unwrap().unwrap();
    operations.transfer(NOBODY, tnzo(3)).await.unwrap();
    let left = scene.ledger.balance(account.address()).await.unwrap();
    assert_eq!(wei(left), tnzo(19_997));
    money_is_constant(&scene).await;
}
