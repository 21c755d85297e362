//! A ledger in memory: channels and one wallet.

use std::collections::BTreeMap;
use std::sync::Mutex;

use alloy::primitives::{Address, B256};
use futures::future::BoxFuture;
use tenzro_payments::escrow::{EscrowChannel, EscrowError};
use tenzro_payments::payer::PayerLedger;

/// See the module header.
#[derive(Debug)]
pub(crate) struct Ledger {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    channels: BTreeMap<B256, EscrowChannel>,
    balance: u128,
}

impl Ledger {
    pub(crate) fn new(balance: u128) -> Self {
        let channels = BTreeMap::new();
        Self {
            state: Mutex::new(State { channels, balance }),
        }
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

impl PayerLedger for Ledger {
    fn channel(&self, id: B256) -> BoxFuture<'_, Result<Option<EscrowChannel>, EscrowError>> {
        Box::pin(async move { Ok(self.get(id)) })
    }

    fn balance(&self, _owner: Address) -> BoxFuture<'_, Result<u128, EscrowError>> {
        Box::pin(async move { Ok(self.balance_now()) })
    }

    fn channels_of(&self, _payer: Address) -> BoxFuture<'_, Result<Vec<B256>, EscrowError>> {
        Box::pin(async move { Ok(self.ids()) })
    }
}
