//! `GET /health`: whether requests are served. Never waits for the engine.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tenzro_protocol::inference::ServerState;

use crate::state::AppState;

/// 200 when ready, 503 with the reason otherwise.
pub(crate) async fn show(State(state): State<AppState>) -> Response {
    match state.server_state() {
        ServerState::Ready => axum::Json(json!({"status": "ok"})).into_response(),
        ServerState::Loading { progress } => unready(json!({
            "status": "loading",
            "progress": progress,
            "error": error("the model is still loading", "loading"),
        })),
        ServerState::Draining => unready(json!({
            "status": "draining",
            "error": error("the server is shutting down", "draining"),
        })),
    }
}

fn unready(body: serde_json::Value) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, axum::Json(body)).into_response()
}

fn error(message: &str, code: &str) -> serde_json::Value {
    json!({
        "message": message,
        "type": "service_unavailable_error",
        "param": null,
        "code": code,
    })
}
