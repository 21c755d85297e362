//! Probes all usable endpoints again and again, and remembers what was measured.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use tenzro_protocol::network::EndpointInfo;

use crate::directory::Probes;
use crate::probe::Prober;

/// From one round of probes to the next. Source: design, routing, "Health and breaker".
pub(crate) const PERIOD: Duration = Duration::from_secs(15);

/// Probes at the same time.
const CONCURRENT: usize = 16;

/// What probes measured; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    prober: Prober,
    measured: Arc<Mutex<HashMap<String, Probes>>>,
}

impl Health {
    pub(crate) fn new(prober: Prober) -> Self {
        Self {
            prober,
            measured: Arc::default(),
        }
    }

    /// By endpoint id.
    pub(crate) fn measured(&self) -> HashMap<String, Probes> {
        self.lock().clone()
    }

    /// One round. Endpoints that are not among these are forgotten.
    pub(crate) async fn probe_all(&self, endpoints: Vec<EndpointInfo>) {
        self.lock()
            .retain(|id, _| endpoints.iter().any(|one| one.endpoint_id == *id));
        futures::stream::iter(endpoints)
            .for_each_concurrent(CONCURRENT, async |endpoint| {
                let found = self
                    .prober
                    .probe(&endpoint.api_endpoint, &endpoint.model_id)
                    .await;
                if let Err(error) = &found {
                    tracing::debug!(%error, "probe");
                }
                let latency = found.ok().map(|found| found.latency);
                self.record(&endpoint.endpoint_id, latency);
            })
            .await;
    }

    /// Takes one probe in.
    pub(crate) fn record(&self, id: &str, latency: Option<Duration>) {
        let latency_ms = latency.map(|latency| latency.as_secs_f64() * 1000.0);
        self.lock()
            .entry(id.to_owned())
            .or_default()
            .record(latency_ms);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Probes>> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
