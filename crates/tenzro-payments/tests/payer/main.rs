//! The payer against payees that keep to the rules and payees that do not.

mod crash;
mod dishonest;
mod ledger;
mod losses;
mod model;
mod payee;
mod servers;

use std::path::Path;
use std::sync::Arc;

use alloy::primitives::B256;
use tempfile::TempDir;
use tenzro_payments::payer::audit::{AnswerShape, PromptTokens, Recount};
use tenzro_payments::payer::budget::Limits;
use tenzro_payments::payer::{Credential, Order, PaidRequest, PayError, Payer, PayerConfig};
use tenzro_payments::price::Tokens;
use tenzro_payments::voucher::request_hash;

use ledger::Ledger;
use payee::{NOW, Payee, market, signer};

/// The model server, where a test has only one.
const PLACE: &str = "https://payee.example/v1";

/// Hash of the request that all tests pay for.
fn chat() -> B256 {
    request_hash("POST", "/v1/chat/completions", b"{}")
}

/// Hash of the request that carries later vouchers.
fn update() -> B256 {
    request_hash("POST", "/v1/payments/voucher", b"")
}

fn open(path: &Path, ledger: &Arc<Ledger>, limits: Limits) -> Payer {
    open_at(path, ledger, limits, || NOW)
}

fn open_at(path: &Path, ledger: &Arc<Ledger>, limits: Limits, clock: fn() -> u64) -> Payer {
    let config = PayerConfig {
        path: path.to_owned(),
        market: market(),
        signer: signer(1),
        limits,
        clock,
    };
    Payer::open(config, Arc::clone(ledger) as _).expect("the books open")
}

/// A wallet with so much, and a payee that suggests deposits of `suggested`.
fn scene(wealth: u128, suggested: u128) -> (TempDir, Arc<Ledger>, Payee, Payer) {
    let home = tempfile::tempdir().expect("a folder");
    let ledger = Arc::new(Ledger::new(wealth));
    let payee = Payee::new(&ledger, suggested);
    let payer = open(&home.path().join("payer.db"), &ledger, Limits::default());
    (home, ledger, payee, payer)
}

fn order(prompt: PromptTokens, recount: Option<Recount>) -> Order {
    Order {
        request_hash: chat(),
        place: PLACE.into(),
        model: "m".to_owned(),
        prompt,
        shape: AnswerShape::stream(None),
        recount,
    }
}

/// Pays for a request as a client would: at most three rounds.
async fn start(
    payer: &Payer,
    payee: &mut Payee,
    stream: u32,
    prompt: (PromptTokens, u32),
) -> Result<PaidRequest, PayError> {
    let (request, mut credential) = payer.prepare(payee.terms(), order(prompt.0, None)).await?;
    for _ in 0..3 {
        payee.take(&credential, chat());
        match payee.begin(request.channel(), stream, prompt.1) {
            Ok(()) => {
                credential.accepted().await?;
                return Ok(request);
            }
            Err(problem) => {
                drop(credential);
                credential = request.retry(payee.terms(), &problem).await?;
            }
        }
    }
    panic!("three rounds were not enough")
}

/// An honest bill for so many tokens of prompt and answer, which the payer finds right. Wei of it.
async fn agree(
    payee: &mut Payee,
    request: &PaidRequest,
    stream: u32,
    (input, output): (u32, u32),
) -> u128 {
    let id = request.channel();
    let charged = payee.end(id, stream);
    let receipt = payee.receipt(id, Tokens { input, output }, charged);
    let verdict = request.on_receipt(&receipt).await.expect("audited");
    assert_eq!(
        (verdict.agreed.charged.0, verdict.overbill),
        (charged, None)
    );
    charged
}

/// The credential's voucher.
fn amount(credential: &Credential) -> u128 {
    Payee::read(credential).0.amount.0
}
