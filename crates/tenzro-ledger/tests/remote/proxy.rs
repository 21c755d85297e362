//! Stands between the ledger and anvil, and misbehaves as hosted nodes do.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::transports::http::reqwest;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// What happens to a call instead of its answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// An HTTP status, with the seconds of `Retry-After` where given.
    Status(u16, Option<u64>),
    /// An error of JSON-RPC with an HTTP status.
    Refusal(u16, i64, &'static str),
    /// The connection ends without an answer; the chain never sees the call.
    Cut,
    /// The connection ends without an answer, after the chain did what was asked.
    LoseAnswer,
    /// An answer that is none.
    Garbage,
    /// "There is none", of a node that lags behind another.
    Null,
    /// The true answer, but a list without that field in its entries.
    Without(&'static str),
    /// The true answer, later.
    Delay(Duration),
    /// The true answer, once that is told; the chain does not see the call before.
    Hold(Arc<Notify>),
}

/// A call that came by.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) params: Value,
    /// How many of the same method came before.
    pub(crate) earlier: usize,
}

impl Call {
    /// Blocks that `eth_getLogs` asks for.
    pub(crate) fn range(&self) -> u64 {
        let number = |name: &str| {
            let text = self.params[0][name].as_str().unwrap_or_default();
            u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("a number")
        };
        number("toBlock") - number("fromBlock") + 1
    }
}

type Rule = Arc<dyn Fn(&Call) -> Option<Fault> + Send + Sync>;

pub(crate) struct Proxy {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

struct Shared {
    target: String,
    client: reqwest::Client,
    rule: Mutex<Rule>,
    calls: Mutex<Vec<Call>>,
}

impl Proxy {
    /// Passes on what the rule names no fault for.
    pub(crate) async fn start(
        target: String,
        rule: impl Fn(&Call) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address: SocketAddr = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            target,
            client: reqwest::Client::new(),
            rule: Mutex::new(Arc::new(rule)),
            calls: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                let service = service_fn(move |request| answer(Arc::clone(&shared), request));
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move {
                    // A cut connection is what was asked for.
                    let _ = connection.await;
                });
            }
        });
        Self {
            url: format!("http://{address}"),
            shared,
        }
    }

    /// From now on.
    pub(crate) fn set(&self, rule: impl Fn(&Call) -> Option<Fault> + Send + Sync + 'static) {
        *self.shared.rule.lock().expect("not poisoned") = Arc::new(rule);
    }

    /// Calls of that method so far.
    pub(crate) fn calls(&self, method: &str) -> Vec<Call> {
        let calls = self.shared.calls.lock().expect("not poisoned");
        let of_method = calls.iter().filter(|call| call.method == method);
        of_method.cloned().collect()
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let body = axum::body::to_bytes(Body::new(request.into_body()), usize::MAX);
    let body = body.await.map_err(io::Error::other)?;
    let content: Value = serde_json::from_slice(&body)?;
    let (call, rule) = {
        let mut calls = shared.calls.lock().expect("not poisoned");
        let method = content["method"].as_str().unwrap_or_default().to_owned();
        let earlier = calls.iter().filter(|call| call.method == method).count();
        let params = content["params"].clone();
        let call = Call {
            method,
            params,
            earlier,
        };
        calls.push(call.clone());
        (call, Arc::clone(&shared.rule.lock().expect("not poisoned")))
    };
    let forward = async || {
        let request = shared.client.post(&shared.target).body(body.clone());
        let request = request.header("content-type", "application/json");
        let answer = request.send().await.map_err(io::Error::other)?;
        answer.bytes().await.map_err(io::Error::other)
    };
    match rule(&call) {
        None => Ok(response(200, None, forward().await?)),
        Some(Fault::Without(field)) => {
            let mut content: Value = serde_json::from_slice(&forward().await?)?;
            for entry in content["result"].as_array_mut().into_iter().flatten() {
                entry.as_object_mut().map(|entry| entry.remove(field));
            }
            Ok(response(200, None, content.to_string()))
        }
        Some(Fault::Delay(time)) => {
            tokio::time::sleep(time).await;
            Ok(response(200, None, forward().await?))
        }
        Some(Fault::Hold(until)) => {
            until.notified().await;
            Ok(response(200, None, forward().await?))
        }
        Some(Fault::Status(status, retry_after)) => {
            Ok(response(status, retry_after, "<html>no</html>"))
        }
        Some(Fault::Refusal(status, code, message)) => {
            let error = json!({ "code": code, "message": message });
            let content = json!({ "jsonrpc": "2.0", "id": content["id"], "error": error });
            Ok(response(status, None, content.to_string()))
        }
        Some(Fault::Garbage) => Ok(response(200, None, "{\"jsonrpc\":\"2.0\",\"result\":\"0x")),
        Some(Fault::Null) => {
            let content = json!({ "jsonrpc": "2.0", "id": content["id"], "result": null });
            Ok(response(200, None, content.to_string()))
        }
        Some(Fault::Cut) => Err(io::Error::other("cut")),
        Some(Fault::LoseAnswer) => {
            forward().await?;
            Err(io::Error::other("lost"))
        }
    }
}

fn response(status: u16, retry_after: Option<u64>, body: impl Into<Body>) -> Response<Body> {
    let mut builder = Response::builder()
        .status(status)
        .header("content-type", "application/json");
    if let Some(seconds) = retry_after {
        builder = builder.header("retry-after", seconds);
    }
    builder.body(body.into()).expect("a response")
}
