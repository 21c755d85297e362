//! What Rust computes is what the contracts compute, for a thousand cases each.

use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::sol;
use alloy::sol_types::SolStruct;
use tenzro_ledger::channels::{Authorization, ChannelTerms, OpenRequest, TopUpRequest};
use tenzro_ledger::contracts::{PaymentChannels, TNZO};

use super::channel_scene::Parties;
use super::scene::{START, wallet};
use super::vouchers::voucher_digest;

const CASES: u64 = 1_000;

sol! {
    struct ReceiveWithAuthorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }
}

/// Bits by chance, the same in every run.
fn random(case: u64, what: &str) -> B256 {
    keccak256([&case.to_be_bytes(), what.as_bytes()].concat())
}

fn address(case: u64, what: &str) -> Address {
    Address::from_word(random(case, what))
}

/// Of all magnitudes, the largest one first.
fn amount(case: u64, what: &str) -> u128 {
    if case == 0 {
        return u128::MAX;
    }
    let bits = random(case, what);
    let number = u128::from_be_bytes(bits[..16].try_into().unwrap());
    (number >> (bits[31] % 128)).max(1)
}

fn time(case: u64, what: &str) -> u64 {
    u64::from_be_bytes(random(case, what)[..8].try_into().unwrap())
}

/// A quarter of the channels have no signer of their own.
fn terms(case: u64) -> ChannelTerms {
    let signer = address(case, "signer");
    ChannelTerms {
        payee: address(case, "payee"),
        salt: random(case, "salt"),
        authorized_signer: if case.is_multiple_of(4) {
            Address::ZERO
        } else {
            signer
        },
    }
}

#[tokio::test]
async fn m36_channel_ids_and_voucher_digests() {
    let parties = Parties::new().await;
    let contract = parties.ledger.channels();
    for case in 0..CASES {
        let (terms, payer) = (terms(case), address(case, "payer"));
        let id = contract.computeChannelId(
            payer,
            terms.payee,
            parties.escrow.token,
            terms.salt,
            terms.authorized_signer,
        );
        let id = id.call().await.unwrap();
        assert_eq!(terms.id(payer, &parties.escrow), id, "{case}");
        let amount = amount(case, "cumulative");
        let digest = contract.voucherDigest(id, amount).call().await.unwrap();
        assert_eq!(
            voucher_digest(&parties.escrow, id, amount),
            digest,
            "{case}"
        );
    }
}

/// By the domain separator that the token tells.
fn digest_of(separator: B256, signed: &Authorization, to: Address) -> B256 {
    let message = ReceiveWithAuthorization {
        from: signed.from,
        to,
        value: U256::from(signed.value),
        validAfter: U256::from(signed.valid_after),
        validBefore: U256::from(signed.valid_before),
        nonce: signed.nonce,
    };
    let hash = message.eip712_hash_struct();
    keccak256([&[0x19, 0x01], &separator[..], &hash[..]].concat())
}

/// The token looks at the balance last: who has none signed all the rest as it should be.
fn assert_only_money_is_missing(error: &alloy::contract::Error, signed: &Authorization) {
    let missing = error.as_decoded_error::<TNZO::ERC20InsufficientBalance>();
    let missing = missing.unwrap_or_else(|| panic!("{error}"));
    let expected = (signed.from, U256::ZERO, U256::from(signed.value));
    assert_eq!((missing.sender, missing.balance, missing.needed), expected);
}

#[tokio::test]
async fn m36_nonces_and_digests_of_deposits() {
    let parties = Parties::new().await;
    let escrow = &parties.escrow;
    let separator = parties.ledger.tnzo().DOMAIN_SEPARATOR().call().await;
    let separator = separator.unwrap();
    for case in 0..CASES {
        let signer = wallet(1_000 + case);
        let before = START + 1 + time(case, "before") % (u64::MAX - START);
        let request = OpenRequest::sign(
            &signer,
            escrow,
            terms(case),
            amount(case, "deposit"),
            before,
        );
        request.verify(escrow).unwrap();
        let signed = &request.authorization;
        let expected = digest_of(separator, signed, escrow.address);
        assert_eq!(signed.digest(escrow), expected, "{case}");
        let error = open(&parties, &request).await;
        assert_only_money_is_missing(&error, signed);
    }
    // That error does not come whatever is signed.
    let mut request = OpenRequest::sign(&wallet(1_000), escrow, terms(0), 1, u64::MAX);
    request.authorization.value += 1;
    let error = open(&parties, &request).await;
    let other = error.as_decoded_error::<TNZO::ERC3009InvalidSignature>();
    assert!(other.is_some(), "{error}");
    request.authorization.nonce = B256::ZERO;
    let error = open(&parties, &request).await;
    let other = error.as_decoded_error::<PaymentChannels::NonceMismatch>();
    assert!(other.is_some(), "{error}");
}

async fn open(parties: &Parties, request: &OpenRequest) -> alloy::contract::Error {
    let OpenRequest {
        terms,
        authorization,
    } = request;
    let contract = parties.ledger.channels();
    let call = contract.openWithAuthorization(
        terms.payee,
        parties.escrow.token,
        authorization.value,
        terms.salt,
        terms.authorized_signer,
        authorization.from,
        U256::from(authorization.valid_after),
        U256::from(authorization.valid_before),
        authorization.nonce,
        authorization.signature.into(),
    );
    call.call().await.unwrap_err()
}

#[tokio::test]
async fn m36_nonces_and_digests_of_top_ups() {
    let parties = Parties::new().await;
    let escrow = &parties.escrow;
    let ids = [parties.open(1, 1).await, parties.open(2, 1).await];
    let contract = parties.ledger.channels();
    for case in 0..CASES {
        let id = ids[case as usize % ids.len()];
        // With what the channel holds it must fit into 128 bits.
        let amount = amount(case, "more").min(u128::MAX - 1);
        let salt = random(case, "top-up salt");
        let signer = wallet(1_000 + case);
        let request = TopUpRequest::sign(&signer, escrow, id, amount, salt, u64::MAX);
        request.verify(escrow).unwrap();
        let signed = &request.authorization;
        let call = contract.topUpWithAuthorization(
            id,
            amount,
            signed.from,
            salt,
            U256::from(signed.valid_after),
            U256::from(signed.valid_before),
            signed.nonce,
            signed.signature.into(),
        );
        let error = call.call().await.unwrap_err();
        assert_only_money_is_missing(&error, signed);
    }
}
