//! A payee with its books, a payer that signs whatever a test wants, and the ledger between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alloy::primitives::{Address, B256, U256, keccak256};
use mpp::protocol::core::{PaymentCredential, format_authorization, parse_www_authenticate};
use tenzro_payments::books::Books;
use tenzro_payments::escrow::Escrow;
use tenzro_payments::payee::{
    Accepted, Charge, Meter, Order, Outcome, Paid, Payee, Purse, Refused, Sale,
};
use tenzro_payments::price::{Pricing, Tokens};
use tenzro_payments::signature::Signer;
use tenzro_payments::voucher::{Domain, RequestAuth, Voucher, request_hash};
use tenzro_payments::wire::{
    Authorization, Close, ModelTerms, Open, OpenDeposit, Payload, Receipt, TopUp, TopUpDeposit,
    VoucherUpdate,
};
use tenzro_protocol::amount::Wei;
use tenzro_protocol::inference::TokenBudget;
use tokio::sync::watch;

use crate::ledger::{CHAIN_ID, Chain, ESCROW, PayeeWallet, TOKEN, authorization_digest};

pub(crate) const PATH: &str = "/v1/chat/completions";
pub(crate) const BODY: &[u8] = br#"{"model":"m"}"#;
/// Wei for tokens of the prompt and of the answer, and the window.
pub(crate) const INPUT: u128 = 3;
pub(crate) const OUTPUT: u128 = 10;
pub(crate) const WINDOW: u32 = 32;
/// Long enough for a voucher to come.
pub(crate) const PATIENCE: Duration = Duration::from_millis(200);
/// What the payer begins with.
pub(crate) const WEALTH: u128 = 1_000_000;

/// The only model server of most tests.
const SERVER: (&str, &[&str]) = ("server", &[]);

pub(crate) struct Scene {
    pub(crate) chain: Chain,
    pub(crate) payee: Payee,
    pub(crate) payer: Payer,
    _directory: tempfile::TempDir,
    pub(crate) books: std::path::PathBuf,
    pub(crate) pricing: watch::Sender<Option<Pricing>>,
}

pub(crate) fn signer(byte: u8) -> Signer {
    Signer::from_bytes(&B256::repeat_byte(byte)).expect("a key")
}

pub(crate) fn payee_address() -> Address {
    signer(0x22).address()
}

fn pricing() -> Pricing {
    Pricing {
        input_per_token: Wei(INPUT),
        output_per_token: Wei(OUTPUT),
        price_version: 7,
        window_tokens: WINDOW,
    }
}

/// A model server of the payee's wallet; of all others `alive` run.
pub(crate) fn open_payee(
    chain: &Chain,
    books: &std::path::Path,
    pricing: &watch::Sender<Option<Pricing>>,
    (owner, alive): (&str, &'static [&'static str]),
) -> Payee {
    let sale = Sale {
        domain: Domain::new(CHAIN_ID, ESCROW),
        token: TOKEN,
        model: ModelTerms {
            id: "m".to_owned(),
            hash: Some(B256::repeat_byte(5)),
        },
        realm: "provider.example".to_owned(),
        patience: PATIENCE,
    };
    let escrow = Arc::new(PayeeWallet {
        chain: chain.clone(),
        payee: payee_address(),
    });
    let books = Books::open(books, owner, |other| alive.contains(&other)).expect("books");
    Payee::new(sale, signer(0x22), pricing.subscribe(), escrow, books)
}

