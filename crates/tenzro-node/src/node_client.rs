//! A client of a node's JSON-RPC: for the command line and for model servers.

use std::time::Duration;

use reqwest::{Client, Url};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tenzro_protocol::json_rpc::RpcError;

use crate::home::Home;
use crate::http_client::{self, innermost};
use crate::openai_client::{ClientError, OpenAiClient};
use crate::operator_token::operator_token;
use crate::servers::running_node;

/// Time to open a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// A call may wait until a transaction is mined.
const CALL: Duration = Duration::from_secs(200);

/// Largest answer.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why a node did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NodeError {
    /// The address is none.
    #[error("'{0}' is no http or https address of a node")]
    Url(String),
    /// No connection, or it broke.
    #[error("there is no node at {url}: {reason}")]
    Unreachable {
        /// Its address.
        url: String,
        /// Why not.
        reason: String,
    },
    /// Something else listens there.
    #[error("{url} does not answer as a node: {reason}")]
    Protocol {
        /// Its address.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The node refused.
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

/// A node and its connection pool.
#[derive(Debug, Clone)]
pub struct NodeClient {
    http: Client,
    url: Url,
    token: Option<String>,
}

impl NodeClient {
    /// A node of the home gets the operator token with each call; no other node sees it.
    pub fn new(url: &str, home: &Home) -> Result<Self, NodeError> {
        let parsed: Url = url
            .parse()
            .ok()
            .filter(|url: &Url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| NodeError::Url(url.to_owned()))?;
        let http = http_client::builder()
            .connect_timeout(CONNECT)
            .timeout(CALL)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| NodeError::Unreachable {
                url: url.to_owned(),
                reason: error.to_string(),
            })?;
        Ok(Self {
            http,
            token: operator_token(home).filter(|_| is_ours(&parsed, home)),
            url: parsed,
        })
    }

    /// Its address.
    pub fn url(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    /// Whether it is the node of the home that this client was made for.
    pub fn is_ours(&self) -> bool {
        self.token.is_some()
    }

    /// Its OpenAI API: all models of the network, paid with the node's wallet.
    pub fn openai(&self) -> Result<OpenAiClient, ClientError> {
        let client = OpenAiClient::new(&format!("{}/v1", self.url()))?;
        Ok(client.with_token(self.token.clone()))
    }

    /// Carries out a call.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        params: Value,
    ) -> Result<T, NodeError> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let mut request = self.http.post(self.url.clone()).json(&body);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let mut response = request
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.unreachable(&error))?
        {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(self.protocol("the answer is too large"));
            }
            bytes.extend_from_slice(&chunk);
        }
        let mut answer: Value = serde_json::from_slice(&bytes)
            .map_err(|_| self.protocol(format!("status {}, no JSON", response.status())))?;
        if let Some(error) = answer.get_mut("error").filter(|error| !error.is_null()) {
            let error: RpcError = serde_json::from_value(error.take())
                .map_err(|_| self.protocol("an error of another shape"))?;
            return Err(error.into());
        }
        let Some(result) = answer.get_mut("result") else {
            return Err(self.protocol("neither a result nor an error"));
        };
        serde_json::from_value(result.take()).map_err(|error| self.protocol(error.to_string()))
    }

    fn unreachable(&self, error: &reqwest::Error) -> NodeError {
        NodeError::Unreachable {
            url: self.url().to_owned(),
            reason: innermost(error),
        }
    }

    /// An answer of another shape than the caller knows.
    pub(crate) fn unreadable(&self, error: &serde_json::Error) -> NodeError {
        self.protocol(error.to_string())
    }

    fn protocol(&self, reason: impl Into<String>) -> NodeError {
        NodeError::Protocol {
            url: self.url().to_owned(),
            reason: reason.into(),
        }
    }
}

/// Whether the node of this home listens there.
fn is_ours(url: &Url, home: &Home) -> bool {
    let Some(node) = running_node(home) else {
        return false;
    };
    let is_this_machine = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
    let same_host = node
        .rpc_url
        .parse::<Url>()
        .is_ok_and(|own| own.host_str() == url.host_str());
    url.port_or_known_default() == Some(node.port) && (is_this_machine || same_host)
}
