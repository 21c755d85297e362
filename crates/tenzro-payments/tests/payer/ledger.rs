//! A ledger in memory: channels and one wallet. What is signed for the real one is in tenzro-ledger's tests.

use std::collections::BTreeMap;
use std::sync::Mutex;

use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::sol_types::SolValue;
use futures::future::BoxFuture;
use tenzro_payments::escrow::{EscrowChannel, EscrowError};
use tenzro_payments::payer::PayerLedger;
use tenzro_payments::signature::Signature;
use tenzro_payments::wire::Authorization;
use tenzro_protocol::amount::Wei;

use super::payee::{market, signer};

/// See the module header.
#[derive(Debug)]
pub(crate) struct Ledger {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    channels: BTreeMap<B256, EscrowChannel>,
    balance: u128,
    /// Channels that were asked for, in that order.
    asked: Vec<B256>,
}

impl Ledger {
    pub(crate) fn new(balance: u128) -> Self {
        let state = State {
            channels: BTreeMap::new(),
            balance,
            asked: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
        }
    }

    /// Channels that were asked for since the last time.
    pub(crate) fn asked(&self) -> Vec<B256> {
        std::mem::take(&mut self.state.lock().expect("unpoisoned").asked)
    }

    pub(crate) fn get(&self, id: B256) -> Option<EscrowChannel> {
        self.state
            .lock()
            .expect("unpoisoned")
            .channels
            .get(&id)
            .copied()
    }

    pub(crate) fn ids(&self) -> Vec<B256> {
        self.state
            .lock()
            .expect("unpoisoned")
            .channels
            .keys()
            .copied()
            .collect()
    }

    pub(crate) fn give(&self, amount: u128) {
        self.state.lock().expect("unpoisoned").balance += amount;
    }

    pub(crate) fn balance_now(&self) -> u128 {
        self.state.lock().expect("unpoisoned").balance
    }

    /// What `openWithAuthorization` and `topUpWithAuthorization` do; `false` where they would revert.
    pub(crate) fn deposit(
        &self,
        id: B256,
        parties: (Address, Address),
        amount: u128,
        opens: bool,
    ) -> bool {
        let mut state = self.state.lock().expect("unpoisoned");
        if state.balance < amount || state.channels.contains_key(&id) == opens {
            return false;
        }
        state.balance -= amount;
        let (payer, payee) = parties;
        let channel = state.channels.entry(id).or_insert(EscrowChannel {
            payer,
            payee,
            signer: payer,
            deposit: 0,
            settled: 0,
            is_closing: false,
            is_final: false,
        });
        channel.deposit += amount;
        true
    }

    pub(crate) fn change(&self, id: B256, change: impl FnOnce(&mut EscrowChannel)) {
        let mut state = self.state.lock().expect("unpoisoned");
        change(state.channels.get_mut(&id).expect("a channel"));
    }
}

/// Of the wallet's channel to a payee.
pub(crate) fn channel_id(payee: Address, salt: B256) -> B256 {
    keccak256((payee, salt).abi_encode())
}

/// What binds a deposit to its channel.
pub(crate) fn deposit_nonce(channel: B256, salt: B256, opens: bool) -> B256 {
    keccak256((channel, salt, opens).abi_encode())
}

/// What the wallet signs.
pub(crate) fn deposit_digest(authorization: &Authorization) -> B256 {
    let Authorization {
        from,
        to,
        value,
        valid_after,
        valid_before,
        nonce,
    } = authorization;
    keccak256((from, to, value.0, valid_after, valid_before, nonce).abi_encode())
}

fn sign(amount: u128, valid_before: u64, nonce: B256) -> (Authorization, Signature) {
    let wallet = signer(1);
    let authorization = Authorization {
        from: wallet.address(),
        to: market().domain.escrow,
        value: Wei(amount),
        valid_after: U256::ZERO,
        valid_before: U256::from(valid_before),
        nonce,
    };
    let signature = wallet.sign(deposit_digest(&authorization));
    (authorization, signature)
}

impl PayerLedger for Ledger {
    fn channel_id(&self, payee: Address, salt: B256) -> B256 {
        channel_id(payee, salt)
    }

    fn sign_open(
        &self,
        payee: Address,
        salt: B256,
        amount: u128,
        valid_before: u64,
    ) -> (Authorization, Signature) {
        let nonce = deposit_nonce(channel_id(payee, salt), salt, true);
        sign(amount, valid_before, nonce)
    }

    fn sign_top_up(
        &self,
        channel: B256,
        salt: B256,
        amount: u128,
        valid_before: u64,
    ) -> (Authorization, Signature) {
        sign(amount, valid_before, deposit_nonce(channel, salt, false))
    }

    fn channel(&self, id: B256) -> BoxFuture<'_, Result<Option<EscrowChannel>, EscrowError>> {
        self.state.lock().expect("unpoisoned").asked.push(id);
        Box::pin(async move { Ok(self.get(id)) })
    }

    fn balance(&self, _owner: Address) -> BoxFuture<'_, Result<u128, EscrowError>> {
        Box::pin(async move { Ok(self.balance_now()) })
    }

    fn channels_of(&self, _payer: Address) -> BoxFuture<'_, Result<Vec<B256>, EscrowError>> {
        Box::pin(async move { Ok(self.ids()) })
    }
}
