//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
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
    Path(id): Path<String>,
) -> Result<Json<ModelObject>, ApiError> {
    state.resolve(&id).map(ModelObject::new).map(Json)
}
