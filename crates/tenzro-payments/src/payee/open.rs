//! How money gets into channels: deposits that the payer signed, and deposits that it made itself.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use alloy::primitives::{Address, B256};

use super::{Cell, Given, MINIMUM_TOKENS, Payee, both_ways};
use crate::channel::{Channel, Status, VoucherRefusal};
use crate::escrow::{EscrowChannel, EscrowError, SignedDeposit};
use crate::price::Pricing;
use crate::refusal::Refusal;
use crate::sync::lock;
use crate::wire::{
    Authorization, DepositAction, MergedDeposit, Open, OpenDeposit, TopUp, TopUpDeposit,
    VoucherUpdate,
};

/// Channels that may be looked up at the same time, and as many that may be opened or topped up: whoever asks
/// for channels that are not there keeps nobody from paying in.
const OPENING_MAX: usize = 64;

/// Why a channel that is not known is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// By its payer, or by anybody.
    LookUp,
    /// By somebody who signed a deposit.
    Deposit,
    /// By the ledger.
    News,
}

type Lock = Arc<tokio::sync::Mutex<()>>;

/// One lock for each channel that is being looked up or opened: twice the same deposit is one transaction, and
/// no channel has two cells.
#[derive(Debug, Default)]
pub(super) struct Opening {
    locks: Mutex<HashMap<B256, (Why, Lock)>>,
    /// Payers with a deposit under way: money that is not there pays for one failed transaction at a time.
    payers: Mutex<HashSet<Address>>,
}

impl Opening {
    fn lock_of(&self, id: B256, why: Why) -> Result<Lock, Refusal> {
        let mut locks = lock(&self.locks);
        locks.retain(|_, (_, lock)| Arc::strong_count(lock) > 1);
        let beside = locks.values().filter(|(other, _)| *other == why).count();
        if why != Why::News && beside >= OPENING_MAX && !locks.contains_key(&id) {
            return Err(Refusal::TooMany);
        }
        let (_, lock) = locks.entry(id).or_insert_with(|| (why, Arc::default()));
        Ok(Arc::clone(lock))
    }

    fn depositing(&self, payer: Address) -> Result<Depositing<'_>, Refusal> {
        match lock(&self.payers).insert(payer) {
            true => Ok(Depositing {
                opening: self,
                payer,
            }),
            false => Err(Refusal::TooMany),
        }
    }
}

/// A deposit of a payer's that is under way.
struct Depositing<'a> {
    opening: &'a Opening,
    payer: Address,
}

impl Drop for Depositing<'_> {
    fn drop(&mut self) {
        lock(&self.opening.payers).remove(&self.payer);
    }
}

impl Payee {
    /// Opens a channel, or finds the one that an earlier, unanswered try opened.
    pub(super) async fn open(
        &self,
        open: &Open,
        source: Option<&str>,
        pricing: &Pricing,
        given: &Given<'_>,
    ) -> Result<Arc<Cell>, Refusal> {
        let signer = open.authorized_signer.unwrap_or_default();
        match &open.deposit {
            OpenDeposit::Authorization {
                authorization,
                signature,
                ..
            } => {
                let deposit = SignedDeposit::Open {
                    salt: open.salt,
                    authorized_signer: signer,
                    authorization: authorization.clone(),
                    signature: *signature,
                };
                self.open_signed(deposit, pricing, given).await
            }
            OpenDeposit::Hash { hash, .. } => {
                let payer = source.and_then(address_of_did);
                let payer = payer.ok_or_else(|| Refusal::Invalid("source is needed".to_owned()))?;
                if self.0.escrow.channel_id(payer, open.salt, signer) != open.channel_id {
                    return Err(Refusal::Invalid(
                        "channelId is of other parameters".to_owned(),
                    ));
                }
                self.find_funded(open.channel_id, *hash, pricing).await
            }
        }
    }

