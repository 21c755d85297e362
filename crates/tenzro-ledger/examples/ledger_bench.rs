//! Measures the embedded chain and prints JSON: transfers per second that are executed and durable,
//! time to open a file with that many blocks, and time of calls to registry views.
//!
//! `cargo run --release -p tenzro-ledger --example ledger_bench [TRANSFERS] [FOLDER]`; the folder
//! decides which disk is measured, and is a temporary one otherwise.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy::eips::Encodable2718;
use alloy::network::TxSignerSync;
use alloy::primitives::{Address, Bytes, TxKind, U256, keccak256};
use alloy::providers::{DynProvider, Provider};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use tenzro_ledger::contracts::{Faucet, ProviderRegistry, TNZO};
use tenzro_ledger::embedded::{CHAIN_ID, DEVELOPMENT_KEY};
use tenzro_ledger::registry::endpoint_id;
use tenzro_ledger::{Account, Addresses, EmbeddedChain, Ledger};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const CONTRACTS: Addresses = EmbeddedChain::addresses();
/// Wallets that send at the same time, one transaction after the other each.
const SENDERS: usize = 256;
const PROVIDERS: u64 = 20;
const CALLS: usize = 2_000;
const MODEL: &str = "qwen3-0.6b";

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let transfers: usize = arguments.next().map_or(Ok(100_000), |text| text.parse())?;
    let temporary = tempfile::tempdir()?;
    let folder = arguments
        .next()
        .map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    let file = folder.join("ledger.sqlite");

    let began = Instant::now();
    let chain = EmbeddedChain::open(&file)?;
    let create = began.elapsed();
    let provider = chain.provider();
    fill_registry(&provider).await?;
    let signed = sign_transfers(&provider, transfers).await?;
    let count: usize = signed.iter().map(Vec::len).sum();
    let began = Instant::now();
    let mut waits = send_all(&provider, signed).await?;
    let per_second = count as f64 / began.elapsed().as_secs_f64();
    drop((provider, chain));

    let began = Instant::now();
    let chain = EmbeddedChain::open(&file)?;
    let open = began.elapsed();
    let provider = chain.provider();
    let blocks = provider.get_block_number().await?;
    let calls = measure_calls(&provider).await?;
    let report = serde_json::json!({
        "transfers": count,
        "senders": SENDERS,
        "durable_transfers_per_second": per_second.round(),
        "acknowledged_after_ms": percentiles(&mut waits, 1e3),
        "create_ms": create.as_secs_f64() * 1e3,
        "blocks": blocks,
        "open_ms": open.as_secs_f64() * 1e3,
        "file_bytes": std::fs::metadata(&file)?.len(),
        "eth_call_us": calls,
    });
    println!("{report:#}");
    Ok(())
}

fn wallet(number: u64) -> Outcome<PrivateKeySigner> {
    Ok(PrivateKeySigner::from_bytes(&keccak256(
        number.to_be_bytes(),
    ))?)
}

async fn fill_registry(provider: &DynProvider) -> Outcome<()> {
    let registry = CONTRACTS.provider_registry;
    let faucet = CONTRACTS.faucet.ok_or("no faucet")?;
    for number in 0..PROVIDERS {
        let account = Account::new(provider.clone(), CHAIN_ID, wallet(1_000_000 + number)?);
        let to = account.address();
        let amount = U256::from(1_000) * U256::from(10).pow(U256::from(18));
        account.call(faucet, Faucet::dripCall { to }).await?;
        let (spender, value) = (registry, amount);
        account
            .call(CONTRACTS.tnzo, TNZO::approveCall { spender, value })
            .await?;
        let name = format!("provider {number}");
        account
            .call(registry, ProviderRegistry::registerCall { role: 1, name })
            .await?;
        account
            .call(registry, ProviderRegistry::stakeCall { amount })
            .await?;
        let price = ProviderRegistry::setPricingCall {
            modelId: MODEL.to_owned(),
            inputPrice: 1,
            outputPrice: 2,
        };
        account.call(registry, price).await?;
        let serve = ProviderRegistry::serveModelCall {
            modelId: MODEL.to_owned(),
            modelHash: keccak256(MODEL),
            baseUrl: format!("http://192.168.0.{number}:8080"),
            meta: String::new(),
        };
        account.call(registry, serve).await?;
    }
    Ok(())
}

