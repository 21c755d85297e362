//! What every handler can reach.

use std::sync::Arc;

use tenzro_protocol::inference::{ModelCard, ServerState};
use tenzro_protocol::model_id::is_meant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::billing::Billing;
use crate::error::ApiError;
use crate::inference::Inference;
use crate::metrics::Metrics;
use crate::server::Limits;

/// Shared by all requests; cheap to clone.
#[derive(Clone)]
pub(crate) struct AppState {
    pub(crate) inference: Arc<dyn Inference>,
    /// `None` serves for free.
    pub(crate) billing: Option<Arc<dyn Billing>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Limits,
    pub(crate) fingerprint: Arc<str>,
    /// Cancelled when the server stops taking requests.
    pub(crate) stopping: CancellationToken,
    /// Holds one token per running answer.
    pub(crate) answers: TaskTracker,
    /// Cancelled when running answers have to end.
    pub(crate) cut: CancellationToken,
}

/// The right to compute an answer; a server that stops waits until it is dropped.
pub(crate) struct Admission {
    /// What to ask.
    pub(crate) model: ModelCard,
    _running: TaskTrackerToken,
}

impl AppState {
    /// The server's state, draining included.
    pub(crate) fn server_state(&self) -> ServerState {
        if self.stopping.is_cancelled() {
            return ServerState::Draining;
        }
        self.inference.state()
    }

    /// Admits a request for the model of that name, or refuses as [`Self::resolve`] does.
    pub(crate) fn admit(&self, name: &str) -> Result<Admission, ApiError> {
        // Taken before the state is read: a server that starts to stop in between waits for it.
        let running = self.answers.token();
        self.resolve(name).map(|model| Admission {
            model,
            _running: running,
        })
    }

    /// Refuses while loading or draining, then finds the model that a request names by its id or
    /// one of its aliases.
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
        match find(&models, name) {
            Some(card) => Ok(card.clone()),
            None => {
                let served: Vec<String> = models.into_iter().map(|card| card.id).collect();
                Err(ApiError::unknown_model(name, &served))
            }
        }
    }
}

/// The model of exactly that name, else the only one whose name compares equal.
fn find<'a>(models: &'a [ModelCard], name: &str) -> Option<&'a ModelCard> {
    let named = |card: &ModelCard, same: &dyn Fn(&str) -> bool| {
        std::iter::once(&card.id)
            .chain(&card.aliases)
            .any(|known| same(known))
    };
    let exact = |known: &str| known == name;
    if let Some(card) = models.iter().find(|card| named(card, &exact)) {
        return Some(card);
    }
    let alike = |known: &str| is_meant(name, known);
    let mut candidates = models.iter().filter(|card| named(card, &alike));
    match (candidates.next(), candidates.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}
