//! Deposits that a payer signs and anybody may submit: EIP-3009 authorizations of TNZO, bound to a channel.
//!
//! EIP-3009 signs no channel, so the nonce is made of the channel's parameters and the contract checks it:
//! whoever submits the signature can send the money nowhere else. Source: MPP draft-evm-session-00,
//! "Front-Running Protection", and contracts/src/PaymentChannels.sol.

use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::sol_types::{Eip712Domain, SolStruct, SolValue, eip712_domain};
use tenzro_protocol::amount::Wei;

use crate::signature::{Signature, SignatureError, Signer};
use crate::voucher::Domain;
use crate::wire::Authorization;

mod types {
    #![allow(missing_docs, reason = "wire::Authorization documents each field")]
    alloy::sol! {
        struct ReceiveWithAuthorization {
            address from;
            address to;
            uint256 value;
            uint256 validAfter;
            uint256 validBefore;
            bytes32 nonce;
        }
    }
}

/// What makes a channel's id, together with the escrow and its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelParameters {
    /// Who pays.
    pub payer: Address,
    /// Who is paid.
    pub payee: Address,
    /// The token contract.
    pub token: Address,
    /// Anything that makes the id a new one.
    pub salt: B256,
    /// Who signs vouchers; zero means the payer.
    pub authorized_signer: Address,
}

impl ChannelParameters {
    /// The channel's id at that escrow.
    pub fn id(&self, domain: &Domain) -> B256 {
        let chain_id = U256::from(domain.chain_id);
        let Self {
            payer,
            payee,
            token,
            salt,
            authorized_signer,
        } = *self;
        let escrow = domain.escrow;
        let parameters = (
            payer,
            payee,
            token,
            salt,
            authorized_signer,
            escrow,
            chain_id,
        );
        keccak256(parameters.abi_encode_params())
    }

    /// Nonce of the authorization that opens the channel.
    pub fn open_nonce(&self) -> B256 {
        let Self {
            payer,
            payee,
            token,
            salt,
            authorized_signer,
        } = *self;
        keccak256((payer, payee, token, salt, authorized_signer).abi_encode_params())
    }
}

/// Nonce of the authorization that adds `amount` wei of `from` to a channel.
pub fn top_up_nonce(channel_id: B256, amount: u128, from: Address, salt: B256) -> B256 {
    keccak256((channel_id, amount, from, salt).abi_encode_params())
}

/// TNZO on its chain: what authorizations are bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenDomain {
    /// The token contract.
    pub token: Address,
    separator: B256,
}

impl TokenDomain {
    /// Source: contracts/src/TNZO.sol.
    pub fn new(chain_id: u64, token: Address) -> Self {
        let domain: Eip712Domain = eip712_domain! {
            name: "Tenzro",
            version: "1",
            chain_id: chain_id,
            verifying_contract: token,
        };
        Self {
            token,
            separator: domain.separator(),
        }
    }

    /// What is signed in an authorization.
    pub fn digest(&self, authorization: &Authorization) -> B256 {
        let message = types::ReceiveWithAuthorization {
            from: authorization.from,
            to: authorization.to,
            value: U256::from(authorization.value.0),
            validAfter: authorization.valid_after,
            validBefore: authorization.valid_before,
            nonce: authorization.nonce,
        };
        let hash = message.eip712_hash_struct();
        keccak256([&[0x19, 0x01][..], &self.separator[..], &hash[..]].concat())
    }

    /// Who signed an authorization.
    pub fn signer(
        &self,
        authorization: &Authorization,
        signature: &Signature,
    ) -> Result<Address, SignatureError> {
        signature.signer(self.digest(authorization))
    }

    /// Signs `amount` wei of the signer's to the escrow, valid at once and until `valid_before` (Unix
    /// seconds, exclusive).
    pub fn sign(
        &self,
        signer: &Signer,
        escrow: Address,
        amount: u128,
        valid_before: u64,
        nonce: B256,
    ) -> (Authorization, Signature) {
        let authorization = Authorization {
            from: signer.address(),
            to: escrow,
            value: Wei(amount),
            valid_after: U256::ZERO,
            valid_before: U256::from(valid_before),
            nonce,
        };
        let signature = signer.sign(self.digest(&authorization));
        (authorization, signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(text: &str) -> B256 {
        text.parse().expect("32 bytes")
    }

    /// Source: eth-account 0.13 with eth-abi 5, on the same values and the first key of anvil.
    #[test]
    fn ids_nonces_and_signatures_equal_those_of_another_implementation() {
        let key = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
        let payer = Signer::from_bytes(&hash(key)).expect("a key");
        let payee = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";
        let (escrow, salt) = (Address::repeat_byte(0xe5), B256::repeat_byte(7));
        let parameters = ChannelParameters {
            payer: payer.address(),
            payee: payee.parse().expect("an address"),
            token: Address::repeat_byte(0x5f),
            salt,
            authorized_signer: Address::ZERO,
        };
        let nonce = hash("0xd1120f6e414990f4570d221ac020889b22b2eb635a93e61c45ef49e9a1bd69fa");
        assert_eq!(parameters.open_nonce(), nonce);
        let id = hash("0x34b2c7cad8bec2e8a1b3e0543e78c1c94d042c3ac7ea1885788484b4a0df8664");
        assert_eq!(parameters.id(&Domain::new(1337, escrow)), id);
        assert_eq!(
            top_up_nonce(id, 5_000_000_000_000_000_000, payer.address(), salt),
            hash("0xfc2cf191140ee455fbae167c82ec6cd927578718d8c76ac887549f975a751093")
        );

        let domain = TokenDomain::new(1337, parameters.token);
        let amount = 1_000_000_000_000_000_000;
        let (authorization, signature) = domain.sign(&payer, escrow, amount, 1_800_000_000, nonce);
        assert_eq!(
            domain.digest(&authorization),
            hash("0x3439a65a3fc679a0c88b4ce9951685eca4808bfed07cca7175b347d3e1c37ddc")
        );
        assert_eq!(
            signature.to_string(),
            "0x4feceb3460ca14822f38ca8f2480fe0b32d86f0e7cba54242489c6dbce5a36c6\
             04e8a678d41b8b00aa378a8e169266fab199e734669ef6cc0d85b94d9011c2851b"
        );
        let signer = domain.signer(&authorization, &signature);
        assert_eq!(signer, Ok(payer.address()));
    }

    #[test]
    fn m03_authorizations_mean_nothing_on_another_chain_or_for_another_token() {
        let payer = Signer::from_bytes(&B256::repeat_byte(1)).expect("a key");
        let token = Address::repeat_byte(2);
        let domain = TokenDomain::new(1337, token);
        let (authorization, signature) = domain.sign(&payer, Address::ZERO, 1, 2, B256::ZERO);
        for other in [
            TokenDomain::new(1338, token),
            TokenDomain::new(1337, Address::ZERO),
        ] {
            let signer = other.signer(&authorization, &signature);
            assert_ne!(signer, Ok(payer.address()));
        }
    }
}
