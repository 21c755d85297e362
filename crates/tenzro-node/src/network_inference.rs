//! All models of the network as one server sees them: finds who serves a model, and pays it with the node's
//! wallet.
//!
//! ```text
//! model ─▶ Directory: who serves it? ─▶ choice.rs ─┬ this home's own server  for free, with the operator token
//!                                                  ├ a local endpoint        for free
//!                                                  └ a provider              PayingClient, at the registered price
//! ```

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use tenzro_api::{GenerateStream, Inference};
use tenzro_engine::Tokenizer;
use tenzro_hub::{HashState, Library};
use tenzro_payments::payer::Payer;
use tenzro_payments::payer::terms::Expected;
use tenzro_protocol::amount::Wei;
use tenzro_protocol::inference::{
    EmbedRequest, Embeddings, EngineGauges, GenerateError, GenerateEvent, GenerateRequest,
    ModelCard, PromptSize, ServerState,
};
use tenzro_protocol::network::{EndpointInfo, EndpointStatus, Location};

use crate::choice::{self, Candidate, Demand, PricesMax, Relation, Wish};
use crate::config::WINDOW_TOKENS_MAX;
use crate::directory::provider_of;
use crate::node_rpc::NodeRpc;
use crate::openai_client::OpenAiClient;
use crate::operator_token::operator_token;
use crate::paying_client::PayingClient;
use crate::servers::{ServerRecord, Servers};
use crate::upstream::Upstream;

/// Endpoints whose connections and challenges are kept.
const KEPT_MAX: usize = 256;

/// See the module header; cheap to clone.
#[derive(Clone)]
pub(crate) struct NetworkInference {
    inner: Arc<Inner>,
}

struct Inner {
    node: Arc<NodeRpc>,
    payer: Option<Payer>,
    /// What the settings allow.
    prices_max: PricesMax,
    /// Models whose answers can be counted.
    library: Library,
    allow_private: bool,
    kept: Mutex<HashMap<String, Kept>>,
}

/// A way to an endpoint, as long as it stays the same endpoint at the same price.
struct Kept {
    endpoint: EndpointInfo,
    relation: Relation,
    inference: Arc<Upstream>,
}

/// Who answers.
pub(crate) struct Chosen {
    pub(crate) endpoint: EndpointInfo,
    is_free: bool,
    inference: Arc<Upstream>,
}

/// What is told of who answers where nobody is paid.
const LOCAL: &str = "local";

impl Chosen {
    /// The provider's wallet, or `local` for a model server of this home and the node's own endpoints.
    fn provider(&self) -> String {
        let provider = self.endpoint.provider.clone();
        provider
            .filter(|_| !self.is_free)
            .unwrap_or_else(|| LOCAL.to_owned())
    }

    /// Its answer, which says who gives it, and that nothing was paid where that is known.
    pub(crate) async fn generate(
        self,
        request: GenerateRequest,
    ) -> Result<GenerateStream, GenerateError> {
        let stream = self
            .inference
            .generate(&self.endpoint.model_id, request)
            .await?;
        let (provider, is_free) = (self.provider(), self.is_free);
        let told = stream.map(move |event| {
            let mut event = event?;
            match &mut event {
                GenerateEvent::Started(started) => started.provider = Some(provider.clone()),
                GenerateEvent::Finished(finished) if is_free => {
                    finished.usage.cost = Some(Wei::ZERO);
                }
                GenerateEvent::Delta(_) | GenerateEvent::Finished(_) => {}
            }
            Ok(event)
        });
        Ok(told.boxed())
    }

    async fn embed(self, request: EmbedRequest) -> Result<Embeddings, GenerateError> {
        let vectors = self
            .inference
            .embed(&self.endpoint.model_id, request)
            .await?;
        Ok(Embeddings {
            provider: Some(self.provider()),
            cost: if self.is_free {
                Some(Wei::ZERO)
            } else {
                vectors.cost
            },
            ..vectors
        })
    }
}

