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
