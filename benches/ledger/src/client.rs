//! A JSON-RPC client that costs little beside the servers on the same cores: bodies are made before
//! the clock runs, and connections are kept.

use std::time::{Duration, Instant};

use alloy::primitives::Bytes;
use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::work::Transfer;

/// Between two looks for a receipt.
const PAUSE: Duration = Duration::from_millis(2);
/// Between two blocks of anvil.
const MINE_PAUSE: Duration = Duration::from_millis(20);
/// How long the last transfers may take to be mined.
const MINED_WITHIN: Duration = Duration::from_secs(60);

/// Talks to one server.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        Ok(Self {
            http: reqwest::Client::builder().no_proxy().build()?,
            url: url.to_owned(),
        })
    }

    /// The answer's body.
    async fn post(&self, body: String) -> anyhow::Result<bytes::Bytes> {
        let request = self.http.post(&self.url).body(body);
        let request = request.header("content-type", "application/json");
        Ok(request.send().await?.bytes().await?)
    }

    /// The result; an error of the server is one here.
    pub(crate) async fn ask(&self, method: &str, params: Value) -> anyhow::Result<Value> {
        result(&self.post(body(method, params)).await?)
    }

    /// Repeats a call of a contract; how long each took. All answers have to be alike.
    pub(crate) async fn call_often(
        &self,
        to: alloy::primitives::Address,
        input: Bytes,
        times: usize,
    ) -> anyhow::Result<Vec<Duration>> {
        let body = body("eth_call", json!([{ "to": to, "input": input }, "latest"]));
        let first = result(&self.post(body.clone()).await?)?;
        ensure!(first.as_str().is_some_and(|hex| hex.len() > 2), "{first}");
        let mut waits = Vec::with_capacity(times);
        for _ in 0..times {
            let body = body.clone();
            let began = Instant::now();
            let answer = self.post(body).await?;
            waits.push(began.elapsed());
            ensure!(result(&answer)? == first, "another answer than before");
        }
        Ok(waits)
    }

    /// All senders at once, each one transfer after the other, until the last one of each is mined.
    /// How long each transfer waited for its acknowledgement, and all of it together.
    pub(crate) async fn send_all(
        &self,
        signed: Vec<Vec<Transfer>>,
    ) -> anyhow::Result<(Vec<Duration>, Duration)> {
        let send = |transfer: &Transfer| body("eth_sendRawTransaction", json!([transfer.raw]));
        let prepared: Vec<Vec<String>> = signed
            .iter()
            .map(|own| own.iter().map(send).collect())
            .collect();
        let last: Vec<String> = signed
            .iter()
            .filter_map(|own| Some(body("eth_getTransactionReceipt", json!([own.last()?.hash]))))
            .collect();
        let began = Instant::now();
        let senders: Vec<_> = prepared
            .into_iter()
            .map(|sends| tokio::spawn(self.clone().send_own(sends)))
            .collect();
        let mut waits = Vec::new();
        for sender in senders {
            waits.extend(sender.await??);
        }
        let acknowledged = Instant::now();
        for receipt in last {
            while result(&self.post(receipt.clone()).await?)?.is_null() {
                let is_late = acknowledged.elapsed() > MINED_WITHIN;
                ensure!(!is_late, "a transfer was acknowledged, but is not mined");
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok((waits, began.elapsed()))
    }

    /// Makes anvil mine blocks of all that waits, until the future is dropped. By itself it makes a
    /// block for each transaction, and stops for good when some thousand come quickly, as in
    /// <https://github.com/foundry-rs/foundry/issues/10122>.
    pub(crate) async fn mine(&self) -> anyhow::Result<()> {
        self.ask("evm_setAutomine", json!([false])).await?;
        loop {
            self.ask("evm_mine", json!([])).await?;
            tokio::time::sleep(MINE_PAUSE).await;
        }
    }

    async fn send_own(self, sends: Vec<String>) -> anyhow::Result<Vec<Duration>> {
        let mut waits = Vec::with_capacity(sends.len());
        for body in sends {
            let began = Instant::now();
            let answer = self.post(body).await?;
            waits.push(began.elapsed());
            result(&answer)?;
        }
        Ok(waits)
    }
}

fn body(method: &str, params: Value) -> String {
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string()
}

fn result(answer: &[u8]) -> anyhow::Result<Value> {
    let mut answer: Value = serde_json::from_slice(answer)?;
    let result = answer.get_mut("result").map(Value::take);
    result.with_context(|| answer.to_string())
}
