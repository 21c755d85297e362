//! Reads a signed transaction as it comes over the wire, and refuses what this chain cannot run.

use alloy::consensus::transaction::SignerRecoverable;
use alloy::consensus::{Transaction, TxEnvelope};
use alloy::eips::Decodable2718;
use alloy::primitives::Bytes;

use super::error::RpcError;
use super::genesis::CHAIN_ID;
use super::writer::Incoming;

/// Bytes of a transaction at most. Source: geth `core/txpool/legacypool`, `txMaxSize`.
const RAW_MAX: usize = 128 * 1024;

/// The transaction, with its sender.
pub(super) fn decode(raw: &Bytes) -> Result<Incoming, RpcError> {
    let refuse = |reason: String| Err(RpcError::Refused(reason));
    if raw.len() > RAW_MAX {
        return refuse(format!(
            "oversized data: transaction size {}, limit {RAW_MAX}",
            raw.len()
        ));
    }
    // Before they are decoded: their fields are of no use here.
    match raw.first() {
        Some(3) => return refuse("transaction type not supported: no blobs (EIP-4844)".to_owned()),
        Some(4) => {
            let reason = "transaction type not supported: no set-code transactions (EIP-7702)";
            return refuse(reason.to_owned());
        }
        _ => {}
    }
    let envelope = TxEnvelope::decode_2718_exact(raw)
        .map_err(|error| RpcError::Params(format!("no transaction: {error}")))?;
    match envelope.chain_id() {
        Some(CHAIN_ID) => {}
        Some(other) => {
            return refuse(format!(
                "invalid chain id for signer: have {other} want {CHAIN_ID}"
            ));
        }
        None => {
            let reason = "only replay-protected (EIP-155) transactions allowed over RPC";
            return refuse(reason.to_owned());
        }
    }
    if envelope
        .max_priority_fee_per_gas()
        .is_some_and(|tip| tip > envelope.max_fee_per_gas())
    {
        return refuse("max priority fee per gas higher than max fee per gas".to_owned());
    }
    let sender = envelope
        .recover_signer()
        .map_err(|_| RpcError::Refused("invalid sender: the signature is none".to_owned()))?;
    Ok(Incoming {
        hash: *envelope.tx_hash(),
        sender,
        envelope,
    })
}
