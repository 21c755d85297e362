//! The parameters of a JSON-RPC request, taken one after the other.

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use super::error::RpcError;

/// Longest parameters in bytes of JSON: a transaction of 128 KiB as hexadecimal digits, and a list of
/// filters, fit well.
const PARAMS_MAX: usize = 512 * 1024;

/// What is left of them.
#[derive(Debug)]
pub(super) struct Params {
    values: std::vec::IntoIter<Value>,
}

impl Params {
    /// Methods here take a list; none at all is an empty one.
    pub(super) fn new(raw: Option<&RawValue>) -> Result<Self, RpcError> {
        let text = raw.map_or("[]", RawValue::get);
        if text.len() > PARAMS_MAX {
            return Err(RpcError::Limit(format!(
                "the parameters have {} bytes; at most {PARAMS_MAX} are taken",
                text.len()
            )));
        }
        let values: Option<Vec<Value>> =
            serde_json::from_str(text).map_err(|error| RpcError::Params(error.to_string()))?;
        Ok(Self {
            values: values.unwrap_or_default().into_iter(),
        })
    }

    /// The next one, which must be there.
    pub(super) fn next<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, RpcError> {
        self.optional(name)?
            .ok_or_else(|| RpcError::Params(format!("missing value for required argument {name}")))
    }

    /// The next one, which may be left out or null.
    pub(super) fn optional<T: DeserializeOwned>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, RpcError> {
        match self.values.next() {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| RpcError::Params(format!("{name}: {error}"))),
        }
    }

    /// A number that tools write as 0x-digits, as decimal digits or as a number.
    pub(super) fn quantity(&mut self, name: &str) -> Result<Option<u64>, RpcError> {
        match self.optional(name)? {
            None => Ok(None),
            Some(value) => quantity(&value)
                .map(Some)
                .ok_or_else(|| RpcError::Params(format!("{name}: {value} is no number"))),
        }
    }

    /// Nothing else may follow.
    pub(super) fn end(mut self) -> Result<(), RpcError> {
        match self.values.find(|value| !is_nothing(value)) {
            None => Ok(()),
            Some(_) => Err(RpcError::Params("too many arguments".to_owned())),
        }
    }
}

/// Overrides that override nothing are sent by some tools.
fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty)
}

pub(super) fn quantity(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(text: &str) -> Params {
        let raw = RawValue::from_string(text.to_owned()).unwrap();
        Params::new(Some(&raw)).unwrap()
    }

    #[test]
    fn numbers_are_taken_as_tools_write_them() {
        let mut numbers = params(r#"[16, "0x10", "16", null, "sixteen"]"#);
        assert_eq!(numbers.quantity("a").unwrap(), Some(16));
        assert_eq!(numbers.quantity("b").unwrap(), Some(16));
        assert_eq!(numbers.quantity("c").unwrap(), Some(16));
        assert_eq!(numbers.quantity("d").unwrap(), None);
        assert!(matches!(numbers.quantity("e"), Err(RpcError::Params(_))));
    }

    #[test]
    fn what_is_missing_or_too_much_is_said() {
        let error = params("[]").next::<String>("address").unwrap_err();
        assert!(error.to_string().contains("address"), "{error}");
        assert!(params("[1]").end().is_err());
        params("[null, {}]").end().unwrap();
        assert!(Params::new(None).unwrap().end().is_ok());
        let object = RawValue::from_string("{}".to_owned()).unwrap();
        assert!(matches!(
            Params::new(Some(&object)),
            Err(RpcError::Params(_))
        ));
    }
}
