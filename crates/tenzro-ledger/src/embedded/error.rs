//! Why a JSON-RPC request fails, and how that is said to clients.

use alloy::primitives::{Address, Bytes};
use alloy::rpc::json_rpc::ErrorPayload;
use alloy::sol_types::{Panic, Revert, SolError};
use serde_json::value::to_raw_value;

/// Codes: JSON-RPC 2.0 section 5.1, EIP-1474 (-32000 and below), and geth's 3 for reverted calls.
#[derive(Debug, thiserror::Error)]
pub(super) enum RpcError {
    /// There is no such method.
    #[error("the method {0} does not exist/is not available")]
    Method(String),
    /// The parameters are not the method's.
    #[error("invalid params: {0}")]
    Params(String),
    /// A transaction or call that cannot be.
    #[error("{0}")]
    Refused(String),
    /// A transaction of the sender that comes before this one has not been seen. Source: geth's words.
    #[error("nonce too high: address {sender}, tx: {nonce} state: {next}")]
    NonceTooHigh {
        sender: Address,
        nonce: u64,
        next: u64,
    },
    /// The call was reverted by its contract.
    #[error("{}", reason(.0))]
    Reverted(Bytes),
    /// Too much is asked at once.
    #[error("{0}")]
    Limit(String),
    /// It takes too long.
    #[error("execution aborted: it takes too long")]
    Timeout,
    /// The ledger's file fails, or the EVM.
    #[error("the ledger fails: {0}")]
    Internal(String),
}

impl RpcError {
    pub(super) fn code(&self) -> i64 {
        match self {
            Self::Method(_) => -32601,
            Self::Params(_) => -32602,
            Self::Refused(_) | Self::NonceTooHigh { .. } | Self::Timeout => -32000,
            Self::Reverted(_) => 3,
            Self::Limit(_) => -32005,
            Self::Internal(_) => -32603,
        }
    }
}

impl From<rusqlite::Error> for RpcError {
    fn from(error: rusqlite::Error) -> Self {
        // A reader's queries are interrupted when its time is over.
        if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) {
            return Self::Timeout;
        }
        Self::Internal(error.to_string())
    }
}

impl From<RpcError> for ErrorPayload {
    fn from(error: RpcError) -> Self {
        let data = match &error {
            RpcError::Reverted(data) => to_raw_value(data).ok(),
            _ => None,
        };
        if let RpcError::Internal(reason) = &error {
            tracing::error!(%reason, "the embedded chain fails");
        }
        Self {
            code: error.code(),
            message: error.to_string().into(),
            data,
        }
    }
}

/// As geth says it: the reason where the contract gave one as text.
fn reason(data: &Bytes) -> String {
    const PLAIN: &str = "execution reverted";
    if let Ok(revert) = Revert::abi_decode(data) {
        return format!("{PLAIN}: {}", revert.reason);
    }
    match Panic::abi_decode(data) {
        Ok(panic) => format!("{PLAIN}: {panic}"),
        Err(_) => PLAIN.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revert_carries_its_data_and_its_text() {
        let data = Bytes::from(Revert::from("no").abi_encode());
        let payload = ErrorPayload::from(RpcError::Reverted(data.clone()));
        assert_eq!(
            (payload.code, &*payload.message),
            (3, "execution reverted: no")
        );
        assert_eq!(payload.as_revert_data(), Some(data));
        let custom = ErrorPayload::from(RpcError::Reverted(Bytes::from_static(&[1, 2, 3, 4])));
        assert_eq!(custom.message, "execution reverted");
    }
}
