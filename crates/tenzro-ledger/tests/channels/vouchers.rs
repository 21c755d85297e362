//! Vouchers, as payers sign them: EIP-712 as the MPP draft draft-evm-session-00 has it.

use alloy::primitives::B256;
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol;
use alloy::sol_types::{SolStruct, eip712_domain};
use tenzro_ledger::channels::{Escrow, Settlement};

sol! {
    struct Voucher {
        bytes32 channelId;
        uint128 cumulativeAmount;
    }
}

pub(crate) fn voucher_digest(escrow: &Escrow, id: B256, amount: u128) -> B256 {
    let domain = eip712_domain! {
        name: "EVM Payment Channel",
        version: "1",
        chain_id: escrow.chain_id,
        verifying_contract: escrow.address,
    };
    let voucher = Voucher {
        channelId: id,
        cumulativeAmount: amount,
    };
    voucher.eip712_signing_hash(&domain)
}

pub(crate) fn voucher(
    signer: &PrivateKeySigner,
    escrow: &Escrow,
    id: B256,
    amount: u128,
) -> Settlement {
    let signature = signer.sign_hash_sync(&voucher_digest(escrow, id, amount));
    Settlement {
        channel_id: id,
        cumulative: amount,
        signature: signature.unwrap().as_bytes().into(),
    }
}
