//! What payers and payees sign, as EIP-712 typed data.
//!
//! `Voucher` is the contract's (contracts/src/Vouchers.sol). `RequestAuth` and `UsageReceipt` are ours and
//! never reach the chain; they share its domain, so that none of them means anything on another chain or
//! at another deployment.

use alloy::primitives::{Address, B256, keccak256};
use alloy::sol_types::{Eip712Domain, SolStruct, eip712_domain};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tenzro_protocol::amount::Wei;

use crate::signature::{Signature, SignatureError, Signer};

mod types {
    #![allow(missing_docs, reason = "the Rust types below document each field")]
    alloy::sol! {
        struct Voucher {
            bytes32 channelId;
            uint128 cumulativeAmount;
        }
        struct RequestAuth {
            bytes32 channelId;
            string challengeId;
            bytes32 requestHash;
            bytes32 nonce;
        }
        struct UsageReceipt {
            bytes32 channelId;
            string requestId;
            bytes32 modelHash;
            uint32 inputTokens;
            uint32 outputTokens;
            uint128 charged;
            uint128 spent;
            uint64 priceVersion;
        }
    }
}

/// The escrow on its chain: what every signature is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// EIP-155 id.
    pub chain_id: u64,
    /// The escrow contract.
    pub escrow: Address,
    separator: B256,
}

/// A payer's word that the payee may have had `amount` wei of the channel in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Voucher {
    /// The channel.
    pub channel_id: B256,
    /// Wei since the channel was opened.
    #[serde(rename = "cumulativeAmount")]
    pub amount: Wei,
    /// By the payer or its authorized signer.
    pub signature: Signature,
}

/// Binds a credential to one request: whoever copies the header can use it for nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestAuth {
    /// [`request_hash`] of the request.
    pub request_hash: B256,
    /// Never used before under the same challenge.
    pub nonce: B256,
    /// By the signer of the channel's vouchers.
    pub signature: Signature,
}

/// What a provider says that it delivered and charged: evidence of its own making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage<'a> {
    /// The channel that paid.
    pub channel_id: B256,
    /// The request, as `x-request-id` names it.
    pub request_id: &'a str,
    /// SHA-256 of the model file; zero when it is not known.
    pub model_hash: B256,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Tokens of the answers.
    pub output_tokens: u32,
    /// Wei for this request.
    pub charged: u128,
    /// Wei since the channel was opened.
    pub spent: u128,
    /// Price on the ledger that was charged.
    pub price_version: u64,
}

impl Domain {
    /// Source: MPP draft-evm-session-00, "Domain Separator".
    pub fn new(chain_id: u64, escrow: Address) -> Self {
        let domain: Eip712Domain = eip712_domain! {
            name: "EVM Payment Channel",
            version: "1",
            chain_id: chain_id,
            verifying_contract: escrow,
        };
        Self {
            chain_id,
            escrow,
            separator: domain.separator(),
        }
    }

    /// What is signed in a voucher.
    pub fn voucher_digest(&self, channel_id: B256, amount: u128) -> B256 {
        self.digest(&types::Voucher {
            channelId: channel_id,
            cumulativeAmount: amount,
        })
    }

    /// Signs a voucher.
    pub fn sign_voucher(&self, signer: &Signer, channel_id: B256, amount: u128) -> Voucher {
        Voucher {
            channel_id,
            amount: Wei(amount),
            signature: signer.sign(self.voucher_digest(channel_id, amount)),
        }
    }

    /// Who signed a voucher.
    pub fn voucher_signer(&self, voucher: &Voucher) -> Result<Address, SignatureError> {
        let digest = self.voucher_digest(voucher.channel_id, voucher.amount.0);
        voucher.signature.signer(digest)
    }

    /// Signs for one request.
    pub fn sign_request(
        &self,
        signer: &Signer,
        channel_id: B256,
        challenge_id: &str,
        request_hash: B256,
        nonce: B256,
    ) -> RequestAuth {
        let digest = self.request_digest(channel_id, challenge_id, request_hash, nonce);
        RequestAuth {
            request_hash,
            nonce,
            signature: signer.sign(digest),
        }
    }

    /// Who signed for a request.
    pub fn request_signer(
        &self,
        channel_id: B256,
        challenge_id: &str,
        auth: &RequestAuth,
    ) -> Result<Address, SignatureError> {
        let digest = self.request_digest(channel_id, challenge_id, auth.request_hash, auth.nonce);
        auth.signature.signer(digest)
    }

    /// Signs a receipt.
    pub fn sign_usage(&self, signer: &Signer, usage: &Usage<'_>) -> Signature {
        signer.sign(self.usage_digest(usage))
    }

    /// Who signed a receipt.
    pub fn usage_signer(
        &self,
        usage: &Usage<'_>,
        signature: &Signature,
    ) -> Result<Address, SignatureError> {
        signature.signer(self.usage_digest(usage))
    }

    fn request_digest(
        &self,
        channel_id: B256,
        challenge_id: &str,
        request_hash: B256,
        nonce: B256,
    ) -> B256 {
        self.digest(&types::RequestAuth {
            channelId: channel_id,
            challengeId: challenge_id.to_owned(),
            requestHash: request_hash,
            nonce,
        })
    }

