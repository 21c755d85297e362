//! Which path of a model server leads to which handler, and the layers around them.

use axum::Router;
use axum::extract::Request;
use axum::middleware;
use axum::routing::{get, post};
use tower_http::cors::{AllowHeaders, CorsLayer};

use crate::error::ApiError;
use crate::openai::{chat, completions, embeddings, models};
use crate::state::AppState;
use crate::{gate, health, metrics, request_id};

pub(crate) fn router(state: AppState, cors: bool) -> Router {
    let counter = state.metrics.requests.clone();
    openai(&state, cors)
        .route("/health", get(health::show))
        .route("/metrics", get(metrics::show))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        // Outermost: errors of everything inside carry the request id too.
        .layer(middleware::from_fn_with_state(counter, request_id::layer))
        .with_state(state)
}

/// The paths of the OpenAI API.
pub(crate) fn openai(state: &AppState, cors: bool) -> Router<AppState> {
    let mut paths = Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/embeddings", post(embeddings::create));
    if state.billing.is_some() {
        paths = paths
            .route(gate::VOUCHERS, post(gate::no_payment))
            .method_not_allowed_fallback(wrong_method)
            .layer(middleware::from_fn_with_state(state.clone(), gate::layer));
    }
    let v1 = paths
        .route("/v1/models", get(models::list))
        // Model ids may contain slashes.
        .route("/v1/models/{*id}", get(models::show));
    // Set before the layer, which has to answer the OPTIONS requests that the paths do not allow.
    let mut v1 = v1.method_not_allowed_fallback(wrong_method);
    if cors {
        // Named one by one: `*` does not stand for `Authorization`.
        let headers = AllowHeaders::mirror_request();
        v1 = v1.layer(CorsLayer::permissive().allow_headers(headers));
    }
    v1
}

pub(crate) async fn wrong_method() -> ApiError {
    ApiError::wrong_method()
}

pub(crate) async fn unknown_path(request: Request) -> ApiError {
    ApiError::unknown_path(request.uri().path())
}
