//! What a wallet can do on the ledger, each as one transaction. Channels: `channels/operations.rs`.

use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::rpc::types::TransactionReceipt;
use alloy::signers::SignerSync;
use alloy::sol;
use alloy::sol_types::{SolCall, SolError, SolEvent, SolStruct};
use tenzro_protocol::amount::Wei;
use tenzro_protocol::schedule::Schedule;

use crate::contracts::{Faucet, ProviderRegistry as Registry, TNZO};
use crate::ledger::{Ledger, LedgerError};
use crate::registry::Price;
use crate::transaction::{Account, SendError, Signed};
use crate::views::wei;

/// The contract's number for a model provider.
const MODEL_PROVIDER: u8 = 1;

sol! {
    /// Source: ERC-2612.
    struct Permit {
        address owner;
        address spender;
        uint256 value;
        uint256 nonce;
        uint256 deadline;
    }
}

/// A wallet and the ledger that it acts on.
#[derive(Debug, Clone, Copy)]
pub struct Operations<'a> {
    /// Where the contracts are.
    pub ledger: &'a Ledger,
    /// Who acts.
    pub account: &'a Account,
}

/// An endpoint to put on the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Model id.
    pub model_id: String,
    /// SHA-256 of the model file; zero when it is not known.
    pub model_hash: B256,
    /// Ends in `/v1`.
    pub base_url: String,
    /// JSON about the model, at most 1 KiB.
    pub meta: String,
    /// Set together with the endpoint, when given.
    pub price: Option<Price>,
}

