//! Whether an endpoint asks to be paid to the wallet that puts it on the ledger.

use tenzro_ledger::sender;
use tenzro_protocol::json_rpc::{RpcError, code};

use super::params::SignedTransactions;
use super::{NodeRpc, from_ledger};
use crate::closing::{self, Seller};

impl NodeRpc {
    /// Whoever would be paid by the ledger has to be whom the endpoint asks to pay. Without a price on the
    /// ledger it cannot ask yet.
    pub(super) async fn check_payment(
        &self,
        transactions: &SignedTransactions,
        model: &str,
        base_url: &str,
    ) -> Result<(), RpcError> {
        let signed = transactions.first().map(|raw| {
            let signer = sender(raw, self.ledger.chain_id());
            let named = |reason| format!("signed_transactions: {reason}");
            signer.map_err(|reason| RpcError::invalid_params(named(reason)))
        });
        let provider = match signed {
            Some(signer) => signer?,
            None => self.own_address()?,
        };
        let priced = self.ledger.pricing_now(provider, model).await;
        if priced.map_err(from_ledger)?.is_none() {
            return Ok(());
        }
        let seller = Seller {
            base_url: base_url.to_owned(),
            model: model.to_owned(),
            payee: provider,
        };
        let market = closing::market(&self.ledger);
        match closing::terms(&self.prober, &seller, &market).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let message = format!(
                    "endpoint: {base_url} does not ask to be paid to {provider}, who has a price for \
                     {model}: {error}"
                );
                Err(RpcError::new(code::ENDPOINT, message).hint(
                    "serve it with tenzro-cli model serve --remote and that wallet; after a price was \
                     set, wait some seconds",
                ))
            }
        }
    }
}
