//! Shapes and errors of the JSON-RPC methods, as viem, ethers and alloy expect them.

use std::future::IntoFuture;

use alloy::consensus::proofs::{calculate_receipt_root, calculate_transaction_root};
use alloy::eips::BlockId;
use alloy::primitives::{Bytes, TxKind, U256, keccak256};
use alloy::providers::Provider;
use alloy::rpc::types::{Filter, TransactionRequest};
use alloy::signers::SignerSync;
use alloy::sol_types::{SolCall, SolEvent};
use serde_json::{Value, json};
use tenzro_ledger::contracts::{ProviderRegistry, TNZO};
use tenzro_ledger::embedded::{DEVELOPMENT_ACCOUNT, GENESIS_TIMESTAMP};

use super::scene::{CONTRACTS, START, Scene, TNZO_WEI, developer, draft, signed, transfer, wallet};

#[tokio::test]
async fn constants() {
    let scene = Scene::new();
    for (method, expected) in [
        ("eth_chainId", json!("0x539")),
        ("net_version", json!("1337")),
        ("net_listening", json!(true)),
        ("eth_syncing", json!(false)),
        ("eth_accounts", json!([])),
        ("eth_gasPrice", json!("0x0")),
        ("eth_maxPriorityFeePerGas", json!("0x0")),
        ("eth_blockNumber", json!("0x5")),
    ] {
        assert_eq!(scene.get(method, json!([])).await, expected, "{method}");
    }
    let version = scene.get("web3_clientVersion", json!([])).await;
    assert!(version.as_str().unwrap().starts_with("tenzro-ledger/"));
    let hash = scene.get("web3_sha3", json!(["0x68656c6c6f"])).await;
    assert_eq!(hash, json!(keccak256("hello")));
}

#[tokio::test]
async fn errors_have_their_codes() {
    let scene = Scene::new();
    for (method, params, code) in [
        ("eth_nothing", json!([]), -32601),
        ("eth_sendTransaction", json!([{}]), -32601),
        ("eth_getBalance", json!([]), -32602),
        ("eth_getBalance", json!(["0x12"]), -32602),
        ("eth_getBalance", json!({}), -32602),
        ("eth_call", json!([{}, "latest", {"0x00": {}}]), -32602),
        (
            "eth_call",
            json!([{"data": "0x01", "input": "0x02"}]),
            -32602,
        ),
        (
            "eth_getBalance",
            json!([DEVELOPMENT_ACCOUNT, "0x6"]),
            -32000,
        ),
        ("eth_getFilterChanges", json!(["0x7"]), -32000),
        (
            "eth_getLogs",
            json!([{"fromBlock": "0x3", "toBlock": "0x2"}]),
            -32602,
        ),
        ("evm_mine", json!([{"blocks": 100_000}]), -32602),
        ("evm_setNextBlockTimestamp", json!([1]), -32602),
        (
            "web3_sha3",
            json!([format!("0x{}", "00".repeat(300_000))]),
            -32005,
        ),
    ] {
        let (actual, message) = scene.refusal(method, params).await;
        assert_eq!(actual, code, "{method}: {message}");
    }
}

