//! Channels of a payer or a payee as the escrow's events tell, read on from where the last look ended.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use tenzro_ledger::channels::{Change, ChannelEvent, ChannelFollower, Party};
use tenzro_ledger::{Address, B256, Ledger, LedgerError};
use tokio::sync::{Mutex, Semaphore};

/// Parties that are remembered; others are read anew.
const PARTIES_MAX: usize = 64;
/// Parties that are read at the same time: anybody may ask for any address.
const READERS_MAX: usize = 4;
/// How long a caller waits. What was read by then is kept for the next one.
const PATIENCE: Duration = Duration::from_secs(20);

/// A channel as its events tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ViewedChannel {
    pub(crate) payer: Address,
    pub(crate) payee: Address,
    /// Wei.
    pub(crate) deposit: u128,
    /// Wei paid to the payee.
    pub(crate) settled: u128,
    /// Unix seconds; set while the payer wants to leave.
    pub(crate) withdrawable_at: Option<u64>,
    /// Wei that the payer got back; set once it is closed for ever.
    pub(crate) refunded: Option<u128>,
    /// Unix seconds.
    pub(crate) opened_at: u64,
}

impl ViewedChannel {
    /// Whether it takes payments: it is not closed, and its payer does not leave.
    pub(crate) fn is_open(&self) -> bool {
        self.refunded.is_none() && self.withdrawable_at.is_none()
    }
}

/// By id.
pub(crate) type Channels = BTreeMap<B256, ViewedChannel>;

/// See the module header.
pub(crate) struct ChannelViews {
    ledger: Ledger,
    views: SyncMutex<Views>,
    readers: Semaphore,
}

/// By address, and whether it is the payee.
type Views = HashMap<(Address, bool), Arc<Mutex<View>>>;

/// The channels of one party, and up to where they are read.
#[derive(Debug)]
pub(crate) struct View {
    follower: ChannelFollower,
    channels: Channels,
}

impl View {
    /// Nothing is read yet.
    pub(crate) fn new(ledger: Ledger, who: Party) -> Self {
        let first = ledger.addresses().first_block;
        Self {
            follower: ChannelFollower::new(ledger, who, first, 0),
            channels: Channels::new(),
        }
    }

    /// Reads what is new. Dropped halfway, it goes on the next time.
    pub(crate) async fn catch_up(&mut self) -> Result<&Channels, LedgerError> {
        let news = self.follower.catch_up().await?;
        if news.is_anew {
            self.channels.clear();
        }
        for event in &news.events {
            apply(&mut self.channels, event);
        }
        Ok(&self.channels)
    }
}

impl ChannelViews {
    pub(crate) fn new(ledger: Ledger) -> Self {
        Self {
            ledger,
            views: SyncMutex::default(),
            readers: Semaphore::new(READERS_MAX),
        }
    }

    /// All channels of the party until now, closed ones included.
    pub(crate) async fn of(&self, who: Party) -> Result<Channels, LedgerError> {
        let read = async {
            let _reader = self.readers.acquire().await;
            let view = self.view(who);
            let mut view = view.lock().await;
            Ok(view.catch_up().await?.clone())
        };
        let read = tokio::time::timeout(PATIENCE, read).await;
        read.unwrap_or(Err(LedgerError::Lagging))
    }

    fn view(&self, who: Party) -> Arc<Mutex<View>> {
        let key = match who {
            Party::Payer(address) => (address, false),
            Party::Payee(address) => (address, true),
        };
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if views.len() >= PARTIES_MAX && !views.contains_key(&key) {
            views.clear();
        }
        let new = || Arc::new(Mutex::new(View::new(self.ledger.clone(), who)));
        Arc::clone(views.entry(key).or_insert_with(new))
    }
}

impl fmt::Debug for ChannelViews {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ChannelViews")
    }
}

fn apply(channels: &mut Channels, event: &ChannelEvent) {
    let channel = channels.entry(event.id).or_insert(ViewedChannel {
        payer: event.payer,
        payee: event.payee,
        deposit: 0,
        settled: 0,
        withdrawable_at: None,
        refunded: None,
        opened_at: event.time,
    });
    match event.change {
        Change::Opened { deposit, .. } => channel.deposit = deposit,
        Change::ToppedUp { deposit, .. } => {
            channel.deposit = deposit;
            channel.withdrawable_at = None;
        }
        Change::Settled { settled, .. } => channel.settled = settled,
        Change::CloseRequested { withdrawable_at } => {
            channel.withdrawable_at = Some(withdrawable_at);
        }
        Change::CloseRequestCancelled => channel.withdrawable_at = None,
        Change::Closed { settled, refunded } => {
            channel.settled = settled;
            channel.refunded = Some(refunded);
            channel.withdrawable_at = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_what_its_events_made_of_it() {
        let (payer, payee) = (Address::repeat_byte(1), Address::repeat_byte(2));
        let event = |change| ChannelEvent {
            id: B256::repeat_byte(9),
            payer,
            payee,
            change,
            block: 1,
            time: 50,
            transaction: B256::ZERO,
            log_index: 0,
        };
        let opened = Change::Opened {
            token: Address::ZERO,
            authorized_signer: Address::ZERO,
            salt: B256::ZERO,
            deposit: 100,
        };
        let topped_up = Change::ToppedUp {
            from: payer,
            added: 20,
            deposit: 120,
        };
        let settled = Change::Settled {
            amount: 30,
            settled: 30,
        };
        let asked = Change::CloseRequested {
            withdrawable_at: 77,
        };
        let closed = Change::Closed {
            settled: 40,
            refunded: 80,
        };
        // Deposit, settled, withdrawable at and refunded after each.
        let steps = [
            (opened, (100, 0, None, None)),
            (asked.clone(), (100, 0, Some(77), None)),
            (topped_up, (120, 0, None, None)),
            (settled, (120, 30, None, None)),
            (asked.clone(), (120, 30, Some(77), None)),
            (Change::CloseRequestCancelled, (120, 30, None, None)),
            (asked, (120, 30, Some(77), None)),
            (closed, (120, 40, None, Some(80))),
        ];
        let mut channels = Channels::new();
        for (change, (deposit, settled, withdrawable_at, refunded)) in steps {
            apply(&mut channels, &event(change));
            let expected = ViewedChannel {
                payer,
                payee,
                deposit,
                settled,
                withdrawable_at,
                refunded,
                opened_at: 50,
            };
            assert_eq!(channels, Channels::from([(B256::repeat_byte(9), expected)]));
        }
    }
}
