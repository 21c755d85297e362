//! Starts and stops the HTTP server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connections;
use crate::inference::Inference;
use crate::metrics::Metrics;
use crate::routes;
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
        }
    }
}

/// A running HTTP server.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    stopping: CancellationToken,
    answers: TaskTracker,
    cut: CancellationToken,
    closing: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens and serves. Fails when the address is taken.
    pub async fn bind(
        config: ServerConfig,
        inference: Arc<dyn Inference>,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        let local_addr = listener.local_addr()?;
        let [stopping, cut, closing] = std::array::from_fn(|_| CancellationToken::new());
        let answers = TaskTracker::new();
        let state = AppState {
            metrics: Arc::new(Metrics::new(Arc::clone(&inference))),
            inference,
            limits: config.limits,
            fingerprint: config.fingerprint.into(),
            stopping: stopping.clone(),
            answers: answers.clone(),
            cut: cut.clone(),
        };
        let router = routes::router(state, config.cors);
        let task = tokio::spawn(connections::serve(
            listener,
            router,
            config.limits,
            closing.clone(),
        ));
        Ok(Self {
            local_addr,
            stopping,
            answers,
            cut,
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
        self.stopping.cancel();
        self.answers.close();
        let finished = tokio::time::timeout(grace, self.answers.wait()).await;
        if finished.is_err() {
            self.cut.cancel();
        }
        self.closing.cancel();
        let closed = tokio::time::timeout(CLOSE_GRACE, &mut self.task).await;
        if closed.is_err() {
            self.task.abort();
        }
        finished.is_ok()
    }
}