#[tokio::test]
async fn a_chain_begins_alike_and_shows_its_first_mint() {
    let (scene, other) = (Scene::new(), Scene::new());
    let hash = |block: Value| block["hash"].clone();
    let five = json!(["0x5", false]);
    let block = scene.get("eth_getBlockByNumber", five.clone()).await;
    assert_eq!(block["timestamp"], json!(format!("{GENESIS_TIMESTAMP:#x}")));
    assert_eq!(
        hash(block),
        hash(other.get("eth_getBlockByNumber", five).await)
    );

    let filter = Filter::new()
        .address(CONTRACTS.tnzo)
        .event_signature(TNZO::Transfer::SIGNATURE_HASH)
        .from_block(0);
    let logs = scene.provider.get_logs(&filter).await.unwrap();
    let amounts: Vec<U256> = logs
        .iter()
        .map(|log| log.log_decode::<TNZO::Transfer>().unwrap().inner.data.value)
        .collect();
    let supply = U256::from(1_000_000_000 * TNZO_WEI);
    assert_eq!(amounts, [supply, supply / U256::from(2)]);
    assert_eq!(logs[0].block_timestamp, Some(GENESIS_TIMESTAMP));
    assert_eq!(
        scene.balance(CONTRACTS.faucet.unwrap()).await,
        supply / U256::from(2)
    );

    let ledger = scene.ledger().await;
    let registry = ledger.registry();
    let minimum = registry.minimumStake().call().await.unwrap();
    assert_eq!(minimum, U256::from(1_000 * TNZO_WEI));
    assert_eq!(registry.unbondingPeriod().call().await.unwrap(), 604_800);
    assert_eq!(registry.priceDelay().call().await.unwrap(), 60);
    assert_eq!(
        registry.arbiter().call().await.unwrap(),
        DEVELOPMENT_ACCOUNT
    );
    let channels = ledger.channels();
    assert_eq!(channels.CLOSE_GRACE_PERIOD().call().await.unwrap(), 3_600);
}

#[tokio::test]
async fn a_block_is_bound_to_its_transaction_and_receipt() {
    let scene = Scene::new();
    let raw = transfer(&developer(), 5, wallet(1).address(), U256::from(7));
    let hash = scene.send(&raw).await.unwrap();
    let block = scene.provider.get_block(BlockId::latest()).full().await;
    let block = block.unwrap().unwrap();
    assert_eq!(block.header.hash, block.header.inner.hash_slow());
    assert_eq!(block.header.timestamp, START);
    let transactions = block.transactions.as_transactions().unwrap();
    assert_eq!(json!(transactions[0].inner.tx_hash()), hash);
    let envelope = transactions[0].inner.inner().clone();
    assert_eq!(
        block.header.transactions_root,
        calculate_transaction_root(&[envelope])
    );

    let receipts = scene.provider.get_block_receipts(BlockId::latest()).await;
    let receipts = receipts.unwrap().unwrap();
    let receipt = receipts[0].inner.clone().into_primitives_receipt();
    assert_eq!(
        block.header.receipts_root,
        calculate_receipt_root(std::slice::from_ref(&receipt))
    );
    assert_eq!(block.header.logs_bloom, *receipt.logs_bloom());
    assert_eq!(receipts[0].logs()[0].block_timestamp, Some(START));

    let parent = scene
        .get(
            "eth_getBlockByHash",
            json!([block.header.parent_hash, false]),
        )
        .await;
    assert_eq!(parent["number"], "0x5");
    let count = scene
        .get("eth_getBlockTransactionCountByNumber", json!(["latest"]))
        .await;
    assert_eq!(count, "0x1");
    let by_index = json!([block.header.hash, "0x0"]);
    let transaction = scene
        .get("eth_getTransactionByBlockHashAndIndex", by_index)
        .await;
    assert_eq!(transaction["hash"], hash);
    for (method, params) in [
        ("eth_getBlockByNumber", json!(["0x99", false])),
        ("eth_getBlockByHash", json!([keccak256("none"), false])),
        ("eth_getTransactionByHash", json!([keccak256("none")])),
        ("eth_getTransactionReceipt", json!([keccak256("none")])),
        ("eth_getBlockReceipts", json!(["0x99"])),
    ] {
        assert_eq!(scene.get(method, params).await, Value::Null, "{method}");
    }
}

#[tokio::test]
async fn tags_mean_the_first_or_the_last_block() {
    let scene = Scene::new();
    for (tag, number) in [
        ("earliest", "0x0"),
        ("latest", "0x5"),
        ("pending", "0x5"),
        ("safe", "0x5"),
        ("finalized", "0x5"),
    ] {
        let block = scene.get("eth_getBlockByNumber", json!([tag, false])).await;
        assert_eq!(block["number"], number, "{tag}");
    }
}

