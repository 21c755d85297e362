//! An anvil with the contracts on it, and wallets with money.

use std::time::Duration;

use alloy::primitives::{Address, B256, U256, b256, keccak256};
use alloy::providers::{DynProvider, Provider};
use alloy::signers::local::PrivateKeySigner;
use serde_json::json;
use tenzro_ledger::registry::{FollowConfig, Price, Registry, endpoint_id};
use tenzro_ledger::{
    Account, Addresses, FaucetRules, Ledger, Offer, Operations, Rules, connect, deploy,
};
use tenzro_protocol::amount::Wei;

use super::anvil::Anvil;

pub(crate) const CHAIN_ID: u64 = 31337;
pub(crate) const MODEL: &str = "qwen3-0.6b";
pub(crate) const BASE_URL: &str = "http://127.0.0.1:8080/v1";
/// The first account that anvil funds.
const DEVELOPER: B256 = b256!("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80");

pub(crate) struct Scene {
    pub(crate) anvil: Anvil,
    pub(crate) ledger: Ledger,
    pub(crate) developer: Account,
}

impl Scene {
    pub(crate) async fn new(arguments: &[&str]) -> Self {
        Self::on(Anvil::start(arguments).await).await
    }

    /// Deploys everything, with a faucet; the developer is treasury and arbiter.
    pub(crate) async fn on(anvil: Anvil) -> Self {
        let developer = Account::new(anvil.provider(), CHAIN_ID, developer());
        let rules = Rules::standard(developer.address(), developer.address());
        let faucet = Some(FaucetRules::standard());
        let addresses = deploy(&developer, rules, faucet, |_, _| {});
        let addresses = addresses.await.expect("deployed");
        let ledger = Ledger::open(anvil.provider(), addresses).await;
        Self {
            ledger: ledger.expect("the contracts are there"),
            anvil,
            developer,
        }
    }

    pub(crate) fn contracts(&self) -> &Addresses {
        self.ledger.addresses()
    }

    /// A new wallet with 10 gas coins and so many TNZO.
    pub(crate) async fn wallet(&self, tnzo: u64) -> Account {
        let signer = PrivateKeySigner::random();
        self.fund(signer.address()).await;
        if tnzo > 0 {
            self.operations(&self.developer)
                .transfer(signer.address(), Wei::from_whole_tnzo(tnzo))
                .await
                .expect("paid");
        }
        self.account(signer)
    }

    /// Gives an address gas coin.
    pub(crate) async fn fund(&self, address: Address) {
        let amount = U256::from(10_000_000_000_000_000_000_u64);
        self.anvil
            .ask("anvil_setBalance", json!([address, amount]))
            .await;
    }

    pub(crate) fn account(&self, signer: PrivateKeySigner) -> Account {
        Account::new(self.anvil.provider(), CHAIN_ID, signer)
    }

    pub(crate) fn operations<'a>(&'a self, account: &'a Account) -> Operations<'a> {
        Operations {
            ledger: &self.ledger,
            account,
        }
    }

    /// The same contracts through another address.
    pub(crate) async fn ledger_at(&self, url: &str) -> Ledger {
        let provider = connect(url).expect("an address");
        let ledger = Ledger::open(provider, *self.contracts()).await;
        ledger.expect("the contracts are there")
    }

    pub(crate) fn view(&self, confirmations: u64) -> Registry {
        view(self.ledger.clone(), confirmations)
    }

    /// Mines so many empty blocks.
    pub(crate) async fn mine(&self, blocks: u64) {
        self.anvil.ask("anvil_mine", json!([blocks])).await;
    }

    /// Waits until so many transactions wait to be mined.
    pub(crate) async fn until_pending(&self, count: u64) {
        loop {
            let status = self.anvil.ask("txpool_status", json!([])).await;
            let text = status["pending"].as_str().expect("a number");
            let pending = u64::from_str_radix(text.trim_start_matches("0x"), 16);
            if pending.expect("a number") == count {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Lets time pass, until a block has the new time.
    pub(crate) async fn pass(&self, time: Duration) {
        let seconds = time.as_secs();
        self.anvil.ask("evm_increaseTime", json!([seconds])).await;
        self.mine(1).await;
    }

    /// The chain's time.
    pub(crate) async fn now(&self) -> u64 {
        now(self.ledger.provider()).await
    }
}

pub(crate) fn view(ledger: Ledger, confirmations: u64) -> Registry {
    let config = FollowConfig {
        confirmations,
        file: None,
    };
    Registry::open(ledger, config)
}

pub(crate) fn developer() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&DEVELOPER).expect("a key")
}

pub(crate) fn tnzo(count: u64) -> Wei {
    Wei::from_whole_tnzo(count)
}

pub(crate) fn price() -> Price {
    Price {
        input: 100,
        output: 300,
    }
}

pub(crate) fn offer() -> Offer {
    Offer {
        model_id: MODEL.to_owned(),
        model_hash: keccak256(MODEL),
        base_url: BASE_URL.to_owned(),
        meta: "{}".to_owned(),
        price: None,
    }
}

/// The endpoint of that offer.
pub(crate) fn endpoint_of(account: &Account) -> B256 {
    endpoint_id(account.address(), MODEL, BASE_URL)
}

async fn now(provider: &DynProvider) -> u64 {
    let block = provider.get_block_by_number(Default::default()).await;
    let block = block.expect("answered").expect("there is one");
    block.header.timestamp
}

/// Everything that the contract's views tell is what was followed.
pub(crate) async fn agree(view: &Registry, ledger: &Ledger) {
    let snapshot = view.snapshot();
    let now = now(ledger.provider()).await;
    let rules = ledger.rules().await.expect("readable");
    let registry = ledger.registry();
    for (address, provider) in snapshot.providers() {
        let found = ledger.provider_now(*address).await.expect("readable");
        assert_eq!(*provider, found, "provider {address}");
        for (model, pricing) in snapshot.prices_of(*address) {
            let found = ledger.pricing_now(*address, model).await.expect("readable");
            let found = found.expect("priced");
            assert_eq!(pricing.version, found.version, "{model}");
            assert_eq!(pricing.at(now), found.at(now), "{model}");
            assert_eq!(pricing.waiting(now), found.waiting(now), "{model}");
        }
    }
    let (from, limit) = (U256::ZERO, U256::from(100));
    let providers = registry.providers(from, limit).call().await;
    for provider in providers.expect("readable") {
        let known = snapshot.provider(provider.provider);
        assert!(known.is_some(), "provider {}", provider.provider);
    }
    let endpoints = registry.endpoints(from, limit).call().await;
    let endpoints = endpoints.expect("readable");
    assert_eq!(snapshot.endpoints().count(), endpoints.len());
    for endpoint in snapshot.endpoints() {
        let found = ledger.endpoint_now(endpoint.id).await.expect("readable");
        let (found, pricing, is_active) = found.expect("there");
        assert_eq!(*endpoint, found);
        let known = snapshot.pricing(endpoint.provider, &endpoint.model_id);
        assert_eq!(known.is_some(), pricing.is_some());
        let minimum = U256::from(rules.minimum_stake.0);
        assert_eq!(snapshot.is_active(endpoint, minimum), is_active);
    }
}