async fn sign_transfers(provider: &DynProvider, count: usize) -> Outcome<Vec<Vec<Bytes>>> {
    let developer = PrivateKeySigner::from_bytes(&DEVELOPMENT_KEY)?;
    let mut nonce = provider.get_transaction_count(developer.address()).await?;
    let each = count.div_ceil(SENDERS) as u64;
    let mut signed = Vec::with_capacity(SENDERS);
    for number in 0..SENDERS as u64 {
        let signer = wallet(number)?;
        let funds = transfer(&developer, nonce, signer.address(), U256::from(each))?;
        let _ = provider.send_raw_transaction(&funds).await?;
        nonce += 1;
        let to = wallet(number + 10_000)?.address();
        let own = (0..each).map(|nonce| transfer(&signer, nonce, to, U256::from(1)));
        signed.push(own.collect::<Outcome<Vec<Bytes>>>()?);
    }
    Ok(signed)
}

fn transfer(signer: &PrivateKeySigner, nonce: u64, to: Address, value: U256) -> Outcome<Bytes> {
    let mut draft = TxEip1559 {
        chain_id: CHAIN_ID,
        nonce,
        gas_limit: 100_000,
        to: TxKind::Call(CONTRACTS.tnzo),
        input: TNZO::transferCall { to, value }.abi_encode().into(),
        ..TxEip1559::default()
    };
    let signature = signer.sign_transaction_sync(&mut draft)?;
    let envelope = TxEnvelope::from(draft.into_signed(signature));
    Ok(envelope.encoded_2718().into())
}

/// How long each waited for its acknowledgement.
async fn send_all(provider: &DynProvider, signed: Vec<Vec<Bytes>>) -> Outcome<Vec<Duration>> {
    let senders: Vec<_> = signed
        .into_iter()
        .map(|own| {
            let provider = provider.clone();
            tokio::spawn(async move {
                let mut waits = Vec::with_capacity(own.len());
                for raw in own {
                    let began = Instant::now();
                    let _ = provider.send_raw_transaction(&raw).await?;
                    waits.push(began.elapsed());
                }
                Outcome::Ok(waits)
            })
        })
        .collect();
    let mut waits = Vec::new();
    for sender in senders {
        waits.extend(sender.await??);
    }
    Ok(waits)
}

async fn measure_calls(provider: &DynProvider) -> Outcome<serde_json::Value> {
    let ledger = Ledger::open(provider.clone(), CONTRACTS).await?;
    let registry = ledger.registry();
    let first = wallet(1_000_000)?.address();
    let id = endpoint_id(first, MODEL, "http://192.168.0.0:8080");
    let (mut single, mut page) = (Vec::new(), Vec::new());
    for _ in 0..CALLS {
        let began = Instant::now();
        if !registry.isActive(id).call().await? {
            return Err("the endpoint is not active".into());
        }
        single.push(began.elapsed());
        let began = Instant::now();
        let found = registry
            .endpointsByModel(MODEL.to_owned(), U256::ZERO, U256::from(PROVIDERS))
            .call()
            .await?;
        page.push(began.elapsed());
        assert_eq!(found.len() as u64, PROVIDERS);
    }
    Ok(serde_json::json!({
        "is_active": percentiles(&mut single, 1e6),
        "endpoints_by_model_20": percentiles(&mut page, 1e6),
    }))
}

fn percentiles(times: &mut [Duration], per_second: f64) -> serde_json::Value {
    times.sort_unstable();
    let at = |part: f64| {
        let index = ((times.len() - 1) as f64 * part) as usize;
        (times[index].as_secs_f64() * per_second * 10.0).round() / 10.0
    };
    serde_json::json!({ "p50": at(0.5), "p99": at(0.99) })
}
