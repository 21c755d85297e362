//! The built-in engine as the HTTP side sees it: refusing while it loads, then answering.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::StreamExt;
use futures::future::BoxFuture;
use tenzro_api::{GenerateStream, Inference};
use tenzro_engine::Engine;
use tenzro_protocol::inference::{
    EmbedRequest, Embeddings, EngineGauges, GenerateError, GenerateRequest, ModelCard, PromptSize,
    ServerState,
};

/// An engine that may not be loaded yet.
#[derive(Debug, Default)]
pub(crate) struct LocalInference {
    loaded: OnceLock<(Engine, ModelCard)>,
    /// Bits of a float between 0 and 1.
    progress: AtomicU32,
}

impl LocalInference {
    pub(crate) fn set_progress(&self, progress: f32) {
        self.progress.store(progress.to_bits(), Ordering::Relaxed);
    }

    /// Requests are served from now on.
    pub(crate) fn set_loaded(&self, engine: Engine, card: ModelCard) {
        assert!(self.loaded.set((engine, card)).is_ok(), "loaded twice");
    }

    /// The engine, once it is loaded.
    pub(crate) fn engine(&self) -> Option<&Engine> {
        self.loaded.get().map(|(engine, _)| engine)
    }
}

fn loading() -> GenerateError {
    GenerateError::Unavailable {
        message: "the model is still loading".to_owned(),
    }
}

/// Rendering and tokenizing a long prompt takes milliseconds: not on a thread that answers health
/// checks.
async fn tokenizing<T: Send + 'static>(
    engine: Option<Engine>,
    work: impl FnOnce(&Engine) -> Result<T, GenerateError> + Send + 'static,
) -> Result<T, GenerateError> {
    let engine = engine.ok_or_else(loading)?;
    let done = tokio::task::spawn_blocking(move || work(&engine)).await;
    done.map_err(|error| GenerateError::Internal {
        message: error.to_string(),
    })?
}

impl Inference for LocalInference {
    fn state(&self) -> ServerState {
        match self.loaded.get() {
            Some(_) => ServerState::Ready,
            None => ServerState::Loading {
                progress: f32::from_bits(self.progress.load(Ordering::Relaxed)),
            },
        }
    }

    fn models(&self) -> Vec<ModelCard> {
        self.loaded
            .get()
            .map(|(_, card)| card.clone())
            .into_iter()
            .collect()
    }

    fn generate(
        &self,
        _model: &str,
        request: GenerateRequest,
    ) -> BoxFuture<'static, Result<GenerateStream, GenerateError>> {
        let engine = self.engine().cloned();
        Box::pin(async move {
            let stream = tokenizing(engine, move |engine| engine.generate(request)).await?;
            Ok(stream.boxed())
        })
    }

    fn count_prompt(
        &self,
        _model: &str,
        request: &GenerateRequest,
    ) -> BoxFuture<'static, Result<PromptSize, GenerateError>> {
        let (engine, request) = (self.engine().cloned(), request.clone());
        Box::pin(async move {
            let tokens = tokenizing(engine, move |engine| engine.count_prompt(&request));
            Ok(PromptSize::exact(tokens.await?))
        })
    }

    fn embed(
        &self,
        _model: &str,
        request: EmbedRequest,
    ) -> BoxFuture<'static, Result<Embeddings, GenerateError>> {
        let engine = self.engine().cloned();
        Box::pin(async move { engine.ok_or_else(loading)?.embed(request).await })
    }

    fn count_inputs(
        &self,
        _model: &str,
        request: &EmbedRequest,
    ) -> BoxFuture<'static, Result<PromptSize, GenerateError>> {
        let (engine, request) = (self.engine().cloned(), request.clone());
        Box::pin(async move {
            let tokens = tokenizing(engine, move |engine| engine.count_inputs(&request));
            Ok(PromptSize::exact(tokens.await?))
        })
    }

    fn gauges(&self) -> Option<EngineGauges> {
        self.engine().map(Engine::gauges)
    }
}
