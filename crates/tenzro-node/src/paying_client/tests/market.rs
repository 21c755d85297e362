//! A payer, an escrow in memory, and model servers that are paid through it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use tempfile::TempDir;
use tenzro_api::{Inference, Limits, Server, ServerConfig};
use tenzro_engine::Tokenizer;
use tenzro_ledger::channels::{ChannelTerms, Escrow as OnLedger};
use tenzro_ledger::{Address, B256, PrivateKeySigner};
use tenzro_payments::books::Books;
use tenzro_payments::escrow::{Escrow, EscrowChannel, EscrowError, Settled, SignedDeposit};
use tenzro_payments::payee::{PATIENCE, Payee, Sale};
use tenzro_payments::payer::terms::{Expected, Market as Place};
use tenzro_payments::payer::{Payer, PayerConfig, PayerLedger, unix_now};
use tenzro_payments::price::Pricing;
use tenzro_payments::signature::{Signature, Signer};
use tenzro_payments::voucher::{Domain, Voucher};
use tenzro_payments::wire::{Authorization, ModelTerms};
use tenzro_protocol::amount::Wei;
use tenzro_testkit::fake_inference::FakeInference;
use tokio::sync::watch;

use crate::billing::Till;
use crate::escrow::check_deposit;
use crate::payer_ledger::DepositSigner;
use crate::paying_client::PayingClient;

pub(super) const PRICING: Pricing = Pricing {
    input_per_token: Wei(10),
    output_per_token: Wei(30),
    price_version: 3,
    window_tokens: 4,
};

pub(super) fn signer(byte: u8) -> Signer {
    Signer::from_bytes(&B256::repeat_byte(byte)).expect("a key")
}

pub(super) fn place() -> Place {
    Place {
        domain: Domain::new(1337, Address::repeat_byte(0xe5)),
        token: Address::repeat_byte(0x5f),
    }
}

fn on_ledger() -> OnLedger {
    OnLedger {
        chain_id: place().domain.chain_id,
        address: place().domain.escrow,
        token: place().token,
    }
}

/// The payer's key, for deposits.
fn deposit_signer() -> DepositSigner {
    DepositSigner {
        wallet: PrivateKeySigner::from_bytes(&B256::repeat_byte(1)).expect("a key"),
        place: on_ledger(),
    }
}

/// A wallet with money, and the escrow.
pub(super) struct Market {
    pub(super) payer: Payer,
    pub(super) vault: Arc<Vault>,
    pub(super) home: TempDir,
}

impl Market {
    pub(super) fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let home = tempfile::tempdir().expect("a folder");
        let vault = Arc::new(Vault::default());
        let payer = open_payer(&home.path().join("payer.db"), &vault);
        Self { payer, vault, home }
    }

    /// The payer's books are lost, and it asks the ledger.
    pub(super) async fn wipe(&mut self) {
        self.payer = open_payer(&self.home.path().join("new.db"), &self.vault);
        self.payer.recover().await.expect("compared");
    }

    pub(super) fn client(&self, base_url: &str, output_price_max: u128) -> PayingClient {
        self.counting_client(base_url, output_price_max, None)
    }

    /// One that has the model's file.
    pub(super) fn counting_client(
        &self,
        base_url: &str,
        output_price_max: u128,
        tokenizer: Option<Tokenizer>,
    ) -> PayingClient {
        let expected = Expected {
            payee: signer(9).address(),
            model: "fake".to_owned(),
            model_hash: None,
            input_price_max: 10,
            output_price_max,
            window_tokens_max: 32,
            answer_tokens_max: 1_000,
        };
        let payer = self.payer.clone();
        PayingClient::new(base_url, true, payer, expected, tokenizer).expect("a client")
    }
}

fn open_payer(path: &Path, vault: &Arc<Vault>) -> Payer {
    let config = PayerConfig {
        path: path.to_owned(),
        market: place(),
        signer: signer(1),
        limits: Default::default(),
        clock: unix_now,
    };
    Payer::open(config, Arc::clone(vault) as _).expect("the books open")
}

/// A model server that is paid.
pub(super) struct Shop<E = FakeInference> {
    server: Server,
    pub(super) engine: Arc<E>,
}

impl<E: Inference + 'static> Shop<E> {
    pub(super) async fn open(market: &Market, engine: E) -> Self {
        Self::named("shop", market, engine).await
    }

    /// One of several with one wallet and one file of books.
    pub(super) async fn named(name: &str, market: &Market, engine: E) -> Self {
        let sale = Sale {
            domain: place().domain,
            token: place().token,
            model: ModelTerms {
                id: "fake".to_owned(),
                hash: None,
            },
            realm: "shop".to_owned(),
            patience: PATIENCE,
        };
        let books = Books::open(&market.home.path().join("payee.db"), name, |_| true);
        let price = watch::Sender::new(Some(PRICING)).subscribe();
        let escrow = Arc::clone(&market.vault) as _;
        let payee = Payee::new(sale, signer(9), price, escrow, books.expect("books"));
        let engine = Arc::new(engine);
        let config = ServerConfig {
            listen: "127.0.0.1:0".parse().expect("an address"),
            cors: false,
            fingerprint: "test".to_owned(),
            limits: Limits::default(),
        };
        let till = Till::shared(payee, "the operator's token");
        let server = Server::bind(config, Arc::clone(&engine) as _, Some(till)).await;
        Self {
            server: server.expect("a free port"),
            engine,
        }
    }

    pub(super) fn base_url(&self) -> String {
        format!("http://{}/v1", self.server.local_addr())
    }

    pub(super) fn client(&self, market: &Market) -> PayingClient {
        market.client(&self.base_url(), 30)
    }
}