#[tokio::test]
async fn old_states_can_be_asked_for() {
    let scene = Scene::new();
    let (me, other) = (developer(), wallet(1).address());
    for nonce in 5..8 {
        let raw = transfer(&me, nonce, other, U256::from(10));
        scene.send(&raw).await.unwrap();
    }
    let token = TNZO::new(CONTRACTS.tnzo, scene.provider.clone());
    for (block, expected) in [(5, 0), (6, 10), (7, 20), (8, 30)] {
        let call = token.balanceOf(other);
        let balance = call.call().block(block.into()).await.unwrap();
        assert_eq!(balance, U256::from(expected));
        let count = scene.provider.get_transaction_count(me.address());
        assert_eq!(count.block_id(block.into()).await.unwrap(), block);
    }
    let code = scene.provider.get_code_at(CONTRACTS.tnzo);
    assert!(code.block_id(0.into()).await.unwrap().is_empty());
    let hash = scene.provider.get_block_by_number(7.into()).await.unwrap();
    let hash = hash.unwrap().header.hash;
    let balance = token.balanceOf(other).call().block(hash.into()).await;
    assert_eq!(balance.unwrap(), U256::from(20));
}

#[tokio::test]
async fn reverts_carry_their_data_in_calls_and_estimates() {
    let scene = Scene::new();
    let call = ProviderRegistry::withdrawStakeCall {}.abi_encode();
    let request = json!({"to": CONTRACTS.provider_registry, "data": Bytes::from(call)});
    for method in ["eth_call", "eth_estimateGas"] {
        let error = scene.ask(method, json!([request])).await.unwrap_err();
        assert_eq!(error.code, 3);
        assert_eq!(error.message, "execution reverted");
        let error = error
            .as_decoded_interface_error::<ProviderRegistry::ProviderRegistryErrors>()
            .unwrap();
        assert!(matches!(
            error,
            ProviderRegistry::ProviderRegistryErrors::NothingUnbonding(_)
        ));
    }
    // PUSH0 JUMP: no jump destination.
    let (code, message) = scene.refusal("eth_call", json!([{"data": "0x5f56"}])).await;
    assert_eq!(
        (code, message.as_str()),
        (-32000, "invalid jump destination")
    );
    // JUMPDEST PUSH0 JUMP: for ever.
    let forever = json!([{"data": "0x5b5f56"}]);
    let (code, message) = scene.refusal("eth_call", forever.clone()).await;
    assert_eq!((code, message.as_str()), (-32000, "out of gas"));
    let (_, message) = scene.refusal("eth_estimateGas", forever).await;
    assert_eq!(message, "gas required exceeds allowance (30000000)");
}

#[tokio::test]
async fn estimates_suffice_and_are_close() {
    let scene = Scene::new();
    let plain = TransactionRequest::default().to(wallet(1).address());
    assert_eq!(scene.provider.estimate_gas(plain).await.unwrap(), 21_000);
    let to = wallet(1).address();
    let value = U256::from(1);
    let call = TNZO::transferCall { to, value }.abi_encode();
    let request = TransactionRequest::default()
        .from(developer().address())
        .to(CONTRACTS.tnzo)
        .input(call.clone().into());
    let gas = scene.provider.estimate_gas(request).await.unwrap();
    let mut draft = draft(5, TxKind::Call(CONTRACTS.tnzo), call.into());
    draft.gas_limit = gas;
    let (hash, raw) = signed(&developer(), draft);
    scene.send(&raw).await.unwrap();
    let receipt = scene.provider.get_transaction_receipt(hash).await.unwrap();
    let receipt = receipt.unwrap();
    assert!(receipt.status());
    assert!(gas <= receipt.gas_used * 11 / 10, "{gas}");
}

