//! A model server's place in the network: known to the local node, or recorded on the ledger, until
//! it ends.

use serde::Deserialize;
use serde_json::{Value, json};
use tenzro_ledger::{Account, B256, Offer, Operations, PrivateKeySigner, SendError, Signed};
use tenzro_protocol::inference::ModelCard;
use tenzro_protocol::json_rpc::{RpcError, code};
use tenzro_protocol::network::ProviderInfo;

use crate::directory::meta;
use crate::network::Network;
use crate::node_client::{NodeClient, NodeError};
use crate::servers::LedgerPlace;

/// Another program may send from the same wallet in between.
const NONCE_ATTEMPTS: u32 = 5;

/// Why a model server is not known to the network.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// The node does not answer or refuses.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The ledger refuses.
    #[error(transparent)]
    Send(#[from] SendError),
}

/// What was registered; it stays so until [`Registration::end`].
#[derive(Debug)]
pub struct Registration {
    node: NodeClient,
    model_id: String,
    base_url: String,
    on_ledger: Option<OnLedger>,
}

#[derive(Debug)]
struct OnLedger {
    network: Network,
    account: Account,
    endpoint: B256,
}

/// What the ledger says about an endpoint that was just recorded.
#[derive(Debug, Clone, Deserialize)]
pub struct Recorded {
    /// Its id.
    pub endpoint_id: B256,
    /// Whether it can earn.
    pub is_active: bool,
    /// Its provider, with what is missing for both.
    #[serde(flatten)]
    pub provider: ProviderInfo,
}

impl Registration {
    /// Known to the local node only, and free.
    pub async fn local(
        node: NodeClient,
        model_id: &str,
        base_url: &str,
    ) -> Result<Self, RegistrationError> {
        let params = json!([{"model_id": model_id, "endpoint": base_url}]);
        node.call::<Value>("tenzro_serveModel", params).await?;
        Ok(Self {
            node,
            model_id: model_id.to_owned(),
            base_url: base_url.to_owned(),
            on_ledger: None,
        })
    }

    /// Recorded on the ledger, after the node has probed it. Its transaction is signed here.
    pub async fn on_ledger(
        network: Network,
        signer: PrivateKeySigner,
        card: &ModelCard,
        base_url: &str,
    ) -> Result<(Self, Recorded), RegistrationError> {
        let provider = network.ledger.provider().clone();
        let account = Account::new(provider, network.ledger.chain_id(), signer);
        let hash = card.sha256.as_ref().and_then(|hash| hash.parse().ok());
        let offer = Offer {
            model_id: card.id.clone(),
            model_hash: hash.unwrap_or_default(),
            base_url: base_url.trim_end_matches('/').to_owned(),
            meta: meta(card),
            price: None,
        };
        let operations = Operations {
            ledger: &network.ledger,
            account: &account,
        };
        let sign = async || operations.sign_serve_model(&offer).await;
        let params = json!({"model_id": offer.model_id, "endpoint": offer.base_url});
        let recorded = send(&network.node, "tenzro_serveModel", params, sign).await?;
        let recorded: Recorded =
            serde_json::from_value(recorded).map_err(|error| network.node.unreadable(&error))?;
        let registration = Self {
            node: network.node.clone(),
            model_id: offer.model_id.clone(),
            base_url: offer.base_url.clone(),
            on_ledger: Some(OnLedger {
                endpoint: recorded.endpoint_id,
                network,
                account,
            }),
        };
        Ok((registration, recorded))
    }

    /// Its place on the ledger, when it has one.
    pub fn place(&self) -> Option<LedgerPlace> {
        self.on_ledger.as_ref().map(|_| LedgerPlace {
            base_url: self.base_url.clone(),
            rpc_url: self.node.url().to_owned(),
        })
    }

    /// Nobody is sent here any more.
    pub async fn end(self) -> Result<(), RegistrationError> {
        let Some(OnLedger {
            network,
            account,
            endpoint,
        }) = self.on_ledger
        else {
            return forget(&self.node, &self.model_id, Some(&self.base_url)).await;
        };
        let operations = Operations {
            ledger: &network.ledger,
            account: &account,
        };
        let sign = async || operations.sign_stop_model(endpoint).await;
        let params = json!({"endpoint_id": endpoint});
        send(&network.node, "tenzro_stopModel", params, sign).await?;
        Ok(())
    }
}

/// A node of this home forgets a model's local endpoint at an address, or all of its endpoints of that
/// model. Not an error when there is none.
pub async fn forget(
    node: &NodeClient,
    model_id: &str,
    base_url: Option<&str>,
) -> Result<(), RegistrationError> {
    let params = json!([{"model_id": model_id, "endpoint": base_url}]);
    match node.call::<Value>("tenzro_stopModel", params).await {
        Err(NodeError::Rpc(error)) if error.code == code::NOT_FOUND => Ok(()),
        result => Ok(result.map(|_| ())?),
    }
}

/// Calls a method with a signed transaction; signs anew when the nonce was taken meanwhile.
async fn send(
    node: &NodeClient,
    method: &str,
    mut params: Value,
    sign: impl AsyncFn() -> Result<Signed, SendError>,
) -> Result<Value, RegistrationError> {
    let mut attempt = 1;
    loop {
        params["signed_transactions"] = json!([sign().await?.raw]);
        match node.call(method, json!([params])).await {
            Err(NodeError::Rpc(error)) if is_nonce_taken(&error) && attempt < NONCE_ATTEMPTS => {
                attempt += 1;
            }
            result => return Ok(result?),
        }
    }
}

fn is_nonce_taken(error: &RpcError) -> bool {
    error.message.contains("nonce too low") || error.message.contains("underpriced")
}
