//! What is accepted, what is refused, and in which words.

use alloy::consensus::{SignableTransaction, TxEip1559, TxEip2930, TxEnvelope, TxLegacy};
use alloy::eips::Encodable2718;
use alloy::network::TxSignerSync;
use alloy::primitives::{Address, B256, Bytes, TxKind, U256};
use alloy::providers::Provider;
use alloy::rpc::client::BatchRequest;
use alloy::signers::local::PrivateKeySigner;
use serde_json::json;
use tenzro_ledger::embedded::{BLOCK_GAS_LIMIT, CHAIN_ID, DEVELOPMENT_ACCOUNT};

use super::scene::{Scene, developer, draft, signed, transfer, wallet};

/// Init code that stores nothing and reverts with no data.
const REVERTS: Bytes = Bytes::from_static(&[0x5f, 0x5f, 0xfd]);

fn sign<T>(signer: &PrivateKeySigner, mut draft: T) -> Bytes
where
    T: SignableTransaction<alloy::primitives::Signature>,
    TxEnvelope: From<alloy::consensus::Signed<T>>,
{
    let signature = signer.sign_transaction_sync(&mut draft).unwrap();
    let envelope = TxEnvelope::from(draft.into_signed(signature));
    envelope.encoded_2718().into()
}

async fn refused(scene: &Scene, raw: &Bytes) -> String {
    let error = scene.send(raw).await.unwrap_err();
    assert_eq!(error.code, -32000, "{}", error.message);
    error.message.into_owned()
}

#[tokio::test]
async fn legacy_and_access_list_transactions_are_mined() {
    let scene = Scene::new();
    let to = TxKind::Call(wallet(5).address());
    let legacy = TxLegacy {
        chain_id: Some(CHAIN_ID),
        nonce: 5,
        gas_limit: 21_000,
        gas_price: 7,
        to,
        value: U256::from(1),
        input: Bytes::new(),
    };
    let listed = TxEip2930 {
        chain_id: CHAIN_ID,
        nonce: 6,
        gas_limit: 21_000,
        to,
        value: U256::from(2),
        ..TxEip2930::default()
    };
    for (raw, kind) in [
        (sign(&developer(), legacy), "0x0"),
        (sign(&developer(), listed), "0x1"),
    ] {
        let hash = scene.send(&raw).await.unwrap();
        let receipt = scene.get("eth_getTransactionReceipt", json!([hash])).await;
        assert_eq!(receipt["status"], "0x1");
        assert_eq!(receipt["type"], kind);
        assert_eq!(receipt["gasUsed"], "0x5208");
        assert_eq!(receipt["effectiveGasPrice"], "0x0");
        let transaction = scene.get("eth_getTransactionByHash", json!([hash])).await;
        assert_eq!(
            transaction["from"],
            json!(format!("{DEVELOPMENT_ACCOUNT:?}"))
        );
        assert_eq!(transaction["blockNumber"], receipt["blockNumber"]);
    }
    let balance = scene.provider.get_balance(wallet(5).address()).await;
    assert_eq!(balance.unwrap(), U256::from(3), "gas costs nothing");
}

#[tokio::test]
async fn a_wallet_without_coin_sends_whatever_tip_it_offers() {
    let scene = Scene::new();
    let generous = TxEip1559 {
        max_fee_per_gas: 3_000_000_000,
        max_priority_fee_per_gas: 1_000_000_000,
        ..draft(0, TxKind::Call(Address::ZERO), Bytes::new())
    };
    let (_, raw) = signed(&wallet(1), generous);
    scene.send(&raw).await.unwrap();
}

