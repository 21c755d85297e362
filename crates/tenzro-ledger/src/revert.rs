//! Turns what a contract answers when it refuses into words.

use alloy::dyn_abi::{DynSolValue, ErrorExt};
use alloy::json_abi::{Error as AbiError, JsonAbi};
use alloy::primitives::{U256, utils::format_ether};
use alloy::sol_types::{Revert, SolError};

use crate::channels::ChannelRefusal;
use crate::contracts::{Faucet, PaymentChannels, ProviderRegistry, TNZO};
use crate::transaction::SendError;

/// `None` when nobody here knows that error.
pub(crate) fn explain(data: &[u8]) -> Option<String> {
    if let Ok(revert) = Revert::abi_decode(data) {
        return Some(revert.reason);
    }
    let known = known_refusal(data);
    if known.is_some() {
        return known;
    }
    let selector = data.get(..4)?;
    let error = errors()
        .into_iter()
        .find(|error| error.selector() == selector)?;
    let values = error.decode_error(data).ok()?.body;
    let named = error.inputs.iter().zip(&values);
    let arguments: Vec<String> = named
        .map(|(input, value)| format!("{} {}", input.name, text(value)))
        .collect();
    Some(format!(
        "the contract refuses: {}({})",
        error.name,
        arguments.join(", ")
    ))
}

impl SendError {
    /// Whether the wallet has too little TNZO: nothing was sent.
    pub fn lacks_tnzo(&self) -> bool {
        self.is_revert(|data| TNZO::ERC20InsufficientBalance::abi_decode(data).is_ok())
    }

    /// Whether the wallet is not registered as a provider: nothing was sent.
    pub fn lacks_registration(&self) -> bool {
        self.is_revert(|data| ProviderRegistry::NotRegistered::abi_decode(data).is_ok())
    }

    fn is_revert(&self, of: impl Fn(&[u8]) -> bool) -> bool {
        matches!(self, Self::Reverted { data, .. } if of(data))
    }
}

/// Those that a user is likely to meet.
fn known_refusal(data: &[u8]) -> Option<String> {
    use ProviderRegistry as Registry;
    if let Ok(error) = Registry::InsufficientBonded::abi_decode(data) {
        return Some(format!(
            "{} TNZO were asked for, but only {} are staked and not unbonding",
            tnzo(error.asked),
            tnzo(error.bonded)
        ));
    }
    if Registry::ZeroAmount::abi_decode(data).is_ok() {
        return Some("the amount must be more than 0".to_owned());
    }
    if Registry::NothingUnbonding::abi_decode(data).is_ok() {
        return Some("no stake is unbonding".to_owned());
    }
    if let Ok(error) = Registry::StillUnbonding::abi_decode(data) {
        return Some(format!(
            "the stake is unbonding until Unix time {}",
            error.until
        ));
    }
    if Registry::NotRegistered::abi_decode(data).is_ok() {
        return Some("this wallet is not registered as a provider".to_owned());
    }
    if let Ok(error) = Registry::EndpointNotFound::abi_decode(data) {
        return Some(format!("there is no endpoint {}", error.endpointId));
    }
    if let Ok(error) = Registry::NotEndpointOwner::abi_decode(data) {
        return Some(format!(
            "endpoint {} is another provider's",
            error.endpointId
        ));
    }
    if let Ok(error) = Registry::InvalidLength::abi_decode(data) {
        return Some(format!(
            "{} has {} bytes; it must have {} to {}",
            error.field, error.length, error.minimum, error.maximum
        ));
    }
    if let Ok(error) = Faucet::TooSoon::abi_decode(data) {
        return Some(format!(
            "the faucet gives once a day: again at Unix time {}",
            error.nextAt
        ));
    }
    if let Ok(error) = TNZO::ERC20InsufficientBalance::abi_decode(data) {
        return Some(format!(
            "the wallet has {} TNZO, but {} are needed",
            tnzo(error.balance),
            tnzo(error.needed)
        ));
    }
    if let Ok(error) = TNZO::ERC20InsufficientAllowance::abi_decode(data) {
        return Some(format!(
            "the contract may draw {} TNZO of the wallet, not {}",
            tnzo(error.allowance),
            tnzo(error.needed)
        ));
    }
    match ChannelRefusal::of(data) {
        ChannelRefusal::Other => None,
        refusal => Some(refusal.to_string()),
    }
}

fn tnzo(wei: U256) -> String {
    let text = format_ether(wei);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn errors() -> Vec<AbiError> {
    let abis: [JsonAbi; 4] = [
        TNZO::abi::contract(),
        Faucet::abi::contract(),
        ProviderRegistry::abi::contract(),
        PaymentChannels::abi::contract(),
    ];
    abis.into_iter()
        .flat_map(|abi| abi.errors.into_values().flatten())
        .collect()
}

fn text(value: &DynSolValue) -> String {
    match value {
        DynSolValue::Uint(number, _) => number.to_string(),
        DynSolValue::Int(number, _) => number.to_string(),
        DynSolValue::Address(address) => address.to_string(),
        DynSolValue::FixedBytes(bytes, size) => {
            alloy::primitives::hex::encode_prefixed(&bytes[..*size])
        }
        DynSolValue::String(text) => text.clone(),
        DynSolValue::Bool(flag) => flag.to_string(),
        other => format!("{other:?}"),
    }
}
