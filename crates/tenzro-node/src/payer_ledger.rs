//! The ledger as a payer needs it: read, and with the wallet that signs deposits.

use futures::FutureExt;
use futures::future::BoxFuture;
use tenzro_ledger::channels::{
    Authorization, ChannelTerms, Escrow as Place, OpenRequest, Party, TopUpRequest,
};
use tenzro_ledger::{Address, B256, Ledger, PrivateKeySigner, U256};
use tenzro_payments::escrow::{EscrowChannel, EscrowError};
use tenzro_payments::payer::PayerLedger;
use tenzro_payments::signature::Signature;
use tenzro_payments::wire;
use tenzro_protocol::amount::Wei;
use tokio::sync::Mutex;

use crate::channel_view::View;
use crate::escrow::{escrow_channel, unreadable};

/// A wallet that signs deposits for an escrow.
#[derive(Debug, Clone)]
pub(crate) struct DepositSigner {
    pub(crate) wallet: PrivateKeySigner,
    pub(crate) place: Place,
}

impl DepositSigner {
    pub(crate) fn channel_id(&self, payee: Address, salt: B256) -> B256 {
        terms(payee, salt).id(self.wallet.address(), &self.place)
    }

    pub(crate) fn open(
        &self,
        payee: Address,
        salt: B256,
        amount: u128,
        valid_before: u64,
    ) -> (wire::Authorization, Signature) {
        let Self { wallet, place } = self;
        let request = OpenRequest::sign(wallet, place, terms(payee, salt), amount, valid_before);
        self.on_wire(&request.authorization)
    }

    pub(crate) fn top_up(
        &self,
        channel: B256,
        salt: B256,
        amount: u128,
        valid_before: u64,
    ) -> (wire::Authorization, Signature) {
        let Self { wallet, place } = self;
        let request = TopUpRequest::sign(wallet, place, channel, amount, salt, valid_before);
        self.on_wire(&request.authorization)
    }

    fn on_wire(&self, signed: &Authorization) -> (wire::Authorization, Signature) {
        let authorization = wire::Authorization {
            from: signed.from,
            to: self.place.address,
            value: Wei(signed.value),
            valid_after: U256::from(signed.valid_after),
            valid_before: U256::from(signed.valid_before),
            nonce: signed.nonce,
        };
        (authorization, Signature(signed.signature))
    }
}

fn terms(payee: Address, salt: B256) -> ChannelTerms {
    ChannelTerms {
        payee,
        salt,
        authorized_signer: Address::ZERO,
    }
}

/// See the module header.
#[derive(Debug)]
pub struct LedgerView {
    ledger: Ledger,
    signer: DepositSigner,
    /// Channels of the payer that was asked for last, read on from where the last look ended.
    opened: Mutex<Option<(Address, View)>>,
}

impl LedgerView {
    /// `wallet` is who pays.
    pub fn new(ledger: Ledger, wallet: PrivateKeySigner) -> Self {
        let place = ledger.escrow();
        Self {
            ledger,
            signer: DepositSigner { wallet, place },
            opened: Mutex::default(),
        }
    }
}

impl PayerLedger for LedgerView {
    fn channel_id(&self, payee: Address, salt: B256) -> B256 {
        self.signer.channel_id(payee, salt)
    }

    fn sign_open(
        &self,
        payee: Address,
        salt: B256,
        amount: u128,
        valid_before: u64,
    ) -> (wire::Authorization, Signature) {
        self.signer.open(payee, salt, amount, valid_before)
    }

    fn sign_top_up(
        &self,
        channel: B256,
        salt: B256,
        amount: u128,
        valid_before: u64,
    ) -> (wire::Authorization, Signature) {
        self.signer.top_up(channel, salt, amount, valid_before)
    }

    fn channel(&self, id: B256) -> BoxFuture<'_, Result<Option<EscrowChannel>, EscrowError>> {
        async move {
            let found = self.ledger.channel_now(id).await.map_err(unreadable)?;
            Ok(found.map(|channel| escrow_channel(&channel)))
        }
        .boxed()
    }

    fn balance(&self, owner: Address) -> BoxFuture<'_, Result<u128, EscrowError>> {
        async move {
            let balance = self.ledger.balance(owner).await.map_err(unreadable)?;
            Ok(tenzro_ledger::wei(balance).0)
        }
        .boxed()
    }

    fn channels_of(&self, payer: Address) -> BoxFuture<'_, Result<Vec<B256>, EscrowError>> {
        async move {
            let mut opened = self.opened.lock().await;
            let (_, view) = match opened.take() {
                Some((of, view)) if of == payer => opened.insert((of, view)),
                _ => opened.insert((payer, View::new(self.ledger.clone(), Party::Payer(payer)))),
            };
            let channels = view.catch_up().await.map_err(unreadable)?;
            Ok(channels.keys().copied().collect())
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex as SyncMutex};

    use axum::extract::State;
    use axum::routing::post;
    use axum::{Json, Router};
    use serde_json::value::to_raw_value;
    use serde_json::{Value, json};
    use tenzro_ledger::{EmbeddedChain, connect};

    use super::*;

    /// First blocks of the logs that were asked for.
    type Asked = Arc<SyncMutex<Vec<u64>>>;

    async fn answer(
        State((chain, asked)): State<(EmbeddedChain, Asked)>,
        Json(call): Json<Value>,
    ) -> Json<Value> {
        let method = call["method"].as_str().expect("a method");
        if method == "eth_getLogs" {
            let from = call["params"][0]["fromBlock"].as_str().expect("a block");
            let from = u64::from_str_radix(from.trim_start_matches("0x"), 16);
            asked
                .lock()
                .expect("unpoisoned")
                .push(from.expect("a number"));
        }
        let params = to_raw_value(&call["params"]).expect("JSON");
        let result = chain.request(method, Some(&params)).await.expect(method);
        Json(json!({"jsonrpc": "2.0", "id": call["id"], "result": result}))
    }

    #[tokio::test]
    async fn a_second_look_at_the_channels_asks_for_new_blocks_only() {
        let home = tempfile::tempdir().expect("a directory");
        let chain = EmbeddedChain::open(&home.path().join("chain.db")).expect("a chain");
        let asked = Asked::default();
        let state = (chain.clone(), Arc::clone(&asked));
        let proxy = Router::new().route("/", post(answer)).with_state(state);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, proxy).await });
        let ledger = Ledger::open(
            connect(&url).expect("an address"),
            EmbeddedChain::addresses(),
        );
        let wallet = PrivateKeySigner::from_bytes(&B256::repeat_byte(1)).expect("a key");
        let (ledger, own) = (ledger.await.expect("a ledger"), wallet.address());
        let view = LedgerView::new(ledger, wallet);
        let first = view.channels_of(own).await.expect("readable");
        assert_eq!(first, Vec::<B256>::new());
        let head = chain
            .request("eth_blockNumber", None)
            .await
            .expect("a head");
        let head: String = serde_json::from_str(head.get()).expect("a text");
        let head = u64::from_str_radix(head.trim_start_matches("0x"), 16).expect("a number");
        asked.lock().expect("unpoisoned").clear();
        chain.request("evm_mine", None).await.expect("a block");
        view.channels_of(own).await.expect("readable");
        let asked = asked.lock().expect("unpoisoned").clone();
        assert!(
            asked.iter().all(|from| *from > head),
            "{asked:?} after {head}"
        );
        assert!(!asked.is_empty());
    }
}