    /// The channel of a voucher, after the deposit that came with it.
    pub(super) async fn fund(
        &self,
        update: &VoucherUpdate,
        pricing: &Pricing,
        given: &Given<'_>,
    ) -> Result<Arc<Cell>, Refusal> {
        let id = update.voucher.channel_id;
        let Some(deposit) = &update.deposit else {
            return self.find(id, pricing).await;
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
                self.open_signed(deposit, pricing, given).await
            }
            DepositAction::TopUp => {
                let deposit = SignedDeposit::TopUp {
                    channel_id: id,
                    salt,
                    authorization,
                    signature,
                };
                self.top_up_signed(id, deposit, pricing, Some(given)).await
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
                self.top_up_signed(top_up.channel_id, deposit, pricing, None)
                    .await
            }
            TopUpDeposit::Hash { hash } => {
                self.find_funded(top_up.channel_id, *hash, pricing).await
            }
        }
    }

    /// A channel that is known, or that the ledger knows to be this payee's: books can be lost.
    pub(super) async fn find(&self, id: B256, pricing: &Pricing) -> Result<Arc<Cell>, Refusal> {
        let look_up = async {
            let found = self.0.escrow.channel(id).await?.ok_or(Refusal::NoChannel)?;
            self.admit(id, &found, pricing).await
        };
        self.once(id, Why::LookUp, look_up).await
    }

    /// The same, after a transaction of its payer's own that put money into it.
    async fn find_funded(
        &self,
        id: B256,
        transaction: B256,
        pricing: &Pricing,
    ) -> Result<Arc<Cell>, Refusal> {
        let _slot = self.0.opening.lock_of(id, Why::LookUp)?;
        self.confirm(transaction, id).await?;
        let cell = self.find(id, pricing).await?;
        self.sync(&cell).await?;
        Ok(cell)
    }

    /// A channel of which the ledger has news: one that is served here, or was by a server that is gone while
    /// its payer leaves. All others wait for their payer, who may mean another server of this wallet.
    pub(crate) async fn cell(&self, id: B256) -> Result<Arc<Cell>, Refusal> {
        let look_up = async {
            let found = self.0.escrow.channel(id).await?.ok_or(Refusal::NoChannel)?;
            if !found.is_closing && !found.is_final {
                return Err(Refusal::NoChannel);
            }
            let channel = self.0.books.inherit(Channel::new(id, &found)).await?;
            self.serve(channel, &found)
        };
        self.once(id, Why::News, look_up).await
    }

    /// The cell of a channel, made where there is none: by one at a time.
    async fn once(
        &self,
        id: B256,
        why: Why,
        make: impl Future<Output = Result<Arc<Cell>, Refusal>>,
    ) -> Result<Arc<Cell>, Refusal> {
        if let Some(cell) = self.known(id) {
            return Ok(cell);
        }
        let lock = self.0.opening.lock_of(id, why)?;
        let _one = lock.lock().await;
        match self.known(id) {
            Some(cell) => Ok(cell),
            None => make.await,
        }
    }

    async fn open_signed(
        &self,
        deposit: SignedDeposit,
        pricing: &Pricing,
        given: &Given<'_>,
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
        let (id, payer) = (given.voucher.channel_id, authorization.from);
        if self.0.escrow.channel_id(payer, *salt, *authorized_signer) != id {
            return Err(Refusal::Invalid(
                "channelId is of other parameters".to_owned(),
            ));
        }
        self.check_deposit(&deposit, authorization, pricing)?;
        // Gas is only for who can pay with the channel.
        let signer = match authorized_signer.is_zero() {
            true => payer,
            false => *authorized_signer,
        };
        self.prove(signer, given)?;
        let open = async {
            if let Some(found) = self.0.escrow.channel(id).await? {
                // An earlier try got through, without the answer getting back.
                return self.admit(id, &found, pricing).await;
            }
            let wei = authorization.value.0;
            if given.voucher.amount.0 > wei {
                return Err(VoucherRefusal::AboveDeposit { deposit: wei }.into());
            }
            let _one = self.0.opening.depositing(payer)?;
            self.0.escrow.submit(deposit.clone()).await?;
            let found = self.0.escrow.channel(id).await?;
            let found = found.ok_or(Refusal::NotConfirmed)?;
            self.admit(id, &found, pricing).await
        };
        self.once(id, Why::Deposit, open).await
    }

    async fn top_up_signed(
        &self,
        id: B256,
        deposit: SignedDeposit,
        pricing: &Pricing,
        given: Option<&Given<'_>>,
    ) -> Result<Arc<Cell>, Refusal> {
        let SignedDeposit::TopUp { authorization, .. } = &deposit else {
            return Err(Refusal::Invalid("the deposit tops nothing up".to_owned()));
        };
        self.check_deposit(&deposit, authorization, pricing)?;
        let payer = authorization.from;
        let cell = self.find(id, pricing).await?;
        let (signer, status) = {
            let state = cell.lock();
            (state.channel.signer, state.channel.status)
        };
        if let Some(given) = given {
            self.prove(signer, given)?;
        }
        if status == Status::Ending {
            return Err(VoucherRefusal::Closing.into());
        }
        let lock = self.0.opening.lock_of(id, Why::Deposit)?;
        let _one = lock.lock().await;
        let _deposit = self.0.opening.depositing(payer)?;
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
        is_enough(authorization.value.0, pricing)?;
        self.0.escrow.check(deposit).map_err(Refusal::Invalid)
    }

    /// Serves a channel of the ledger from now on.
    async fn admit(
        &self,
        id: B256,
        found: &EscrowChannel,
        pricing: &Pricing,
    ) -> Result<Arc<Cell>, Refusal> {
        if found.payee != self.0.signer.address() {
            return Err(Refusal::NoChannel);
        }
        if found.is_final {
            return Err(VoucherRefusal::Final.into());
        }
        // No channel is opened with nothing.
        if found.deposit == 0 {
            return Err(Refusal::NotConfirmed);
        }
        is_enough(found.deposit, pricing)?;
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

/// Whether a deposit is worth its gas, whoever pays for that.
fn is_enough(deposit: u128, pricing: &Pricing) -> Result<(), Refusal> {
    let minimum = both_ways(pricing, MINIMUM_TOKENS).ok_or(Refusal::Price)?;
    match deposit < minimum {
        true => Err(Refusal::DepositTooSmall { minimum }),
        false => Ok(()),
    }
}

/// The address in `did:pkh:eip155:<chain id>:<address>`.
fn address_of_did(source: &str) -> Option<Address> {
    let rest = source.strip_prefix("did:pkh:eip155:")?;
    rest.rsplit_once(':')?.1.parse().ok()
}