    fn usage_digest(&self, usage: &Usage<'_>) -> B256 {
        self.digest(&types::UsageReceipt {
            channelId: usage.channel_id,
            requestId: usage.request_id.to_owned(),
            modelHash: usage.model_hash,
            inputTokens: usage.input_tokens,
            outputTokens: usage.output_tokens,
            charged: usage.charged,
            spent: usage.spent,
            priceVersion: usage.price_version,
        })
    }

    /// Source: EIP-712, "Specification".
    fn digest(&self, message: &impl SolStruct) -> B256 {
        let hash = message.eip712_hash_struct();
        keccak256([&[0x19, 0x01][..], &self.separator[..], &hash[..]].concat())
    }
}

/// SHA-256 of what a request is: its method, its path and its body.
pub fn request_hash(method: &str, path: &str, body: &[u8]) -> B256 {
    let mut hash = Sha256::new();
    hash.update(method.as_bytes());
    hash.update(b"\n");
    hash.update(path.as_bytes());
    hash.update(b"\n");
    hash.update(body);
    B256::from_slice(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn signer(byte: u8) -> Signer {
        Signer::from_bytes(&B256::repeat_byte(byte)).expect("a key")
    }

    fn domain() -> Domain {
        Domain::new(1337, Address::repeat_byte(7))
    }

    #[test]
    fn m03_vouchers_mean_nothing_on_another_chain_or_at_another_contract() {
        let payer = signer(1);
        let voucher = domain().sign_voucher(&payer, B256::repeat_byte(3), 500);
        assert_eq!(domain().voucher_signer(&voucher), Ok(payer.address()));
        for other in [
            Domain::new(1338, Address::repeat_byte(7)),
            Domain::new(1337, Address::repeat_byte(8)),
        ] {
            assert_ne!(other.voucher_signer(&voucher), Ok(payer.address()));
        }
    }

    #[test]
    fn m04_vouchers_mean_nothing_for_another_channel() {
        let payer = signer(1);
        let voucher = domain().sign_voucher(&payer, B256::repeat_byte(3), 500);
        let moved = Voucher {
            channel_id: B256::repeat_byte(4),
            ..voucher
        };
        assert_ne!(domain().voucher_signer(&moved), Ok(payer.address()));
    }

    #[test]
    fn m06_only_the_canonical_form_of_a_signature_has_a_signer() {
        let payer = signer(1);
        let digest = B256::repeat_byte(9);
        let signature = payer.sign(digest);
        assert_eq!(signature.signer(digest), Ok(payer.address()));
        let mut flipped = signature;
        let order = alloy::primitives::U256::from_be_bytes(secp256k1::constants::CURVE_ORDER);
        let s = alloy::primitives::U256::from_be_slice(&signature.0[32..64]);
        flipped.0[32..64].copy_from_slice(&(order - s).to_be_bytes::<32>());
        flipped.0[64] = 55 - signature.0[64];
        assert_eq!(flipped.signer(digest), Err(SignatureError::HighS));
        let mut unknown = signature;
        for v in [0, 1, 26, 29, 255] {
            unknown.0[64] = v;
            assert_eq!(unknown.signer(digest), Err(SignatureError::Invalid));
        }
        assert_eq!(
            Signature([0; 65]).signer(digest),
            Err(SignatureError::Invalid)
        );
        for text in ["", "0x", "0x12", &signature.to_string()[..130], "zz"] {
            assert_eq!(text.parse::<Signature>(), Err(SignatureError::Format));
        }
    }

    #[test]
    fn a_key_has_its_ethereum_address() {
        // Source: the first account of anvil and hardhat.
        let key = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
        let signer = Signer::from_bytes(&key.parse().expect("32 bytes")).expect("a key");
        let address = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
        assert_eq!(signer.address().to_string(), address);
        assert!(Signer::from_bytes(&B256::ZERO).is_none());
        assert!(!format!("{signer:?}").contains("ac0974"), "m31");
    }

    proptest! {
        #[test]
        fn m06_no_bytes_panic_and_other_amounts_have_other_signers(
            bytes in proptest::collection::vec(any::<u8>(), 65), amount: u128, other: u128,
        ) {
            let bytes: [u8; 65] = bytes.try_into().expect("65");
            let _ = Signature(bytes).signer(B256::repeat_byte(1));
            let payer = signer(1);
            let mut voucher = domain().sign_voucher(&payer, B256::ZERO, amount);
            prop_assert_eq!(domain().voucher_signer(&voucher), Ok(payer.address()));
            voucher.amount = Wei(other);
            let is_same = domain().voucher_signer(&voucher) == Ok(payer.address());
            prop_assert_eq!(is_same, other == amount);
        }

        #[test]
        fn m24_a_request_signature_holds_for_its_method_path_and_body_only(
            body in ".{0,40}", other in ".{0,40}",
        ) {
            let hash = request_hash("POST", "/v1/chat/completions", body.as_bytes());
            let changed = request_hash("POST", "/v1/chat/completions", other.as_bytes());
            prop_assert_eq!(hash == changed, body == other);
            prop_assert_ne!(hash, request_hash("POST", "/v1/completions", body.as_bytes()));
            prop_assert_ne!(hash, request_hash("HEAD", "/v1/chat/completions", body.as_bytes()));
        }
    }
}
