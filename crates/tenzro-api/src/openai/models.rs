//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use tenzro_protocol::openai::{ModelList, ModelObject};

use crate::error::ApiError;
use crate::state::AppState;

/// All served models; none while loading.
pub(crate) async fn list(State(state): State<AppState>) -> Json<ModelList> {
    Json(ModelList::new(state.inference.models()))
}

/// One model by its id or an alias.
pub(crate) async fn show(
    State(state): State<AppState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelObject>, ApiError> {
    // Bytes that are no text cannot be the name of a model either.
    let id = id.map_or_else(|_| "\u{fffd}".to_owned(), |Path(id)| id);
    state.resolve(&id).map(ModelObject::new).map(Json)
}
