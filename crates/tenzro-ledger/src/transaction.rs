//! Sends transactions: nonce, gas, fees, signature, and the wait for the receipt.
//!
//! ```text
//! call ─▶ estimate (a revert ends here, at no cost) ─▶ nonce ─▶ sign ─▶ send ─▶ receipt ─▶ status 1
//!                                                        ▲                │ ▲    │
//!                                                        └── nonce taken ─┘ └────┘ the same bytes again
//! ```
//!
//! A signed transaction can be mined once only, so that sending the same bytes again is safe, whatever
//! became of the first time: a lost answer, a chain that restarted and forgot what waited. A new nonce
//! is taken only where the chain has said that this one is another's.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
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

use crate::ledger::{LedgerError, repeat, short};
use crate::revert;

/// How long a transaction may wait to be mined.
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(180);
/// First pause between two looks for the receipt; doubles up to the last one.
const RECEIPT_PAUSE: Duration = Duration::from_millis(5);
const RECEIPT_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Until the same bytes are sent again, and between two times.
const REPEAT_FIRST: Duration = Duration::from_secs(1);
const REPEAT_EVERY: Duration = Duration::from_secs(5);
/// How long to look for a nonce while other programs send from the same wallet.
const NONCE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often to offer a new fee where the chain takes no transaction below the base fee.
const FEE_ATTEMPTS: u32 = 4;
/// Gas that is added by chance at most.
const GAS_SALT: u64 = 16_384;

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
    /// There is nothing to take back: nothing was sent.
    #[error("nothing is staked")]
    NothingStaked,
    /// What has to be known first cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Sent, but not mined in time: it may still be.
    #[error(
        "transaction {0} was sent, but is not mined yet; it may still be: look for it before you send again"
    )]
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
    /// How long a transaction may wait to be mined.
    patience: Duration,
    /// Added to every gas limit, so that no two programs with the same wallet that do the same at once
    /// make the same transaction: "already known" is always about one's own.
    gas_salt: u64,
    /// Held while a transaction is made and sent, so that concurrent senders cannot take one nonce.
    sent: Mutex<Sent>,
    /// Held while an allowance is given, by permit or not, until it is used.
    allowances: Mutex<()>,
}

/// What went out from here.
#[derive(Debug, Default)]
struct Sent {
    /// By nonce, while somebody waits for the receipt.
    unmined: BTreeMap<u64, Signed>,
    /// The last one that was seen mined.
    mined: Option<(u64, B256)>,
    /// When `unmined` was sent again last.
    repeated: Option<Instant>,
}

impl Account {
    /// Reads nothing yet.
    pub fn new(provider: DynProvider, chain_id: u64, signer: PrivateKeySigner) -> Self {
        Self {
            provider,
            chain_id,
            signer,
            patience: RECEIPT_TIMEOUT,
            gas_salt: RandomState::new().hash_one(()) % GAS_SALT,
            sent: Mutex::default(),
            allowances: Mutex::default(),
        }
    }

    /// Waits so long for a transaction to be mined, instead of 3 minutes.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Whose transactions these are.
    pub fn address(&self) -> Address {
        self.signer.address()
    }

    /// Waits until no other allowance of this wallet is on its way.
    pub(crate) async fn allowances(&self) -> MutexGuard<'_, ()> {
        self.allowances.lock().await
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