impl Operations<'_> {
    /// Registers the wallet as a model provider, or renames it.
    pub async fn register(self, name: &str) -> Result<TransactionReceipt, SendError> {
        let call = Registry::registerCall {
            role: MODEL_PROVIDER,
            name: name.to_owned(),
        };
        self.on_registry(call).await
    }

    /// Takes the registration back; stake and prices stay.
    pub async fn deregister(self) -> Result<TransactionReceipt, SendError> {
        self.on_registry(Registry::deregisterCall {}).await
    }

    /// Moves TNZO from the wallet into its stake.
    pub async fn stake(self, amount: Wei) -> Result<TransactionReceipt, SendError> {
        let registry = self.ledger.addresses().provider_registry;
        let amount = U256::from(amount.0);
        // The next permit has the next nonce, once this one is mined.
        let _one_permit = self.account.allowances().await;
        let owner = self.account.address();
        let tnzo = self.ledger.tnzo();
        let ledger_error = |error: alloy::contract::Error| LedgerError::from(error);
        let nonce = tnzo.nonces(owner).call().await.map_err(ledger_error)?;
        let domain = tnzo.DOMAIN_SEPARATOR().call().await.map_err(ledger_error)?;
        // No deadline: the chain's clock need not be ours. The permit is used at once, and whoever sees
        // it can do no more with it: the registry moves only the TNZO of who calls it.
        let deadline = U256::MAX;
        let permit = Permit {
            owner,
            spender: registry,
            value: amount,
            nonce,
            deadline,
        };
        let digest = [
            &[0x19, 0x01][..],
            &domain[..],
            &permit.eip712_hash_struct()[..],
        ]
        .concat();
        let signature = self.account.signer().sign_hash_sync(&keccak256(digest));
        let signature = signature.expect("a key in memory can sign");
        self.on_registry(Registry::stakeWithPermitCall {
            amount,
            deadline,
            v: 27 + u8::from(signature.v()),
            r: signature.r().into(),
            s: signature.s().into(),
        })
        .await
    }

    /// Asks for stake back: it counts no more at once and can be withdrawn after the unbonding time.
    pub async fn request_unstake(self, amount: Wei) -> Result<TransactionReceipt, SendError> {
        let amount = U256::from(amount.0);
        self.on_registry(Registry::requestUnstakeCall { amount })
            .await
    }

    /// Pays out what has finished unbonding; where nothing has, asks for `amount` back, or for all of
    /// the stake.
    pub async fn unstake(self, amount: Option<Wei>) -> Result<TransactionReceipt, SendError> {
        let provider = self.ledger.provider_now(self.account.address()).await?;
        let bonded = wei(provider.staked.saturating_sub(provider.unbonding));
        if !provider.unbonding.is_zero() {
            // Whether the time is over, the chain says: its clock need not be ours.
            let is_early = |data: &[u8]| Registry::StillUnbonding::abi_decode(data).is_ok();
            match self.withdraw_stake().await {
                Err(SendError::Reverted { data, .. })
                    if is_early(&data) && (amount.is_some() || bonded > Wei::ZERO) => {}
                result => return result,
            }
        }
        if amount.is_none() && bonded == Wei::ZERO {
            return Err(SendError::NothingStaked);
        }
        self.request_unstake(amount.unwrap_or(bonded)).await
    }

    /// Pays out what has finished unbonding.
    pub async fn withdraw_stake(self) -> Result<TransactionReceipt, SendError> {
        self.on_registry(Registry::withdrawStakeCall {}).await
    }

    /// Sets what a token of the model costs.
    pub async fn set_pricing(
        self,
        model_id: &str,
        price: Price,
    ) -> Result<TransactionReceipt, SendError> {
        self.on_registry(pricing_call(model_id, price)).await
    }

    /// Sets when the provider serves.
    pub async fn set_schedule(self, schedule: &Schedule) -> Result<TransactionReceipt, SendError> {
        self.on_registry(Registry::setScheduleCall {
            timezone: schedule.timezone.clone(),
            startMinute: schedule.start_minute,
            endMinute: schedule.end_minute,
            daysMask: schedule.days_mask,
        })
        .await
    }

    /// The provider always serves.
    pub async fn clear_schedule(self) -> Result<TransactionReceipt, SendError> {
        self.on_registry(Registry::clearScheduleCall {}).await
    }

    /// Puts an endpoint on the ledger.
    pub async fn serve_model(self, offer: &Offer) -> Result<TransactionReceipt, SendError> {
        self.on_registry(serve_call(offer)).await
    }

    /// The same, for somebody else to send.
    pub async fn sign_serve_model(self, offer: &Offer) -> Result<Signed, SendError> {
        let registry = self.ledger.addresses().provider_registry;
        self.account.sign(registry, serve_call(offer)).await
    }

    /// Takes an endpoint off.
    pub async fn stop_model(self, endpoint: B256) -> Result<TransactionReceipt, SendError> {
        self.on_registry(stop_call(endpoint)).await
    }

    /// The same, for somebody else to send.
    pub async fn sign_stop_model(self, endpoint: B256) -> Result<Signed, SendError> {
        let registry = self.ledger.addresses().provider_registry;
        self.account.sign(registry, stop_call(endpoint)).await
    }

    /// Sends TNZO.
    pub async fn transfer(self, to: Address, amount: Wei) -> Result<TransactionReceipt, SendError> {
        let value = U256::from(amount.0);
        let call = TNZO::transferCall { to, value };
        self.account.call(self.ledger.addresses().tnzo, call).await
    }

    /// Asks the faucet for TNZO; `None` where there is no faucet.
    pub async fn drip(self, to: Address) -> Option<Result<TransactionReceipt, SendError>> {
        let faucet = self.ledger.addresses().faucet?;
        Some(self.account.call(faucet, Faucet::dripCall { to }).await)
    }

    async fn on_registry(self, call: impl SolCall) -> Result<TransactionReceipt, SendError> {
        let registry = self.ledger.addresses().provider_registry;
        self.account.call(registry, call).await
    }
}

/// Endpoints that a transaction took off.
pub fn stopped_endpoints(receipt: &TransactionReceipt) -> Vec<B256> {
    let events = receipt.logs().iter();
    events
        .filter_map(|log| Registry::ModelStopped::decode_log(&log.inner).ok())
        .map(|event| event.endpointId)
        .collect()
}

fn pricing_call(model_id: &str, price: Price) -> Registry::setPricingCall {
    Registry::setPricingCall {
        modelId: model_id.to_owned(),
        inputPrice: price.input,
        outputPrice: price.output,
    }
}

fn serve_call(offer: &Offer) -> Registry::multicallCall {
    let serve = Registry::serveModelCall {
        modelId: offer.model_id.clone(),
        modelHash: offer.model_hash,
        baseUrl: offer.base_url.clone(),
        meta: offer.meta.clone(),
    };
    let pricing = offer
        .price
        .map(|price| pricing_call(&offer.model_id, price));
    let calls = std::iter::once(serve.abi_encode()).chain(pricing.map(|call| call.abi_encode()));
    Registry::multicallCall {
        data: calls.map(Into::into).collect(),
    }
}

fn stop_call(endpoint: B256) -> Registry::stopModelCall {
    Registry::stopModelCall {
        endpointId: endpoint,
    }
}
