//! Sends transactions: nonce, gas, fees, signature, and the wait for the receipt.
//!
//! ```text
//! call ─▶ estimate (a revert ends here, at no cost) ─▶ nonce ─▶ sign ─▶ send ─▶ receipt ─▶ status 1
//!                                                        ▲                 │
//!                                                        └── nonce taken ──┘
//! ```

use std::time::Duration;

use alloy::consensus::transaction::SignerRecoverable;
use alloy::consensus::{SignableTransaction, Transaction, TxEip1559, TxEnvelope};
use alloy::eips::{Decodable2718, Encodable2718};
use alloy::network::TxSignerSync;
use alloy::primitives::{Address, B256, Bytes, TxKind, U256};
use alloy::providers::{DynProvider, Provider};
use alloy::rpc::types::{TransactionReceipt, TransactionRequest};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use alloy::transports::{RpcError, TransportError};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::ledger::{LedgerError, short};
use crate::revert;

/// How long a transaction may wait to be mined.
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(180);
/// First pause between two looks for the receipt; doubles up to the last one.
const RECEIPT_PAUSE: Duration = Duration::from_millis(5);
const RECEIPT_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Another program that sends from the same wallet may take a nonce first.
const NONCE_ATTEMPTS: u32 = 8;

/// Why a transaction did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The contract refuses: nothing was sent, or it was mined and failed.
    #[error("{reason}")]
    Reverted {
        /// The contract's reason, decoded.
        reason: String,
        /// What it answered.
        data: Bytes,
        /// The transaction that was mined and failed; `None` when nothing was sent.
        transaction: Option<B256>,
    },
    /// The account cannot pay for the gas.
    #[error("{account} has no gas coin to pay for the transaction: {reason}")]
    Gas {
        /// Who sends.
        account: Address,
        /// The chain's words.
        reason: String,
    },
    /// The chain does not answer, or refuses.
    #[error("the chain refuses the transaction: {}", short(.0))]
    Transport(#[from] TransportError),
    /// What has to be known first cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Sent, but not mined in time: it may still be.
    #[error("transaction {0} was sent, but not mined within 3 minutes; it may still be")]
    NotMined(B256),
}

/// A transaction that is ready to be sent by anybody.
#[derive(Debug, Clone)]
pub struct Signed {
    /// Its hash.
    pub hash: B256,
    /// As it goes over the wire (EIP-2718).
    pub raw: Bytes,
}

/// A wallet on a chain: sends one transaction after the other, whoever asks.
#[derive(Debug)]
pub struct Account {
    provider: DynProvider,
    chain_id: u64,
    signer: PrivateKeySigner,
    /// The nonce after the last one sent from here. Held while a transaction is made and sent, so
    /// that concurrent senders cannot take the same.
    next_nonce: Mutex<u64>,
    /// Held from the signing of a permit until it is used.
    permits: Mutex<()>,
}

impl Account {
    /// Reads nothing yet.
    pub fn new(provider: DynProvider, chain_id: u64, signer: PrivateKeySigner) -> Self {
        Self {
            provider,
            chain_id,
            signer,
            next_nonce: Mutex::new(0),
            permits: Mutex::new(()),
        }
    }

    /// Whose transactions these are.
    pub fn address(&self) -> Address {
        self.signer.address()
    }

    /// Waits until no other permit of this wallet is on its way.
    pub(crate) async fn permits(&self) -> MutexGuard<'_, ()> {
        self.permits.lock().await
    }

    /// The key, for signatures that are no transactions.
    pub fn signer(&self) -> &PrivateKeySigner {
        &self.signer
    }

    /// Calls a contract and waits until the call is mined and has succeeded.
    pub async fn call<C: SolCall>(
        &self,
        contract: Address,
        call: C,
    ) -> Result<TransactionReceipt, SendError> {
        self.transact(TxKind::Call(contract), call.abi_encode().into())
            .await
    }

    /// Creates a contract; the receipt has its address.
    pub async fn deploy(&self, init_code: Bytes) -> Result<TransactionReceipt, SendError> {
        self.transact(TxKind::Create, init_code).await
    }

    /// A transaction for somebody else to send: nothing is sent here. Send it before the next one
    /// from this wallet, which would take the same nonce.
    pub async fn sign<C: SolCall>(&self, contract: Address, call: C) -> Result<Signed, SendError> {
        let draft = self
            .draft(TxKind::Call(contract), call.abi_encode().into())
            .await?;
        let nonce = self.pending_nonce().await?;
        Ok(self.signed(draft, nonce))
    }

    async fn transact(&self, to: TxKind, input: Bytes) -> Result<TransactionReceipt, SendError> {
        let draft = self.draft(to, input).await?;
        let hash = self.send(draft).await?;
        wait(&self.provider, hash).await
    }

    /// Gas and fees; a call that would fail ends here.
    async fn draft(&self, to: TxKind, input: Bytes) -> Result<TxEip1559, SendError> {
        let mut request = TransactionRequest::default()
            .from(self.address())
            .input(input.clone().into());
        request.to = Some(to);
        let estimate = self.provider.estimate_gas(request).await;
        let estimate = estimate.map_err(|error| self.explain(error))?;
        let fees = self.provider.estimate_eip1559_fees().await?;
        Ok(TxEip1559 {
            chain_id: self.chain_id,
            nonce: 0,
            // A fifth more: the state may change until it is mined.
            gas_limit: estimate.saturating_add(estimate / 5),
            max_fee_per_gas: fees.max_fee_per_gas,
            max_priority_fee_per_gas: fees.max_priority_fee_per_gas,
            to,
            value: U256::ZERO,
            access_list: Default::default(),
            input,
        })
    }

    async fn send(&self, draft: TxEip1559) -> Result<B256, SendError> {
        let mut next = self.next_nonce.lock().await;
        let mut attempt = 0;
        loop {
            attempt += 1;
            // What was sent from here may not be counted by the chain yet; what was counted may have
            // been sent by another program.
            let nonce = self.pending_nonce().await?.max(*next);
            let signed = self.signed(draft.clone(), nonce);
            match self.provider.send_raw_transaction(&signed.raw).await {
                Ok(_) => {
                    *next = nonce + 1;
                    return Ok(signed.hash);
                }
                Err(error) if is_already_known(&error) => {
                    *next = nonce + 1;
                    return Ok(signed.hash);
                }
                // Either another program took the nonce, or ours were dropped: ask the chain anew.
                Err(error) if is_nonce_taken(&error) && attempt < NONCE_ATTEMPTS => *next = 0,
                Err(error) => {
                    *next = 0;
                    return Err(self.explain(error));
                }
            }
        }
    }

    async fn pending_nonce(&self) -> Result<u64, TransportError> {
        self.provider
            .get_transaction_count(self.address())
            .pending()
            .await
    }

    fn signed(&self, mut draft: TxEip1559, nonce: u64) -> Signed {
        draft.nonce = nonce;
        let signature = self.signer.sign_transaction_sync(&mut draft);
        let signature = signature.expect("a key in memory can sign");
        let envelope = TxEnvelope::from(draft.into_signed(signature));
        Signed {
            hash: *envelope.tx_hash(),
            raw: envelope.encoded_2718().into(),
        }
    }

    fn explain(&self, error: TransportError) -> SendError {
        let RpcError::ErrorResp(payload) = &error else {
            return error.into();
        };
        let message = payload.message.to_lowercase();
        if message.contains("insufficient funds") || message.contains("gas required exceeds") {
            return SendError::Gas {
                account: self.address(),
                reason: payload.message.to_string(),
            };
        }
        let data = payload.as_revert_data();
        if data.is_none() && !message.contains("revert") {
            return error.into();
        }
        let data = data.unwrap_or_default();
        SendError::Reverted {
            reason: revert::explain(&data).unwrap_or_else(|| payload.message.to_string()),
            data,
            transaction: None,
        }
    }
}

