//! `POST /`: JSON-RPC 2.0 with batches and notifications, and the seam to whatever carries it out.
//!
//! ```text
//! body -> who may call (origin, operator token) -> parse -> JsonRpc::call, one after the other -> answers
//! ```

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use serde_json::Value;
use tenzro_protocol::json_rpc::{self, Call, Incoming, RpcError, code};

use crate::extract;
use crate::node::NodeState;

/// Size of a batch's answer after which no more of its calls are carried out. Source: geth
/// `node/defaults.go`, `BatchResponseMaxSize`.
const BATCH_ANSWER_BYTES: usize = 25 * 1000 * 1000;

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Somebody.
    Anyone,
    /// Whoever can read the operator token in the node's home.
    Operator,
}

/// Carries out calls. Implemented by `tenzro-node`.
pub trait JsonRpc: Send + Sync + 'static {
    /// Carries out one call. `params` is an array, an object or null.
    fn call(
        &self,
        caller: Caller,
        method: String,
        params: Value,
    ) -> BoxFuture<'_, Result<Value, RpcError>>;

    /// How far the node has followed the ledger, for `/health` and `/metrics`.
    fn ledger_view(&self) -> LedgerView;
}

/// How far a node has followed its ledger.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LedgerView {
    /// Last block taken in.
    pub block: Option<u64>,
    /// Age of the view.
    pub lag_seconds: f64,
}

pub(crate) async fn serve(State(state): State<NodeState>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if !state.cors && is_foreign_page(&parts.headers) {
        let message = "pages of other origins may not call this node; its operator can allow them \
                       with the setting node.cors";
        return refuse(StatusCode::FORBIDDEN, code::UNAUTHORIZED, message);
    }
    let Some(_running) = state.admit() else {
        let message = "the node is shutting down";
        return refuse(StatusCode::SERVICE_UNAVAILABLE, code::SERVER, message);
    };
    let body = match extract::json_bytes(&parts.headers, body, &state.limits).await {
        Ok(body) => body,
        Err(error) => return refuse(error.status(), code::INVALID_REQUEST, error.message()),
    };
    let caller = state.caller(&parts.headers);
    let answer = match json_rpc::parse(&body) {
        Incoming::Single(call) => answer(&state, caller, call)
            .await
            .map(|one| one.to_string()),
        Incoming::Batch(calls) => batch(&state, caller, calls).await,
    };
    match answer {
        Some(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    }
}

/// `None` where all were notifications. Once the answer is large, further calls are refused.
async fn batch(
    state: &NodeState,
    caller: Caller,
    calls: Vec<Result<Call, Value>>,
) -> Option<String> {
    let mut json = String::new();
    for call in calls {
        let answer = match call {
            Ok(Call { id: Some(id), .. }) if json.len() > BATCH_ANSWER_BYTES => {
                let error = "the answer to the batch is too large: ask for less at once";
                Some(json_rpc::answer(
                    &id,
                    Err(RpcError::new(code::SERVER, error)),
                ))
            }
            call => answer(state, caller, call).await,
        };
        if let Some(answer) = answer {
            json.push(if json.is_empty() { '[' } else { ',' });
            json.push_str(&answer.to_string());
        }
    }
    (!json.is_empty()).then(|| json + "]")
}

/// `None` for a notification.
async fn answer(state: &NodeState, caller: Caller, call: Result<Call, Value>) -> Option<Value> {
    let call = match call {
        Ok(call) => call,
        Err(answer) => return Some(answer),
    };
    let method = call.method.clone();
    let result = state.rpc.call(caller, call.method, call.params).await;
    state.metrics.count_call(&method, result.as_ref().err());
    call.id.map(|id| json_rpc::answer(&id, result))
}

fn refuse(status: StatusCode, code: i64, message: &str) -> Response {
    let error = RpcError::new(code, message);
    let body = json_rpc::answer(&Value::Null, Err(error));
    (status, axum::Json(body)).into_response()
}

/// Whether a browser sends this for a page that did not come from this machine. That also refuses
/// names that an attacker lets point here, since the page's origin is that name.
pub(crate) fn is_foreign_page(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return false;
    };
    let origin = origin
        .to_str()
        .ok()
        .and_then(|text| text.parse::<Uri>().ok());
    let host = origin.as_ref().and_then(Uri::host).unwrap_or("");
    !matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_this_machine_may_call() {
        let is_foreign = |origin: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, origin.parse().expect("a value"));
            is_foreign_page(&headers)
        };
        assert!(!is_foreign_page(&HeaderMap::new()));
        for origin in [
            "http://localhost:3000",
            "http://127.0.0.1:8545",
            "http://[::1]:1",
        ] {
            assert!(!is_foreign(origin), "{origin}");
        }
        for origin in [
            "null",
            "",
            "https://example.com",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com",
            "http://localhost@example.com",
        ] {
            assert!(is_foreign(origin), "{origin}");
        }
    }
}
