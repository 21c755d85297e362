//! The HTTP side of a node: JSON-RPC at `/`, health and metrics.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use serde_json::json;
use sha2::{Digest, Sha256};
use tenzro_protocol::json_rpc::{RpcError, code};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tower_http::cors::CorsLayer;

use crate::error::ApiError;
use crate::inference::Inference;
use crate::metrics::Metrics;
use crate::rpc::{self, Caller, JsonRpc};
use crate::server::Limits;
use crate::state::AppState;
use crate::{request_id, routes};

/// What every handler of a node can reach; cheap to clone.
#[derive(Clone)]
pub(crate) struct NodeState {
    pub(crate) rpc: Arc<dyn JsonRpc>,
    pub(crate) metrics: Arc<NodeMetrics>,
    pub(crate) limits: Limits,
    pub(crate) cors: bool,
    /// Whether only programs of this machine can connect.
    pub(crate) is_private: bool,
    /// Of the operator token.
    pub(crate) token_hash: [u8; 32],
    pub(crate) stopping: CancellationToken,
    pub(crate) answers: TaskTracker,
}

impl NodeState {
    /// `None` when the node stops; a node that stops waits until the token is dropped.
    pub(crate) fn admit(&self) -> Option<TaskTrackerToken> {
        let running = self.answers.token();
        (!self.stopping.is_cancelled()).then_some(running)
    }

    /// Who sends these headers.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Caller {
        let value = headers.get(header::AUTHORIZATION);
        let credentials = value.and_then(|value| value.to_str().ok()?.split_once(' '));
        match credentials {
            Some((scheme, token))
                if scheme.eq_ignore_ascii_case("bearer")
                    && token_hash(token) == self.token_hash =>
            {
                Caller::Operator
            }
            _ => Caller::Anyone,
        }
    }
}

/// SHA-256 of a token: comparing two of them takes the same time for every guess.
pub fn token_hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.trim().as_bytes()).into()
}

/// The node's JSON-RPC, and the OpenAI API for all models of the network, at the node's expense.
pub(crate) fn router(state: NodeState, openai: AppState) -> Router {
    let v1 = routes::openai(&openai, state.cors)
        .layer(middleware::from_fn_with_state(state.clone(), spending))
        .with_state(openai);
    let mut rpc = Router::new()
        .route("/", post(rpc::serve))
        .method_not_allowed_fallback(routes::wrong_method);
    if state.cors {
        rpc = rpc.layer(CorsLayer::permissive());
    }
    let counter = state.metrics.answers.requests.clone();
    rpc.route("/health", get(health))
        .route("/metrics", get(metrics))
        .with_state(state)
        .merge(v1)
        .fallback(routes::unknown_path)
        .method_not_allowed_fallback(routes::wrong_method)
        .layer(middleware::from_fn_with_state(counter, request_id::layer))
}

/// Who may spend the node's money: programs of this machine, where only those can connect; else whoever has the
/// operator token. No page of somebody else's.
async fn spending(State(state): State<NodeState>, request: Request, next: Next) -> Response {
    if !state.cors && rpc::is_foreign_page(request.headers()) {
        return ApiError::foreign_page().into_response();
    }
    if !state.is_private && state.caller(request.headers()) != Caller::Operator {
        return ApiError::not_operator().into_response();
    }
    next.run(request).await
}

/// 200 while calls are answered.
async fn health(State(state): State<NodeState>) -> Response {
    let view = state.rpc.ledger_view();
    let is_draining = state.stopping.is_cancelled();
    let body = axum::Json(json!({
        "status": if is_draining { "draining" } else { "ok" },
        "ledger": {"block": view.block, "lag_seconds": view.lag_seconds},
    }));
    if is_draining {
        return (StatusCode::SERVICE_UNAVAILABLE, body).into_response();
    }
    body.into_response()
}

async fn metrics(State(state): State<NodeState>) -> Response {
    state.metrics.answers.page()
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: String,
    code: i64,
}

/// Counters of one node.
#[derive(Debug)]
pub(crate) struct NodeMetrics {
    /// Of the models of the network.
    pub(crate) answers: Arc<Metrics>,
    calls: Family<CallLabels, Counter>,
}

impl NodeMetrics {
    pub(crate) fn new(rpc: Arc<dyn JsonRpc>, inference: Arc<dyn Inference>) -> Self {
        let calls = Family::default();
        let answers = Metrics::with(inference, |registry| {
            registry.register(
                "rpc_calls",
                "JSON-RPC calls by method and code of their error, 0 for none",
                calls.clone(),
            );
            registry.register_collector(Box::new(LedgerCollector(rpc)));
        });
        Self {
            answers: Arc::new(answers),
            calls,
        }
    }

    /// A call was carried out. Methods that clients make up must not become labels.
    pub(crate) fn count_call(&self, method: &str, error: Option<&RpcError>) {
        let code = error.map_or(0, |error| error.code);
        let method = match code {
            code::METHOD_NOT_FOUND => "other",
            _ => method,
        };
        let labels = CallLabels {
            method: method.to_owned(),
            code,
        };
        self.calls.get_or_create(&labels).inc();
    }
}

/// Reads the view of the ledger when it is asked for.
struct LedgerCollector(Arc<dyn JsonRpc>);

impl fmt::Debug for LedgerCollector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("LedgerCollector")
    }
}

impl Collector for LedgerCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let view = self.0.ledger_view();
        let lag = ConstGauge::new(view.lag_seconds);
        let help = "Age of the node's view of the ledger";
        let name = "ledger_lag_seconds";
        lag.encode(encoder.encode_descriptor(name, help, None, lag.metric_type())?)?;
        let block = i64::try_from(view.block.unwrap_or_default()).unwrap_or(i64::MAX);
        let block = ConstGauge::new(block);
        let help = "Last block of the node's view of the ledger";
        block.encode(encoder.encode_descriptor("ledger_block", help, None, block.metric_type())?)
    }
}