impl Scene {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let books = directory.path().join("payee.sqlite");
        let chain = Chain::default();
        let payer = Payer::new(0x11);
        chain.state().balances.insert(payer.address(), WEALTH);
        let pricing = watch::Sender::new(Some(pricing()));
        Self {
            payee: open_payee(&chain, &books, &pricing, SERVER),
            chain,
            payer,
            _directory: directory,
            books,
            pricing,
        }
    }

    /// What the payee's machine has on its disk at this moment, and the ledger: a crash now goes on there.
    pub(crate) fn copy(&self) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let books = directory.path().join("payee.sqlite");
        for end in ["", "-wal"] {
            let name = |path: &std::path::Path| format!("{}{end}", path.display());
            if std::path::Path::new(&name(&self.books)).exists() {
                std::fs::copy(name(&self.books), name(&books)).expect("copied");
            }
        }
        let chain = self.chain.fork();
        let pricing = watch::Sender::new(*self.pricing.borrow());
        Self {
            payee: open_payee(&chain, &books, &pricing, SERVER),
            chain,
            payer: Payer {
                signer: signer(0x11),
                salt: self.payer.salt,
            },
            _directory: directory,
            books,
            pricing,
        }
    }

    /// As after a crash: what is in memory is gone.
    pub(crate) fn restart(&mut self) {
        let placeholder = Scene::new();
        drop(std::mem::replace(&mut self.payee, placeholder.payee));
        self.payee = open_payee(&self.chain, &self.books, &self.pricing, SERVER);
    }

    pub(crate) async fn pay(&self, payload: &Payload) -> Result<Accepted, Refused> {
        self.pay_for(payload, BODY).await
    }

    pub(crate) async fn pay_for(
        &self,
        payload: &Payload,
        body: &[u8],
    ) -> Result<Accepted, Refused> {
        let header = self.header(payload);
        self.send(&header, body).await
    }

    pub(crate) async fn send(&self, header: &str, body: &[u8]) -> Result<Accepted, Refused> {
        let paid = Paid {
            method: "POST",
            path: PATH,
            credential: header,
            body,
        };
        self.payee.pay(paid).await
    }

    pub(crate) fn header(&self, payload: &Payload) -> String {
        let challenge = self.payee.challenge().challenge.expect("a challenge");
        let challenge = parse_www_authenticate(&challenge).expect("read by mpp");
        let mut credential = PaymentCredential::new(challenge.to_echo(), payload);
        credential.source = Some(format!(
            "did:pkh:eip155:{CHAIN_ID}:{}",
            self.payer.address()
        ));
        format_authorization(&credential).expect("a header")
    }

    /// The id of the challenge that [`Self::pay`] answers.
    pub(crate) fn challenge_id(&self) -> String {
        let challenge = self.payee.challenge().challenge.expect("a challenge");
        parse_www_authenticate(&challenge).expect("read by mpp").id
    }

    /// Delivers so many tokens for a prompt of ten, as one request.
    pub(crate) async fn deliver(&self, purse: &Purse, output: u32) -> u128 {
        let mut meter = purse.start(order(10, output)).expect("paid for");
        let tokens = Tokens { input: 10, output };
        assert_eq!(meter.charge(tokens).await, Ok(Charge::Paid));
        finish(meter, "stop").await.spent.0
    }

    /// A channel with that deposit and a first voucher.
    pub(crate) async fn open(&self, deposit: u128, amount: u128) -> Purse {
        purse(self.pay(&self.payer.open(deposit, amount)).await)
    }

    pub(crate) async fn voucher(&self, amount: u128) -> Result<Accepted, Refused> {
        self.pay(&self.payer.voucher(amount)).await
    }
}

pub(crate) fn purse(accepted: Result<Accepted, Refused>) -> Purse {
    match accepted.expect("accepted") {
        Accepted::Purse(purse) => purse,
        Accepted::Done(receipt) => panic!("{receipt:?}"),
    }
}

/// A request with so many tokens at most.
pub(crate) fn order(input_tokens: u32, output_tokens: u32) -> Order {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    Order {
        request_id: format!("r{}", COUNT.fetch_add(1, Ordering::Relaxed)),
        input_tokens,
        output_tokens,
        is_stream: true,
        budget: TokenBudget::new(0),
    }
}

/// Signs whatever it is told to.
pub(crate) struct Payer {
    pub(crate) signer: Signer,
    pub(crate) salt: B256,
}

impl Payer {
    pub(crate) fn new(byte: u8) -> Self {
        Self {
            signer: signer(byte),
            salt: B256::repeat_byte(byte),
        }
    }

