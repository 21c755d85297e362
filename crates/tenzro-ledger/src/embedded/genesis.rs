//! What every embedded chain begins with: the contracts, where they are, and who has the supply.
//!
//! ```text
//! block 0      gas coin of the development account, no transaction
//! blocks 1–4   the account creates TNZO, Faucet, ProviderRegistry and PaymentChannels
//! block 5      the faucet gets half of the supply
//! ```
//!
//! Blocks 1–5 are ordinary transactions: the first mint has its log, its receipt and its sender, and
//! whoever adds up transfers from block 0 on misses nothing. An address made by CREATE depends on
//! sender and nonce alone, so the contracts stay where they are when their code changes.

use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy::eips::Encodable2718;
use alloy::network::TxSignerSync;
use alloy::primitives::{Address, B256, Bytes, TxKind, U256, address, b256, keccak256};
use alloy::signers::local::PrivateKeySigner;

use crate::deploy::{FaucetRules, Rules};
use crate::ledger::Addresses;

/// EIP-155 id of every embedded chain: the customary one of development chains.
pub const CHAIN_ID: u64 = 1337;
/// Gas of a block, and so of a transaction and of a call.
pub const BLOCK_GAS_LIMIT: u64 = 30_000_000;
/// Time of blocks 0–5: 2026-01-01 00:00 UTC. Fixed, so that every chain begins with the same hashes.
pub const GENESIS_TIMESTAMP: u64 = 1_767_225_600;

/// Treasury, arbiter and creator of the contracts. Its key is public ([`DEVELOPMENT_KEY`]): what it
/// owns on an embedded chain belongs to whoever reaches that chain.
pub const DEVELOPMENT_ACCOUNT: Address = address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266");
/// The first key of the mnemonic "test test test test test test test test test test test junk" that
/// Hardhat and Anvil made known.
pub const DEVELOPMENT_KEY: B256 =
    b256!("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80");

/// Where the contracts are on every embedded chain.
pub(super) const ADDRESSES: Addresses = Addresses {
    tnzo: address!("5FbDB2315678afecb367f032d93F642f64180aa3"),
    faucet: Some(address!("e7f1725E7734CE288F8367e1Bb143E90bb3F0512")),
    provider_registry: address!("9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0"),
    payment_channels: address!("Cf7Ed3AccA5a467e9e704C703E8D87F634fB0Fc9"),
    first_block: 1,
};
const FAUCET: Address = address!("e7f1725E7734CE288F8367e1Bb143E90bb3F0512");

/// Wei of gas coin of the development account. Gas costs nothing, but value can be sent.
const DEVELOPMENT_COINS: u128 = 10_000 * 10u128.pow(18);

/// Balances in gas coin at block 0.
pub(super) fn alloc() -> (Address, U256) {
    (DEVELOPMENT_ACCOUNT, U256::from(DEVELOPMENT_COINS))
}

/// The transactions of blocks 1 to 5.
pub(super) fn transactions() -> Vec<TxEnvelope> {
    let rules = Rules::standard(DEVELOPMENT_ACCOUNT, DEVELOPMENT_ACCOUNT);
    let faucet = FaucetRules::standard();
    let token = ADDRESSES.tnzo;
    let steps = [
        (TxKind::Create, rules.tnzo_code()),
        (TxKind::Create, faucet.code(token)),
        (TxKind::Create, rules.registry_code(token)),
        (TxKind::Create, rules.channels_code(token)),
        (TxKind::Call(token), faucet.funding(FAUCET)),
    ];
    let signer = PrivateKeySigner::from_bytes(&DEVELOPMENT_KEY).expect("the constant is a key");
    (0..)
        .zip(steps)
        .map(|(nonce, (to, input))| signed(&signer, nonce, to, input))
        .collect()
}

/// What tells chains apart that began differently: contracts, their parameters, or time.
pub(super) fn fingerprint(transactions: &[TxEnvelope]) -> B256 {
    let mut content = GENESIS_TIMESTAMP.to_be_bytes().to_vec();
    for transaction in transactions {
        content.extend_from_slice(&transaction.encoded_2718());
    }
    keccak256(content)
}

fn signed(signer: &PrivateKeySigner, nonce: u64, to: TxKind, input: Bytes) -> TxEnvelope {
    let mut draft = TxEip1559 {
        chain_id: CHAIN_ID,
        nonce,
        gas_limit: BLOCK_GAS_LIMIT,
        max_fee_per_gas: 0,
        max_priority_fee_per_gas: 0,
        to,
        value: U256::ZERO,
        access_list: Default::default(),
        input,
    };
    let signature = signer.sign_transaction_sync(&mut draft);
    TxEnvelope::from(draft.into_signed(signature.expect("a key in memory can sign")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_from_the_creator_and_its_nonces() {
        let created: Vec<Address> = (0..4)
            .map(|nonce| DEVELOPMENT_ACCOUNT.create(nonce))
            .collect();
        let expected = [
            ADDRESSES.tnzo,
            FAUCET,
            ADDRESSES.provider_registry,
            ADDRESSES.payment_channels,
        ];
        assert_eq!(created, expected);
        assert_eq!(ADDRESSES.faucet, Some(FAUCET));
        let signer = PrivateKeySigner::from_bytes(&DEVELOPMENT_KEY).unwrap();
        assert_eq!(signer.address(), DEVELOPMENT_ACCOUNT);
    }

    #[test]
    fn every_chain_begins_alike() {
        assert_eq!(transactions(), transactions());
        let mut others = transactions();
        others.pop();
        assert_ne!(fingerprint(&others), fingerprint(&transactions()));
    }
}
