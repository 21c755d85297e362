//! How money gets into channels: deposits that the payer signed, and deposits that it made itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use alloy::primitives::{Address, B256};

use super::{Cell, MINIMUM_TOKENS, Payee, both_ways};
use crate::channel::{Channel, Status, VoucherRefusal};
use crate::escrow::{EscrowChannel, EscrowError, SignedDeposit};
use crate::price::Pricing;
use crate::refusal::Refusal;
use crate::voucher::Voucher;
use crate::wire::{
    Authorization, DepositAction, MergedDeposit, Open, OpenDeposit, TopUp, TopUpDeposit,
    VoucherUpdate,
};

/// Channels that may be looked up or opened at the same time.
const OPENING_MAX: usize = 64;

/// One lock for each channel that is being looked up or opened: twice the same deposit is one transaction.
#[derive(Debug, Default)]
pub(super) struct Opening(Mutex<HashMap<B256, Arc<tokio::sync::Mutex<()>>>>);

impl Opening {
    fn lock_of(&self, id: B256) -> Result<Arc<tokio::sync::Mutex<()>>, Refusal> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        if locks.len() >= OPENING_MAX && !locks.contains_key(&id) {
            return Err(Refusal::TooMany);
        }
        Ok(Arc::clone(locks.entry(id).or_default()))
    }
}

impl Payee {
    /// Opens a channel, or finds the one that an earlier, unanswered try opened.
    pub(super) async fn open(
        &self,
        open: &Open,
        source: Option<&str>,
        pricing: &Pricing,
    ) -> Result<(Arc<Cell>, Voucher), Refusal> {
        let signer = open.authorized_signer.unwrap_or_default();
        let voucher = |signature| Voucher {
            channel_id: open.channel_id,
            amount: open.cumulative_amount,
            signature,
        };
        match &open.deposit {
            OpenDeposit::Authorization {
                authorization,
                signature,
                voucher_signature,
            } => {
                let deposit = SignedDeposit::Open {
                    salt: open.salt,
                    authorized_signer: signer,
                    authorization: authorization.clone(),
                    signature: *signature,
                };
                let cell = self.open_signed(open.channel_id, deposit, pricing).await?;
                Ok((cell, voucher(*voucher_signature)))
            }
            OpenDeposit::Hash { hash, signature } => {
                let payer = source.and_then(address_of_did);
                let payer = payer.ok_or_else(|| Refusal::Invalid("source is needed".to_owned()))?;
                if self.0.escrow.channel_id(payer, open.salt, signer) != open.channel_id {
                    return Err(Refusal::Invalid(
                        "channelId is of other parameters".to_owned(),
                    ));
                }
                self.confirm(*hash, open.channel_id).await?;
                let cell = self.find(open.channel_id).await?;
                self.sync(&cell).await?;
                Ok((cell, voucher(*signature)))
            }
        }
    }

    /// The channel of a voucher, after the deposit that came with it.
    pub(super) async fn fund(
        &self,
        update: &VoucherUpdate,
        pricing: &Pricing,
    ) -> Result<Arc<Cell>, Refusal> {
        let id = update.voucher.channel_id;
        let Some(deposit) = &update.deposit else {
            return self.find(id).await;
        };
        let MergedDeposit {
            authorization,
            signature,
            salt,
            ..
        } = deposit.clone();
        match deposit.action {
            DepositAction::Open => {
                let deposit = SignedDeposit::Open {
                    salt,
                    authorized_signer: deposit.authorized_signer.unwrap_or_default(),
                    authorization,
                    signature,
                };
                self.open_signed(id, deposit, pricing).await
            }
            DepositAction::TopUp => {
                let deposit = SignedDeposit::TopUp {
                    channel_id: id,
                    salt,
                    authorization,
                    signature,
                };
                self.top_up_signed(id, deposit, pricing).await
            }
        }
    }

    /// Adds to a channel.
    pub(super) async fn top_up(
        &self,
        top_up: &TopUp,
        pricing: &Pricing,
    ) -> Result<Arc<Cell>, Refusal> {
        match &top_up.deposit {
            TopUpDeposit::Authorization {
                salt,
                authorization,
                signature,
            } => {
                if authorization.value != top_up.additional_deposit {
                    return Err(Refusal::Invalid(
                        "additionalDeposit is not what is authorized".to_owned(),
                    ));
                }
                let deposit = SignedDeposit::TopUp {
                    channel_id: top_up.channel_id,
                    salt: *salt,
                    authorization: authorization.clone(),
                    signature: *signature,
                };
                self.top_up_signed(top_up.channel_id, deposit, pricing)
                    .await
            }
            TopUpDeposit::Hash { hash } => {
                self.confirm(*hash, top_up.channel_id).await?;
                let cell = self.find(top_up.channel_id).await?;
                self.sync(&cell).await?;
                Ok(cell)
            }
        }
    }

