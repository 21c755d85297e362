//! An escrow in memory with the contract's rules, for tests that need it to fail on demand. The contract itself is
//! used in tenzro-ledger's and tenzro-node's tests.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use alloy::primitives::{Address, B256, keccak256};
use alloy::sol_types::SolValue;
use futures::FutureExt;
use futures::future::BoxFuture;
use tenzro_payments::escrow::{Escrow, EscrowChannel, EscrowError, Settled, SignedDeposit};
use tenzro_payments::voucher::{Domain, Voucher};
use tenzro_payments::wire::Authorization;
use tokio::sync::Notify;

pub(crate) const CHAIN_ID: u64 = 1337;
pub(crate) const ESCROW: Address = Address::repeat_byte(0xee);
pub(crate) const TOKEN: Address = Address::repeat_byte(0x70);

/// What both sides see.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chain(Arc<Mutex<State>>);

#[derive(Debug, Default, Clone)]
pub(crate) struct State {
    pub(crate) balances: HashMap<Address, u128>,
    pub(crate) channels: HashMap<B256, EscrowChannel>,
    /// Channels about which there is news.
    pub(crate) news: Vec<B256>,
    /// Transactions that were sent.
    pub(crate) sent: usize,
    /// What the next transactions come to.
    pub(crate) fail: Option<EscrowError>,
    /// Nothing can be read.
    pub(crate) is_unreadable: bool,
    /// Channels that are asked for without an answer.
    pub(crate) unanswered: HashSet<B256>,
    /// Transactions wait for this before they are mined.
    pub(crate) miner: Option<Arc<Notify>>,
}

/// The chain with the payee's wallet.
#[derive(Debug, Clone)]
pub(crate) struct PayeeWallet {
    pub(crate) chain: Chain,
    pub(crate) payee: Address,
}

impl Chain {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with it")
    }

    /// The same again, for another future.
    pub(crate) fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.state().clone())))
    }

    async fn mined(&self) {
        let miner = self.state().miner.clone();
        if let Some(miner) = miner {
            miner.notified().await;
        }
    }

    pub(crate) fn total(&self) -> u128 {
        let state = self.state();
        let wallets: u128 = state.balances.values().sum();
        let channels = state.channels.values();
        let escrowed: u128 = channels
            .filter(|channel| !channel.is_final)
            .map(|channel| channel.deposit - channel.settled)
            .sum();
        wallets + escrowed
    }

    pub(crate) fn balance(&self, of: Address) -> u128 {
        self.state().balances.get(&of).copied().unwrap_or_default()
    }

    /// As the payer itself.
    pub(crate) fn request_close(&self, id: B256) {
        let mut state = self.state();
        state.channels.get_mut(&id).expect("a channel").is_closing = true;
        state.news.push(id);
    }

    /// As the payer itself, after the grace period.
    pub(crate) fn withdraw(&self, id: B256) {
        let mut state = self.state();
        let channel = state.channels.get_mut(&id).expect("a channel");
        assert!(channel.is_closing && !channel.is_final);
        channel.is_final = true;
        let (payer, rest) = (channel.payer, channel.deposit - channel.settled);
        *state.balances.entry(payer).or_default() += rest;
        state.news.push(id);
    }
}

impl State {
    fn transact(&mut self) -> Result<B256, EscrowError> {
        if let Some(error) = self.fail.take() {
            return Err(error);
        }
        self.sent += 1;
        Ok(B256::from(alloy::primitives::U256::from(self.sent)))
    }

    fn pull(&mut self, from: Address, amount: u128) -> Result<(), EscrowError> {
        let balance = self.balances.entry(from).or_default();
        *balance = balance
            .checked_sub(amount)
            .ok_or_else(|| reverted("no money", true))?;
        Ok(())
    }

    fn pay(&mut self, voucher: &Voucher, payee: Address) -> Result<u128, EscrowError> {
        let channel = self.channels.get_mut(&voucher.channel_id);
        let channel = channel.ok_or_else(|| reverted("not found", false))?;
        let amount = voucher.amount.0;
        let domain = Domain::new(CHAIN_ID, ESCROW);
        if channel.is_final || channel.payee != payee {
            return Err(reverted("not yours", false));
        }
        if amount <= channel.settled || amount > channel.deposit {
            return Err(reverted("amount", false));
        }
        if domain.voucher_signer(voucher) != Ok(channel.signer) {
            return Err(reverted("signature", false));
        }
        let paid = amount - channel.settled;
        channel.settled = amount;
        *self.balances.entry(payee).or_default() += paid;
        Ok(amount)
    }
}

pub(crate) fn reverted(reason: &str, is_funds: bool) -> EscrowError {
    EscrowError::Reverted {
        reason: reason.to_owned(),
        is_funds,
    }
}

