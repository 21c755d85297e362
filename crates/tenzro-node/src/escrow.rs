//! The escrow contract as payments need it: a ledger and the payee's wallet.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tenzro_ledger::channels::{
    Authorization, Channel, ChannelFollower, ChannelRefusal, ChannelTerms, Escrow as Place,
    Funding, OpenRequest, Party, RowOutcome, Settlement, TopUpRequest,
};
use tenzro_ledger::{Account, Address, B256, Ledger, LedgerError, Operations, SendError};
use tenzro_payments::escrow::{Escrow, EscrowChannel, EscrowError, Settled, SignedDeposit};
use tenzro_payments::voucher::Voucher;
use tenzro_payments::wire;
use tokio::sync::Mutex;

/// How long a deposit may take to be confirmed.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(120);
/// Until the head is looked at again.
const CONFIRM_PAUSE: Duration = Duration::from_millis(500);

/// See the module header.
pub(crate) struct LedgerEscrow {
    ledger: Ledger,
    account: Account,
    place: Place,
    /// Blocks on top of a block before it counts.
    blocks_on_top: u64,
    follow: Mutex<Follow>,
}

struct Follow {
    /// A wish to close is told at once: later is too late, and a false alarm costs nothing. A deposit counts,
    /// and is told again, when it is confirmed.
    channels: Vec<ChannelFollower>,
    /// Channels that were told about.
    told: BTreeSet<B256>,
    /// Channels that are to be told about: an error halfway must not lose them.
    unsaid: BTreeSet<B256>,
}

impl LedgerEscrow {
    pub(crate) fn new(ledger: Ledger, account: Account, blocks_on_top: u64) -> Self {
        let who = Party::Payee(account.address());
        let first = ledger.addresses().first_block;
        let waits = BTreeSet::from([0, blocks_on_top]);
        let follower = |wait| ChannelFollower::new(ledger.clone(), who, first, wait);
        let channels = waits.into_iter().map(follower).collect();
        Self {
            place: ledger.escrow(),
            ledger,
            account,
            blocks_on_top,
            follow: Mutex::new(Follow {
                channels,
                told: BTreeSet::new(),
                unsaid: BTreeSet::new(),
            }),
        }
    }

    fn operations(&self) -> Operations<'_> {
        Operations {
            ledger: &self.ledger,
            account: &self.account,
        }
    }

    /// Waits until a block has enough others on top.
    async fn confirm(&self, block: Option<u64>) -> Result<(), EscrowError> {
        let Some(block) = block.filter(|_| self.blocks_on_top > 0) else {
            return Ok(());
        };
        let confirmed = async {
            loop {
                let head = self.ledger.head().await.map_err(unreadable)?;
                if head >= block.saturating_add(self.blocks_on_top) {
                    return Ok(());
                }
                tokio::time::sleep(CONFIRM_PAUSE).await;
            }
        };
        let waited = tokio::time::timeout(CONFIRM_TIMEOUT, confirmed).await;
        waited.unwrap_or_else(|_| Err(EscrowError::Unavailable("not confirmed in time".to_owned())))
    }
}

impl Escrow for LedgerEscrow {
    fn channel_id(&self, payer: Address, salt: B256, authorized_signer: Address) -> B256 {
        let terms = ChannelTerms {
            payee: self.account.address(),
            salt,
            authorized_signer,
        };
        terms.id(payer, &self.place)
    }

    fn check(&self, deposit: &SignedDeposit) -> Result<(), String> {
        check_deposit(deposit, self.account.address(), &self.place)
    }

