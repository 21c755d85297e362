//! Parameters in the forms that published clients send.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tenzro_ledger::registry::Price;
use tenzro_ledger::{Address, B256};
use tenzro_protocol::amount::Wei;
use tenzro_protocol::json_rpc::{RpcError, named_params};
use tenzro_protocol::schedule::Schedule;

/// Reads named or positional parameters; the error names the one at fault. Clients send null for
/// what they leave out.
pub(super) fn read<T: DeserializeOwned>(params: Value, positions: &[&str]) -> Result<T, RpcError> {
    let mut named = named_params(params, positions)?;
    named.retain(|_, value| !value.is_null());
    let named = Value::Object(named);
    serde_path_to_error::deserialize(&named).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.inner().to_string();
        RpcError::invalid_params(match path.as_str() {
            "." => reason,
            path => format!("{path}: {reason}"),
        })
    })
}

#[derive(Debug, Deserialize)]
pub(super) struct ModelParam {
    #[serde(alias = "model_id", alias = "modelId")]
    pub(super) model: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct EndpointParam {
    #[serde(alias = "model_id", alias = "modelId")]
    pub(super) model: Option<String>,
    #[serde(alias = "instance_id", alias = "endpointId")]
    pub(super) endpoint_id: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct AddressParam {
    #[serde(
        default,
        deserialize_with = "checked_address",
        alias = "provider",
        alias = "account",
        alias = "wallet"
    )]
    pub(super) address: Option<Address>,
    #[serde(alias = "model_id", alias = "modelId")]
    pub(super) model: Option<String>,
}

/// An address; one in mixed case carries a checksum (EIP-55), which finds typing errors.
fn checked_address<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Address>, D::Error> {
    use serde::de::Error;
    let text = String::deserialize(deserializer)?;
    let shown = || text.chars().take(60).collect::<String>();
    let address: Address = text
        .parse()
        .map_err(|_| D::Error::custom(format!("'{}' is no address", shown())))?;
    let digits = text.strip_prefix("0x").unwrap_or(&text);
    let is_mixed = digits.bytes().any(|byte| byte.is_ascii_lowercase())
        && digits.bytes().any(|byte| byte.is_ascii_uppercase());
    if is_mixed && address.to_string().strip_prefix("0x") != Some(digits) {
        let reason = format!("the checksum of '{}' is wrong: check its letters", shown());
        return Err(D::Error::custom(reason));
    }
    Ok(Some(address))
}

/// Raw transactions as hexadecimal text.
pub(super) type SignedTransactions = Vec<tenzro_ledger::Bytes>;

#[derive(Debug, Deserialize)]
pub(super) struct RegisterParam {
    #[serde(alias = "provider_type", alias = "providerType")]
    pub(super) role: Option<String>,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default, alias = "signedTransactions")]
    pub(super) signed_transactions: SignedTransactions,
}

#[derive(Debug, Deserialize)]
pub(super) struct SignedParam {
    #[serde(default, alias = "signedTransactions")]
    pub(super) signed_transactions: SignedTransactions,
}

#[derive(Debug, Deserialize)]
pub(super) struct StakeParam {
    /// Wei.
    amount: Option<Wei>,
    /// Decimals.
    #[serde(alias = "amountTnzo")]
    amount_tnzo: Option<String>,
    #[serde(alias = "provider_type", alias = "providerType")]
    pub(super) role: Option<String>,
    #[serde(default, alias = "signedTransactions")]
    pub(super) signed_transactions: SignedTransactions,
}

impl StakeParam {
    pub(super) fn amount(&self) -> Result<Option<Wei>, RpcError> {
        amount(self.amount, self.amount_tnzo.as_deref(), "0 is no stake")
    }
}

/// An amount in wei or in TNZO; `zero` says why it cannot be nothing.
fn amount(wei: Option<Wei>, decimals: Option<&str>, zero: &str) -> Result<Option<Wei>, RpcError> {
    let amount = match (wei, decimals) {
        (Some(amount), None) => Some(amount),
        (None, Some(text)) => Some(tnzo("amount_tnzo", text)?),
        (None, None) => None,
        (Some(_), Some(_)) => {
            return Err(RpcError::invalid_params(
                "give either amount or amount_tnzo",
            ));
        }
    };
    match amount {
        Some(Wei::ZERO) => Err(RpcError::invalid_params(format!("amount: {zero}"))),
        amount => Ok(amount),
    }
}