impl NetworkInference {
    pub(crate) fn new(
        node: Arc<NodeRpc>,
        library: Library,
        allow_private: bool,
        prices_max: PricesMax,
    ) -> Self {
        let inner = Inner {
            payer: node.payer.clone(),
            node,
            prices_max,
            library,
            allow_private,
            kept: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The endpoint that serves a model, of that provider where one is named, at no more than `price_max` for
    /// a token in either direction: a free one before others, then where the request costs least.
    pub(crate) async fn choose(
        &self,
        model: &str,
        demand: Demand,
        provider: Option<&str>,
        price_max: Option<Wei>,
    ) -> Result<Chosen, GenerateError> {
        let inner = &self.inner;
        let endpoints = inner
            .node
            .with_directory(|directory| directory.endpoints(Some(model)));
        let running = Servers::new(&inner.node.home).running().unwrap_or_default();
        let candidates: Vec<Candidate<'_>> = endpoints
            .iter()
            .map(|endpoint| Candidate {
                endpoint,
                relation: inner.relation(endpoint, &running),
            })
            .collect();
        let wish = Wish {
            provider,
            caller: PricesMax::both(price_max),
            owner: inner.prices_max,
        };
        let best = choice::choose(model, &candidates, demand, &wish)?;
        Ok(Chosen {
            endpoint: best.endpoint.clone(),
            is_free: best.relation == Relation::Free,
            inference: self.way_to(best).await?,
        })
    }

    async fn way_to(&self, to: Candidate<'_>) -> Result<Arc<Upstream>, GenerateError> {
        let Candidate { endpoint, relation } = to;
        if let Some(known) = self.inner.kept().get(&endpoint.endpoint_id)
            && known.relation == relation
            && is_same(&known.endpoint, endpoint)
        {
            return Ok(Arc::clone(&known.inference));
        }
        let (inner, new) = (Arc::clone(&self.inner), endpoint.clone());
        // A tokenizer is read from its file, and that takes a while.
        let connected = tokio::task::spawn_blocking(move || inner.connect(&new, relation)).await;
        let connected = connected.map_err(|error| GenerateError::Internal {
            message: error.to_string(),
        });
        let inference = Arc::new(connected??);
        let mut kept = self.inner.kept();
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        let new = Kept {
            endpoint: endpoint.clone(),
            relation,
            inference: Arc::clone(&inference),
        };
        kept.insert(endpoint.endpoint_id.clone(), new);
        Ok(inference)
    }

    /// Who would be asked with nobody's wishes.
    fn any(
        &self,
        model: &str,
        demand: Demand,
    ) -> BoxFuture<'static, Result<Chosen, GenerateError>> {
        let (this, model) = (self.clone(), model.to_owned());
        async move { this.choose(&model, demand, None, None).await }.boxed()
    }
}

impl Inner {
    fn kept(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn relation(&self, endpoint: &EndpointInfo, running: &[ServerRecord]) -> Relation {
        if endpoint.location == Location::Local || is_behind(running, endpoint) {
            return Relation::Free;
        }
        let own = self.node.account.as_ref().map(|account| account.address());
        match own.is_some() && provider_of(endpoint) == own {
            true => Relation::Own,
            false => Relation::Seller,
        }
    }

    fn connect(
        &self,
        endpoint: &EndpointInfo,
        relation: Relation,
    ) -> Result<Upstream, GenerateError> {
        let (url, card) = (&endpoint.api_endpoint, card(endpoint));
        let name = endpoint.model_id.clone();
        let unusable = |reason: String| GenerateError::Upstream {
            status: None,
            message: reason,
        };
        if relation == Relation::Free {
            // The token goes to servers of this home only.
            let running = Servers::new(&self.node.home).running().unwrap_or_default();
            let token = is_behind(&running, endpoint)
                .then(|| operator_token(&self.node.home))
                .flatten();
            let client = OpenAiClient::new(url).map_err(|error| unusable(error.to_string()))?;
            return Ok(Upstream::new(client.with_token(token), name, card));
        }
        let payer = self.payer.clone().ok_or_else(no_wallet)?;
        let expected = expected(endpoint)?;
        let tokenizer = endpoint
            .model_hash
            .as_ref()
            .and_then(|hash| self.tokenizer(hash));
        let client = PayingClient::new(url, self.allow_private, payer, expected, tokenizer);
        let client = client.map_err(|error| unusable(error.to_string()))?;
        Ok(Upstream::new(client, name, card))
    }

    /// A model's tokenizer, where its very file is in the library of this home: what a provider charges is
    /// then held against it, and not only against the bytes of the text.
    fn tokenizer(&self, hash: &str) -> Option<Tokenizer> {
        let entries = self.library.list().ok()?;
        let entry = entries.into_iter().find(|entry| entry.sha256() == hash)?;
        if entry.quick_state() != HashState::Unchanged {
            return None;
        }
        match Tokenizer::open(entry.path()) {
            Ok(tokenizer) => Some(tokenizer),
            Err(error) => {
                tracing::warn!(model = entry.id, error, "its tokens cannot be counted");
                None
            }
        }
    }
}

impl Inference for NetworkInference {
    fn state(&self) -> ServerState {
        ServerState::Ready
    }