    /// A channel that is known, or that the ledger knows to be this payee's: books can be lost.
    pub(super) async fn find(&self, id: B256) -> Result<Arc<Cell>, Refusal> {
        if let Some(cell) = self.known(id) {
            return Ok(cell);
        }
        let lock = self.0.opening.lock_of(id)?;
        let _one = lock.lock().await;
        if let Some(cell) = self.known(id) {
            return Ok(cell);
        }
        let found = self.0.escrow.channel(id).await?.ok_or(Refusal::NoChannel)?;
        self.admit(id, &found).await
    }

    /// A channel of which the ledger has news: one that is served here, or was by a server that is gone. New
    /// ones wait for their payer, who may mean another server of this wallet.
    pub(crate) async fn cell(&self, id: B256) -> Result<Arc<Cell>, Refusal> {
        if let Some(cell) = self.known(id) {
            return Ok(cell);
        }
        let lock = self.0.opening.lock_of(id)?;
        let _one = lock.lock().await;
        if let Some(cell) = self.known(id) {
            return Ok(cell);
        }
        let found = self.0.escrow.channel(id).await?.ok_or(Refusal::NoChannel)?;
        let channel = self.0.books.inherit(Channel::new(id, &found)).await?;
        self.serve(channel, &found)
    }

    async fn open_signed(
        &self,
        id: B256,
        deposit: SignedDeposit,
        pricing: &Pricing,
    ) -> Result<Arc<Cell>, Refusal> {
        let SignedDeposit::Open {
            salt,
            authorized_signer,
            authorization,
            ..
        } = &deposit
        else {
            return Err(Refusal::Invalid("the deposit opens no channel".to_owned()));
        };
        let computed = self
            .0
            .escrow
            .channel_id(authorization.from, *salt, *authorized_signer);
        if computed != id {
            return Err(Refusal::Invalid(
                "channelId is of other parameters".to_owned(),
            ));
        }
        self.check_deposit(&deposit, authorization, pricing)?;
        if let Some(cell) = self.known(id) {
            return Ok(cell);
        }
        let lock = self.0.opening.lock_of(id)?;
        let _one = lock.lock().await;
        if let Some(cell) = self.known(id) {
            return Ok(cell);
        }
        if let Some(found) = self.0.escrow.channel(id).await? {
            // An earlier try got through, without the answer getting back.
            return self.admit(id, &found).await;
        }
        self.0.escrow.submit(deposit).await?;
        let found = self
            .0
            .escrow
            .channel(id)
            .await?
            .ok_or(Refusal::NotConfirmed)?;
        self.admit(id, &found).await
    }

    async fn top_up_signed(
        &self,
        id: B256,
        deposit: SignedDeposit,
        pricing: &Pricing,
    ) -> Result<Arc<Cell>, Refusal> {
        let SignedDeposit::TopUp { authorization, .. } = &deposit else {
            return Err(Refusal::Invalid("the deposit tops nothing up".to_owned()));
        };
        self.check_deposit(&deposit, authorization, pricing)?;
        let cell = self.find(id).await?;
        let lock = self.0.opening.lock_of(id)?;
        let _one = lock.lock().await;
        let submitted = self.0.escrow.submit(deposit).await;
        // Also where it failed: the same deposit may have got through before.
        self.sync(&cell).await?;
        submitted?;
        Ok(cell)
    }

    /// What can be told without asking the ledger: dust costs nobody gas.
    fn check_deposit(
        &self,
        deposit: &SignedDeposit,
        authorization: &Authorization,
        pricing: &Pricing,
    ) -> Result<(), Refusal> {
        let minimum = both_ways(pricing, MINIMUM_TOKENS).ok_or(Refusal::Price)?;
        if authorization.value.0 < minimum {
            return Err(Refusal::DepositTooSmall { minimum });
        }
        self.0.escrow.check(deposit).map_err(Refusal::Invalid)
    }

    /// Serves a channel of the ledger from now on.
    async fn admit(&self, id: B256, found: &EscrowChannel) -> Result<Arc<Cell>, Refusal> {
        if found.payee != self.0.signer.address() {
            return Err(Refusal::NoChannel);
        }
        let channel = self.0.books.claim(Channel::new(id, found)).await?;
        self.serve(channel, found)
    }

    fn serve(&self, mut channel: Channel, found: &EscrowChannel) -> Result<Arc<Cell>, Refusal> {
        channel.sync(Some(found));
        if channel.status == Status::Final {
            return Err(VoucherRefusal::Final.into());
        }
        let id = channel.id;
        let cell = Cell::new(channel);
        self.cells().insert(id, Arc::clone(&cell));
        Ok(cell)
    }

    /// Whether a transaction put money into that very channel.
    async fn confirm(&self, transaction: B256, id: B256) -> Result<(), Refusal> {
        match self.0.escrow.deposited_by(transaction).await? {
            Some(found) if found == id => Ok(()),
            Some(_) => Err(Refusal::Escrow(EscrowError::Reverted {
                reason: "the transaction is for another channel".to_owned(),
                is_funds: false,
            })),
            None => Err(Refusal::NotConfirmed),
        }
    }
}

/// The address in `did:pkh:eip155:<chain id>:<address>`.
fn address_of_did(source: &str) -> Option<Address> {
    let rest = source.strip_prefix("did:pkh:eip155:")?;
    rest.rsplit_once(':')?.1.parse().ok()
}
