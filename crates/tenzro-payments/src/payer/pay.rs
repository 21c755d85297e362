//! One payment: what to sign, and the deposit that it needs, asked for until both are decided.

use std::sync::Arc;

use alloy::primitives::{Address, B256};
use rand::TryRng;
use rand::rngs::SysRng;
use tokio::sync::OwnedMutexGuard;

use super::books::{Books, Offer, Purchase, Step};
use super::budget::{self, DepositRequest};
use super::request::Entry;
use super::store::Deposit;
use super::terms::Terms;
use super::{Inner, PayError};
use crate::sync::lock;

/// Seconds that a signed deposit can be submitted for.
const AUTHORIZATION_SECONDS: u64 = 900;
/// A deposit for so many requests where the payee suggests none.
const REQUESTS_AHEAD: u128 = 10;

/// What [`Inner::pay`] came to.
#[derive(Debug)]
pub(super) struct Payment {
    /// Of a new request.
    pub(super) entry: Option<Entry>,
    pub(super) channel: B256,
    /// No server is known to take the channel yet, and the one that takes this voucher does.
    pub(super) is_stray: bool,
    pub(super) amount: u128,
    pub(super) is_overbill: bool,
    pub(super) deposit: Option<SignedDeposit>,
}

/// A deposit that goes with a voucher; nobody else makes one to the payee while it is held.
#[derive(Debug)]
pub(super) struct SignedDeposit {
    pub(super) deposit: Deposit,
    _lock: OwnedMutexGuard<()>,
}

impl Inner {
    /// Decides what to sign for a purchase, with a deposit where one is needed.
    pub(super) async fn pay(
        &self,
        terms: &Terms,
        place: &Arc<str>,
        purchase: Purchase,
        required: Option<u128>,
    ) -> Result<Payment, PayError> {
        let mut lock = None;
        let mut offer = Offer {
            payee: terms.payee,
            place: Arc::clone(place),
            pricing: terms.pricing,
            step: terms.voucher_step,
            purchase,
            required,
            deposit: None,
        };
        loop {
            let (asked, clock) = (offer.clone(), self.clock);
            let worker = self.worker.clone();
            let call = move |books: &mut Books| {
                let step = books.offer(&asked, clock())?;
                let entry = match (&step, &asked.purchase) {
                    (Step::Pay { request, .. }, Purchase::New { heard, .. }) => {
                        Some(Entry::new(worker, clock, *request, Arc::clone(heard)))
                    }
                    _ => None,
                };
                Ok((step, entry))
            };
            // Whoever stops waiting here drops the entry, and with it the request.
            let (step, entry) = self.worker.call(call).await?;
            match (step, offer.deposit, &lock) {
                (
                    Step::Pay {
                        channel,
                        is_stray,
                        amount,
                        is_overbill,
                        ..
                    },
                    new,
                    _,
                ) => {
                    let new = new.filter(|deposit| deposit.channel == channel);
                    let deposit = new.zip(lock).map(|(deposit, lock)| SignedDeposit {
                        deposit,
                        _lock: lock,
                    });
                    return Ok(Payment {
                        entry,
                        channel,
                        is_stray,
                        amount,
                        is_overbill,
                        deposit,
                    });
                }
                (Step::Deposit { .. }, Some(_), _) => return Err(PayError::DepositPending),
                // Another request may make the deposit at this moment, and then it is there.
                (Step::Deposit { .. }, None, None) => {
                    lock = Some(self.lock(terms.payee, place).await);
                }
                (step, None, Some(_)) => offer.deposit = self.deposit(terms, place, step).await?,
            }
        }
    }

    async fn lock(&self, payee: Address, place: &Arc<str>) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = lock(&self.deposits);
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry((payee, Arc::clone(place))).or_default())
        };
        lock.lock_owned().await
    }

    /// A new deposit, or the one that was signed before and may have got lost. None where that one is there
    /// after all, or will never be.
    async fn deposit(
        &self,
        terms: &Terms,
        place: &Arc<str>,
        step: Step,
    ) -> Result<Option<Deposit>, PayError> {
        let Step::Deposit {
            channel,
            needed,
            pending,
            budget,
        } = step
        else {
            return Ok(None);
        };
        if !terms.takes_authorizations {
            return Err(PayError::NoDeposits);
        }
        if let Some(deposit) = pending {
            self.reconcile(deposit.channel).await?;
            let still =
                move |books: &mut Books| Ok(books.store.pending_deposit(deposit.channel)?);
            return self.worker.call(still).await;
        }
        let held = channel.as_ref().map_or(0, |channel| channel.deposit);
        let due = channel.as_ref().map_or(0, |channel| channel.due);
        let idle = held.saturating_sub(due);
        let needed = needed.saturating_sub(held).max(1);
        let suggested = match terms.suggested_deposit {
            0 => needed.saturating_mul(REQUESTS_AHEAD),
            suggested => suggested,
        };
        let own = self.signer.address();
        let balance = self.ledger.balance(own).await?;
        let server = (terms.payee, Arc::clone(place));
        let asked = terms.suggested_deposit;
        let known = move |books: &mut Books| {
            let too_small = books.too_small(&server, asked);
            Ok((books.store.pending_total()?, too_small))
        };
        let (promised, too_small) = self.worker.call(known).await?;
        let request = DepositRequest {
            needed,
            suggested,
            idle,
            budget,
            balance: balance.saturating_sub(promised),
        };
        let amount = budget::deposit(&self.limits, &request)?;
        if amount <= too_small {
            return Err(budget::too_small(&self.limits, &request, amount).into());
        }
        let salt = random()?;
        let is_open = channel.is_none();
        let id = channel.map(|channel| channel.id);
        let deposit = Deposit {
            salt,
            channel: id.unwrap_or_else(|| self.ledger.channel_id(terms.payee, salt)),
            is_open,
            amount,
            valid_before: (self.clock)().saturating_add(AUTHORIZATION_SECONDS),
        };
        Ok(Some(deposit))
    }

    /// Takes the ledger's word on a channel.
    pub(super) async fn reconcile(&self, id: B256) -> Result<(), PayError> {
        let found = self.ledger.channel(id).await?;
        let now = (self.clock)();
        let own = self.signer.address();
        let call = move |books: &mut Books| {
            if let Some(found) = found.filter(|found| found.payer == own && found.signer == own) {
                books.adopt(id, &found)?;
            }
            books.reconcile(id, found.as_ref(), now)
        };
        self.worker.call(call).await?;
        if found.is_some_and(|found| found.is_final) {
            lock(&self.finals).insert(id);
        }
        Ok(())
    }
}

/// 32 bytes that nobody can foresee.
pub(super) fn random() -> Result<B256, PayError> {
    let mut bytes = [0; 32];
    let filled = SysRng.try_fill_bytes(&mut bytes);
    filled.map_err(|_| PayError::Machine("randomness"))?;
    Ok(B256::from(bytes))
}
