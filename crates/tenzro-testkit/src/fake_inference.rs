//! A deterministic engine for tests of the HTTP side: each test says what it answers, and whether a
//! stream was dropped before its end. Like the built-in engine it starts with the first token that
//! is paid for and says none beyond the budget.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use tenzro_api::{GenerateStream, Inference};
use tenzro_protocol::inference::{
    Delta, EmbedRequest, Embeddings, EngineGauges, FinishReason, Finished, GenerateError,
    GenerateEvent, GenerateRequest, ModelCard, PromptSize, ScoredToken, ServerState, Started,
    TokenHold, TokenLogprob, Usage,
};
use tokio::sync::watch;

/// Tokens of every prompt.
pub const PROMPT_TOKENS: u32 = 5;

/// Tokens of the inputs of every [`EmbedRequest`], all together.
pub const INPUT_TOKENS: u32 = 3;

/// What the engine does with every request.
#[derive(Debug, Clone)]
pub enum Script {
    /// These pieces, one token each.
    Say(Vec<&'static str>),
    /// These pieces, of that many tokens each.
    SayTokens(Vec<(&'static str, u32)>),
    /// One piece, then nothing until [`FakeInference::release`].
    SayAndWait(&'static str),
    /// Refuse at once.
    Refuse(GenerateError),
    /// One piece, then this error.
    Break(GenerateError),
    /// These pieces, then this error.
    SayAndBreak(Vec<&'static str>, GenerateError),
}

/// See the module header.
#[derive(Debug)]
pub struct FakeInference {
    script: Script,
    state: ServerState,
    prompt_size: PromptSize,
    late_tokens: u32,
    together: usize,
    counted: AtomicUsize,
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
            prompt_size: PromptSize::exact(PROMPT_TOKENS),
            late_tokens: 0,
            together: 0,
            counted: AtomicUsize::new(0),
            dropped: Arc::new(watch::Sender::new(0)),
            released: Arc::new(watch::Sender::new(false)),
            requests: watch::Sender::default(),
        }
    }

    /// Knows no more of a prompt than that it has at least and at most so many tokens, until its
    /// answer is complete.
    #[must_use]
    pub fn guessing(mut self, least: u32, tokens: u32) -> Self {
        self.prompt_size = PromptSize { tokens, least };
        self
    }

    /// Begins no answer before it was asked for so many.
    #[must_use]
    pub fn beginning_together(mut self, answers: usize) -> Self {
        self.together = answers;
        self
    }

    /// Tells at the end of an answer of that many tokens more that it had.
    #[must_use]
    pub fn telling_late(mut self, tokens: u32) -> Self {
        self.late_tokens = tokens;
        self
    }

    /// How often it was asked for the size of a prompt or of inputs.
    pub fn counted(&self) -> usize {
        self.counted.load(Ordering::Relaxed)
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
fn piece(text: &str, token_count: u32, logprobs: Option<u8>) -> GenerateEvent {
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
        token_count,
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
        let is_exact = self.prompt_size.is_exact();
        let late_tokens = self.late_tokens;
        let hold = TokenHold::new(request.budget.clone());
        self.requests.send_modify(|requests| requests.push(request));
        let mut begun = self.requests.subscribe();
        let together = self.together;
        let script = self.script.clone();
        let guard = Guard {
            dropped: Arc::clone(&self.dropped),
            is_over: false,
        };
        let mut released = self.released.subscribe();
        Box::pin(async move {
            let single = |pieces: Vec<&'static str>| -> Vec<_> {
                pieces.into_iter().map(|text| (text, 1)).collect()
            };
            let (pieces, waits, error) = match script {
                Script::Say(pieces) => (single(pieces), false, None),
                Script::SayTokens(pieces) => (pieces, false, None),
                Script::SayAndWait(piece) => (vec![(piece, 1)], true, None),
                Script::Break(error) => (vec![("half", 1)], false, Some(error)),
                Script::SayAndBreak(pieces, error) => (single(pieces), false, Some(error)),
                Script::Refuse(error) => {
                    guard.over();
                    return Err(error);
                }
            };
            let _ = begun.wait_for(|requests| requests.len() >= together).await;
            let tokens: u32 = pieces.iter().map(|(_, tokens)| tokens).sum();
            let started = GenerateEvent::Started(Started {
                prompt_tokens: if is_exact { PROMPT_TOKENS } else { 0 },
                cached_tokens: 2,
                queued: Duration::ZERO,
                provider: None,
            });
            let is_metered = tokens > 0;
            let said = pieces
                .into_iter()
                .map(move |(text, tokens)| (piece(text, tokens, logprobs), tokens));
            let events = std::iter::once((started, 0)).chain(said);
            let next = move |(mut hold, mut events): (TokenHold, _)| async move {
                let (event, tokens) = Iterator::next(&mut events)?;
                if is_metered {
                    poll_fn(|task| hold.poll_hold(task)).await;
                }
                hold.spend(tokens);
                Some((Ok(event), (hold, events)))
            };
            let head = futures::stream::unfold((hold, events), next);
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
                            prompt_tokens: PROMPT_TOKENS,
                            completion_tokens: tokens + late_tokens,
                            cached_tokens: 2,
                            cost: None,
                        },
                        late_tokens,
                    })),
                }
            };
            Ok(head.chain(futures::stream::once(last)).boxed())
        })
    }

    fn count_prompt(
        &self,
        _model: &str,
        _request: &GenerateRequest,
    ) -> BoxFuture<'static, Result<PromptSize, GenerateError>> {
        self.counted.fetch_add(1, Ordering::Relaxed);
        // A full queue, for one, is no fault of the prompt.
        let size = match &self.script {
            Script::Refuse(
                error @ (GenerateError::ContextLength { .. } | GenerateError::Invalid { .. }),
            ) => Err(error.clone()),
            _ => Ok(self.prompt_size),
        };
        Box::pin(async move { size })
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
                prompt_tokens: INPUT_TOKENS,
                provider: None,
                cost: None,
            })
        })
    }

    fn count_inputs(
        &self,
        _model: &str,
        _request: &EmbedRequest,
    ) -> BoxFuture<'static, Result<PromptSize, GenerateError>> {
        self.counted.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { Ok(PromptSize::exact(INPUT_TOKENS)) })
    }

    fn gauges(&self) -> Option<EngineGauges> {
        Some(EngineGauges {
            running: 1,
            ..EngineGauges::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tenzro_protocol::inference::{Prompt, Sampling, TokenBudget};

    use super::*;

    #[test]
    fn it_says_as_much_as_is_paid_for_and_counts_as_it_says() {
        let budget = TokenBudget::new(0);
        let request = GenerateRequest {
            prompt: Prompt::Text("?".to_owned()),
            max_tokens: None,
            sampling: Sampling::default(),
            stop: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            budget: Some(budget.clone()),
        };
        let engine = FakeInference::new(Script::Say(vec!["a", "b", "c"]));
        let counted = engine.count_prompt("fake", &request).now_or_never();
        let counted = counted.expect("at once").expect("counted");
        let mut stream = engine
            .generate("fake", request)
            .now_or_never()
            .expect("at once")
            .expect("admitted");
        let mut ready = || {
            let mut text = String::new();
            while let Some(Some(event)) = stream.next().now_or_never() {
                match event.expect("no error") {
                    GenerateEvent::Started(started) => {
                        assert_eq!(started.prompt_tokens, counted.tokens);
                        text.push('>');
                    }
                    GenerateEvent::Delta(delta) => text.push_str(&delta.text),
                    GenerateEvent::Finished(_) => text.push('.'),
                }
            }
            text
        };
        assert_eq!(ready(), "");
        budget.add(2);
        assert_eq!((ready().as_str(), budget.left()), (">ab", 0));
        budget.add(2);
        assert_eq!((ready().as_str(), budget.left()), ("c.", 1));
    }
}
