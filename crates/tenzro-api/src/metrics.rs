//! `GET /metrics` in the OpenMetrics text format, and the observer that fills it.
//!
//! Names follow vLLM's where it has the same thing, with the prefix `tenzro_`, so that dashboards
//! can be reused. One registry per server, no globals.

mod payments;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tenzro_protocol::inference::{GenerateEvent, Usage};

use crate::inference::Inference;
use crate::state::AppState;

pub(crate) use payments::{PaymentMetrics, Waiting};

/// Seconds. Source: vLLM's buckets for time to first token.
const FIRST_TOKEN_S: [f64; 18] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0,
];

/// Seconds. Source: vLLM's buckets for time per output token.
const BETWEEN_TOKENS_S: [f64; 15] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5,
];

/// Seconds. Source: vLLM's buckets for whole requests.
const REQUEST_S: [f64; 15] = [
    0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    endpoint: String,
    status: u16,
}

/// Answered requests by path and status.
#[derive(Debug, Clone)]
pub(crate) struct RequestCounter(Family<Labels, Counter>);

impl RequestCounter {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let requests = Family::default();
        registry.register("requests", "Answered requests", requests.clone());
        Self(requests)
    }

    /// A request was answered.
    pub(crate) fn count(&self, endpoint: &str, status: StatusCode) {
        let labels = Labels {
            endpoint: endpoint.to_owned(),
            status: status.as_u16(),
        };
        self.0.get_or_create(&labels).inc();
    }
}

/// Counters and histograms of what answers the OpenAI API.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: RequestCounter,
    pub(crate) payments: PaymentMetrics,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    completion_tokens: Counter,
    first_token: Histogram,
    between_tokens: Histogram,
    queue: Histogram,
    whole: Histogram,
}

impl Metrics {
    pub(crate) fn new(inference: Arc<dyn Inference>) -> Self {
        Self::with(inference, |_| {})
    }

    /// `more` registers what else is on the page.
    pub(crate) fn with(inference: Arc<dyn Inference>, more: impl FnOnce(&mut Registry)) -> Self {
        let mut registry = Registry::with_prefix("tenzro");
        more(&mut registry);
        let requests = RequestCounter::register(&mut registry);
        let payments = PaymentMetrics::register(&mut registry);
        let [prompt_tokens, cached_tokens, completion_tokens] =
            std::array::from_fn(|_| Counter::default());
        let first_token = Histogram::new(FIRST_TOKEN_S);
        let between_tokens = Histogram::new(BETWEEN_TOKENS_S);
        let queue = Histogram::new(FIRST_TOKEN_S);
        let whole = Histogram::new(REQUEST_S);
        registry.register(
            "prompt_tokens",
            "Prompt tokens of answered generations",
            prompt_tokens.clone(),
        );
        registry.register(
            "prompt_tokens_cached",
            "Prompt tokens found in the prefix cache",
            cached_tokens.clone(),
        );
        registry.register(
            "generation_tokens",
            "Tokens generated",
            completion_tokens.clone(),
        );
        for (name, help, histogram) in [
            (
                "time_to_first_token_seconds",
                "Arrival to first token",
                &first_token,
            ),
            (
                "inter_token_latency_seconds",
                "Between two tokens of an answer",
                &between_tokens,
            ),
            (
                "request_queue_time_seconds",
                "Arrival to first computation",
                &queue,
            ),
            (
                "e2e_request_latency_seconds",
                "Arrival to last token",
                &whole,
            ),
        ] {
            registry.register(name, help, histogram.clone());
        }
        registry.register_collector(Box::new(EngineCollector(inference)));
        Self {
            registry,
            requests,
            payments,
            prompt_tokens,
            cached_tokens,
            completion_tokens,
            first_token,
            between_tokens,
            queue,
            whole,
        }
    }

    pub(crate) fn page(&self) -> Response {
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        ([(header::CONTENT_TYPE, content_type)], text).into_response()
    }
}

/// Times one generation.
#[derive(Debug)]
pub(crate) struct Observer {
    metrics: Arc<Metrics>,
    arrived: Instant,
    last_token: Option<Instant>,
}

impl Observer {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            arrived: Instant::now(),
            last_token: None,
        }
    }

    /// To be called with every event, when it is ready to be sent.
    pub(crate) fn observe(&mut self, event: &GenerateEvent) {
        let metrics = &self.metrics;
        match event {
            GenerateEvent::Started(started) => {
                metrics.queue.observe(started.queued.as_secs_f64());
            }
            GenerateEvent::Delta(delta) => {
                let now = Instant::now();
                match self.last_token.replace(now) {
                    None => {
                        let waited = now.duration_since(self.arrived);
                        metrics.first_token.observe(waited.as_secs_f64());
                    }
                    Some(before) => {
                        let tokens = f64::from(delta.token_count.max(1));
                        let gap = now.duration_since(before).as_secs_f64() / tokens;
                        metrics.between_tokens.observe(gap);
                    }
                }
            }
            GenerateEvent::Finished(finished) => {
                let Usage {
                    prompt_tokens,
                    completion_tokens,
                    cached_tokens,
                    cost: _,
                } = finished.usage;
                metrics.prompt_tokens.inc_by(prompt_tokens.into());
                metrics.completion_tokens.inc_by(completion_tokens.into());
                metrics.cached_tokens.inc_by(cached_tokens.into());
                metrics.whole.observe(self.arrived.elapsed().as_secs_f64());
            }
        }
    }
}

/// Reads the engine's own figures when they are asked for.
struct EngineCollector(Arc<dyn Inference>);

impl fmt::Debug for EngineCollector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("EngineCollector")
    }
}

impl Collector for EngineCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(now) = self.0.gauges() else {
            return Ok(());
        };
        let gauges = [
            (
                "num_requests_running",
                "Generations being computed",
                now.running,
            ),
            (
                "num_requests_waiting",
                "Generations waiting for a place",
                now.waiting,
            ),
            (
                "kv_cells_used",
                "KV cells in use, cache included",
                now.kv_cells_used,
            ),
            ("kv_cells", "KV cells of the buffer", now.kv_cells_total),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::from(value));
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        let counters = [
            ("engine_steps", "Batches computed", now.steps_total),
            (
                "engine_prefill_tokens",
                "Prompt tokens computed",
                now.prefill_tokens_total,
            ),
            (
                "engine_cached_tokens",
                "Prompt tokens reused",
                now.cached_tokens_total,
            ),
            (
                "engine_generated_tokens",
                "Tokens sampled",
                now.generated_tokens_total,
            ),
            (
                "engine_cancelled",
                "Generations whose client left",
                now.cancelled_total,
            ),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}

/// The page that Prometheus scrapes.
pub(crate) async fn show(State(state): State<AppState>) -> Response {
    state.metrics.page()
}
