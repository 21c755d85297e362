//! Why a payment is not taken, and the one map from that to HTTP.
//!
//! Problem types are those of MPP's core draft and of draft-evm-session-00, "Error Responses".

use alloy::primitives::B256;
use tenzro_protocol::amount::Wei;

use crate::books::BooksError;
use crate::channel::VoucherRefusal;
use crate::escrow::EscrowError;
use crate::signature::SignatureError;
use crate::wire::{ChannelState, Problem};

/// Why a payment is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is none.
    #[error("this model is paid for per token: open a payment channel")]
    Unpaid,
    /// The header cannot be read.
    #[error("the payment cannot be read: {0}")]
    Malformed(String),
    /// The header can be read, but what it says makes no sense.
    #[error("the payment is wrong: {0}")]
    Invalid(String),
    /// The challenge that is answered is not this server's, or too old.
    #[error(
        "the challenge that the payment answers is not known here, or too old: answer this one"
    )]
    Challenge,
    /// The credential is bound to another request, or to none where it has to be, or was used before.
    #[error("the payment belongs to another request")]
    OtherRequest,
    /// Anybody may have the voucher: it was settled.
    #[error(
        "this voucher was settled, so that everybody can read it on the ledger: sign a higher one"
    )]
    Public,
    /// A signature is no signature.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The voucher breaks a rule.
    #[error(transparent)]
    Voucher(#[from] VoucherRefusal),
    /// No such channel, or one of another payee or server.
    #[error("this server knows no such channel")]
    NoChannel,
    /// What is paid for does not last.
    #[error("a voucher of at least {required} wei is needed for this request")]
    Insufficient {
        /// Amount that a voucher needs.
        required: u128,
    },
    /// Not worth the gas of opening a channel.
    #[error("a channel needs a deposit of at least {minimum} wei")]
    DepositTooSmall {
        /// Wei.
        minimum: u128,
    },
    /// A request could cost more than there can be.
    #[error("the price of this request is out of bounds")]
    Price,
    /// The ledger did not do it.
    #[error(transparent)]
    Escrow(#[from] EscrowError),
    /// The transaction of a deposit is not there, or not confirmed yet.
    #[error("the deposit's transaction is not confirmed yet")]
    NotConfirmed,
    /// Answers run that the channel pays for.
    #[error("answers are running on this channel")]
    Running,
    /// Nothing was delivered, so that closing is for who wants it.
    #[error(
        "nothing was bought through this channel, and its payer can close it itself: requestClose and withdraw \
         on the ledger, `tenzro-cli channel close --force`"
    )]
    Unused,
    /// Too many payments of the channel in a second, or too many requests, look-ups or deposits at once.
    #[error("too many payments or requests at once on this channel")]
    TooMany,
    /// The books cannot be written.
    #[error(transparent)]
    Books(#[from] BooksError),
    /// The provider asks no price on the ledger.
    #[error("the provider has set no price for this model yet")]
    NoPrice,
}

const CORE: &str = "https://paymentauth.org/problems/";
const SESSION: &str = "https://paymentauth.org/problems/session/";
const NO_TYPE: &str = "about:blank";

impl Refusal {
    /// As the client sees it. What only the operator may read is not in it.
    pub fn problem(&self, channel_id: Option<B256>, channel: Option<ChannelState>) -> Problem {
        let (status, base, name, title) = self.kind();
        let detail = match self {
            Self::Books(_) | Self::Escrow(EscrowError::Unavailable(_)) => {
                tracing::warn!(error = %self, "a payment was not taken");
                "the provider cannot take payments right now".to_owned()
            }
            other => other.to_string(),
        };
        let required_cumulative = match self {
            Self::Insufficient { required } => Some(Wei(*required)),
            _ => None,
        };
        Problem {
            kind: format!("{base}{name}"),
            title: title.to_owned(),
            status,
            detail,
            channel_id,
            required_cumulative,
            channel,
        }
    }

    /// Whether the same may be taken later.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self.kind().0, 409 | 429 | 503)
    }

    /// Seconds after which trying again may help.
    pub fn retry_after(&self) -> Option<u64> {
        match self.kind().0 {
            429 => Some(1),
            503 => Some(5),
            _ => None,
        }
    }

    fn kind(&self) -> (u16, &'static str, &'static str, &'static str) {
        use VoucherRefusal as V;
        match self {
            Self::Unpaid => (402, CORE, "payment-required", "Payment Required"),
            Self::Malformed(_) => (402, CORE, "malformed-credential", "Malformed Credential"),
            Self::Invalid(_) => (400, CORE, "malformed-credential", "Malformed Credential"),
            Self::Challenge => (402, SESSION, "challenge-not-found", "Challenge Not Found"),
            Self::OtherRequest | Self::Public => {
                (402, CORE, "verification-failed", "Verification Failed")
            }
            Self::Signature(_) => (402, SESSION, "invalid-signature", "Invalid Signature"),
            Self::Voucher(V::Signer) => (402, SESSION, "signer-mismatch", "Signer Mismatch"),
            Self::Voucher(V::AboveDeposit { .. }) => (
                402,
                SESSION,
                "amount-exceeds-deposit",
                "Amount Exceeds Deposit",
            ),
            Self::Voucher(V::Closing | V::Final) => {
                (410, SESSION, "channel-finalized", "Channel Finalized")
            }
            Self::NoChannel | Self::Books(BooksError::Elsewhere) => {
                (410, SESSION, "channel-not-found", "Channel Not Found")
            }
            Self::Insufficient { .. }
            | Self::Escrow(EscrowError::Reverted { is_funds: true, .. }) => {
                (402, SESSION, "insufficient-balance", "Insufficient Balance")
            }
            Self::DepositTooSmall { .. } => {
                (402, CORE, "payment-insufficient", "Payment Insufficient")
            }
            Self::Price => (400, NO_TYPE, "", "Bad Request"),
            Self::Escrow(EscrowError::Reverted { .. }) => {
                (409, SESSION, "transaction-reverted", "Transaction Reverted")
            }
            Self::NotConfirmed | Self::Running | Self::Unused => (409, NO_TYPE, "", "Conflict"),
            Self::TooMany | Self::Books(BooksError::Busy) => {
                (429, NO_TYPE, "", "Too Many Requests")
            }
            Self::Escrow(EscrowError::Unavailable(_)) | Self::Books(_) | Self::NoPrice => {
                (503, NO_TYPE, "", "Service Unavailable")
            }
        }
    }
}