/// A deposit in a channel to a provider, or in one that there is.
#[derive(Debug, Deserialize)]
pub(super) struct DepositParam {
    #[serde(
        default,
        deserialize_with = "checked_address",
        alias = "payee",
        alias = "address"
    )]
    pub(super) provider: Option<Address>,
    #[serde(alias = "channelId")]
    pub(super) channel_id: Option<B256>,
    #[serde(alias = "deposit")]
    amount: Option<Wei>,
    #[serde(alias = "amountTnzo")]
    amount_tnzo: Option<String>,
    #[serde(default, alias = "signedTransactions")]
    pub(super) signed_transactions: SignedTransactions,
}

impl DepositParam {
    pub(super) fn amount(&self) -> Result<Wei, RpcError> {
        let (wei, decimals) = (self.amount, self.amount_tnzo.as_deref());
        required(amount(wei, decimals, "0 is no deposit")?, "amount")
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct CloseParam {
    #[serde(alias = "channelId")]
    pub(super) channel_id: Option<B256>,
    #[serde(default)]
    pub(super) force: bool,
    #[serde(default, alias = "signedTransactions")]
    pub(super) signed_transactions: SignedTransactions,
}

fn tnzo(field: &str, text: &str) -> Result<Wei, RpcError> {
    let read = Wei::parse_tnzo(text);
    read.map_err(|error| RpcError::invalid_params(format!("{field}: {error}")))
}

/// TNZO as exact decimals: in a string, or a whole number. A JSON fraction is a float, and floats
/// round.
#[derive(Debug, Clone, Copy)]
struct Tnzo(Wei);

impl<'de> Deserialize<'de> for Tnzo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let text = match Value::deserialize(deserializer)? {
            Value::String(text) => text,
            Value::Number(number) if number.is_u64() => number.to_string(),
            _ => {
                return Err(D::Error::custom(
                    "an amount of TNZO must be a string such as \"0.0001\"",
                ));
            }
        };
        Wei::parse_tnzo(&text).map(Self).map_err(D::Error::custom)
    }
}

/// A price in one of the forms that clients send: decimals of TNZO, or wei.
#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object such as {\"per_token\": \"0.0001\"}")]
pub(super) struct PricingParam {
    #[serde(alias = "perToken")]
    per_token: Option<Tnzo>,
    #[serde(alias = "inputPerToken", alias = "input_per_token")]
    input: Option<Tnzo>,
    #[serde(alias = "outputPerToken", alias = "output_per_token")]
    output: Option<Tnzo>,
    #[serde(alias = "input_price_per_token_wei", alias = "inputPricePerTokenWei")]
    price_per_input_token: Option<Wei>,
    #[serde(alias = "output_price_per_token_wei", alias = "outputPricePerTokenWei")]
    price_per_output_token: Option<Wei>,
}

impl PricingParam {
    pub(super) fn price(&self) -> Result<Price, RpcError> {
        let mut given = self.forms().into_iter().filter(|form| *form != NOT_GIVEN);
        match (given.next(), given.next()) {
            (Some((Some(input), Some(output))), None) => Ok(Price { input, output }),
            _ => Err(other_forms()),
        }
    }

    /// Input and output price in each of the forms.
    fn forms(&self) -> [(Option<u128>, Option<u128>); 3] {
        let decimals = |amount: Option<Tnzo>| amount.map(|amount| amount.0.0);
        let wei = |amount: Option<Wei>| amount.map(|amount| amount.0);
        [
            (decimals(self.per_token), decimals(self.per_token)),
            (decimals(self.input), decimals(self.output)),
            (
                wei(self.price_per_input_token),
                wei(self.price_per_output_token),
            ),
        ]
    }
}

const NOT_GIVEN: (Option<u128>, Option<u128>) = (None, None);

fn other_forms() -> RpcError {
    RpcError::invalid_params(
        "pricing: give either per_token, or input and output (TNZO), or price_per_input_token and \
         price_per_output_token (wei)",
    )
}

#[derive(Debug, Deserialize)]
pub(super) struct SetPricingParam {
    #[serde(alias = "model_id", alias = "modelId")]
    pub(super) model: Option<String>,
    pricing: Option<PricingParam>,
    #[serde(default, alias = "signedTransactions")]
    pub(super) signed_transactions: SignedTransactions,
}

