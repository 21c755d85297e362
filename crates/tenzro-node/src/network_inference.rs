//! All models of the network as one server sees them: finds who serves a model, and pays it with the node's
//! wallet.
//!
//! ```text
//! model ─▶ Directory: who serves it? ─┬ this home's own server  for free, with the operator token
//!                                     ├ a local endpoint        for free
//!                                     └ a provider              PayingClient, at the registered price
//! ```

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use tenzro_api::{GenerateStream, Inference};
use tenzro_engine::Tokenizer;
use tenzro_hub::{HashState, Library};
use tenzro_ledger::Address;
use tenzro_payments::payer::Payer;
use tenzro_payments::payer::audit::Recount;
use tenzro_payments::payer::terms::Expected;
use tenzro_protocol::inference::{
    EmbedRequest, Embeddings, EngineGauges, GenerateError, GenerateRequest, ModelCard, PromptSize,
    ServerState,
};
use tenzro_protocol::network::{EndpointInfo, EndpointStatus, Location};

use crate::node_rpc::NodeRpc;
use crate::openai_client::OpenAiClient;
use crate::operator_token::operator_token;
use crate::paying_client::PayingClient;
use crate::servers::Servers;
use crate::upstream::Upstream;

/// Output tokens that are paid ahead at most, whatever a provider would like.
const WINDOW_TOKENS_MAX: u32 = 64;
/// Endpoints whose connections and challenges are kept.
const KEPT_MAX: usize = 256;

/// See the module header.
pub(crate) struct NetworkInference {
    node: Arc<NodeRpc>,
    payer: Option<Payer>,
    /// Models whose answers can be counted.
    library: Library,
    allow_private: bool,
    kept: Mutex<HashMap<String, Kept>>,
}

/// A way to an endpoint, as long as it stays the same endpoint at the same price.
struct Kept {
    endpoint: EndpointInfo,
    inference: Arc<Upstream>,
}

/// Who answers.
pub(crate) struct Chosen {
    pub(crate) endpoint: EndpointInfo,
    pub(crate) inference: Arc<Upstream>,
}

impl NetworkInference {
    pub(crate) fn new(node: Arc<NodeRpc>, library: Library, allow_private: bool) -> Self {
        Self {
            payer: node.payer.clone(),
            node,
            library,
            allow_private,
            kept: Mutex::default(),
        }
    }

    /// The endpoint that serves a model, of that provider where one is named: this node's own before others,
    /// then the cheapest.
    pub(crate) fn choose(
        &self,
        model: &str,
        provider: Option<&str>,
    ) -> Result<Chosen, GenerateError> {
        let endpoints = self
            .node
            .with_directory(|directory| directory.endpoints(Some(model)));
        let is_asked = |endpoint: &&EndpointInfo| {
            provider.is_none_or(|wanted| {
                let found = endpoint.provider.as_deref();
                found.is_some_and(|found| found.eq_ignore_ascii_case(wanted))
            })
        };
        let asked: Vec<&EndpointInfo> = endpoints.iter().filter(is_asked).collect();
        let usable = asked.iter().find(|endpoint| is_usable(endpoint.status));
        let Some(endpoint) = usable else {
            return Err(nobody(model, provider, &asked));
        };
        let inference = self.way_to(endpoint)?;
        Ok(Chosen {
            endpoint: (*endpoint).clone(),
            inference,
        })
    }

