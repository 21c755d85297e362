//! Probes all usable endpoints again and again, and remembers what was measured.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use tenzro_protocol::network::EndpointInfo;

use crate::directory::Probes;
use crate::probe::Prober;

/// From one probe of an endpoint to the next. Source: design, routing, "Health and breaker".
const PERIOD: Duration = Duration::from_secs(15);

/// How often it is looked which are due: a new endpoint need not wait for long.
const LOOK: Duration = Duration::from_millis(500);

/// Probes at the same time.
const CONCURRENT: usize = 16;

/// What probes measured; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    prober: Prober,
    measured: Arc<Mutex<HashMap<String, Measured>>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    probes: Probes,
    last: Option<Instant>,
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
        let measured = self.lock();
        let probes = measured.iter();
        probes.map(|(id, one)| (id.clone(), one.probes)).collect()
    }

    /// Probes all that `endpoints` names, each in its turn, until the future is dropped.
    pub(crate) async fn keep_probing(&self, endpoints: impl Fn() -> Vec<EndpointInfo>) {
        loop {
            self.probe_due(endpoints()).await;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One look. Endpoints that are not among these are forgotten.
    async fn probe_due(&self, mut endpoints: Vec<EndpointInfo>) {
        {
            let mut measured = self.lock();
            measured.retain(|id, _| endpoints.iter().any(|one| one.endpoint_id == *id));
            endpoints.retain(|endpoint| {
                let last = measured.get(&endpoint.endpoint_id).and_then(|one| one.last);
                last.is_none_or(|last| last.elapsed() >= PERIOD)
            });
        }
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
        let mut measured = self.lock();
        let one = measured.entry(id.to_owned()).or_default();
        one.probes.record(latency_ms);
        one.last = Some(Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Measured>> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
