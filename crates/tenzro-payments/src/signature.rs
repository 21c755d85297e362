//! Signatures of Ethereum keys over 32-byte digests, by libsecp256k1.
//!
//! k256, which alloy uses, needs five times as long to recover a signer (measured: 250 µs against
//! 50 µs), and every voucher costs one recovery.

use std::fmt;
use std::str::FromStr;

use alloy::primitives::{Address, B256, hex, keccak256};
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use secp256k1::{Message, PublicKey, SecretKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// r (32 bytes), s (32 bytes), v (27 or 28). Source: MPP draft-evm-session-00, "Hexadecimal Values".
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 65]);

/// Why a signature proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not 65 bytes of hexadecimal digits.
    #[error("a signature must be 0x and 130 hexadecimal digits")]
    Format,
    /// s is in the upper half: anybody could make it of the other one (EIP-2).
    #[error("the signature is not in its canonical form")]
    HighS,
    /// Not a signature of that digest by any key.
    #[error("the signature is wrong")]
    Invalid,
}

impl Signature {
    /// Who signed the digest. Only canonical signatures have a signer.
    pub fn signer(&self, digest: B256) -> Result<Address, SignatureError> {
        let id = match self.0[64] {
            27 => RecoveryId::Zero,
            28 => RecoveryId::One,
            _ => return Err(SignatureError::Invalid),
        };
        let parsed = RecoverableSignature::from_compact(&self.0[..64], id);
        let parsed = parsed.map_err(|_| SignatureError::Invalid)?;
        let mut normal = parsed.to_standard();
        normal.normalize_s();
        if normal != parsed.to_standard() {
            return Err(SignatureError::HighS);
        }
        let message = Message::from_digest(digest.0);
        let key = parsed.recover_ecdsa(message);
        Ok(address_of(&key.map_err(|_| SignatureError::Invalid)?))
    }
}

impl FromStr for Signature {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let digits = text.strip_prefix("0x").ok_or(SignatureError::Format)?;
        let mut bytes = [0; 65];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| SignatureError::Format)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode_prefixed(self.0))
    }
}

/// Vouchers are money until they are replaced: logs do not show their signatures.
impl fmt::Debug for Signature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Signature(…)")
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A key that signs digests.
#[derive(Clone)]
pub struct Signer {
    key: SecretKey,
    address: Address,
}

impl Signer {
    /// `None` where the 32 bytes are no key.
    pub fn from_bytes(key: &B256) -> Option<Self> {
        let key = SecretKey::from_secret_bytes(key.0).ok()?;
        let address = address_of(&PublicKey::from_secret_key(&key));
        Some(Self { key, address })
    }

    /// Whose signatures these are.
    pub fn address(&self) -> Address {
        self.address
    }

    /// Signs a digest; deterministic (RFC 6979).
    pub fn sign(&self, digest: B256) -> Signature {
        let message = Message::from_digest(digest.0);
        let signature = RecoverableSignature::sign_ecdsa_recoverable(message, &self.key);
        let (id, compact) = signature.serialize_compact();
        let mut bytes = [0; 65];
        bytes[..64].copy_from_slice(&compact);
        bytes[64] = 27 + u8::from(id == RecoveryId::One);
        Signature(bytes)
    }
}

/// Without the key.
impl fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_tuple("Signer")
            .field(&self.address)
            .finish()
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        self.key.non_secure_erase();
    }
}

fn address_of(key: &PublicKey) -> Address {
    // Without the leading byte that says "uncompressed".
    Address::from_slice(&keccak256(&key.serialize_uncompressed()[1..])[12..])
}
