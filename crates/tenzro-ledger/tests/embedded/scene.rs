//! A chain in a temporary folder, with a clock that tests turn, and wallets.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy::eips::Encodable2718;
use alloy::network::TxSignerSync;
use alloy::primitives::{Address, B256, Bytes, TxKind, U256, keccak256};
use alloy::providers::DynProvider;
use alloy::rpc::json_rpc::ErrorPayload;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use tempfile::TempDir;
use tenzro_ledger::contracts::TNZO;
use tenzro_ledger::embedded::{CHAIN_ID, DEVELOPMENT_KEY};
use tenzro_ledger::{Account, Addresses, EmbeddedChain, Ledger};

/// When tests begin: some time after the chain did.
pub(crate) const START: u64 = 1_800_000_000;
pub(crate) const CONTRACTS: Addresses = EmbeddedChain::addresses();
/// One TNZO in wei.
pub(crate) const TNZO_WEI: u128 = 1_000_000_000_000_000_000;

pub(crate) struct Scene {
    pub(crate) directory: TempDir,
    pub(crate) chain: EmbeddedChain,
    pub(crate) provider: DynProvider,
    pub(crate) clock: Arc<AtomicU64>,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let clock = Arc::new(AtomicU64::new(START));
        let chain = open(&directory, &clock);
        Self {
            provider: chain.provider(),
            chain,
            directory,
            clock,
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("ledger.sqlite")
    }

    /// The same file after the process would have ended.
    pub(crate) fn reopen(self) -> Self {
        let Self {
            directory,
            chain,
            provider,
            clock,
        } = self;
        drop((chain, provider));
        let chain = open(&directory, &clock);
        Self {
            provider: chain.provider(),
            chain,
            directory,
            clock,
        }
    }

    pub(crate) fn pass(&self, seconds: u64) {
        self.clock.fetch_add(seconds, Ordering::Relaxed);
    }

    pub(crate) async fn ledger(&self) -> Ledger {
        Ledger::open(self.provider.clone(), CONTRACTS)
            .await
            .unwrap()
    }

    pub(crate) fn account(&self, signer: PrivateKeySigner) -> Account {
        Account::new(self.provider.clone(), CHAIN_ID, signer)
    }

    pub(crate) async fn ask(&self, method: &str, params: Value) -> Result<Value, ErrorPayload> {
        let params: Box<RawValue> = to_raw_value(&params).unwrap();
        let answer = self.chain.request(method, Some(&params)).await?;
        Ok(serde_json::from_str(answer.get()).unwrap())
    }

    pub(crate) async fn get(&self, method: &str, params: Value) -> Value {
        self.ask(method, params).await.unwrap()
    }

    /// Code and text of the error.
    pub(crate) async fn refusal(&self, method: &str, params: Value) -> (i64, String) {
        let error = self.ask(method, params).await.unwrap_err();
        (error.code, error.message.into_owned())
    }

    pub(crate) async fn send(&self, raw: &Bytes) -> Result<Value, ErrorPayload> {
        self.ask("eth_sendRawTransaction", serde_json::json!([raw]))
            .await
    }

    /// TNZO of an account in wei.
    pub(crate) async fn balance(&self, account: Address) -> U256 {
        let token = TNZO::new(CONTRACTS.tnzo, self.provider.clone());
        token.balanceOf(account).call().await.unwrap()
    }
}

fn open(directory: &TempDir, clock: &Arc<AtomicU64>) -> EmbeddedChain {
    let clock = Arc::clone(clock);
    let path = directory.path().join("ledger.sqlite");
    EmbeddedChain::open_with_clock(&path, move || clock.load(Ordering::Relaxed)).unwrap()
}

pub(crate) fn developer() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&DEVELOPMENT_KEY).unwrap()
}

/// Always the same wallet for a number.
pub(crate) fn wallet(number: u64) -> PrivateKeySigner {
    let key: B256 = keccak256(number.to_be_bytes());
    PrivateKeySigner::from_bytes(&key).unwrap()
}

pub(crate) fn draft(nonce: u64, to: TxKind, input: Bytes) -> TxEip1559 {
    TxEip1559 {
        chain_id: CHAIN_ID,
        nonce,
        gas_limit: 200_000,
        to,
        input,
        ..TxEip1559::default()
    }
}

pub(crate) fn signed(signer: &PrivateKeySigner, mut draft: TxEip1559) -> (B256, Bytes) {
    let signature = signer.sign_transaction_sync(&mut draft).unwrap();
    let envelope = TxEnvelope::from(draft.into_signed(signature));
    (*envelope.tx_hash(), envelope.encoded_2718().into())
}

pub(crate) fn transfer(signer: &PrivateKeySigner, nonce: u64, to: Address, value: U256) -> Bytes {
    let call = TNZO::transferCall { to, value }.abi_encode();
    signed(
        signer,
        draft(nonce, TxKind::Call(CONTRACTS.tnzo), call.into()),
    )
    .1
}
