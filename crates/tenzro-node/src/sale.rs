//! What a model server needs to be paid: the payee with its books, its price on the ledger, and the tasks that
//! settle.

use std::sync::Arc;
use std::time::Duration;

use tenzro_ledger::{Account, Address, B256, Ledger, LedgerError, PrivateKeySigner};
use tenzro_payments::books::{Books, BooksError, Earnings};
use tenzro_payments::payee::{PATIENCE, Payee, Sale as Terms};
use tenzro_payments::price::{Pricing, WINDOW_TOKENS};
use tenzro_payments::settlement::{Policy, Round};
use tenzro_payments::signature::Signer;
use tenzro_payments::voucher::Domain;
use tenzro_payments::wire::ModelTerms;
use tenzro_protocol::amount::Wei;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::escrow::LedgerEscrow;
use crate::home::Home;
use crate::model_server::unix_seconds;
use crate::network::Network;
use crate::servers::{Slot, is_held};

/// How often the price on the ledger is looked at. A rise takes a minute to hold, by the registry's rules.
const PRICE_PERIOD: Duration = Duration::from_secs(5);
/// Servers of one model, with one wallet, that can be paid at the same time.
const OWNERS_MAX: u32 = 64;

/// Why a model server cannot be paid.
#[derive(Debug, thiserror::Error)]
pub enum SaleError {
    /// The ledger does not say what has to be known.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The books cannot be used.
    #[error(transparent)]
    Books(#[from] BooksError),
    /// The home cannot be written.
    #[error("the payment books cannot be made: {0}")]
    Home(#[from] std::io::Error),
    /// The ledger lets payers leave before a provider can start again.
    #[error("the ledger's grace period for closing channels is {0} s; at least 600 s are needed")]
    GracePeriod(u64),
    /// There are too many.
    #[error("{OWNERS_MAX} servers of this model and wallet are paid already")]
    TooMany,
}

/// What is sold.
#[derive(Debug, Clone)]
pub struct Goods {
    /// Model id.
    pub model: String,
    /// SHA-256 of its file.
    pub hash: Option<B256>,
    /// Where clients connect to.
    pub host: String,
}

/// A model server's income, until it ends.
#[derive(Debug)]
pub struct Sale {
    payee: Payee,
    tasks: Vec<JoinHandle<()>>,
    // Says that this process owns its channels.
    _owner: Slot,
}

impl Sale {
    /// Opens the books of the wallet and begins to settle what this model's server has in them.
    pub async fn open(
        config: &Config,
        network: &Network,
        key: &PrivateKeySigner,
        goods: Goods,
    ) -> Result<Self, SaleError> {
        let ledger = network.ledger.clone();
        let grace = ledger.channel_rules().await?.close_grace_seconds;
        // Source: the draft's "Forced Close": servers check it.
        if grace < 600 {
            return Err(SaleError::GracePeriod(grace));
        }
        let provider = key.address();
        let books = Place::of(&config.home, provider);
        let (owner, slot) = books.claim(&goods.model)?;
        let place = ledger.escrow();
        let alive = books.clone();
        let opened = Books::open(&books.file(), &owner, move |other| alive.is_owner(other))?;
        let account = Account::new(ledger.provider().clone(), ledger.chain_id(), key.clone());
        let blocks_on_top = blocks_on_top(config, &ledger);
        let escrow = Arc::new(LedgerEscrow::new(ledger.clone(), account, blocks_on_top));
        let signer = Signer::from_bytes(&key.to_bytes()).expect("a wallet's key is a key");
        let window = config
            .get("payments.window_tokens")
            .unwrap_or(WINDOW_TOKENS);
        let prices = Prices {
            ledger,
            provider,
            model: goods.model.clone(),
            window,
        };
        let price = watch::Sender::new(prices.now().await?);
        let terms = Terms {
            domain: Domain::new(place.chain_id, place.address),
            token: place.token,
            model: ModelTerms {
                id: goods.model,
                hash: goods.hash,
            },
            realm: goods.host,
            patience: PATIENCE,
        };
        let payee = Payee::new(terms, signer, price.subscribe(), escrow, opened);
        let settling = payee.clone();
        let policy = policy(config);
        let tasks = vec![
            tokio::spawn(async move { prices.keep(&price).await }),
            tokio::spawn(async move { settling.keep_settled(policy).await }),
        ];
        Ok(Self {
            payee,
            tasks,
            _owner: slot,
        })
    }

    /// Takes the payments.
    pub fn payee(&self) -> &Payee {
        &self.payee
    }

    /// Settles what is earned, for at most `patience`.
    pub async fn settle(&self, patience: Duration) -> Result<Round, String> {
        let settled = tokio::time::timeout(patience, self.payee.settle_all()).await;
        match settled {
            Ok(Ok(round)) => Ok(round),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the ledger does not answer".to_owned()),
        }
    }
}

impl Drop for Sale {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Whoever runs a development chain makes its blocks by sending, so that none may ever come on top.
fn blocks_on_top(config: &Config, ledger: &Ledger) -> u64 {
    let is_development = ledger.addresses().faucet.is_some();
    let default = if is_development { 1 } else { 2 };
    let confirmations: u64 = config.get("chain.confirmations").unwrap_or(default);
    confirmations.saturating_sub(1)
}

fn policy(config: &Config) -> Policy {
    let default = Policy::default();
    let amount = config.get::<String>("payments.settle_amount");
    let amount = amount.and_then(|text| Wei::parse_tnzo(&text).ok());
    let seconds = config
        .get("payments.settle_seconds")
        .map(Duration::from_secs);
    Policy {
        amount: amount.map_or(default.amount, |amount| amount.0),
        age: seconds.unwrap_or(default.age),
    }
}

/// What a wallet of that home earned with its model servers, also while they run. Zero where none was ever
/// paid.
pub fn earnings(home: &Home, provider: Address) -> Result<Earnings, BooksError> {
    tenzro_payments::books::earnings(&Place::of(home, provider).file())
}

/// Whether a wallet was ever open for payments in that home.
pub(crate) fn has_books(home: &Home, provider: Address) -> bool {
    Place::of(home, provider).file().exists()
}

/// Where a wallet's books are.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    directory: std::path::PathBuf,
}

impl Place {
    pub(crate) fn of(home: &Home, provider: Address) -> Self {
        Self {
            directory: home.payments().join(provider.to_string().to_lowercase()),
        }
    }

    /// What the wallet pays.
    pub(crate) fn payer_file(&self) -> std::path::PathBuf {
        self.directory.join("payer.sqlite")
    }

    /// What the wallet earns.
    pub(crate) fn file(&self) -> std::path::PathBuf {
        self.directory.join("payee.sqlite")
    }

    /// A name among this wallet's model servers, so that one that comes again finds its own channels: the
    /// model, and the first number that is free.
    fn claim(&self, model: &str) -> Result<(String, Slot), SaleError> {
        for number in 0..OWNERS_MAX {
            let owner = format!("{model}#{number}");
            if let Some(slot) = Slot::claim(self.directory.join("owners").join(&owner))? {
                return Ok((owner, slot));
            }
        }
        Err(SaleError::TooMany)
    }

    fn is_owner(&self, owner: &str) -> bool {
        is_held(&self.directory.join("owners").join(owner))
    }
}

/// The provider's price of one model.
struct Prices {
    ledger: Ledger,
    provider: Address,
    model: String,
    window: u32,
}

impl Prices {
    async fn now(&self) -> Result<Option<Pricing>, LedgerError> {
        let found = self.ledger.pricing_now(self.provider, &self.model).await?;
        Ok(found.map(|pricing| {
            let price = pricing.at(unix_seconds());
            Pricing {
                input_per_token: Wei(price.input),
                output_per_token: Wei(price.output),
                price_version: pricing.version,
                window_tokens: self.window,
            }
        }))
    }

    async fn keep(&self, price: &watch::Sender<Option<Pricing>>) {
        loop {
            tokio::time::sleep(PRICE_PERIOD).await;
            match self.now().await {
                Ok(now) => {
                    price.send_if_modified(|known| std::mem::replace(known, now) != now);
                }
                Err(error) => tracing::warn!(%error, "the price on the ledger cannot be read"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_comes_again_has_the_name_of_its_model_whoever_was_first() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Home::new(directory.path().to_owned());
        let place = Place::of(&home, Address::ZERO);
        let claim = |model| place.claim(model).expect("free");
        let names = [claim("one"), claim("other"), claim("one")];
        let named: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(named, ["one#0", "other#0", "one#1"]);
        assert!(place.is_owner("one#1"));
        drop(names);
        assert!(!place.is_owner("one#1"));
        let again = [claim("other"), claim("one")];
        let named: Vec<&str> = again.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(named, ["other#0", "one#0"]);
    }
}
