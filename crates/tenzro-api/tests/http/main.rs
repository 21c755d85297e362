//! The API over real HTTP, with an engine that does as it is told.

mod answers;
mod connections;
mod gate;
mod operation;
mod paid;
mod paid_streams;
mod refusals;
mod till;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tenzro_api::billing::Billing;
use tenzro_api::{Inference, Limits, Server, ServerConfig};
use tenzro_protocol::sse::SseParser;
use tenzro_testkit::fake_inference::{FakeInference, Script};

use crate::till::Till;

struct Setup {
    server: Server,
    engine: Arc<FakeInference>,
    http: reqwest::Client,
}

/// Any free port, and no long waits.
fn config() -> ServerConfig {
    ServerConfig {
        listen: "127.0.0.1:0".parse().expect("an address"),
        cors: false,
        fingerprint: "test".to_owned(),
        limits: Limits {
            keep_alive: Duration::from_millis(50),
            ..Limits::default()
        },
    }
}

impl Setup {
    async fn new(engine: FakeInference) -> Self {
        Self::with(config(), engine).await
    }

    async fn with(config: ServerConfig, engine: FakeInference) -> Self {
        Self::open(config, engine, None).await
    }

    /// For money.
    async fn paid(engine: FakeInference, till: &Till) -> Self {
        Self::open(config(), engine, Some(Arc::new(till.clone()))).await
    }

    async fn open(
        config: ServerConfig,
        engine: FakeInference,
        billing: Option<Arc<dyn Billing>>,
    ) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let engine = Arc::new(engine);
        let inference: Arc<dyn Inference> = engine.clone();
        let server = Server::bind(config, inference, billing).await;
        Self {
            server: server.expect("a free port"),
            engine,
            http: reqwest::Client::new(),
        }
    }

    async fn saying(pieces: &[&'static str]) -> Self {
        Self::new(FakeInference::new(Script::Say(pieces.to_vec()))).await
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.local_addr())
    }

    async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        let request = self.http.post(self.url(path)).json(body);
        request.send().await.expect("an answer")
    }

    async fn pay(&self, path: &str, payment: &str, body: &Value) -> reqwest::Response {
        let request = self.http.post(self.url(path)).json(body);
        let request = request.header("payment-authorization", format!("Payment {payment}"));
        request.send().await.expect("an answer")
    }

    /// Pays without asking for anything.
    async fn top_up(&self, payment: &str) {
        let request = self.http.head(self.url(CHAT));
        let request = request.header("authorization", format!("Payment {payment}"));
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
    }

    async fn error(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = self.post(path, body).await;
        let status = response.status().as_u16();
        let body: Value = response.json().await.expect("JSON");
        let error = body["error"].clone();
        assert!(
            error["message"].is_string() && error["type"].is_string(),
            "{body}"
        );
        assert!(
            error.get("param").is_some() && error.get("code").is_some(),
            "{body}"
        );
        (status, error)
    }

    async fn events(&self, path: &str, body: &Value) -> Vec<String> {
        let bytes = self.post(path, body).await.bytes().await.expect("a body");
        SseParser::default().push(&bytes).expect("events")
    }
}

fn chat(more: Value) -> Value {
    let mut body = json!({"model": "fake", "messages": [{"role": "user", "content": "Hi"}]});
    let fields = body.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    body
}

const CHAT: &str = "/v1/chat/completions";
