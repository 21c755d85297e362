//! Starts and stops the HTTP server.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::billing::Billing;
use crate::connections;
use crate::inference::Inference;
use crate::metrics::Metrics;
use crate::node::{self, NodeMetrics, NodeState};
use crate::routes;
use crate::rpc::JsonRpc;
use crate::state::AppState;

/// How long connections may take to close once all answers are over.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// How the server is reached and what it allows.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Address to listen on; port 0 chooses a free one.
    pub listen: SocketAddr,
    /// Allow pages of other origins to call `/v1`.
    pub cors: bool,
    /// Names the build in every answer.
    pub fingerprint: String,
    /// What a request may contain.
    pub limits: Limits,
}

/// How a node is reached and what it allows.
#[derive(Clone)]
pub struct NodeServerConfig {
    /// Address to listen on; port 0 chooses a free one.
    pub listen: SocketAddr,
    /// Allow pages of other origins to call.
    pub cors: bool,
    /// Whoever sends it may act with the node's wallet.
    pub operator_token: String,
    /// Names the build in every answer.
    pub fingerprint: String,
    /// What a request may contain.
    pub limits: Limits,
}

/// Without the token.
impl fmt::Debug for NodeServerConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("NodeServerConfig")
            .field("listen", &self.listen)
            .field("cors", &self.cors)
            .finish_non_exhaustive()
    }
}

/// What a request may contain. The defaults are OpenAI's limits where it documents one.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest body.
    pub body_bytes_max: usize,
    /// Messages of a chat.
    pub messages_max: usize,
    /// Answers of one request, over all prompts.
    pub choices_max: u32,
    /// Stop strings.
    pub stop_max: usize,
    /// Length of a stop string.
    pub stop_bytes_max: usize,
    /// Entries of `logit_bias`.
    pub logit_bias_max: usize,
    /// Inputs of an embedding request.
    pub inputs_max: usize,
    /// Time without an event after which a comment keeps a stream open.
    pub keep_alive: Duration,
    /// Connections at once; the next ones wait until one of them closes.
    pub connections_max: usize,
    /// Time for the whole head of a request, from the moment that the connection is free for it: an
    /// idle connection is closed after it.
    pub head_timeout: Duration,
    /// Time for the whole body of a request.
    pub body_timeout: Duration,
    /// Time without a byte of an answer being taken after which its client is given up.
    pub write_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 2 << 20,
            messages_max: 2048,
            choices_max: 16,
            stop_max: 4,
            stop_bytes_max: 512,
            logit_bias_max: 300,
            inputs_max: 2048,
            keep_alive: Duration::from_secs(10),
            connections_max: 1024,
            head_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
        }
    }
}

/// A running HTTP server.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    running: Running,
    closing: CancellationToken,
    task: JoinHandle<()>,
}

/// What a stop and the handlers share.
#[derive(Debug, Default)]
struct Running {
    /// Cancelled when no more requests are taken.
    stopping: CancellationToken,
    /// Holds one token per running answer.
    answers: TaskTracker,
    /// Cancelled when running answers have to end.
    cut: CancellationToken,
}

impl Server {
    /// A model server: listens and serves, for free without `billing`. Fails when the address is
    /// taken.
    pub async fn bind(
        config: ServerConfig,
        inference: Arc<dyn Inference>,
        billing: Option<Arc<dyn Billing>>,
    ) -> std::io::Result<Self> {
        Self::start(config.listen, config.limits, |server| {
            let state = AppState {
                metrics: Arc::new(Metrics::new(Arc::clone(&inference))),
                inference,
                billing,
                limits: config.limits,
                fingerprint: config.fingerprint.into(),
                stopping: server.stopping.clone(),
                answers: server.answers.clone(),
                cut: server.cut.clone(),
            };
            routes::router(state, config.cors)
        })
        .await
    }

    /// A node: listens and serves. Fails when the address is taken.
    pub async fn bind_node(
        config: NodeServerConfig,
        rpc: Arc<dyn JsonRpc>,
        inference: Arc<dyn Inference>,
    ) -> std::io::Result<Self> {
        Self::start(config.listen, config.limits, |server| {
            let metrics = Arc::new(NodeMetrics::new(Arc::clone(&rpc), Arc::clone(&inference)));
            let openai = AppState {
                metrics: Arc::clone(&metrics.answers),
                inference,
                billing: None,
                limits: config.limits,
                fingerprint: config.fingerprint.into(),
                stopping: server.stopping.clone(),
                answers: server.answers.clone(),
                cut: server.cut.clone(),
            };
            let node = NodeState {
                metrics,
                rpc,
                limits: config.limits,
                cors: config.cors,
                is_private: config.listen.ip().is_loopback(),
                token_hash: node::token_hash(&config.operator_token),
                stopping: server.stopping.clone(),
                answers: server.answers.clone(),
            };
            node::router(node, openai)
        })
        .await
    }

    async fn start(
        listen: SocketAddr,
        limits: Limits,
        router: impl FnOnce(&Running) -> Router,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let local_addr = listener.local_addr()?;
        let running = Running::default();
        let closing = CancellationToken::new();
        let router = router(&running);
        let task = tokio::spawn(connections::serve(
            listener,
            router,
            limits,
            closing.clone(),
        ));
        Ok(Self {
            local_addr,
            running,
            closing,
            task,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Refuses new requests with 503 while running answers finish, for at most `grace`, then cuts
    /// what is left and closes all connections. Meanwhile `/health` says that the server drains.
    /// True when all answers finished.
    pub async fn shutdown(mut self, grace: Duration) -> bool {
        let Running {
            stopping,
            answers,
            cut,
        } = &self.running;
        stopping.cancel();
        answers.close();
        let finished = tokio::time::timeout(grace, answers.wait()).await;
        if finished.is_err() {
            cut.cancel();
        }
        self.closing.cancel();
        let closed = tokio::time::timeout(CLOSE_GRACE, &mut self.task).await;
        if closed.is_err() {
            self.task.abort();
        }
        finished.is_ok()
    }
}
