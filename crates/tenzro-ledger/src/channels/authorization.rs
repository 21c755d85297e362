//! Deposits that the payer signs and somebody else submits (ERC-3009), so that the payer needs no coin
//! for gas.
//!
//! The signature covers payer, escrow, amount, times and a nonce. What the deposit is for is in the
//! nonce, which the escrow computes anew: nobody who sees the signature can use it for anything else.

use alloy::primitives::{Address, B256, Signature, U256, keccak256};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol;
use alloy::sol_types::{Eip712Domain, SolStruct, SolValue, eip712_domain};

use super::{ChannelRefusal, ChannelTerms, Escrow};

sol! {
    /// Source: ERC-3009.
    struct ReceiveWithAuthorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }
}

/// Leave to move TNZO from a wallet to the escrow, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// Who pays and signed.
    pub from: Address,
    /// Wei.
    pub value: u128,
    /// Unix seconds of the chain after which it holds.
    pub valid_after: u64,
    /// Unix seconds of the chain before which it holds.
    pub valid_before: u64,
    /// What it is for: [`ChannelTerms::open_nonce`] or [`top_up_nonce`].
    pub nonce: B256,
    /// `r, s, v` with a low `s`, and 27 or 28 as `v`.
    pub signature: [u8; 65],
}

impl Authorization {
    /// Signs one that holds from now on, whatever a clock says, until `valid_before` (Unix seconds).
    pub fn sign(
        signer: &PrivateKeySigner,
        escrow: &Escrow,
        value: u128,
        nonce: B256,
        valid_before: u64,
    ) -> Self {
        let mut signed = Self {
            from: signer.address(),
            value,
            valid_after: 0,
            valid_before,
            nonce,
            signature: [0; 65],
        };
        let signature = signer.sign_hash_sync(&signed.digest(escrow));
        signed.signature = signature.expect("a key in memory can sign").as_bytes();
        signed
    }

    /// What is signed (EIP-712), in TNZO's domain and for that escrow.
    pub fn digest(&self, escrow: &Escrow) -> B256 {
        let message = ReceiveWithAuthorization {
            from: self.from,
            to: escrow.address,
            value: U256::from(self.value),
            validAfter: U256::from(self.valid_after),
            validBefore: U256::from(self.valid_before),
            nonce: self.nonce,
        };
        message.eip712_signing_hash(&escrow.token_domain())
    }

    /// Whether the key of `from` signed it. The token would also ask a contract at `from` (ERC-1271);
    /// here only keys sign.
    pub fn is_signed(&self, escrow: &Escrow) -> bool {
        if !matches!(self.signature[64], 27 | 28) {
            return false;
        }
        let Ok(signature) = Signature::from_raw_array(&self.signature) else {
            return false;
        };
        // The twin with a high `s` recovers as well, and the token refuses it.
        let is_high = signature.normalize_s().is_some();
        let recovered = signature.recover_address_from_prehash(&self.digest(escrow));
        !is_high && recovered.is_ok_and(|signer| signer == self.from)
    }

    fn verify(&self, escrow: &Escrow, nonce: B256) -> Result<(), ChannelRefusal> {
        if self.nonce != nonce {
            return Err(ChannelRefusal::NonceMismatch);
        }
        if !self.is_signed(escrow) {
            return Err(ChannelRefusal::InvalidSignature);
        }
        Ok(())
    }
}

/// A channel to be opened with its payer's signature; the payer is `authorization.from`, the deposit
/// `authorization.value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenRequest {
    /// Which channel.
    pub terms: ChannelTerms,
    /// The deposit.
    pub authorization: Authorization,
}

impl OpenRequest {
    /// Signs a deposit of so many wei, to be used before `valid_before` (Unix seconds).
    pub fn sign(
        signer: &PrivateKeySigner,
        escrow: &Escrow,
        terms: ChannelTerms,
        deposit: u128,
        valid_before: u64,
    ) -> Self {
        let nonce = terms.open_nonce(signer.address(), escrow);
        Self {
            terms,
            authorization: Authorization::sign(signer, escrow, deposit, nonce, valid_before),
        }
    }

    /// The channel that it opens.
    pub fn channel_id(&self, escrow: &Escrow) -> B256 {
        self.terms.id(self.authorization.from, escrow)
    }

    /// Whether it is signed, and for these terms. Balance, times and whether it was used only the chain
    /// can tell.
    pub fn verify(&self, escrow: &Escrow) -> Result<(), ChannelRefusal> {
        let nonce = self.terms.open_nonce(self.authorization.from, escrow);
        self.authorization.verify(escrow, nonce)
    }
}

/// A top-up with the signature of whoever gives: `authorization.value` wei.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopUpRequest {
    /// The channel.
    pub channel_id: B256,
    /// Anything that makes the nonce a new one.
    pub salt: B256,
    /// What is put in.
    pub authorization: Authorization,
}

impl TopUpRequest {
    /// Signs for so many wei more, to be used before `valid_before` (Unix seconds).
    pub fn sign(
        signer: &PrivateKeySigner,
        escrow: &Escrow,
        channel_id: B256,
        amount: u128,
        salt: B256,
        valid_before: u64,
    ) -> Self {
        let nonce = top_up_nonce(channel_id, amount, signer.address(), salt);
        Self {
            channel_id,
            salt,
            authorization: Authorization::sign(signer, escrow, amount, nonce, valid_before),
        }
    }

    /// Whether it is signed, and for this channel. Balance, times and whether it was used only the
    /// chain can tell.
    pub fn verify(&self, escrow: &Escrow) -> Result<(), ChannelRefusal> {
        let Authorization { value, from, .. } = self.authorization;
        let nonce = top_up_nonce(self.channel_id, value, from, self.salt);
        self.authorization.verify(escrow, nonce)
    }
}

/// The EIP-3009 nonce of a top-up, which binds the channel to the signature of `from`.
pub fn top_up_nonce(
    channel_id: B256,
    additional_deposit: u128,
    from: Address,
    top_up_salt: B256,
) -> B256 {
    keccak256((channel_id, additional_deposit, from, top_up_salt).abi_encode())
}

impl Escrow {
    /// Source: contracts/src/TNZO.sol.
    fn token_domain(&self) -> Eip712Domain {
        eip712_domain! {
            name: "Tenzro",
            version: "1",
            chain_id: self.chain_id,
            verifying_contract: self.token,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m03_authorizations_mean_nothing_on_another_chain_for_another_token_or_escrow() {
        let escrow = Escrow {
            chain_id: 1337,
            address: Address::repeat_byte(0xe5),
            token: Address::repeat_byte(0x5f),
        };
        let signer = PrivateKeySigner::from_bytes(&B256::repeat_byte(1)).expect("a key");
        let signed = Authorization::sign(&signer, &escrow, 1, B256::ZERO, 2);
        assert!(signed.is_signed(&escrow));
        let address = Address::ZERO;
        for other in [
            Escrow {
                chain_id: 1338,
                ..escrow
            },
            Escrow { address, ..escrow },
            Escrow {
                token: address,
                ..escrow
            },
        ] {
            assert!(!signed.is_signed(&other), "{other:?}");
        }
    }
}