    /// Whether a call would succeed now; sends nothing.
    pub(crate) async fn check<C: SolCall>(
        &self,
        contract: Address,
        call: C,
    ) -> Result<(), SendError> {
        let draft = self.draft(TxKind::Call(contract), call.abi_encode().into());
        draft.await.map(drop)
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
        let mut attempt = 1;
        let (nonce, signed) = loop {
            let draft = self.draft(to, input.clone()).await?;
            match self.send(draft).await {
                // The base fee has more than doubled since it was asked for.
                Err(SendError::Transport(error))
                    if is_fee_too_low(&error) && attempt < FEE_ATTEMPTS =>
                {
                    attempt += 1;
                }
                other => break other?,
            }
        };
        let result = wait(&self.provider, &signed, self.patience).await;
        let mut sent = self.sent.lock().await;
        match &result {
            Ok(_) => sent.mined(nonce, signed.hash),
            Err(SendError::Reverted { transaction, .. }) if transaction.is_some() => {
                sent.mined(nonce, signed.hash);
            }
            // Where the chain does not know it, the next one takes its place: at most one of the two is
            // ever mined.
            Err(_) => {
                sent.unmined.remove(&nonce);
            }
        }
        result
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
            gas_limit: estimate.saturating_add(estimate / 5 + self.gas_salt),
            max_fee_per_gas: fees.max_fee_per_gas,
            max_priority_fee_per_gas: fees.max_priority_fee_per_gas,
            to,
            value: U256::ZERO,
            access_list: Default::default(),
            input,
        })
    }

    async fn send(&self, draft: TxEip1559) -> Result<(u64, Signed), SendError> {
        let mut sent = self.sent.lock().await;
        let deadline = Instant::now() + NONCE_TIMEOUT;
        // Programs that meet at a nonce must not meet again at the next.
        let mut pause = RECEIPT_PAUSE + Duration::from_micros(self.gas_salt);
        loop {
            let nonce = self.next_nonce(&mut sent).await?;
            let signed = self.signed(draft.clone(), nonce);
            match self.provider.send_raw_transaction(&signed.raw).await {
                Ok(_) => {}
                Err(error) if is_already_known(&error) => {}
                Err(error) if is_nonce_taken(&error) && Instant::now() < deadline => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RECEIPT_PAUSE_MAX / 4);
                    continue;
                }
                Err(error) if may_have_arrived(&error) => {
                    tracing::warn!(hash = %signed.hash, error = short(&error), "sent without an answer");
                }
                Err(error) => return Err(self.explain(error)),
            }
            sent.unmined.insert(nonce, signed.clone());
            return Ok((nonce, signed));
        }
    }

    /// The first nonce that neither the chain nor this account has given away.
    async fn next_nonce(&self, sent: &mut Sent) -> Result<u64, TransportError> {
        let mut nonce = self.pending_nonce().await?;
        if let Some((mined, hash)) = sent.mined.filter(|(mined, _)| *mined >= nonce) {
            // Either this answer is from a node that lags, or the transaction was taken back.
            match self.provider.get_transaction_receipt(hash).await? {
                Some(_) => nonce = mined + 1,
                None => sent.mined = None,
            }
        }
        let is_due = || sent.repeated.is_none_or(|at| at.elapsed() >= REPEAT_FIRST);
        if sent.unmined.contains_key(&nonce) && is_due() {
            // The chain does not know of these, and would never come to the next without them.
            sent.repeated = Some(Instant::now());
            for (_, signed) in sent.unmined.range(nonce..) {
                repeat(&self.provider, signed).await;
            }
        }
        while sent.unmined.contains_key(&nonce) {
            nonce += 1;
        }
        Ok(nonce)
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

impl Sent {
    fn mined(&mut self, nonce: u64, hash: B256) {
        // Whatever came before it was mined as well, or never will be.
        self.unmined = self.unmined.split_off(&(nonce + 1));
        if self.mined.is_none_or(|(last, _)| last < nonce) {
            self.mined = Some((nonce, hash));
        }
    }
}

/// Sends what somebody signed, and waits until it is mined and has succeeded.
pub async fn submit(provider: &DynProvider, raw: &[u8]) -> Result<TransactionReceipt, SendError> {
    let signed = Signed {
        hash: alloy::primitives::keccak256(raw),
        raw: raw.to_vec().into(),
    };
    match provider.send_raw_transaction(raw).await {
        Ok(_) => {}
        Err(error) if is_already_known(&error) || may_have_arrived(&error) => {}
        Err(error) => {
            // Its nonce may be taken by itself: it was sent before.
            let receipt = provider.get_transaction_receipt(signed.hash).await;
            if !matches!(receipt, Ok(Some(_))) {
                return Err(error.into());
            }
        }
    }
    wait(provider, &signed, RECEIPT_TIMEOUT).await
}

/// Whom a transaction that somebody signed for that chain is for; `None` where it creates a contract.
/// The error says what is wrong.
pub fn recipient(raw: &[u8], chain_id: u64) -> Result<Option<Address>, String> {
    signed_by(raw, chain_id).map(|(_, to)| to)
}

/// Who signed a transaction for that chain. The error says what is wrong.
pub fn sender(raw: &[u8], chain_id: u64) -> Result<Address, String> {
    signed_by(raw, chain_id).map(|(from, _)| from)
}

fn signed_by(raw: &[u8], chain_id: u64) -> Result<(Address, Option<Address>), String> {
    let mut bytes = raw;
    let envelope =
        TxEnvelope::decode_2718(&mut bytes).map_err(|_| "that is no transaction".to_owned())?;
    if !bytes.is_empty() {
        return Err("there are bytes after the transaction".to_owned());
    }
    match envelope.chain_id() {
        Some(id) if id == chain_id => {}
        Some(id) => return Err(format!("it is signed for chain id {id}, not {chain_id}")),
        None => {
            return Err(format!(
                "it is signed for any chain, not for chain id {chain_id}"
            ));
        }
    }
    let from = envelope.recover_signer();
    let from = from.map_err(|_| "its signature is wrong".to_owned())?;
    Ok((from, envelope.to()))
}

/// Waits for the receipt; a chain that does not answer meanwhile, or forgets, is asked again.
async fn wait(
    provider: &DynProvider,
    signed: &Signed,
    patience: Duration,
) -> Result<TransactionReceipt, SendError> {
    let hash = signed.hash;
    let deadline = Instant::now() + patience;
    let mut repeat_at = Instant::now() + REPEAT_FIRST;
    let mut pause = RECEIPT_PAUSE;
    loop {
        match provider.get_transaction_receipt(hash).await {
            Ok(Some(receipt)) if receipt.status() => return Ok(receipt),
            Ok(Some(receipt)) => return Err(failed(provider, &receipt).await),
            Ok(None) => {}
            Err(error) => tracing::debug!(%hash, error = short(&error), "receipt"),
        }
        let now = Instant::now();
        if now >= deadline {
            return Err(SendError::NotMined(hash));
        }
        if now >= repeat_at {
            repeat(provider, signed).await;
            repeat_at = Instant::now() + REPEAT_EVERY;
        }
        tokio::time::sleep(pause.min(deadline - now)).await;
        pause = (pause * 2).min(RECEIPT_PAUSE_MAX);
    }
}

/// Sends the same bytes once more; that the chain has them is the expected answer.
async fn repeat(provider: &DynProvider, signed: &Signed) {
    if let Err(error) = provider.send_raw_transaction(&signed.raw).await
        && !is_already_known(&error)
    {
        tracing::debug!(hash = %signed.hash, error = short(&error), "sent again");
    }
}

/// The reason of a transaction that was mined and failed, found by calling it again: on the state
/// after its block, which has what others did before it there, and else on the one before.
async fn failed(provider: &DynProvider, receipt: &TransactionReceipt) -> SendError {
    let hash = receipt.transaction_hash;
    let mut data = Bytes::new();
    if let Ok(Some(transaction)) = provider.get_transaction_by_hash(hash).await {
        // Without nonce and fees, which would not hold any more.
        let mut request = TransactionRequest::default()
            .from(receipt.from)
            .gas_limit(transaction.gas_limit())
            .input(transaction.input().clone().into());
        request.to = Some(transaction.kind());
        let block = receipt.block_number.unwrap_or_default();
        for block in [block, block.saturating_sub(1)] {
            let answer = provider.call(request.clone()).block(block.into()).await;
            if let Err(RpcError::ErrorResp(payload)) = answer
                && let Some(found) = payload.as_revert_data()
            {
                data = found;
                break;
            }
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

/// Another transaction has that nonce, or it cannot be used yet. Sources: geth
/// `core/txpool/errors.go`, and what Nethermind, Besu and Erigon say instead.
fn is_nonce_taken(error: &TransportError) -> bool {
    says(
        error,
        &[
            "nonce too low",
            "nonce is too low",
            "nonce too high",
            "oldnonce",
            "nonce is below",
            "same nonce",
            "replacement",
            "replace existing",
        ],
    )
}

/// Some chains keep no transaction that cannot be mined now (Arbitrum). Source: geth `core/error.go`.
fn is_fee_too_low(error: &TransportError) -> bool {
    says(error, &["less than block base fee"])
}

/// Whether the chain may have the transaction although it gave no answer. After "too many requests",
/// and where nobody listens, it has not.
fn may_have_arrived(error: &TransportError) -> bool {
    match error {
        RpcError::Transport(error) => {
            let status = error.as_http_error().map(|error| error.status);
            !repeat::is_never_sent(error) && status.is_none_or(|status| status >= 500)
        }
        RpcError::DeserError { .. } | RpcError::NullResp => true,
        _ => false,
    }
}

/// Nodes agree on these words more than on codes.
fn says(error: &TransportError, texts: &[&str]) -> bool {
    let RpcError::ErrorResp(payload) = error else {
        return false;
    };
    let message = payload.message.to_lowercase();
    texts.iter().any(|text| message.contains(text))
}
