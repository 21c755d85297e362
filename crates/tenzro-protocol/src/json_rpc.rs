//! JSON-RPC 2.0: requests, batches and notifications as they arrive, answers as they leave.
//!
//! Source: the JSON-RPC 2.0 specification; codes below −32000 as in geth and EIP-1474.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Most calls of a batch. Source: geth's default, which viem's batches keep to.
pub const BATCH_MAX: usize = 1_000;

/// One call.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// `None` for a notification, which is not answered.
    pub id: Option<Value>,
    /// What to do.
    pub method: String,
    /// An array, an object, or null where there are none.
    pub params: Value,
}

/// What a body holds. An `Err` is the answer to a call that is none.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// One call.
    Single(Result<Call, Value>),
    /// Several, answered in their order.
    Batch(Vec<Result<Call, Value>>),
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// One of [`code`], or the chain's own.
    pub code: i64,
    /// For people.
    pub message: String,
    /// For programs: revert data, the field at fault, a hint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

/// Codes of errors.
pub mod code {
    /// The body is not JSON.
    pub const PARSE: i64 = -32700;
    /// The JSON is no call.
    pub const INVALID_REQUEST: i64 = -32600;
    /// No such method.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// A parameter is missing or wrong.
    pub const INVALID_PARAMS: i64 = -32602;
    /// A fault of the node.
    pub const INTERNAL: i64 = -32603;
    /// The chain or the contract refuses; also what has no code of its own.
    pub const SERVER: i64 = -32000;
    /// The caller may not do that.
    pub const UNAUTHORIZED: i64 = -32001;
    /// The transaction was refused or failed.
    pub const TRANSACTION: i64 = -32003;
    /// There is no such thing.
    pub const NOT_FOUND: i64 = -32004;
    /// The chain does not answer.
    pub const LEDGER_UNAVAILABLE: i64 = -32006;
    /// The endpoint does not do what it should.
    pub const ENDPOINT: i64 = -32011;
}

impl RpcError {
    /// An error without data.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            data: None,
        }
    }

    /// A parameter is missing or wrong.
    pub fn invalid_params(message: impl Into<String>) -> Self {
        Self::new(code::INVALID_PARAMS, message)
    }

    /// With the next step for whoever reads it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.data = Some(json!({"hint": hint.into()}));
        self
    }

    /// The next step, when there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.data.as_ref()?.get("hint")?.as_str()
    }
}

/// Reads a body.
pub fn parse(body: &[u8]) -> Incoming {
    let value: Value = match serde_json::from_slice(body) {
        Ok(value) => value,
        Err(error) => {
            let message = format!("the request is not valid JSON: {error}");
            return refusal(RpcError::new(code::PARSE, message));
        }
    };
    match value {
        Value::Array(calls) if calls.is_empty() => {
            refusal(RpcError::new(code::INVALID_REQUEST, "the batch is empty"))
        }
        Value::Array(calls) if calls.len() > BATCH_MAX => refusal(RpcError::new(
            code::INVALID_REQUEST,
            format!("a batch has at most {BATCH_MAX} calls"),
        )),
        Value::Array(calls) => Incoming::Batch(calls.into_iter().map(call).collect()),
        value => Incoming::Single(call(value)),
    }
}

/// The answer to a call.
pub fn answer(id: &Value, result: Result<Value, RpcError>) -> Value {
    match result {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err(error) => json!({"jsonrpc": "2.0", "id": id, "error": error}),
    }
}

fn refusal(error: RpcError) -> Incoming {
    Incoming::Single(Err(answer(&Value::Null, Err(error))))
}

fn call(value: Value) -> Result<Call, Value> {
    let Value::Object(mut fields) = value else {
        return Err(invalid(&Value::Null, "a call is a JSON object"));
    };
    let id = fields.remove("id");
    let id_type = matches!(
        id,
        None | Some(Value::Null | Value::String(_) | Value::Number(_))
    );
    let shown = if id_type { id.clone() } else { None }.unwrap_or_default();
    let wrong = |message| Err(invalid(&shown, message));
    if !id_type {
        return wrong("id must be a string, a number or null");
    }
    if fields.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return wrong("jsonrpc must be \"2.0\"");
    }
    let Some(Value::String(method)) = fields.remove("method") else {
        return wrong("method must be a string");
    };
    match fields.remove("params") {
        params @ (None | Some(Value::Null | Value::Array(_) | Value::Object(_))) => Ok(Call {
            id,
            method,
            params: params.unwrap_or_default(),
        }),
        Some(_) => wrong("params must be an array or an object"),
    }
}