impl SetPricingParam {
    /// `beside` is the price that stands beside the model instead of in `pricing`.
    pub(super) fn price(&self, beside: &PricingParam) -> Result<Price, RpcError> {
        match &self.pricing {
            None => beside.price(),
            Some(pricing) if beside.forms() == [NOT_GIVEN; 3] => pricing.price(),
            Some(_) => Err(other_forms()),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "give a window such as \"9-17\" or {\"start\": 9, \"end\": 17}"
)]
enum Window {
    Text(String),
    Hours { start: u16, end: u16 },
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "give days such as \"mon-fri\" or [\"sat\", \"sun\"], or true or false for each of the \
                 seven, Monday first"
)]
enum DaysParam {
    Text(String),
    Names(Vec<String>),
    /// Monday first.
    Flags([bool; 7]),
}

/// A schedule in one of the forms that clients send.
#[derive(Debug, Deserialize)]
pub(super) struct ScheduleParam {
    #[serde(default = "yes")]
    enabled: bool,
    timezone: Option<String>,
    hours: Option<Window>,
    #[serde(alias = "startHour")]
    start_hour: Option<u16>,
    #[serde(alias = "endHour")]
    end_hour: Option<u16>,
    #[serde(alias = "days_of_week", alias = "daysOfWeek")]
    days: Option<DaysParam>,
    #[serde(default, alias = "signedTransactions")]
    pub(super) signed_transactions: SignedTransactions,
}

fn yes() -> bool {
    true
}

