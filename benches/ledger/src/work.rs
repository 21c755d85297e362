//! The same work for every chain: a registry with providers, and signed transfers of TNZO.

use std::time::Duration;

use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy::eips::Encodable2718;
use alloy::network::TxSignerSync;
use alloy::primitives::{Address, B256, Bytes, TxKind, U256, keccak256};
use alloy::providers::{DynProvider, Provider};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use anyhow::Context;
use tenzro_ledger::contracts::{Faucet, ProviderRegistry, TNZO};
use tenzro_ledger::embedded::{CHAIN_ID, DEVELOPMENT_KEY};
use tenzro_ledger::registry::endpoint_id;
use tenzro_ledger::{Account, Addresses};

/// Providers that serve the same model.
pub(crate) const PROVIDERS: u64 = 20;
/// Calls of each view in a round.
pub(crate) const CALLS: usize = 2_000;
const MODEL: &str = "qwen3-0.6b";

/// A transfer that is ready to be sent.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) hash: B256,
    pub(crate) raw: Bytes,
}

/// Always the same wallet for a number.
fn wallet(number: u64) -> anyhow::Result<PrivateKeySigner> {
    Ok(PrivateKeySigner::from_bytes(&keccak256(
        number.to_be_bytes(),
    ))?)
}

fn provider_wallet(number: u64) -> anyhow::Result<PrivateKeySigner> {
    wallet(1_000_000 + number)
}

fn recipient(sender: usize) -> anyhow::Result<Address> {
    Ok(wallet(10_000 + sender as u64)?.address())
}

/// Whose the supply is.
pub(crate) fn treasury() -> anyhow::Result<PrivateKeySigner> {
    Ok(PrivateKeySigner::from_bytes(&DEVELOPMENT_KEY)?)
}

/// Accounts whose transactions pay for gas where gas costs something.
pub(crate) fn payers() -> anyhow::Result<Vec<Address>> {
    let mut payers = vec![treasury()?.address()];
    for number in 0..PROVIDERS {
        payers.push(provider_wallet(number)?.address());
    }
    Ok(payers)
}

/// Registers the providers, each with one active endpoint of the model.
pub(crate) async fn fill_registry(
    provider: &DynProvider,
    contracts: &Addresses,
) -> anyhow::Result<()> {
    let registry = contracts.provider_registry;
    let faucet = contracts.faucet.context("no faucet")?;
    for number in 0..PROVIDERS {
        let account = Account::new(provider.clone(), CHAIN_ID, provider_wallet(number)?);
        let to = account.address();
        let amount = U256::from(1_000) * U256::from(10).pow(U256::from(18));
        account.call(faucet, Faucet::dripCall { to }).await?;
        let (spender, value) = (registry, amount);
        account
            .call(contracts.tnzo, TNZO::approveCall { spender, value })
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
            baseUrl: base_url(number),
            meta: String::new(),
        };
        account.call(registry, serve).await?;
    }
    Ok(())
}

fn base_url(number: u64) -> String {
    format!("http://192.168.0.{number}:8080")
}

/// Whether the first endpoint is active: one endpoint's state.
pub(crate) fn is_active() -> anyhow::Result<ProviderRegistry::isActiveCall> {
    let provider = provider_wallet(0)?.address();
    let id = endpoint_id(provider, MODEL, &base_url(0));
    Ok(ProviderRegistry::isActiveCall { endpointId: id })
}

/// The endpoints of all providers in one page.
pub(crate) fn endpoints_by_model() -> ProviderRegistry::endpointsByModelCall {
    ProviderRegistry::endpointsByModelCall {
        modelId: MODEL.to_owned(),
        offset: U256::ZERO,
        limit: U256::from(PROVIDERS),
    }
}

/// Gives each sender what he needs, and signs his transfers of one wei each.
pub(crate) async fn sign_transfers(
    provider: &DynProvider,
    token: Address,
    count: usize,
    senders: usize,
) -> anyhow::Result<Vec<Vec<Transfer>>> {
    let treasury = treasury()?;
    let mut nonce = provider.get_transaction_count(treasury.address()).await?;
    let each = count.div_ceil(senders) as u64;
    let mut signed = Vec::with_capacity(senders);
    let mut last = B256::ZERO;
    for number in 0..senders {
        let signer = wallet(number as u64)?;
        let funds = transfer(&treasury, token, nonce, signer.address(), U256::from(each))?;
        let _ = provider.send_raw_transaction(&funds.raw).await?;
        last = funds.hash;
        nonce += 1;
        let to = recipient(number)?;
        let own = (0..each).map(|nonce| transfer(&signer, token, nonce, to, U256::from(1)));
        signed.push(own.collect::<anyhow::Result<Vec<Transfer>>>()?);
    }
    while provider.get_transaction_receipt(last).await?.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(signed)
}

fn transfer(
    signer: &PrivateKeySigner,
    token: Address,
    nonce: u64,
    to: Address,
    value: U256,
) -> anyhow::Result<Transfer> {
    let mut draft = TxEip1559 {
        chain_id: CHAIN_ID,
        nonce,
        gas_limit: 100_000,
        to: TxKind::Call(token),
        input: TNZO::transferCall { to, value }.abi_encode().into(),
        ..TxEip1559::default()
    };
    let signature = signer.sign_transaction_sync(&mut draft)?;
    let envelope = TxEnvelope::from(draft.into_signed(signature));
    Ok(Transfer {
        hash: *envelope.tx_hash(),
        raw: envelope.encoded_2718().into(),
    })
}

/// Fails unless every transfer has arrived.
pub(crate) async fn check_transfers(
    provider: &DynProvider,
    token: Address,
    signed: &[usize],
) -> anyhow::Result<()> {
    let token = TNZO::new(token, provider.clone());
    for (number, count) in signed.iter().enumerate() {
        let found = token.balanceOf(recipient(number)?).call().await?;
        anyhow::ensure!(found == U256::from(*count), "sender {number}: {found}");
    }
    Ok(())
}