#[tokio::test]
async fn logs_are_found_by_party_topic_and_block() {
    let scene = Scene::new();
    let me = developer();
    for (nonce, to) in (5..).zip([1, 2, 1, 3]) {
        let raw = transfer(&me, nonce, wallet(to).address(), U256::from(nonce));
        scene.send(&raw).await.unwrap();
    }
    let all = Filter::new().from_block(6);
    let count = async |filter: Filter| scene.provider.get_logs(&filter).await.unwrap().len();
    assert_eq!(count(all.clone()).await, 4);
    assert_eq!(count(all.clone().address(CONTRACTS.tnzo)).await, 4);
    assert_eq!(count(all.clone().address(wallet(1).address())).await, 0);
    let me = me.address().into_word();
    let to = |number| wallet(number).address().into_word();
    assert_eq!(count(all.clone().topic1(me)).await, 4);
    assert_eq!(count(all.clone().topic1(to(1))).await, 0);
    assert_eq!(count(all.clone().topic2(to(1))).await, 2);
    assert_eq!(count(all.clone().topic2(vec![to(1), to(3)])).await, 3);
    assert_eq!(count(all.clone().topic1(me).topic2(to(2))).await, 1);
    assert_eq!(
        count(Filter::new()).await,
        1,
        "the last block where none is named"
    );
    assert_eq!(count(Filter::new().from_block(0).to_block(7)).await, 4);
    assert_eq!(count(Filter::new().from_block(8).to_block(900)).await, 2);
    let block = scene.provider.get_block_by_number(7.into()).await.unwrap();
    let hash = block.unwrap().header.hash;
    assert_eq!(count(Filter::new().at_block_hash(hash)).await, 1);
}

#[tokio::test]
async fn too_many_logs_are_refused() {
    let scene = Scene::new();
    // 11,000 times LOG0 with nothing in it.
    let logs = Bytes::from_static(&[
        0x61, 0x2a, 0xf8, 0x5b, 0x5f, 0x5f, 0xa0, 0x60, 0x01, 0x90, 0x03, 0x80, 0x60, 0x03, 0x57,
        0x00,
    ]);
    let mut draft = draft(5, TxKind::Create, logs);
    draft.gas_limit = 10_000_000;
    let (_, raw) = signed(&developer(), draft);
    scene.send(&raw).await.unwrap();
    let (code, message) = scene.refusal("eth_getLogs", json!([{}])).await;
    assert_eq!(code, -32005);
    assert!(message.contains("10000"), "{message}");
}

#[tokio::test]
async fn fee_history_is_all_zeros() {
    let scene = Scene::new();
    let history = scene
        .get("eth_feeHistory", json!(["0x3", "latest", [25, 75]]))
        .await;
    assert_eq!(history["oldestBlock"], "0x3");
    assert_eq!(
        history["baseFeePerGas"],
        json!(["0x0", "0x0", "0x0", "0x0"])
    );
    assert_eq!(history["reward"].as_array().unwrap().len(), 3);
    let history = scene
        .get("eth_feeHistory", json!([1_000_000, "latest"]))
        .await;
    assert_eq!(history["gasUsedRatio"].as_array().unwrap().len(), 6);
}

#[tokio::test]
async fn precompiled_contracts_answer() {
    let scene = Scene::new();
    let call = |number: u64, data: Bytes| {
        let to = alloy::primitives::Address::with_last_byte(u8::try_from(number).unwrap());
        scene
            .provider
            .call(TransactionRequest::default().to(to).input(data.into()))
            .into_future()
    };
    // NIST FIPS 180-2, appendix B.1.
    let sha256 = call(2, Bytes::from_static(b"abc")).await.unwrap();
    assert_eq!(
        sha256.to_string(),
        "0xba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    let same = call(4, Bytes::from_static(b"abc")).await.unwrap();
    assert_eq!(same.as_ref(), b"abc");
    let hash = keccak256("what was signed");
    let signature = developer().sign_hash_sync(&hash).unwrap();
    let v = U256::from(27 + u8::from(signature.v()));
    let words: [[u8; 32]; 4] = [
        hash.0,
        v.to_be_bytes(),
        signature.r().to_be_bytes(),
        signature.s().to_be_bytes(),
    ];
    let signer = call(1, words.concat().into()).await.unwrap();
    assert_eq!(signer.as_ref(), DEVELOPMENT_ACCOUNT.into_word());
    // 3 to the power of 5 modulo 7.
    let mut power = [[0; 31].as_slice(), &[1]].concat().repeat(3);
    power.extend([3, 5, 7]);
    assert_eq!(call(5, power.into()).await.unwrap().as_ref(), [5]);
}
