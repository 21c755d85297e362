//! A deterministic engine for tests of the HTTP side: each test says what it answers, and whether a
//! stream was dropped before its end.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use tenzro_api::{GenerateStream, Inference};
use tenzro_protocol::inference::{
    Delta, EmbedRequest, Embeddings, EngineGauges, FinishReason, Finished, GenerateError,
    GenerateEvent, GenerateRequest, ModelCard, ScoredToken, ServerState, Started, TokenLogprob,
    Usage,
};
use tokio::sync::watch;

/// What the engine does with every request.
#[derive(Debug, Clone)]
pub enum Script {
    /// These pieces, one token each.
    Say(Vec<&'static str>),
    /// One piece, then nothing until [`FakeInference::release`].
    SayAndWait(&'static str),
    /// Refuse at once.
    Refuse(GenerateError),
    /// One piece, then this error.
    Break(GenerateError),
}

/// See the module header.
#[derive(Debug)]
pub struct FakeInference {
    script: Script,
    state: ServerState,
    dropped: Arc<watch::Sender<usize>>,
    released: Arc<watch::Sender<bool>>,
    requests: watch::Sender<Vec<GenerateRequest>>,
}

impl FakeInference {
    /// Ready, with one model `fake` that is also called `maker/Fake-GGUF`.
    pub fn new(script: Script) -> Self {
        Self::in_state(script, ServerState::Ready)
    }

    /// In another state.
    pub fn in_state(script: Script, state: ServerState) -> Self {
        Self {
            script,
            state,
            dropped: Arc::new(watch::Sender::new(0)),
            released: Arc::new(watch::Sender::new(false)),
            requests: watch::Sender::default(),
        }
    }

    /// Requests so far, oldest first.
    pub fn requests(&self) -> Vec<GenerateRequest> {
        self.requests.borrow().clone()
    }

    /// Waits until there were so many requests.
    pub async fn wait_for_requests(&self, count: usize) {
        let mut requests = self.requests.subscribe();
        let enough = requests.wait_for(|requests| requests.len() >= count);
        tokio::time::timeout(Duration::from_secs(10), enough)
            .await
            .expect("the requests arrive")
            .expect("the engine lives");
    }

    /// Lets answers that wait end.
    pub fn release(&self) {
        self.released.send_replace(true);
    }

    /// Waits until so many streams were dropped before their end.
    pub async fn wait_for_dropped(&self, count: usize) {
        let mut dropped = self.dropped.subscribe();
        let enough = dropped.wait_for(|dropped| *dropped >= count);
        tokio::time::timeout(Duration::from_secs(10), enough)
            .await
            .expect("the stream is dropped")
            .expect("the engine lives");
    }
}

/// Counts a stream that is dropped before its end.
struct Guard {
    dropped: Arc<watch::Sender<usize>>,
    is_over: bool,
}

impl Guard {
    /// The stream came to its end.
    fn over(mut self) {
        self.is_over = true;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.is_over {
            self.dropped.send_modify(|count| *count += 1);
        }
    }
}

/// One token. The alternatives to it begin with itself and a byte that is no text on its own.
fn piece(text: &str, logprobs: Option<u8>) -> GenerateEvent {
    let scored = |bytes: &[u8], logprob| ScoredToken {
        bytes: bytes.to_vec(),
        logprob,
    };
    let logprobs = logprobs.map(|count| TokenLogprob {
        chosen: scored(text.as_bytes(), -0.5),
        top: [scored(text.as_bytes(), -0.5), scored(b"\xc3", -1.5)]
            .into_iter()
            .take(count.into())
            .collect(),
    });
    GenerateEvent::Delta(Delta {
        text: text.to_owned(),
        token_count: 1,
        logprobs: logprobs.into_iter().collect(),
    })
}

impl Inference for FakeInference {
    fn state(&self) -> ServerState {
        self.state.clone()
    }

    fn models(&self) -> Vec<ModelCard> {
        vec![ModelCard {
            id: "fake".to_owned(),
            created: 1,
            owned_by: "maker".to_owned(),
            aliases: vec!["maker/Fake-GGUF".to_owned()],
            context_length: Some(64),
            quantization: None,
            sha256: None,
            size_bytes: None,
        }]
    }

    fn generate(
        &self,
        _model: &str,
        request: GenerateRequest,
    ) -> BoxFuture<'static, Result<GenerateStream, GenerateError>> {
        let logprobs = request.logprobs;
        self.requests.send_modify(|requests| requests.push(request));
        let script = self.script.clone();
        let guard = Guard {
            dropped: Arc::clone(&self.dropped),
            is_over: false,
        };
        let mut released = self.released.subscribe();
        Box::pin(async move {
            let (pieces, waits, error) = match script {
                Script::Say(pieces) => (pieces, false, None),
                Script::SayAndWait(piece) => (vec![piece], true, None),
                Script::Break(error) => (vec!["half"], false, Some(error)),
                Script::Refuse(error) => {
                    guard.over();
                    return Err(error);
                }
            };
            let tokens = u32::try_from(pieces.len()).expect("few pieces");
            let started = GenerateEvent::Started(Started {
                prompt_tokens: 5,
                cached_tokens: 2,
                queued: Duration::ZERO,
            });
            let head = std::iter::once(started)
                .chain(pieces.into_iter().map(move |text| piece(text, logprobs)));
            let last = async move {
                if waits {
                    let _ = released.wait_for(|released| *released).await;
                }
                guard.over();
                match error {
                    Some(error) => Err(error),
                    None => Ok(GenerateEvent::Finished(Finished {
                        reason: FinishReason::Stop,
                        usage: Usage {
                            prompt_tokens: 5,
                            completion_tokens: tokens,
                            cached_tokens: 2,
                        },
                    })),
                }
            };
            let head = futures::stream::iter(head.map(Ok).collect::<Vec<_>>());
            Ok(head.chain(futures::stream::once(last)).boxed())
        })
    }

    fn embed(
        &self,
        _model: &str,
        request: EmbedRequest,
    ) -> BoxFuture<'static, Result<Embeddings, GenerateError>> {
        let count = request.inputs.len();
        Box::pin(async move {
            Ok(Embeddings {
                vectors: vec![vec![0.6, 0.8]; count],
                prompt_tokens: 3,
            })
        })
    }

    fn gauges(&self) -> Option<EngineGauges> {
        Some(EngineGauges {
            running: 1,
            ..EngineGauges::default()
        })
    }
}