    pub(crate) fn address(&self) -> Address {
        self.signer.address()
    }

    pub(crate) fn channel(&self) -> B256 {
        let wallet = PayeeWallet {
            chain: Chain::default(),
            payee: payee_address(),
        };
        wallet.channel_id(self.address(), self.salt, Address::ZERO)
    }

    pub(crate) fn sign(&self, amount: u128) -> Voucher {
        Domain::new(CHAIN_ID, ESCROW).sign_voucher(&self.signer, self.channel(), amount)
    }

    pub(crate) fn authorization(&self, value: u128, nonce: u64) -> Authorization {
        Authorization {
            from: self.address(),
            to: ESCROW,
            value: Wei(value),
            valid_after: U256::ZERO,
            valid_before: U256::MAX,
            nonce: keccak256(nonce.to_be_bytes()),
        }
    }

    pub(crate) fn open(&self, deposit: u128, amount: u128) -> Payload {
        self.open_with(deposit, amount, None)
    }

    pub(crate) fn open_with(
        &self,
        deposit: u128,
        amount: u128,
        request_auth: Option<RequestAuth>,
    ) -> Payload {
        let authorization = self.authorization(deposit, 0);
        Payload::Open(Box::new(Open {
            channel_id: self.channel(),
            deposit: OpenDeposit::Authorization {
                signature: self.signer.sign(authorization_digest(&authorization)),
                authorization,
                voucher_signature: self.sign(amount).signature,
            },
            cumulative_amount: Wei(amount),
            authorized_signer: None,
            salt: self.salt,
            request_auth,
        }))
    }

    pub(crate) fn top_up(&self, amount: u128, nonce: u64) -> Payload {
        let authorization = self.authorization(amount, nonce);
        Payload::TopUp(Box::new(TopUp {
            channel_id: self.channel(),
            deposit: TopUpDeposit::Authorization {
                salt: B256::ZERO,
                signature: self.signer.sign(authorization_digest(&authorization)),
                authorization,
            },
            additional_deposit: Wei(amount),
        }))
    }

    pub(crate) fn voucher(&self, amount: u128) -> Payload {
        self.voucher_with(amount, None)
    }

    pub(crate) fn voucher_with(&self, amount: u128, request_auth: Option<RequestAuth>) -> Payload {
        Payload::Voucher(Box::new(VoucherUpdate {
            voucher: self.sign(amount),
            deposit: None,
            request_auth,
        }))
    }

    /// For a channel that the payer opened itself: in these tests its transaction has the channel's id.
    pub(crate) fn opened(&self, amount: u128) -> Payload {
        Payload::Open(Box::new(Open {
            channel_id: self.channel(),
            deposit: OpenDeposit::Hash {
                hash: self.channel(),
                signature: self.sign(amount).signature,
            },
            cumulative_amount: Wei(amount),
            authorized_signer: None,
            salt: self.salt,
            request_auth: None,
        }))
    }

    pub(crate) fn close(&self, amount: u128) -> Payload {
        self.close_with(amount, None)
    }

    pub(crate) fn close_with(&self, amount: u128, request_auth: Option<RequestAuth>) -> Payload {
        Payload::Close(Box::new(Close {
            voucher: self.sign(amount),
            request_auth,
        }))
    }

    /// Binds a payment to one request under the challenge of a header.
    pub(crate) fn bind(&self, challenge_id: &str, body: &[u8], nonce: u8) -> RequestAuth {
        let hash = request_hash("POST", PATH, body);
        let nonce = B256::repeat_byte(nonce);
        Domain::new(CHAIN_ID, ESCROW).sign_request(
            &self.signer,
            self.channel(),
            challenge_id,
            hash,
            nonce,
        )
    }
}

/// Ends a request for that reason.
pub(crate) async fn finish(meter: Meter, reason: &str) -> Receipt {
    let outcome = Outcome {
        cached_tokens: 0,
        finish: reason.to_owned(),
    };
    meter.finish(outcome).await
}