    fn models(&self) -> Vec<ModelCard> {
        let endpoints = self
            .inner
            .node
            .with_directory(|directory| directory.endpoints(None));
        let mut cards: Vec<ModelCard> = Vec::new();
        for endpoint in endpoints
            .iter()
            .filter(|one| one.status != EndpointStatus::Inactive)
        {
            if cards.iter().all(|card| card.id != endpoint.model_id) {
                cards.push(card(endpoint));
            }
        }
        cards
    }

    fn generate(
        &self,
        model: &str,
        request: GenerateRequest,
    ) -> BoxFuture<'static, Result<GenerateStream, GenerateError>> {
        let chosen = self.any(model, Demand::of_answer(&request));
        async move { chosen.await?.generate(request).await }.boxed()
    }

    fn count_prompt(
        &self,
        model: &str,
        request: &GenerateRequest,
    ) -> BoxFuture<'static, Result<PromptSize, GenerateError>> {
        let chosen = self.any(model, Demand::of_answer(request));
        let (model, request) = (model.to_owned(), request.clone());
        async move { chosen.await?.inference.count_prompt(&model, &request).await }.boxed()
    }

    fn embed(
        &self,
        model: &str,
        request: EmbedRequest,
    ) -> BoxFuture<'static, Result<Embeddings, GenerateError>> {
        let chosen = self.any(model, Demand::of_vectors(&request));
        async move { chosen.await?.embed(request).await }.boxed()
    }

    fn count_inputs(
        &self,
        model: &str,
        request: &EmbedRequest,
    ) -> BoxFuture<'static, Result<PromptSize, GenerateError>> {
        let chosen = self.any(model, Demand::of_vectors(request));
        let (model, request) = (model.to_owned(), request.clone());
        async move { chosen.await?.inference.count_inputs(&model, &request).await }.boxed()
    }

    fn gauges(&self) -> Option<EngineGauges> {
        None
    }
}

impl fmt::Debug for NetworkInference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("NetworkInference")
    }
}

/// Whether a running model server of this home is behind the endpoint.
fn is_behind(running: &[ServerRecord], endpoint: &EndpointInfo) -> bool {
    running.iter().any(|server| {
        let place = server.on_ledger.as_ref().map(|place| &place.base_url);
        server.base_url == endpoint.api_endpoint || place == Some(&endpoint.api_endpoint)
    })
}

/// Whether what is known of an endpoint's challenges and connections still holds.
fn is_same(known: &EndpointInfo, now: &EndpointInfo) -> bool {
    known.api_endpoint == now.api_endpoint
        && known.location == now.location
        && known.model_hash == now.model_hash
        && known.context_length == now.context_length
        && known.price_per_input_token == now.price_per_input_token
        && known.price_per_output_token == now.price_per_output_token
}

/// What the registry says about a seller.
fn expected(endpoint: &EndpointInfo) -> Result<Expected, GenerateError> {
    let odd = |what: &str| GenerateError::Upstream {
        status: None,
        message: format!("the registry's {what} of this endpoint cannot be used"),
    };
    let payee = provider_of(endpoint).ok_or_else(|| odd("provider"))?;
    let (Some(input), Some(output)) = (
        endpoint.price_per_input_token,
        endpoint.price_per_output_token,
    ) else {
        return Err(odd("price"));
    };
    let hash = endpoint.model_hash.as_ref().map(|hash| hash.parse());
    Ok(Expected {
        payee,
        model: endpoint.model_id.clone(),
        model_hash: hash.transpose().map_err(|_| odd("model hash"))?,
        input_price_max: input.0,
        output_price_max: output.0,
        window_tokens_max: WINDOW_TOKENS_MAX,
        answer_tokens_max: Expected::answer_tokens_max(endpoint.context_length),
    })
}

fn card(endpoint: &EndpointInfo) -> ModelCard {
    ModelCard {
        id: endpoint.model_id.clone(),
        created: 0,
        owned_by: endpoint
            .provider
            .clone()
            .unwrap_or_else(|| "local".to_owned()),
        aliases: Vec::new(),
        context_length: endpoint.context_length,
        quantization: endpoint.quantization.clone(),
        sha256: endpoint.model_hash.clone(),
        size_bytes: None,
    }
}

fn no_wallet() -> GenerateError {
    GenerateError::Unavailable {
        message: "this node has no wallet to pay with: tenzro-cli wallet create".to_owned(),
    }
}
