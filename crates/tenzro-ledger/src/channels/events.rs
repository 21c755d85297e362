//! What happened to the channels of a payer or a payee, from the escrow's events.

use alloy::primitives::{Address, B256};
use alloy::rpc::types::{Filter, Log};
use alloy::sol_types::{SolEvent, SolEventInterface};

use crate::contracts::PaymentChannels::{self as Contract, PaymentChannelsEvents as Event};
use crate::ledger::logs::{Block, LogReader, Question, Round, Sink};
use crate::ledger::{Ledger, LedgerError};

/// Whose channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// Those that this address pays into.
    Payer(Address),
    /// Those that pay this address.
    Payee(Address),
}

/// Something that happened to a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelEvent {
    /// The channel.
    pub id: B256,
    /// Who pays.
    pub payer: Address,
    /// Who is paid.
    pub payee: Address,
    /// What happened.
    pub change: Change,
    /// The block's height.
    pub block: u64,
    /// Unix seconds of the block.
    pub time: u64,
    /// The transaction that did it.
    pub transaction: B256,
    /// Position among the block's events.
    pub log_index: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was opened.
    Opened {
        /// What is held.
        token: Address,
        /// Who signs vouchers; zero means the payer does.
        authorized_signer: Address,
        /// Of its id.
        salt: B256,
        /// Wei put in.
        deposit: u128,
    },
    /// More was put in.
    ToppedUp {
        /// By whom.
        from: Address,
        /// Wei put in.
        added: u128,
        /// Wei put in, in all.
        deposit: u128,
    },
    /// The payee was paid.
    Settled {
        /// Wei that it got.
        amount: u128,
        /// Wei that it got, in all.
        settled: u128,
    },
    /// The payer wants to leave.
    CloseRequested {
        /// Unix seconds from when it can.
        withdrawable_at: u64,
    },
    /// The payer stays.
    CloseRequestCancelled,
    /// It is closed for ever.
    Closed {
        /// Wei that the payee got in all.
        settled: u128,
        /// Wei that the payer got back.
        refunded: u128,
    },
}

impl ChannelEvent {
    /// `None` where the log is none of that contract's, or not about a channel as such.
    pub(super) fn from_log(log: &Log, escrow: Address) -> Option<Self> {
        if log.address() != escrow {
            return None;
        }
        let event = Event::decode_log(&log.inner).ok()?.data;
        let (id, payer, payee, change) = match event {
            Event::ChannelOpened(event) => {
                let change = Change::Opened {
                    token: event.token,
                    authorized_signer: event.authorizedSigner,
                    salt: event.salt,
                    deposit: event.deposit,
                };
                (event.channelId, event.payer, event.payee, change)
            }
            Event::ChannelToppedUp(event) => {
                let change = Change::ToppedUp {
                    from: event.from,
                    added: event.additionalDeposit,
                    deposit: event.deposit,
                };
                (event.channelId, event.payer, event.payee, change)
            }
            Event::ChannelSettled(event) => {
                let change = Change::Settled {
                    amount: event.amount,
                    settled: event.settled,
                };
                (event.channelId, event.payer, event.payee, change)
            }
            Event::CloseRequested(event) => {
                let change = Change::CloseRequested {
                    withdrawable_at: event.withdrawableAt.saturating_to(),
                };
                (event.channelId, event.payer, event.payee, change)
            }
            Event::CloseRequestCancelled(event) => {
                let change = Change::CloseRequestCancelled;
                (event.channelId, event.payer, event.payee, change)
            }
            Event::ChannelClosed(event) => {
                let change = Change::Closed {
                    settled: event.settled,
                    refunded: event.refunded,
                };
                (event.channelId, event.payer, event.payee, change)
            }
            Event::SettlementSkipped(_) | Event::EIP712DomainChanged(_) => return None,
        };
        Some(Self {
            id,
            payer,
            payee,
            change,
            block: log.block_number?,
            time: log.block_timestamp.unwrap_or_default(),
            transaction: log.transaction_hash?,
            log_index: log.log_index?,
        })
    }
}

/// All events of the party's channels in these blocks, both included, oldest first. A block above the
/// head counts as the head. The chain's node is asked for as many blocks at once as it takes.
pub async fn channel_events(
    ledger: &Ledger,
    who: Party,
    from_block: u64,
    to_block: u64,
) -> Result<Vec<ChannelEvent>, LedgerError> {
    let question = Question {
        filter: who.filter(ledger),
        first_block: from_block,
        last_block: to_block,
        confirmations: 0,
    };
    let mut events = Events::of(ledger, who);
    let mut reader = LogReader::after(None);
    let round = reader
        .catch_up(ledger.provider(), &question, &mut events)
        .await?;
    match round {
        Round::Current => Ok(events.found),
        Round::Lagging => Err(LedgerError::Lagging(to_block)),
        Round::Reorganised => Err(LedgerError::Reorganising),
    }
}

impl Party {
    /// Of the six events that name payer and payee, in that order.
    pub(super) fn filter(self, ledger: &Ledger) -> Filter {
        let filter = Filter::new()
            .address(ledger.addresses().payment_channels)
            .event_signature(vec![
                Contract::ChannelOpened::SIGNATURE_HASH,
                Contract::ChannelToppedUp::SIGNATURE_HASH,
                Contract::ChannelSettled::SIGNATURE_HASH,
                Contract::CloseRequested::SIGNATURE_HASH,
                Contract::CloseRequestCancelled::SIGNATURE_HASH,
                Contract::ChannelClosed::SIGNATURE_HASH,
            ]);
        match self {
            Self::Payer(address) => filter.topic2(address.into_word()),
            Self::Payee(address) => filter.topic3(address.into_word()),
        }
    }

    fn is_of(self, event: &ChannelEvent) -> bool {
        match self {
            Self::Payer(address) => event.payer == address,
            Self::Payee(address) => event.payee == address,
        }
    }
}

/// Events that were read, and up to where.
#[derive(Debug)]
pub(super) struct Events {
    who: Party,
    escrow: Address,
    pub(super) found: Vec<ChannelEvent>,
    pub(super) last: Option<Block>,
    /// The chain took back what was read before.
    pub(super) is_anew: bool,
}

impl Events {
    pub(super) fn of(ledger: &Ledger, who: Party) -> Self {
        Self {
            who,
            escrow: ledger.addresses().payment_channels,
            found: Vec::new(),
            last: None,
            is_anew: false,
        }
    }
}

impl Sink for Events {
    fn take(&mut self, logs: Vec<Log>, last: Block) {
        let before = self.found.len();
        let events = logs
            .iter()
            .filter_map(|log| ChannelEvent::from_log(log, self.escrow));
        // A node that cannot filter must not make others' channels ours.
        self.found
            .extend(events.filter(|event| self.who.is_of(event)));
        self.found[before..].sort_by_key(|event| (event.block, event.log_index));
        self.last = Some(last);
    }

    fn start_anew(&mut self) {
        self.found.clear();
        self.last = None;
        self.is_anew = true;
    }
}
