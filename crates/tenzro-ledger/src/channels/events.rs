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
        Round::Lagging => Err(LedgerError::Lagging),
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

#[cfg(test)]
mod tests {
    use alloy::primitives::U256;

    use super::*;

    const ESCROW: Address = Address::repeat_byte(0xee);
    const PAYER: Address = Address::repeat_byte(1);
    const PAYEE: Address = Address::repeat_byte(2);
    const OTHER: Address = Address::repeat_byte(3);

    fn log(address: Address, event: &impl SolEvent, block: u64, log_index: u64) -> Log {
        Log {
            inner: alloy::primitives::Log {
                address,
                data: event.encode_log_data(),
            },
            block_number: Some(block),
            block_timestamp: Some(1_000 + block),
            transaction_hash: Some(B256::repeat_byte(block as u8)),
            log_index: Some(log_index),
            ..Log::default()
        }
    }

    fn requested(payer: Address, payee: Address) -> Contract::CloseRequested {
        Contract::CloseRequested {
            channelId: B256::repeat_byte(9),
            payer,
            payee,
            withdrawableAt: U256::from(77),
        }
    }

    fn told(payer: Address, payee: Address, block: u64, log_index: u64) -> ChannelEvent {
        ChannelEvent {
            id: B256::repeat_byte(9),
            payer,
            payee,
            change: Change::CloseRequested {
                withdrawable_at: 77,
            },
            block,
            time: 1_000 + block,
            transaction: B256::repeat_byte(block as u8),
            log_index,
        }
    }

    /// What a node answers that does not filter, and knows no order.
    fn unfiltered() -> Vec<Log> {
        let skipped = Contract::SettlementSkipped {
            channelId: B256::repeat_byte(9),
            caller: PAYEE,
            cumulativeAmount: 1,
            reason: [0; 4].into(),
        };
        let mut waiting = log(ESCROW, &requested(PAYER, PAYEE), 6, 0);
        waiting.block_number = None;
        let mut cut = log(ESCROW, &requested(PAYER, PAYEE), 6, 1);
        cut.inner.data.data = cut.inner.data.data.slice(..31);
        vec![
            log(ESCROW, &requested(PAYER, OTHER), 5, 11),
            log(ESCROW, &requested(PAYER, PAYEE), 5, 2),
            log(OTHER, &requested(PAYER, PAYEE), 5, 3),
            log(ESCROW, &requested(OTHER, PAYEE), 4, 7),
            log(ESCROW, &skipped, 4, 8),
            waiting,
            cut,
        ]
    }

    fn taken(who: Party) -> Vec<ChannelEvent> {
        let mut events = Events {
            who,
            escrow: ESCROW,
            found: Vec::new(),
            last: None,
            is_anew: false,
        };
        let last = Block {
            number: 6,
            hash: B256::ZERO,
            time: 1_006,
        };
        events.take(unfiltered(), last);
        assert_eq!(events.last, Some(last));
        events.found
    }

    #[test]
    fn only_events_of_the_party_at_the_contract_are_told_in_their_order() {
        let of_payer = [told(PAYER, PAYEE, 5, 2), told(PAYER, OTHER, 5, 11)];
        assert_eq!(taken(Party::Payer(PAYER)), of_payer);
        let of_payee = [told(OTHER, PAYEE, 4, 7), told(PAYER, PAYEE, 5, 2)];
        assert_eq!(taken(Party::Payee(PAYEE)), of_payee);
    }
}
