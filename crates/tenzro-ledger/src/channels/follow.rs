//! Follows the channels of a payer or a payee: what is new since the last time, each once.

use super::events::{ChannelEvent, Events, Party};
use crate::ledger::logs::{Block, LogReader, Question, Round};
use crate::ledger::{Ledger, LedgerError};

/// Watches the channels of one party.
#[derive(Debug)]
pub struct ChannelFollower {
    ledger: Ledger,
    question: Question,
    reader: LogReader,
    /// Read, and not yet given away: an error halfway must not lose it.
    unseen: Events,
}

/// What is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelNews {
    /// The chain was reorganised deeper than the confirmations: what was told before does not hold, and
    /// all events are told anew, from the first block.
    pub is_anew: bool,
    /// Oldest first.
    pub events: Vec<ChannelEvent>,
    /// The last block that is taken in; to be kept together with what the events changed.
    pub last: Option<Block>,
}

impl ChannelFollower {
    /// Begins at that block, and tells what has so many blocks on top. Asks nothing yet.
    pub fn new(ledger: Ledger, who: Party, first_block: u64, confirmations: u64) -> Self {
        let question = Question {
            filter: who.filter(&ledger),
            first_block,
            last_block: u64::MAX,
            confirmations,
        };
        Self {
            question,
            reader: LogReader::after(None),
            unseen: Events::of(&ledger, who),
            ledger,
        }
    }

    /// Goes on after the last block of news that were kept.
    pub fn resume(mut self, last: Block) -> Self {
        self.reader = LogReader::after(Some(last));
        self.unseen.last = Some(last);
        self
    }

    /// Reads all that the chain has by now. After an error, and when it is dropped halfway, what was
    /// read comes with the next news.
    pub async fn catch_up(&mut self) -> Result<ChannelNews, LedgerError> {
        let provider = self.ledger.provider();
        let round = self
            .reader
            .catch_up(provider, &self.question, &mut self.unseen)
            .await?;
        if round == Round::Reorganised {
            return Err(LedgerError::Reorganising);
        }
        Ok(ChannelNews {
            is_anew: std::mem::take(&mut self.unseen.is_anew),
            events: std::mem::take(&mut self.unseen.found),
            last: self.unseen.last,
        })
    }
}