/// What a payer signs in these tests instead of an EIP-3009 authorization.
pub(crate) fn authorization_digest(authorization: &Authorization) -> B256 {
    keccak256(
        (
            authorization.from,
            authorization.value.0,
            authorization.nonce,
        )
            .abi_encode(),
    )
}

impl Escrow for PayeeWallet {
    fn channel_id(&self, payer: Address, salt: B256, authorized_signer: Address) -> B256 {
        keccak256((payer, self.payee, salt, authorized_signer).abi_encode())
    }

    fn check(&self, deposit: &SignedDeposit) -> Result<(), String> {
        let (SignedDeposit::Open {
            authorization,
            signature,
            ..
        }
        | SignedDeposit::TopUp {
            authorization,
            signature,
            ..
        }) = deposit;
        let signer = signature.signer(authorization_digest(authorization));
        match signer == Ok(authorization.from) && authorization.to == ESCROW {
            true => Ok(()),
            false => Err("the authorization is not signed".to_owned()),
        }
    }

    fn channel(&self, id: B256) -> BoxFuture<'_, Result<Option<EscrowChannel>, EscrowError>> {
        async move {
            if self.chain.state().unanswered.contains(&id) {
                return futures::future::pending().await;
            }
            let state = self.chain.state();
            match state.is_unreadable {
                true => Err(EscrowError::Unavailable("down".to_owned())),
                false => Ok(state.channels.get(&id).copied()),
            }
        }
        .boxed()
    }

    fn submit(&self, deposit: SignedDeposit) -> BoxFuture<'_, Result<B256, EscrowError>> {
        async move {
            self.chain.mined().await;
            let mut state = self.chain.state();
            let transaction = state.transact()?;
            match deposit {
                SignedDeposit::Open {
                    salt,
                    authorized_signer,
                    authorization,
                    ..
                } => {
                    let payer = authorization.from;
                    let id = self.channel_id(payer, salt, authorized_signer);
                    if state.channels.contains_key(&id) {
                        return Err(reverted("exists", false));
                    }
                    state.pull(payer, authorization.value.0)?;
                    let channel = EscrowChannel {
                        payer,
                        payee: self.payee,
                        signer: match authorized_signer.is_zero() {
                            true => payer,
                            false => authorized_signer,
                        },
                        deposit: authorization.value.0,
                        settled: 0,
                        is_closing: false,
                        is_final: false,
                    };
                    state.channels.insert(id, channel);
                }
                SignedDeposit::TopUp {
                    channel_id,
                    authorization,
                    ..
                } => {
                    let is_open = |channel: &&EscrowChannel| !channel.is_final;
                    if state.channels.get(&channel_id).filter(is_open).is_none() {
                        return Err(reverted("not found", false));
                    }
                    state.pull(authorization.from, authorization.value.0)?;
                    let channel = state.channels.get_mut(&channel_id).expect("found");
                    channel.deposit += authorization.value.0;
                    // As the contract has it: a payer that pays in goes on.
                    channel.is_closing = false;
                }
            }
            Ok(transaction)
        }
        .boxed()
    }

    fn deposited_by(&self, transaction: B256) -> BoxFuture<'_, Result<Option<B256>, EscrowError>> {
        // In these tests the hash of a payer's own transaction is the channel's id.
        let found = self.chain.state().channels.contains_key(&transaction);
        async move { Ok(found.then_some(transaction)) }.boxed()
    }

    fn settle(
        &self,
        vouchers: Vec<Voucher>,
    ) -> BoxFuture<'_, Result<(B256, Vec<Settled>), EscrowError>> {
        async move {
            let mut state = self.chain.state();
            let transaction = state.transact()?;
            let rows = vouchers
                .iter()
                .map(|voucher| match state.pay(voucher, self.payee) {
                    Ok(total) => Settled::Paid(total),
                    Err(error) => Settled::Refused(error.to_string()),
                });
            let rows = rows.collect();
            Ok((transaction, rows))
        }
        .boxed()
    }

    fn close(
        &self,
        channel_id: B256,
        last: Option<Voucher>,
    ) -> BoxFuture<'_, Result<B256, EscrowError>> {
        async move {
            self.chain.mined().await;
            let mut state = self.chain.state();
            let transaction = state.transact()?;
            if let Some(voucher) = last {
                state.pay(&voucher, self.payee)?;
            }
            let channel = state.channels.get_mut(&channel_id).expect("a channel");
            if channel.is_final {
                return Err(reverted("finalized", false));
            }
            channel.is_final = true;
            let (payer, rest) = (channel.payer, channel.deposit - channel.settled);
            *state.balances.entry(payer).or_default() += rest;
            Ok(transaction)
        }
        .boxed()
    }

    fn news(&self) -> BoxFuture<'_, Result<Vec<B256>, EscrowError>> {
        async move { Ok(std::mem::take(&mut self.chain.state().news)) }.boxed()
    }
}
