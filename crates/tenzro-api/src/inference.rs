//! The seam between the HTTP edge and whatever computes the answer.

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tenzro_protocol::inference::{
    EmbedRequest, Embeddings, EngineGauges, GenerateError, GenerateEvent, GenerateRequest,
    ModelCard, PromptSize, ServerState,
};

/// Events of one generation in the order of [`tenzro_protocol::inference`]; dropping it cancels.
pub type GenerateStream = BoxStream<'static, Result<GenerateEvent, GenerateError>>;

/// Computes answers. Implemented by `tenzro-node` for the built-in engine and for an upstream one.
pub trait Inference: Send + Sync + 'static {
    /// Where the server is in its life; `/health` shows it.
    fn state(&self) -> ServerState;

    /// Models that requests may name. Empty while loading.
    fn models(&self) -> Vec<ModelCard>;

    /// Admits or refuses at once, then streams. `model` is the id of one of [`Self::models`].
    fn generate(
        &self,
        model: &str,
        request: GenerateRequest,
    ) -> BoxFuture<'static, Result<GenerateStream, GenerateError>>;

    /// Size of the prompt, before anything is computed for it. Refuses what [`Self::generate`] would
    /// refuse for what the request says, as far as that can be told without the engine's help.
    fn count_prompt(
        &self,
        model: &str,
        request: &GenerateRequest,
    ) -> BoxFuture<'static, Result<PromptSize, GenerateError>>;

    /// Embeds all inputs or none.
    fn embed(
        &self,
        model: &str,
        request: EmbedRequest,
    ) -> BoxFuture<'static, Result<Embeddings, GenerateError>>;

    /// Size of all inputs together, before anything is computed for them; refuses as
    /// [`Self::count_prompt`] does.
    fn count_inputs(
        &self,
        model: &str,
        request: &EmbedRequest,
    ) -> BoxFuture<'static, Result<PromptSize, GenerateError>>;

    /// What the engine is doing, for `/metrics`; `None` when the engine does not tell.
    fn gauges(&self) -> Option<EngineGauges>;
}