impl ScheduleParam {
    /// `None` clears it.
    pub(super) fn schedule(&self) -> Result<Option<Schedule>, RpcError> {
        if !self.enabled {
            return Ok(None);
        }
        let hours = match (&self.hours, self.start_hour.zip(self.end_hour)) {
            (Some(Window::Text(text)), None) => text.clone(),
            (Some(Window::Hours { start, end }), None) => format!("{start}-{end}"),
            (None, Some((start, end))) => format!("{start}-{end}"),
            _ => {
                return Err(RpcError::invalid_params(
                    "hours: give a window such as \"9-17\" or {\"start\": 9, \"end\": 17}",
                ));
            }
        };
        let days = self.days.as_ref().map(|days| match days {
            DaysParam::Text(text) => text.clone(),
            DaysParam::Names(names) => names.join(","),
            DaysParam::Flags(flags) => {
                let names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
                let set = names.iter().zip(flags).filter(|(_, is_set)| **is_set);
                let set: Vec<&str> = set.map(|(name, _)| *name).collect();
                set.join(",")
            }
        });
        let timezone = self.timezone.as_deref().unwrap_or("UTC");
        Schedule::parse(timezone, &hours, days.as_deref())
            .map(Some)
            .map_err(|error| RpcError::invalid_params(error.to_string()))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct ServeParam {
    #[serde(alias = "model_id", alias = "modelId")]
    pub(super) model: Option<String>,
    #[serde(alias = "api_endpoint", alias = "apiEndpoint", alias = "base_url")]
    pub(super) endpoint: Option<String>,
    pub(super) pricing: Option<PricingParam>,
    #[serde(alias = "modelHash")]
    pub(super) model_hash: Option<B256>,
    #[serde(default)]
    pub(super) remote: bool,
    #[serde(default, alias = "signedTransactions")]
    pub(super) signed_transactions: SignedTransactions,
}

#[derive(Debug, Deserialize)]
pub(super) struct StopParam {
    #[serde(alias = "model_id", alias = "modelId")]
    pub(super) model: Option<String>,
    #[serde(alias = "api_endpoint", alias = "apiEndpoint", alias = "base_url")]
    pub(super) endpoint: Option<String>,
    #[serde(alias = "instance_id", alias = "endpointId")]
    pub(super) endpoint_id: Option<B256>,
    #[serde(default, alias = "signedTransactions")]
    pub(super) signed_transactions: SignedTransactions,
}

/// There is one role so far; clients write it in several ways.
pub(super) fn check_role(role: Option<&str>) -> Result<(), RpcError> {
    let Some(role) = role else { return Ok(()) };
    let plain = role.to_ascii_lowercase().replace('_', "-");
    if ["model-provider", "provider", "llm"].contains(&plain.as_str()) {
        return Ok(());
    }
    let shown: String = role.chars().take(60).collect();
    Err(RpcError::invalid_params(format!(
        "role: there is no role '{shown}'; use model-provider"
    )))
}

/// A parameter that has to be there.
pub(super) fn required<T>(value: Option<T>, name: &str) -> Result<T, RpcError> {
    value.ok_or_else(|| RpcError::invalid_params(format!("{name} is required")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn prices_are_read_in_every_form_and_never_rounded() {
        let price = |value: Value| {
            let read: PricingParam = serde_json::from_value(value).map_err(|e| e.to_string())?;
            read.price().map_err(|error| error.message)
        };
        let expected = Price {
            input: 10u128.pow(14),
            output: 10u128.pow(14),
        };
        let wei = "100000000000000";
        for form in [
            json!({"perToken": "0.0001"}),
            json!({"per_token": "0.0001"}),
            json!({"input": "0.0001", "output": "0.0001"}),
            json!({"price_per_input_token": wei, "price_per_output_token": wei}),
            json!({"input_price_per_token_wei": wei, "output_price_per_token_wei": wei}),
        ] {
            assert_eq!(price(form.clone()), Ok(expected), "{form}");
        }
        for form in [
            json!({}),
            json!({"per_token": 0.0001}),
            json!({"per_token": "0.0001x"}),
            json!({"per_token": "-1"}),
            json!({"per_token": "0.0000000000000000001"}),
            json!({"input": "1"}),
            json!({"per_token": "1", "input": "1", "output": "1"}),
            json!({"per_token": "1", "input": "2"}),
        ] {
            assert!(price(form.clone()).is_err(), "{form}");
        }
    }

    #[test]
    fn schedules_are_read_in_every_form() {
        for form in [
            json!({"timezone": "UTC", "hours": {"start": 0, "end": 24}}),
            json!({"timezone": "UTC", "hours": "0-24"}),
            json!({"enabled": true, "start_hour": 0, "end_hour": 24, "timezone": "UTC",
                   "days_of_week": [true, true, true, true, true, true, true]}),
        ] {
            let read: ScheduleParam = read(json!([form]), &[]).expect("readable");
            let schedule = read.schedule().expect("valid").expect("set");
            assert_eq!(schedule.to_string(), "00:00-24:00 UTC, every day");
        }
        let cleared: ScheduleParam = read(json!([{"enabled": false}]), &[]).expect("readable");
        assert_eq!(cleared.schedule(), Ok(None));
        let wrong: ScheduleParam = read(json!([{"hours": "0-25"}]), &[]).expect("readable");
        let error = wrong.schedule().expect_err("25 hours");
        assert!(error.message.starts_with("hours:"), "{error}");
    }

    #[test]
    fn null_is_left_out() {
        let params = json!([{"role": null, "name": null, "signed_transactions": null}]);
        let param: RegisterParam = read(params, &[]).expect("readable");
        assert!(param.name.is_empty() && param.signed_transactions.is_empty());
    }

    #[test]
    fn a_checksum_that_is_there_is_checked() {
        let address = |text: &str| read::<AddressParam>(json!([text]), &["address"]);
        for text in [
            "0x5FbDB2315678afecb367f032d93F642f64180aa3",
            "0x5fbdb2315678afecb367f032d93f642f64180aa3",
        ] {
            assert!(address(text).expect(text).address.is_some());
        }
        let error = address("0x5fbDB2315678afecb367f032d93F642f64180aa3").expect_err("a letter");
        assert!(error.message.starts_with("address:"), "{error}");
    }

    #[test]
    fn the_parameter_at_fault_is_named() {
        let error = read::<AddressParam>(json!(["0x12"]), &["address"]).expect_err("short");
        assert!(error.message.starts_with("address:"), "{error}");
        let error = read::<StakeParam>(json!([{"amount": -1}]), &[]).expect_err("negative");
        assert!(error.message.starts_with("amount:"), "{error}");
        let error = read::<PricingParam>(json!([{"per_token": "x"}]), &[]).expect_err("no price");
        assert!(error.message.starts_with("per_token:"), "{error}");
        let error = read::<ScheduleParam>(json!([{"hours": {"start": -1}}]), &[]).expect_err("no");
        assert!(error.message.starts_with("hours: give"), "{error}");
        assert!(check_role(Some("model_provider")).is_ok());
        assert!(check_role(Some("validator")).is_err());
    }
}