    fn way_to(&self, endpoint: &EndpointInfo) -> Result<Arc<Upstream>, GenerateError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.get(&endpoint.endpoint_id)
            && is_same(&known.endpoint, endpoint)
        {
            return Ok(Arc::clone(&known.inference));
        }
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        let inference = Arc::new(self.connect(endpoint)?);
        let new = Kept {
            endpoint: endpoint.clone(),
            inference: Arc::clone(&inference),
        };
        kept.insert(endpoint.endpoint_id.clone(), new);
        Ok(inference)
    }

    fn connect(&self, endpoint: &EndpointInfo) -> Result<Upstream, GenerateError> {
        let (url, card) = (&endpoint.api_endpoint, card(endpoint));
        let name = endpoint.model_id.clone();
        let unusable = |reason: String| GenerateError::Upstream {
            status: None,
            message: reason,
        };
        let is_ours = self.is_ours(endpoint);
        if endpoint.location == Location::Local || is_ours {
            // The token goes to servers of this home only.
            let token = is_ours.then(|| operator_token(&self.node.home)).flatten();
            let client = OpenAiClient::new(url).map_err(|error| unusable(error.to_string()))?;
            return Ok(Upstream::new(client.with_token(token), name, card));
        }
        let payer = self.payer.clone().ok_or_else(no_wallet)?;
        let expected = expected(endpoint)?;
        let own = self.node.account.as_ref().map(|account| account.address());
        if own == Some(expected.payee) {
            let text = "this provider has the node's own wallet, which does not pay itself: serve the \
                        model from the node's home";
            return Err(unusable(text.to_owned()));
        }
        let recount = endpoint
            .model_hash
            .as_ref()
            .and_then(|hash| self.recount(hash));
        let client = PayingClient::new(url, self.allow_private, payer, expected, recount);
        let client = client.map_err(|error| unusable(error.to_string()))?;
        Ok(Upstream::new(client, name, card))
    }

    /// The count of a model's tokens, where its very file is in the library of this home: what a provider
    /// charges is then held against it, and not only against the bytes of the text.
    fn recount(&self, hash: &str) -> Option<Recount> {
        let entries = self.library.list().ok()?;
        let entry = entries.into_iter().find(|entry| entry.sha256() == hash)?;
        if entry.quick_state() != HashState::Unchanged {
            return None;
        }
        match Tokenizer::open(entry.path()) {
            Ok(tokenizer) => Some(Recount::new(move |text| tokenizer.count(text))),
            Err(error) => {
                tracing::warn!(model = entry.id, error, "its tokens cannot be counted");
                None
            }
        }
    }

    /// Whether a model server of this home is behind the endpoint.
    fn is_ours(&self, endpoint: &EndpointInfo) -> bool {
        let running = Servers::new(&self.node.home).running().unwrap_or_default();
        running.iter().any(|server| {
            let place = server.on_ledger.as_ref().map(|place| &place.base_url);
            server.base_url == endpoint.api_endpoint || place == Some(&endpoint.api_endpoint)
        })
    }
}

impl Inference for NetworkInference {
    fn state(&self) -> ServerState {
        ServerState::Ready
    }

    fn models(&self) -> Vec<ModelCard> {
        let endpoints = self
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
        match self.choose(model, None) {
            Ok(chosen) => chosen.inference.generate(model, request),
            Err(error) => async { Err(error) }.boxed(),
        }
    }

    fn count_prompt(
        &self,
        model: &str,
        request: &GenerateRequest,
    ) -> BoxFuture<'static, Result<PromptSize, GenerateError>> {
        match self.choose(model, None) {
            Ok(chosen) => chosen.inference.count_prompt(model, request),
            Err(error) => async { Err(error) }.boxed(),
        }
    }

    fn embed(
        &self,
        model: &str,
        request: EmbedRequest,
    ) -> BoxFuture<'static, Result<Embeddings, GenerateError>> {
        match self.choose(model, None) {
            Ok(chosen) => chosen.inference.embed(model, request),
            Err(error) => async { Err(error) }.boxed(),
        }
    }

    fn count_inputs(
        &self,
        model: &str,
        request: &EmbedRequest,
    ) -> BoxFuture<'static, Result<PromptSize, GenerateError>> {
        match self.choose(model, None) {
            Ok(chosen) => chosen.inference.count_inputs(model, request),
            Err(error) => async { Err(error) }.boxed(),
        }
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

fn is_usable(status: EndpointStatus) -> bool {
    matches!(
        status,
        EndpointStatus::Online | EndpointStatus::Degraded | EndpointStatus::Unknown
    )
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
    let provider = endpoint
        .provider
        .as_deref()
        .ok_or_else(|| odd("provider"))?;
    let payee: Address = provider.parse().map_err(|_| odd("provider"))?;
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

fn nobody(model: &str, provider: Option<&str>, asked: &[&EndpointInfo]) -> GenerateError {
    let who = match provider {
        Some(provider) => format!("{provider} does not serve"),
        None => "nobody serves".to_owned(),
    };
    let model: String = model.chars().take(100).collect();
    let mut message = format!("{who} {model} at this time");
    if let Some(first) = asked.first() {
        let status = serde_json::to_value(first.status).unwrap_or_default();
        let status = status.as_str().unwrap_or_default().replace('_', " ");
        message = format!("{message}: {} is {status}", first.api_endpoint);
    }
    GenerateError::Unavailable { message }
}

fn no_wallet() -> GenerateError {
    GenerateError::Unavailable {
        message: "this node has no wallet to pay with: tenzro-cli wallet create".to_owned(),
    }
}
