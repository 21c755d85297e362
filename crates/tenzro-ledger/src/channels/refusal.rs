//! Why the escrow, or the token that it draws on, refuses: for callers to tell apart, and in words.

use alloy::sol_types::SolError;

use crate::contracts::{PaymentChannels as Escrow, TNZO};
use crate::transaction::SendError;

/// Why something cannot be done with a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ChannelRefusal {
    /// The id is taken, for ever.
    #[error("there is, or was, a channel with these terms: another salt makes another one")]
    AlreadyExists,
    /// There was never such a channel.
    #[error("there is no such channel")]
    NotFound,
    /// Closed for ever.
    #[error("the channel is closed")]
    Finalized,
    /// Somebody else than the payee asks.
    #[error("only the channel's payee can do that")]
    NotPayee,
    /// Somebody else than the payer asks.
    #[error("only the channel's payer can do that")]
    NotPayer,
    /// The voucher is not above what was settled.
    #[error("the payee had that much of the channel already")]
    AmountNotIncreasing,
    /// The voucher is above the deposit.
    #[error("the channel does not hold that much")]
    AmountExceedsDeposit,
    /// The authorization's nonce is not made of these parameters.
    #[error("the authorization is for something else than this deposit")]
    NonceMismatch,
    /// Withdrawing before closing was asked for, or within the grace period.
    #[error("closing was not asked for, or its grace period is not over")]
    CloseNotReady,
    /// Of a voucher or an authorization.
    #[error("the signature is not by whom it has to be")]
    InvalidSignature,
    /// Nothing is put in.
    #[error("the deposit must be more than 0")]
    ZeroDeposit,
    /// The payer does not have the deposit, or does not let the escrow draw it.
    #[error("the payer does not have that much TNZO, or does not allow to draw it")]
    InsufficientFunds,
    /// The authorization was used before, or cancelled.
    #[error("the authorization was used or cancelled")]
    AuthorizationUsed,
    /// The authorization holds no more, or not yet.
    #[error("the authorization does not hold at this time")]
    AuthorizationExpired,
    /// Anything else.
    #[error("the contract refuses")]
    Other,
}

impl ChannelRefusal {
    /// What a contract's answer means; its first four bytes, the error's selector, are enough.
    pub fn of(data: &[u8]) -> Self {
        let Some(selector) = data.first_chunk::<4>() else {
            return Self::Other;
        };
        match *selector {
            Escrow::ChannelAlreadyExists::SELECTOR => Self::AlreadyExists,
            Escrow::ChannelNotFound::SELECTOR => Self::NotFound,
            Escrow::ChannelFinalized::SELECTOR => Self::Finalized,
            Escrow::NotPayee::SELECTOR => Self::NotPayee,
            Escrow::NotPayer::SELECTOR => Self::NotPayer,
            Escrow::AmountNotIncreasing::SELECTOR => Self::AmountNotIncreasing,
            Escrow::AmountExceedsDeposit::SELECTOR => Self::AmountExceedsDeposit,
            Escrow::NonceMismatch::SELECTOR => Self::NonceMismatch,
            Escrow::CloseNotReady::SELECTOR => Self::CloseNotReady,
            Escrow::ZeroDeposit::SELECTOR => Self::ZeroDeposit,
            Escrow::InvalidSignature::SELECTOR | TNZO::ERC3009InvalidSignature::SELECTOR => {
                Self::InvalidSignature
            }
            TNZO::ERC20InsufficientBalance::SELECTOR
            | TNZO::ERC20InsufficientAllowance::SELECTOR => Self::InsufficientFunds,
            TNZO::ERC3009UsedAuthorization::SELECTOR => Self::AuthorizationUsed,
            TNZO::ERC3009InvalidAuthorizationTime::SELECTOR => Self::AuthorizationExpired,
            _ => Self::Other,
        }
    }
}

impl SendError {
    /// Why the escrow refused; `None` where it was not asked, or its answer is not known: then the
    /// transaction may still be mined.
    pub fn channel_refusal(&self) -> Option<ChannelRefusal> {
        match self {
            Self::Reverted { data, .. } => Some(ChannelRefusal::of(data)),
            _ => None,
        }
    }
}
