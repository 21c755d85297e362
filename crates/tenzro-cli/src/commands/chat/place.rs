//! Who answers: a model server of this home, else the network through a node.

use serde_json::json;
use tenzro_node::config::Config;
use tenzro_node::openai_client::OpenAiClient;
use tenzro_node::{NodeClient, NodeError, ServerRecord, Servers, operator_token};
use tenzro_protocol::model_id::{model_id, nearest};
use tenzro_protocol::network::{EndpointInfo, NetworkModel};

use super::super::endpoints::plain;
use super::super::library;
use super::super::network::{START_NODE, explain_node, node};
use super::super::provider::status_text;
use super::super::stop::serving;
use crate::report::Failure;

/// What is shown for answers that cost nothing.
pub(super) const FREE: &str = "free (local)";

/// Where a model is asked.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Its id there.
    pub(super) model: String,
    /// Address of the API.
    pub(super) base_url: String,
    pub(super) client: OpenAiClient,
    /// Answers for money; `None` for a model server of this home.
    node: Option<NodeClient>,
}

impl Place {
    /// A model server of this home that serves `wanted`, or the only one; else the node that knows who
    /// does.
    pub(super) async fn find(config: &Config, wanted: Option<&str>) -> anyhow::Result<Self> {
        let running = Servers::new(&config.home).running()?;
        match wanted {
            Some(wanted) => {
                let mut found = serving(config, running.clone(), wanted).into_iter();
                match found.next() {
                    Some(server) => Self::local(config, server),
                    None => on_network(config, wanted, &running).await,
                }
            }
            None => match running.as_slice() {
                [only] => Self::local(config, only.clone()),
                [] => any_on_network(config).await,
                _ => Err(several(running.iter().map(|server| &server.model))),
            },
        }
    }

    /// The owner's own server answers him for free.
    fn local(config: &Config, server: ServerRecord) -> anyhow::Result<Self> {
        let client = OpenAiClient::new(&server.base_url)?;
        Ok(Self {
            client: client.with_token(operator_token(&config.home)),
            model: server.model,
            base_url: server.base_url,
            node: None,
        })
    }

    fn through(node: NodeClient, model: String) -> anyhow::Result<Self> {
        Ok(Self {
            client: node.openai()?,
            base_url: format!("{}/v1", node.url()),
            model,
            node: Some(node),
        })
    }

    /// Whether the answers come through a node.
    pub(super) fn is_network(&self) -> bool {
        self.node.is_some()
    }

    /// What a failed request may need next.
    pub(super) fn hint(&self, code: Option<&str>) -> Option<String> {
        match (code, self.is_network()) {
            (Some("insufficient_funds"), _) => Some(
                "tenzro-cli wallet faucet on development ledgers, else send TNZO to the node's wallet"
                    .to_owned(),
            ),
            (Some("spending_limit"), _) => Some(
                "tenzro-cli config show; change it in the config.toml of the node's home and start the \
                 node again"
                    .to_owned(),
            ),
            (Some("invalid_api_key"), _) => {
                Some("run it in the node's home, or start a node of your own".to_owned())
            }
            (_, true) => Some(format!("tenzro-cli model endpoints --model {}", self.model)),
            (_, false) => None,
        }
    }
}

async fn endpoints(node: &NodeClient, model: &str) -> Result<Vec<EndpointInfo>, NodeError> {
    let params = json!([{"model": model}]);
    node.call("tenzro_listModelEndpoints", params).await
}

async fn on_network(
    config: &Config,
    wanted: &str,
    running: &[ServerRecord],
) -> anyhow::Result<Place> {
    let entry = library(config).find(wanted).ok().and_then(Result::ok);
    let id = entry
        .as_ref()
        .map_or_else(|| model_id(wanted), |entry| entry.id.clone());
    let is_downloaded = entry.is_some();
    let node = node(config)?;
    let endpoints = match endpoints(&node, &id).await {
        Ok(endpoints) => endpoints,
        Err(NodeError::Unreachable { .. }) => {
            let names: Vec<&str> = running.iter().map(|server| server.model.as_str()).collect();
            return Err(not_here(wanted, is_downloaded, &names));
        }
        Err(error) => return Err(explain_node(error)),
    };
    if let Some(endpoint) = endpoints
        .iter()
        .find(|endpoint| endpoint.status.is_usable())
    {
        return Place::through(node, endpoint.model_id.clone());
    }
    if let [first, ..] = endpoints.as_slice() {
        let text = format!(
            "{id} cannot be used now: {} is {}",
            plain(&first.api_endpoint),
            status_text(first)
        );
        let hint = format!("tenzro-cli model endpoints --model {id}");
        return Err(Failure::new(text).hint(hint).into());
    }
    let served = models(&node).await?;
    let hint = match (is_downloaded, served.is_empty()) {
        (true, _) => format!("tenzro-cli model serve {wanted} --detach"),
        (false, true) => format!("tenzro-cli model download {wanted}, then model serve it"),
        (false, false) => {
            let names = served.iter().map(|model| model.model_id.as_str());
            format!("the network serves {}", nearest(&id, names).join(", "))
        }
    };
    let text = format!("neither this home nor the network serves '{wanted}'");
    Err(Failure::new(text).hint(hint).into())
}

/// There is no node to ask.
fn not_here(wanted: &str, is_downloaded: bool, running: &[&str]) -> anyhow::Error {
    let step = match (is_downloaded, running) {
        (true, _) => format!("tenzro-cli model serve {wanted} --detach"),
        (false, []) => format!("tenzro-cli model download {wanted}, then model serve it"),
        (false, running) => format!("running: {}", running.join(", ")),
    };
    Failure::new(format!("no model server of this home serves '{wanted}'"))
        .hint(format!("{step}; to use the network's models: {START_NODE}"))
        .into()
}

/// Without a wish there has to be only one model.
async fn any_on_network(config: &Config) -> anyhow::Result<Place> {
    let node = node(config)?;
    let nothing = |hint: String| Failure::new("no model server is running").hint(hint).into();
    let serve = "tenzro-cli model serve MODEL --detach";
    let served: Vec<NetworkModel> = match node.call("tenzro_listModels", json!([])).await {
        Ok(served) => served,
        Err(NodeError::Unreachable { .. }) => {
            return Err(nothing(format!(
                "{serve}; to use the network's models: {START_NODE}"
            )));
        }
        Err(error) => return Err(explain_node(error)),
    };
    match served.as_slice() {
        [] => Err(nothing(serve.to_owned())),
        [only] => on_network(config, &only.model_id, &[]).await,
        _ => Err(several(served.iter().map(|model| &model.model_id))),
    }
}

async fn models(node: &NodeClient) -> anyhow::Result<Vec<NetworkModel>> {
    let models = node.call("tenzro_listModels", json!([])).await;
    models.map_err(explain_node)
}

fn several<'a>(names: impl Iterator<Item = &'a String>) -> anyhow::Error {
    let names: Vec<String> = names.map(|name| plain(name)).collect();
    Failure::new("several models are served")
        .hint(format!("choose one with --model: {}", names.join(", ")))
        .into()
}
