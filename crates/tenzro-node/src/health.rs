//! Probes all usable endpoints again and again, and remembers what was measured.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use tenzro_protocol::network::{EndpointInfo, EndpointStatus};

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

    /// Probes those of all endpoints that can be used, each in its turn, until the future is dropped.
    pub(crate) async fn keep_probing(&self, endpoints: impl Fn() -> Vec<EndpointInfo>) {
        loop {
            self.probe_due(endpoints()).await;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One look. What was measured of endpoints that are not among these is forgotten, but not at once: whoever
    /// made the list may not know yet what was just put on the ledger.
    async fn probe_due(&self, mut endpoints: Vec<EndpointInfo>) {
        {
            let mut measured = self.lock();
            measured.retain(|id, one| {
                let is_new = one.last.is_some_and(|last| last.elapsed() < PERIOD);
                is_new || endpoints.iter().any(|one| one.endpoint_id == *id)
            });
            endpoints.retain(|endpoint| {
                let is_usable = !matches!(
                    endpoint.status,
                    EndpointStatus::Inactive | EndpointStatus::ScheduledOff
                );
                let last = measured.get(&endpoint.endpoint_id).and_then(|one| one.last);
                is_usable && last.is_none_or(|last| last.elapsed() >= PERIOD)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_first_probe_is_remembered_until_the_endpoint_is_listed() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let health = Health::new(Prober::new(true).expect("a prober"));
        health.record("new", Some(Duration::from_millis(1)));
        health.probe_due(Vec::new()).await;
        assert!(health.measured().contains_key("new"));
    }
}
