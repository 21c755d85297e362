//! What every handler can reach.

use std::sync::Arc;

use tenzro_protocol::inference::{ModelCard, ServerState};
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::inference::Inference;
use crate::metrics::Metrics;
use crate::server::Limits;

/// Shared by all requests; cheap to clone.
#[derive(Clone)]
pub(crate) struct AppState {
    pub(crate) inference: Arc<dyn Inference>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Limits,
    pub(crate) fingerprint: Arc<str>,
    /// Cancelled when the server stops taking requests.
    pub(crate) stopping: CancellationToken,
    /// Cancelled when running answers have to end.
    pub(crate) cut: CancellationToken,
}

impl AppState {
    /// The server's state, draining included.
    pub(crate) fn server_state(&self) -> ServerState {
        if self.stopping.is_cancelled() {
            return ServerState::Draining;
        }
        self.inference.state()
    }

    /// Refuses while loading or draining, then finds the model that a request names by its id or
    /// one of its aliases, whatever the case.
    pub(crate) fn resolve(&self, name: &str) -> Result<ModelCard, ApiError> {
        match self.server_state() {
            ServerState::Ready => {}
            ServerState::Loading { .. } => {
                return Err(ApiError::unavailable("the model is still loading"));
            }
            ServerState::Draining => {
                return Err(ApiError::unavailable("the server is shutting down"));
            }
        }
        if name.is_empty() {
            return Err(ApiError::invalid("model", "model is required"));
        }
        let models = self.inference.models();
        let found = models.iter().find(|card| {
            std::iter::once(&card.id)
                .chain(&card.aliases)
                .any(|known| known.eq_ignore_ascii_case(name))
        });
        match found {
            Some(card) => Ok(card.clone()),
            None => {
                let served: Vec<String> = models.into_iter().map(|card| card.id).collect();
                Err(ApiError::unknown_model(name, &served))
            }
        }
    }
}
