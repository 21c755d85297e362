//! Reads a JSON body within its limits and names the field that is wrong.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tenzro_protocol::openai::Parameters;

use crate::error::ApiError;
use crate::server::Limits;
use crate::state::AppState;

/// How much of a body that is too large is still read: a client that is cut off while it sends may
/// never see the answer.
const DRAIN_BYTES_MAX: usize = 32 << 20;

/// A request body.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<AppState> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = json_bytes(&parts.headers, body, &state.limits).await?;
        parse(&bytes).map(Self)
    }
}

/// The bytes of a body that says it is JSON.
pub(crate) async fn json_bytes(
    headers: &HeaderMap,
    body: Body,
    limits: &Limits,
) -> Result<Vec<u8>, ApiError> {
    if !is_json(headers) {
        return Err(ApiError::not_json_type());
    }
    if is_encoded(headers) {
        return Err(ApiError::encoded());
    }
    body_bytes(body, limits).await
}

/// The bytes of any body, within its limits.
pub(crate) async fn body_bytes(body: Body, limits: &Limits) -> Result<Vec<u8>, ApiError> {
    let bytes = read(body, limits.body_bytes_max);
    let bytes = tokio::time::timeout(limits.body_timeout, bytes).await;
    bytes.unwrap_or_else(|_| Err(ApiError::too_slow()))
}

/// A missing content type is taken for JSON, since nothing else is spoken here.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return true;
    };
    let essence = value.to_str().unwrap_or("").split(';').next().unwrap_or("");
    let essence = essence.trim().to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}

/// Compressed bodies are not read: their size says nothing about the memory they need.
fn is_encoded(headers: &HeaderMap) -> bool {
    let encoding = headers.get(header::CONTENT_ENCODING);
    encoding.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

async fn read(body: Body, bytes_max: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut total = 0usize;
    let mut stream = body.into_data_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| ApiError::not_json("the request body broke off"))?;
        total = total.saturating_add(chunk.len());
        if total > DRAIN_BYTES_MAX {
            break;
        }
        if total <= bytes_max {
            bytes.extend_from_slice(&chunk);
        }
    }
    if total > bytes_max {
        return Err(ApiError::too_large(bytes_max));
    }
    Ok(bytes)
}

/// Parses a body; the error names the JSON path of the field at fault.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| ApiError::not_json(format!("the request is not valid JSON: {error}")))?;
    if !value.is_object() {
        return Err(ApiError::not_json("the request must be a JSON object"));
    }
    let error = match serde_path_to_error::deserialize(&value) {
        Ok(parsed) => return Ok(parsed),
        Err(error) => error,
    };
    if error.path().iter().next().is_some() {
        return Err(wrong_field(&error));
    }
    // Fields of a flattened struct lose their path: find the one that is wrong by itself.
    if let Value::Object(fields) = &value {
        for (name, field) in fields {
            let alone = Value::Object(std::iter::once((name.clone(), field.clone())).collect());
            let parsed: Result<Parameters, _> = serde_path_to_error::deserialize(&alone);
            if let Err(error) = parsed {
                return Err(wrong_field(&error));
            }
        }
    }
    let message = error.inner().to_string();
    if let Some(name) = missing_field(&message) {
        return Err(ApiError::invalid(name, format!("{name} is required")));
    }
    if let Some(name) = twice(&message) {
        let message = format!("{name} is given twice, under two names");
        return Err(ApiError::invalid(name, message));
    }
    Err(ApiError::not_json(message))
}

fn wrong_field(error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let path = error.path().to_string();
    let reason = error.inner().to_string();
    if let Some(name) = missing_field(&reason) {
        let path = format!("{path}.{name}");
        return ApiError::invalid(&path, format!("{path} is required"));
    }
    let message = match wanted(&reason) {
        Some(wanted) => format!("{path} must be {wanted}"),
        None => format!("{path} has the wrong type"),
    };
    ApiError::invalid(path, message)
}

/// What serde's text says that a field must be, without the names of this program's types and without
/// the value, which may be as long as the whole request.
fn wanted(reason: &str) -> Option<String> {
    let (_, expected) = reason.rsplit_once("expected ")?;
    let wanted = match expected {
        "a string" => "text",
        "a boolean" => "true or false",
        "u32" => "a whole number from 0 to 4294967295",
        "i64" => "a whole number of 64 bits",
        "f32" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        names if names.starts_with("struct ") => "an object",
        names if names.starts_with('`') => return Some(names.replace('`', "\"")),
        _ => return None,
    };
    Some(wanted.to_owned())
}

/// The name in serde's "missing field `name`".
fn missing_field(message: &str) -> Option<&str> {
    let rest = message.strip_prefix("missing field `")?;
    rest.split('`').next()
}

/// The name in serde's "duplicate field `name`".
fn twice(message: &str) -> Option<&str> {
    let rest = message.strip_prefix("duplicate field `")?;
    rest.split('`').next()
}

#[cfg(test)]
mod tests {
    use tenzro_protocol::openai::chat::ChatRequest;

    use super::*;

    fn param(body: &str) -> Option<String> {
        let error = parse::<ChatRequest>(body.as_bytes()).expect_err("wrong");
        error.body().error.param
    }

    #[test]
    fn the_field_at_fault_is_named() {
        let cases = [
            (r#"{"messages":[]}"#, Some("model")),
            (r#"{"model":"m"}"#, Some("messages")),
            (r#"{"model":1,"messages":[]}"#, Some("model")),
            (
                r#"{"model":"m","messages":[{"content":"x"}]}"#,
                Some("messages[0].role"),
            ),
            (
                r#"{"model":"m","messages":[{"role":"user","content":7}]}"#,
                Some("messages[0].content"),
            ),
            (
                r#"{"model":"m","messages":[],"temperature":"hot"}"#,
                Some("temperature"),
            ),
            (r#"{"model":"m","messages":[],"n":-1}"#, Some("n")),
            (
                r#"{"model":"m","messages":[],"repeat_penalty":1,"repetition_penalty":1}"#,
                Some("repeat_penalty"),
            ),
            (
                r#"{"model":"m","messages":[],"logit_bias":{"1":"x"}}"#,
                Some("logit_bias.1"),
            ),
            (r#"{"model":"#, None),
            ("[]", None),
        ];
        for (body, expected) in cases {
            assert_eq!(param(body).as_deref(), expected, "{body}");
        }
    }
}