fn invalid(id: &Value, message: &str) -> Value {
    answer(id, Err(RpcError::new(code::INVALID_REQUEST, message)))
}

/// The named parameters of a call: `[{…}]`, `{…}`, or positional values with these names, in the
/// forms that published clients send.
pub fn named_params(params: Value, positions: &[&str]) -> Result<Map<String, Value>, RpcError> {
    let values = match params {
        Value::Null => return Ok(Map::new()),
        Value::Object(fields) => return Ok(fields),
        Value::Array(values) => values,
        _ => {
            return Err(RpcError::invalid_params(
                "params must be an array or an object",
            ));
        }
    };
    if values.len() == 1 && values[0].is_object() {
        return Ok(match values.into_iter().next() {
            Some(Value::Object(fields)) => fields,
            _ => Map::new(),
        });
    }
    if values.len() > positions.len() {
        return Err(RpcError::invalid_params(match positions {
            [] => "this method takes one object with named parameters, or none".to_owned(),
            names => format!("this method takes at most: {}", names.join(", ")),
        }));
    }
    let names = positions.iter().map(|name| (*name).to_owned());
    Ok(names.zip(values).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn code_of(body: &str) -> (i64, Value) {
        let Incoming::Single(Err(answer)) = parse(body.as_bytes()) else {
            panic!("{body} is a call");
        };
        (
            answer["error"]["code"].as_i64().expect("a code"),
            answer["id"].clone(),
        )
    }

    #[test]
    fn calls_notifications_and_batches_are_told_apart() {
        let parsed = parse(br#"{"jsonrpc":"2.0","id":7,"method":"m","params":[1]}"#);
        let call = Call {
            id: Some(json!(7)),
            method: "m".to_owned(),
            params: json!([1]),
        };
        assert_eq!(parsed, Incoming::Single(Ok(call)));
        let Incoming::Single(Ok(notification)) = parse(br#"{"jsonrpc":"2.0","method":"m"}"#) else {
            panic!("a notification");
        };
        assert_eq!(notification.id, None);
        let Incoming::Batch(calls) = parse(br#"[{"jsonrpc":"2.0","id":1,"method":"m"},7]"#) else {
            panic!("a batch");
        };
        assert!(calls[0].is_ok() && calls[1].is_err());
    }

    #[test]
    fn what_is_no_call_gets_the_code_of_the_specification() {
        assert_eq!(code_of("{"), (code::PARSE, Value::Null));
        assert_eq!(code_of("[]"), (code::INVALID_REQUEST, Value::Null));
        assert_eq!(code_of("1").0, code::INVALID_REQUEST);
        let wrong = r#"{"jsonrpc":"1.0","id":"a","method":"m"}"#;
        assert_eq!(code_of(wrong), (code::INVALID_REQUEST, json!("a")));
        let wrong = r#"{"jsonrpc":"2.0","id":1,"method":5}"#;
        assert_eq!(code_of(wrong), (code::INVALID_REQUEST, json!(1)));
        let wrong = r#"{"jsonrpc":"2.0","id":{},"method":"m"}"#;
        assert_eq!(code_of(wrong), (code::INVALID_REQUEST, Value::Null));
        let many = format!("[{}]", vec!["1"; BATCH_MAX + 1].join(","));
        assert_eq!(code_of(&many).0, code::INVALID_REQUEST);
    }

    #[test]
    fn parameters_have_names_in_every_form() {
        let expected = json!({"model": "m", "messages": []});
        for params in [
            json!([{"model": "m", "messages": []}]),
            json!({"model": "m", "messages": []}),
            json!(["m", []]),
        ] {
            let named = named_params(params, &["model", "messages"]).expect("named");
            assert_eq!(Value::Object(named), expected);
        }
        assert_eq!(named_params(Value::Null, &[]), Ok(Map::new()));
        assert!(named_params(json!(["m", 2]), &["model"]).is_err());
    }

    proptest! {
        #[test]
        fn no_body_panics(body: Vec<u8>) {
            let _ = parse(&body);
        }

        #[test]
        fn no_text_panics(body in r#"[\[{"a-z0-9:,}\] .-]{0,80}"#) {
            let _ = parse(body.as_bytes());
        }
    }
}