/// Sends what somebody signed, and waits until it is mined and has succeeded.
pub async fn submit(provider: &DynProvider, raw: &[u8]) -> Result<TransactionReceipt, SendError> {
    let hash = alloy::primitives::keccak256(raw);
    match provider.send_raw_transaction(raw).await {
        Ok(_) => {}
        Err(error) if is_already_known(&error) => {}
        Err(error) => return Err(error.into()),
    }
    wait(provider, hash).await
}

/// Whom a transaction that somebody signed for that chain is for; `None` where it creates a contract.
/// The error says what is wrong.
pub fn recipient(raw: &[u8], chain_id: u64) -> Result<Option<Address>, &'static str> {
    let mut bytes = raw;
    let envelope = TxEnvelope::decode_2718(&mut bytes).map_err(|_| "that is no transaction")?;
    if !bytes.is_empty() {
        return Err("there are bytes after the transaction");
    }
    if envelope.chain_id() != Some(chain_id) {
        return Err("that is signed for another chain");
    }
    if envelope.recover_signer().is_err() {
        return Err("its signature is wrong");
    }
    Ok(envelope.to())
}

/// Waits for the receipt; a chain that does not answer meanwhile is asked again.
async fn wait(provider: &DynProvider, hash: B256) -> Result<TransactionReceipt, SendError> {
    let deadline = Instant::now() + RECEIPT_TIMEOUT;
    let mut pause = RECEIPT_PAUSE;
    loop {
        match provider.get_transaction_receipt(hash).await {
            Ok(Some(receipt)) if receipt.status() => return Ok(receipt),
            Ok(Some(receipt)) => return Err(failed(provider, &receipt).await),
            Ok(None) => {}
            Err(error) => tracing::debug!(%hash, error = short(&error), "receipt"),
        }
        if Instant::now() >= deadline {
            return Err(SendError::NotMined(hash));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RECEIPT_PAUSE_MAX);
    }
}

/// The reason of a transaction that was mined and failed, found by calling it again on the state
/// before its block.
async fn failed(provider: &DynProvider, receipt: &TransactionReceipt) -> SendError {
    let hash = receipt.transaction_hash;
    let mut data = Bytes::new();
    if let Ok(Some(transaction)) = provider.get_transaction_by_hash(hash).await {
        let request = transaction.into_request();
        let block = receipt.block_number.unwrap_or_default();
        if let Err(RpcError::ErrorResp(payload)) = provider.call(request).block(block.into()).await
        {
            data = payload.as_revert_data().unwrap_or_default();
        }
    }
    SendError::Reverted {
        reason: revert::explain(&data).unwrap_or_else(|| "the transaction failed".to_owned()),
        data,
        transaction: Some(hash),
    }
}

fn is_already_known(error: &TransportError) -> bool {
    says(
        error,
        &["already known", "known transaction", "already imported"],
    )
}

fn is_nonce_taken(error: &TransportError) -> bool {
    says(error, &["nonce too low", "nonce too high", "underpriced"])
}

/// Nodes agree on these words more than on codes. Source: geth `core/txpool/errors.go`.
fn says(error: &TransportError, texts: &[&str]) -> bool {
    let RpcError::ErrorResp(payload) = error else {
        return false;
    };
    let message = payload.message.to_lowercase();
    texts.iter().any(|text| message.contains(text))
}