#[tokio::test]
async fn refusals_are_in_geths_words() {
    let scene = Scene::new();
    let me = developer();
    let to = TxKind::Call(wallet(5).address());
    let known = transfer(&me, 5, wallet(5).address(), U256::from(1));
    scene.send(&known).await.unwrap();
    assert_eq!(refused(&scene, &known).await, "already known");

    let cases = [
        (draft(0, to, Bytes::new()), "nonce too low"),
        (draft(60, to, Bytes::new()), "nonce too high"),
        (
            TxEip1559 {
                chain_id: 1,
                ..draft(6, to, Bytes::new())
            },
            "invalid chain id",
        ),
        (
            TxEip1559 {
                gas_limit: 20_999,
                ..draft(6, to, Bytes::new())
            },
            "intrinsic gas too low",
        ),
        (
            TxEip1559 {
                gas_limit: BLOCK_GAS_LIMIT + 1,
                ..draft(6, to, Bytes::new())
            },
            "exceeds block gas limit",
        ),
        (
            TxEip1559 {
                value: U256::MAX,
                ..draft(6, to, Bytes::new())
            },
            "insufficient funds for gas * price + value",
        ),
        (
            TxEip1559 {
                max_priority_fee_per_gas: 1,
                ..draft(6, to, Bytes::new())
            },
            "max priority fee per gas higher than max fee per gas",
        ),
        (
            draft(6, TxKind::Create, vec![0; 50_000].into()),
            "max initcode size exceeded",
        ),
        (
            draft(6, to, vec![1; 130_000 + 2_000].into()),
            "oversized data",
        ),
    ];
    for (draft, words) in cases {
        let mut draft = draft;
        if words.starts_with("max initcode") {
            draft.gas_limit = BLOCK_GAS_LIMIT;
        }
        let (_, raw) = signed(&me, draft);
        let message = refused(&scene, &raw).await;
        assert!(message.contains(words), "{words}: {message}");
    }
    let unprotected = TxLegacy {
        gas_limit: 21_000,
        ..TxLegacy::default()
    };
    let message = refused(&scene, &sign(&me, unprotected)).await;
    assert!(message.contains("EIP-155"), "{message}");
    for kind in [3, 4] {
        let message = refused(&scene, &Bytes::from(vec![kind, 0xc0])).await;
        assert!(message.contains("not supported"), "{message}");
    }
    for garbage in ["0x", "0x02", "0x02c0", "0xf86b", "0x7f00"] {
        let (code, _) = scene
            .refusal("eth_sendRawTransaction", json!([garbage]))
            .await;
        assert_eq!(code, -32602, "{garbage}");
    }
    // A byte more than the transaction.
    let longer: Bytes = [known.to_vec(), vec![0]].concat().into();
    let (code, _) = scene
        .refusal("eth_sendRawTransaction", json!([longer]))
        .await;
    assert_eq!(code, -32602);
    assert_eq!(scene.provider.get_block_number().await.unwrap(), 6);
}

#[tokio::test]
async fn a_transaction_that_reverts_is_mined_with_status_0() {
    let scene = Scene::new();
    let me = developer();
    let (hash, raw) = signed(&me, draft(5, TxKind::Create, REVERTS));
    scene.send(&raw).await.unwrap();
    let receipt = scene.provider.get_transaction_receipt(hash).await.unwrap();
    let receipt = receipt.unwrap();
    assert!(!receipt.status());
    assert_eq!(receipt.contract_address, Some(me.address().create(5)));
    assert_eq!(
        scene
            .provider
            .get_transaction_count(me.address())
            .await
            .unwrap(),
        6
    );
}

#[tokio::test]
async fn a_batch_of_one_sender_is_mined_in_order() {
    let scene = Scene::new();
    let mut batch = BatchRequest::new(scene.provider.client());
    let sent: Vec<_> = (5..105)
        .map(|nonce| {
            let raw = transfer(&developer(), nonce, wallet(1).address(), U256::from(nonce));
            batch
                .add_call::<_, B256>("eth_sendRawTransaction", &(raw,))
                .unwrap()
        })
        .collect();
    batch.send().await.unwrap();
    for (number, sent) in (6..).zip(sent) {
        let hash = sent.await.unwrap();
        let receipt = scene.provider.get_transaction_receipt(hash).await.unwrap();
        assert_eq!(receipt.unwrap().block_number, Some(number));
    }
}

#[tokio::test]
async fn a_contract_that_ends_as_it_begins_leaves_nothing() {
    let scene = Scene::new();
    let me = developer();
    // PUSH0 SELFDESTRUCT, as init code: what it has goes to address 0.
    let draft = TxEip1559 {
        value: U256::from(5),
        ..draft(5, TxKind::Create, Bytes::from_static(&[0x5f, 0xff]))
    };
    let (_, raw) = signed(&me, draft);
    scene.send(&raw).await.unwrap();
    let created = me.address().create(5);
    let provider = &scene.provider;
    assert_eq!(provider.get_balance(created).await.unwrap(), U256::ZERO);
    assert_eq!(provider.get_transaction_count(created).await.unwrap(), 0);
    assert!(provider.get_code_at(created).await.unwrap().is_empty());
    let zero = provider.get_balance(Address::ZERO).await.unwrap();
    assert_eq!(zero, U256::from(5));
}