    fn channel(&self, id: B256) -> BoxFuture<'_, Result<Option<EscrowChannel>, EscrowError>> {
        async move {
            let now = self.ledger.channel_now(id).await.map_err(unreadable)?;
            let Some(mut channel) = now.as_ref().map(escrow_channel) else {
                return Ok(None);
            };
            if self.blocks_on_top > 0 {
                let before = self.ledger.channel_before(id, self.blocks_on_top).await;
                let before = before.map_err(unreadable)?;
                let confirmed = before.map_or(0, |before| before.deposit);
                channel.deposit = confirmed.min(channel.deposit).max(channel.settled);
            }
            Ok(Some(channel))
        }
        .boxed()
    }

    fn submit(&self, deposit: SignedDeposit) -> BoxFuture<'_, Result<B256, EscrowError>> {
        async move {
            let request = Request::of(&deposit, self.account.address(), &self.place);
            let receipt = match request.map_err(|reason| reverted(reason, false))? {
                Request::Open(request) => {
                    self.operations()
                        .open_channel_with_authorization(&request)
                        .await
                }
                Request::TopUp(request) => {
                    self.operations()
                        .top_up_channel_with_authorization(&request)
                        .await
                }
            };
            let receipt = receipt.map_err(|error| unsent(&error))?;
            self.confirm(receipt.block_number).await?;
            Ok(receipt.transaction_hash)
        }
        .boxed()
    }

    fn deposited_by(&self, transaction: B256) -> BoxFuture<'_, Result<Option<B256>, EscrowError>> {
        async move {
            match self.ledger.funding(transaction).await.map_err(unreadable)? {
                Funding::NotMined => Ok(None),
                Funding::Failed => Err(reverted("the transaction failed".to_owned(), false)),
                Funding::Mined { confirmations, .. } if confirmations < self.blocks_on_top => {
                    Ok(None)
                }
                Funding::Mined { events, .. } => {
                    let own = |event: &&tenzro_ledger::channels::ChannelEvent| {
                        event.payee == self.account.address()
                    };
                    let other = || {
                        reverted(
                            "the transaction pays into no channel here".to_owned(),
                            false,
                        )
                    };
                    events
                        .iter()
                        .find(own)
                        .map(|event| Some(event.id))
                        .ok_or_else(other)
                }
            }
        }
        .boxed()
    }

    fn settle(
        &self,
        vouchers: Vec<Voucher>,
    ) -> BoxFuture<'_, Result<(B256, Vec<Settled>), EscrowError>> {
        async move {
            let rows: Vec<Settlement> = vouchers.iter().map(settlement).collect();
            let batch = self.operations().settle_channels(&rows).await;
            let batch = batch.map_err(|error| unsent(&error))?;
            let outcomes = rows
                .iter()
                .zip(&batch.rows)
                .map(|(row, outcome)| match outcome {
                    RowOutcome::Settled { .. } => Settled::Paid(row.cumulative),
                    RowOutcome::Skipped(refusal) => Settled::Refused(refusal.to_string()),
                });
            Ok((batch.receipt.transaction_hash, outcomes.collect()))
        }
        .boxed()
    }

    fn close(
        &self,
        channel_id: B256,
        last: Option<Voucher>,
    ) -> BoxFuture<'_, Result<B256, EscrowError>> {
        async move {
            let voucher = match &last {
                Some(voucher) => settlement(voucher),
                None => Settlement {
                    channel_id,
                    cumulative: 0,
                    signature: Default::default(),
                },
            };
            let receipt = self.operations().close_channel(&voucher).await;
            Ok(receipt.map_err(|error| unsent(&error))?.transaction_hash)
        }
        .boxed()
    }

    fn news(&self) -> BoxFuture<'_, Result<Vec<B256>, EscrowError>> {
        async move {
            let mut follow = self.follow.lock().await;
            let Follow {
                channels,
                told,
                unsaid,
            } = &mut *follow;
            for follower in channels {
                let news = follower.catch_up().await.map_err(unreadable)?;
                unsaid.extend(news.events.iter().map(|event| event.id));
                if news.is_anew {
                    // What a reorganisation took back has no event any more.
                    unsaid.extend(&*told);
                }
            }
            told.extend(&*unsaid);
            Ok(std::mem::take(unsaid).into_iter().collect())
        }
        .boxed()
    }
}

impl fmt::Debug for LedgerEscrow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LedgerEscrow")
            .field("place", &self.place)
            .field("account", &self.account.address())
            .finish_non_exhaustive()
    }
}

/// Whether a deposit is signed for what it says it is for.
pub(crate) fn check_deposit(
    deposit: &SignedDeposit,
    payee: Address,
    place: &Place,
) -> Result<(), String> {
    let refused = |refusal: ChannelRefusal| refusal.to_string();
    match Request::of(deposit, payee, place)? {
        Request::Open(request) => request.verify(place).map_err(refused),
        Request::TopUp(request) => request.verify(place).map_err(refused),
    }
}

/// A deposit in the ledger's terms.
enum Request {
    Open(OpenRequest),
    TopUp(TopUpRequest),
}

impl Request {
    fn of(deposit: &SignedDeposit, payee: Address, place: &Place) -> Result<Self, String> {
        match deposit {
            SignedDeposit::Open {
                salt,
                authorized_signer,
                authorization,
                signature,
            } => Ok(Self::Open(OpenRequest {
                terms: ChannelTerms {
                    payee,
                    salt: *salt,
                    authorized_signer: *authorized_signer,
                },
                authorization: authorization_of(authorization, signature.0, place)?,
            })),
            SignedDeposit::TopUp {
                channel_id,
                salt,
                authorization,
                signature,
            } => Ok(Self::TopUp(TopUpRequest {
                channel_id: *channel_id,
                salt: *salt,
                authorization: authorization_of(authorization, signature.0, place)?,
            })),
        }
    }
}

