//! What the operator's log says. A process of its own, because a log belongs to the whole process.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;
use tenzro_api::{Limits, Server, ServerConfig};
use tenzro_protocol::inference::GenerateError;
use tenzro_testkit::fake_inference::{FakeInference, Script};

/// Collects what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_internal_error_is_in_the_log_with_the_id_of_its_request_and_not_in_the_answer() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::ERROR)
        .with_writer(move || writer.clone())
        .init();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let broken = GenerateError::Internal {
        message: "secret detail".to_owned(),
    };
    let config = ServerConfig {
        listen: "127.0.0.1:0".parse().expect("an address"),
        cors: false,
        fingerprint: "test".to_owned(),
        limits: Limits::default(),
    };
    let engine = Arc::new(FakeInference::new(Script::Break(broken)));
    let server = Server::bind(config, engine, None)
        .await
        .expect("a free port");
    let url = format!("http://{}/v1/chat/completions", server.local_addr());
    for (id, stream) in [("whole-1", false), ("stream-2", true)] {
        let body = json!({
            "model": "fake", "messages": [{"role": "user", "content": "Hi"}], "stream": stream,
        });
        let request = reqwest::Client::new().post(&url).json(&body);
        let answer = request.header("x-request-id", id).send().await;
        let answer = answer.expect("an answer").text().await.expect("text");
        assert!(answer.contains("server_error"), "{answer}");
        assert!(!answer.contains("secret detail"), "{answer}");
    }
    let log = log.text();
    for id in ["whole-1", "stream-2"] {
        let of_request = |line: &str| line.contains(id) && line.contains("secret detail");
        assert!(log.lines().any(of_request), "{id} is missing in\n{log}");
    }
}