/// The escrow contract, by its rules on deposits. Nobody settles in these tests.
#[derive(Debug, Default)]
pub(super) struct Vault {
    channels: Mutex<BTreeMap<B256, EscrowChannel>>,
    deposits: Mutex<usize>,
}

impl Vault {
    pub(super) fn deposits(&self) -> usize {
        *self.deposits.lock().expect("unpoisoned")
    }

    fn get(&self, id: B256) -> Option<EscrowChannel> {
        self.channels.lock().expect("unpoisoned").get(&id).copied()
    }
}

impl PayerLedger for Vault {
    fn channel_id(&self, payee: Address, salt: B256) -> B256 {
        deposit_signer().channel_id(payee, salt)
    }

    fn sign_open(
        &self,
        payee: Address,
        salt: B256,
        amount: u128,
        valid_before: u64,
    ) -> (Authorization, Signature) {
        deposit_signer().open(payee, salt, amount, valid_before)
    }

    fn sign_top_up(
        &self,
        channel: B256,
        salt: B256,
        amount: u128,
        valid_before: u64,
    ) -> (Authorization, Signature) {
        deposit_signer().top_up(channel, salt, amount, valid_before)
    }

    fn channel(&self, id: B256) -> BoxFuture<'_, Result<Option<EscrowChannel>, EscrowError>> {
        Box::pin(async move { Ok(self.get(id)) })
    }

    fn balance(&self, _owner: Address) -> BoxFuture<'_, Result<u128, EscrowError>> {
        Box::pin(async { Ok(1_000_000_000) })
    }

    fn channels_of(&self, _payer: Address) -> BoxFuture<'_, Result<Vec<B256>, EscrowError>> {
        let channels = self.channels.lock().expect("unpoisoned");
        let ids = channels.keys().copied().collect();
        Box::pin(async { Ok(ids) })
    }
}

impl Escrow for Vault {
    fn channel_id(&self, payer: Address, salt: B256, authorized_signer: Address) -> B256 {
        let terms = ChannelTerms {
            payee: signer(9).address(),
            salt,
            authorized_signer,
        };
        terms.id(payer, &on_ledger())
    }

    fn check(&self, deposit: &SignedDeposit) -> Result<(), String> {
        check_deposit(deposit, signer(9).address(), &on_ledger())
    }

    fn channel(&self, id: B256) -> BoxFuture<'_, Result<Option<EscrowChannel>, EscrowError>> {
        Box::pin(async move { Ok(self.get(id)) })
    }

    fn submit(&self, deposit: SignedDeposit) -> BoxFuture<'_, Result<B256, EscrowError>> {
        let mut channels = self.channels.lock().expect("unpoisoned");
        *self.deposits.lock().expect("unpoisoned") += 1;
        match deposit {
            SignedDeposit::Open {
                salt,
                authorized_signer,
                authorization,
                ..
            } => {
                let payer = authorization.from;
                let channel = EscrowChannel {
                    payer,
                    payee: signer(9).address(),
                    signer: payer,
                    deposit: authorization.value.0,
                    settled: 0,
                    is_closing: false,
                    is_final: false,
                };
                let id = Escrow::channel_id(self, payer, salt, authorized_signer);
                channels.insert(id, channel);
            }
            SignedDeposit::TopUp {
                channel_id,
                authorization,
                ..
            } => {
                let channel = channels.get_mut(&channel_id).expect("a channel");
                channel.deposit += authorization.value.0;
            }
        }
        Box::pin(async { Ok(B256::repeat_byte(7)) })
    }

    fn deposited_by(&self, _: B256) -> BoxFuture<'_, Result<Option<B256>, EscrowError>> {
        Box::pin(async { Ok(None) })
    }

    fn settle(
        &self,
        _vouchers: Vec<Voucher>,
    ) -> BoxFuture<'_, Result<(B256, Vec<Settled>), EscrowError>> {
        Box::pin(async { Err(EscrowError::Unavailable("nobody settles".to_owned())) })
    }

    fn close(
        &self,
        _channel_id: B256,
        _last: Option<Voucher>,
    ) -> BoxFuture<'_, Result<B256, EscrowError>> {
        Box::pin(async { Err(EscrowError::Unavailable("nobody closes".to_owned())) })
    }

    fn news(&self) -> BoxFuture<'_, Result<Vec<B256>, EscrowError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}