fn authorization_of(
    wire: &wire::Authorization,
    signature: [u8; 65],
    place: &Place,
) -> Result<Authorization, String> {
    if wire.to != place.address {
        return Err("the authorization is for another contract".to_owned());
    }
    let time = |seconds: tenzro_ledger::U256| u64::try_from(seconds).ok();
    let too_far = || "the authorization's times are out of bounds".to_owned();
    Ok(Authorization {
        from: wire.from,
        value: wire.value.0,
        valid_after: time(wire.valid_after).ok_or_else(too_far)?,
        valid_before: time(wire.valid_before).ok_or_else(too_far)?,
        nonce: wire.nonce,
        signature,
    })
}

/// A channel of the ledger as payments see it.
pub(crate) fn escrow_channel(channel: &Channel) -> EscrowChannel {
    EscrowChannel {
        payer: channel.payer,
        payee: channel.payee,
        signer: channel.signer(),
        deposit: channel.deposit,
        settled: channel.settled,
        is_closing: channel.close_requested_at != 0,
        is_final: channel.finalized,
    }
}

fn settlement(voucher: &Voucher) -> Settlement {
    Settlement {
        channel_id: voucher.channel_id,
        cumulative: voucher.amount.0,
        signature: voucher.signature.0.into(),
    }
}

fn reverted(reason: String, is_funds: bool) -> EscrowError {
    EscrowError::Reverted { reason, is_funds }
}

pub(crate) fn unreadable(error: LedgerError) -> EscrowError {
    EscrowError::Unavailable(error.to_string())
}

/// Only what the contract itself said is an answer; everything else may still come true.
fn unsent(error: &SendError) -> EscrowError {
    match error.channel_refusal() {
        Some(refusal) => reverted(
            refusal.to_string(),
            refusal == ChannelRefusal::InsufficientFunds,
        ),
        None => EscrowError::Unavailable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use tenzro_ledger::{EmbeddedChain, PrivateKeySigner};
    use tenzro_payments::voucher::{Domain, request_hash};

    use super::*;

    async fn ledger() -> (tempfile::TempDir, EmbeddedChain, Ledger) {
        let directory = tempfile::tempdir().expect("a directory");
        let chain = EmbeddedChain::open(&directory.path().join("ledger.sqlite")).expect("a chain");
        let ledger = Ledger::open(chain.provider(), EmbeddedChain::addresses()).await;
        (directory, chain, ledger.expect("a ledger"))
    }

    #[tokio::test]
    async fn m11_a_deposit_counts_once_it_is_confirmed_and_a_wish_to_close_at_once() {
        let (_directory, _chain, ledger) = ledger().await;
        let wallet = || {
            let key = PrivateKeySigner::random();
            Account::new(ledger.provider().clone(), ledger.chain_id(), key)
        };
        let (payer, payee) = (wallet(), wallet());
        let by = Operations {
            ledger: &ledger,
            account: &payer,
        };
        let tnzo = by.drip(payer.address()).await.expect("a faucet");
        tnzo.expect("mined");
        let terms = ChannelTerms::fresh(payee.address());
        let id = terms.id(payer.address(), &ledger.escrow());
        let to = payee.address();
        let mine = async || {
            let sent = by.transfer(to, tenzro_protocol::amount::Wei(1));
            sent.await.expect("mined");
        };
        let payee = LedgerEscrow::new(ledger.clone(), payee, 2);
        let now = async || {
            let channel = payee.channel(id).await.expect("read").expect("a channel");
            let news = payee.news().await.expect("read");
            (channel.deposit, channel.is_closing, news)
        };
        assert_eq!(payee.channel(id).await, Ok(None));
        by.open_channel(&terms, 500).await.expect("mined");
        assert_eq!(now().await, (0, false, vec![id]));
        mine().await;
        assert_eq!(now().await, (0, false, vec![]));
        mine().await;
        assert_eq!(now().await, (500, false, vec![id]));
        by.top_up_channel(id, 300).await.expect("mined");
        assert_eq!(now().await, (500, false, vec![id]));
        by.request_channel_close(id).await.expect("mined");
        assert_eq!(now().await, (500, true, vec![id]));
        mine().await;
        assert_eq!(now().await, (800, true, vec![id]));
    }

    #[tokio::test]
    async fn m36_vouchers_are_signed_as_the_contract_reads_them() {
        let (_directory, _chain, ledger) = ledger().await;
        let place = ledger.escrow();
        let domain = Domain::new(place.chain_id, place.address);
        let contract = ledger.channels();
        for number in 0u64..1_000 {
            // As random as a hash.
            let id = request_hash("case", &number.to_string(), b"id");
            let amount = request_hash("case", &number.to_string(), b"amount");
            let amount = u128::from_be_bytes(amount.0[..16].try_into().expect("16 bytes"));
            // All widths of amounts, and the largest.
            let amount = match number {
                0 => u128::MAX,
                number => amount >> (number % 128),
            };
            let digest = contract.voucherDigest(id, amount).call().await;
            let digest = digest.expect("a view");
            assert_eq!(domain.voucher_digest(id, amount), digest, "{id} {amount}");
        }
    }
}
