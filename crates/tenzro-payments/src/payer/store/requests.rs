//! The rows of requests: what was bought, what it cost, and what is wrong with a bill.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use rusqlite::params;

use super::{Store, StoreError, amount, seconds};
use crate::payer::budget::{self, Spend};
use crate::payer::channel::Channel;
use crate::price::Tokens;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::payer) enum RequestState {
    Running,
    Done,
    Lost,
    Settled,
    Refused,
    /// No request: what the payee had on the ledger without a bill.
    Taken,
}

impl RequestState {
    fn text(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Lost => "lost",
            Self::Settled => "settled",
            Self::Refused => "refused",
            Self::Taken => "taken",
        }
    }
}

/// How a request ended, for its row.
#[derive(Debug)]
pub(in crate::payer) struct Outcome<'a> {
    pub(in crate::payer) state: RequestState,
    pub(in crate::payer) tokens: Tokens,
    pub(in crate::payer) charged: u128,
    pub(in crate::payer) receipt: Option<&'a str>,
    pub(in crate::payer) overbill: Option<&'a str>,
}

/// A bill that was too high, with its evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Unix seconds.
    pub at: u64,
    /// Who asked.
    pub payee: Address,
    /// For which model.
    pub model: String,
    /// JSON of [`crate::payer::audit::Overbill`], or `requiredCumulative` and `limit` of a demand.
    pub overbill: String,
    /// JSON of the receipt, where there was one.
    pub receipt: Option<String>,
}

/// What was spent on one model of one provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spending {
    /// Who was paid.
    pub payee: Address,
    /// For which model.
    pub model: String,
    /// Requests that were answered, fully or in part.
    pub requests: u64,
    /// Tokens of the prompts.
    pub input_tokens: u64,
    /// Tokens of the answers.
    pub output_tokens: u64,
    /// Wei, with what may have been charged for requests whose end was not seen, and what was taken on the
    /// ledger without a bill.
    pub charged: u128,
    /// Requests whose bill was too high.
    pub overbills: u64,
}

impl Store {
    pub(in crate::payer) fn begin_request(
        &self,
        at: u64,
        channel: &Channel,
        model: &str,
    ) -> Result<i64, StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO request (at, channel, payee, model, state, input, output, charged)
                 VALUES (?1, ?2, ?3, ?4, 'running', 0, 0, ?5)",
            )?
            .execute(params![
                seconds(at),
                channel.id.as_slice(),
                channel.payee.as_slice(),
                model,
                0u128.to_be_bytes(),
            ])?;
        Ok(self.conn.last_insert_rowid())
    }

    /// Writes down what the payee had on the ledger without a bill, for the model that was asked for last.
    pub(in crate::payer) fn take(
        &self,
        at: u64,
        channel: &Channel,
        charged: u128,
    ) -> Result<i64, StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO request (at, channel, payee, model, state, input, output, charged)
                 VALUES (?1, ?2, ?3, coalesce((SELECT model FROM request WHERE channel = ?2
                   ORDER BY id DESC LIMIT 1), ''), ?4, 0, 0, ?5)",
            )?
            .execute(params![
                seconds(at),
                channel.id.as_slice(),
                channel.payee.as_slice(),
                RequestState::Taken.text(),
                charged.to_be_bytes(),
            ])?;
        Ok(self.conn.last_insert_rowid())
    }

    /// Evidence that is there stays where the outcome has none. From now on it counts as of its end.
    pub(in crate::payer) fn end_request(
        &self,
        id: i64,
        at: u64,
        outcome: &Outcome<'_>,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "UPDATE request SET state = ?2, input = ?3, output = ?4, charged = ?5, at = ?8,
                   receipt = coalesce(?6, receipt), overbill = coalesce(?7, overbill)
                 WHERE id = ?1",
            )?
            .execute(params![
                id,
                outcome.state.text(),
                outcome.tokens.input,
                outcome.tokens.output,
                outcome.charged.to_be_bytes(),
                outcome.receipt,
                outcome.overbill,
                seconds(at),
            ])?;
        Ok(())
    }

    pub(in crate::payer) fn put_evidence(&self, id: i64, overbill: &str) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE request SET overbill = ?2 WHERE id = ?1")?
            .execute(params![id, overbill])?;
        Ok(())
    }

    /// Requests of a channel in a state, oldest first, with what they were charged.
    pub(in crate::payer) fn requests(
        &self,
        channel: B256,
        state: RequestState,
    ) -> Result<Vec<(i64, u128)>, StoreError> {
        let mut query = self.conn.prepare_cached(
            "SELECT id, charged FROM request WHERE channel = ?1 AND state = ?2 ORDER BY id",
        )?;
        let rows = query.query_map(params![channel.as_slice(), state.text()], |row| {
            Ok((row.get(0)?, amount(row, 1)?))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Changes what a request was charged.
    pub(in crate::payer) fn recharge(
        &self,
        id: i64,
        state: RequestState,
        charged: u128,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE request SET state = ?2, charged = ?3 WHERE id = ?1")?
            .execute(params![id, state.text(), charged.to_be_bytes()])?;
        Ok(())
    }

    /// Lets a request count as of a time (Unix seconds).
    pub(in crate::payer) fn redate(&self, id: i64, at: u64) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE request SET at = ?2 WHERE id = ?1")?
            .execute(params![id, seconds(at)])?;
        Ok(())
    }

    /// What was spent and counts at a time (Unix seconds), by request.
    pub(in crate::payer) fn spends(&self, now: u64) -> Result<BTreeMap<i64, Spend>, StoreError> {
        let mut query = self
            .conn
            .prepare_cached("SELECT id, at, charged FROM request WHERE at >= ?1")?;
        let rows = query.query_map([seconds(now.saturating_sub(budget::DAY))], |row| {
            let spend = Spend {
                at: row.get::<_, i64>(1)?.cast_unsigned(),
                amount: amount(row, 2)?,
            };
            Ok((row.get(0)?, spend))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// What was bought since a time (Unix seconds), by provider and model.
    pub(in crate::payer) fn spending(&self, since: u64) -> Result<Vec<Spending>, StoreError> {
        let mut query = self.conn.prepare_cached(
            "SELECT payee, model, input, output, charged, overbill IS NOT NULL, state FROM request
             WHERE at >= ?1 AND state NOT IN ('running', 'refused') ORDER BY payee, model",
        )?;
        let mut rows = query.query([seconds(since)])?;
        let mut sums: Vec<Spending> = Vec::new();
        while let Some(row) = rows.next()? {
            let (payee, model): (Address, String) =
                (row.get::<_, [u8; 20]>(0)?.into(), row.get(1)?);
            let is_same = |last: &Spending| last.payee == payee && last.model == model;
            if !sums.last().is_some_and(is_same) {
                sums.push(Spending {
                    payee,
                    model,
                    requests: 0,
                    input_tokens: 0,
                    output_tokens: 0,
                    charged: 0,
                    overbills: 0,
                });
            }
            if let Some(sum) = sums.last_mut() {
                let is_answer = row.get::<_, String>(6)? != RequestState::Taken.text();
                sum.requests += u64::from(is_answer);
                sum.input_tokens += u64::from(row.get::<_, u32>(2)?);
                sum.output_tokens += u64::from(row.get::<_, u32>(3)?);
                sum.charged = sum.charged.saturating_add(amount(row, 4)?);
                sum.overbills += u64::from(row.get::<_, u32>(5)?);
            }
        }
        Ok(sums)
    }

    /// The last `count` bills that were too high, the latest first.
    pub(in crate::payer) fn evidence(&self, count: u32) -> Result<Vec<Evidence>, StoreError> {
        let mut query = self.conn.prepare_cached(
            "SELECT at, payee, model, overbill, receipt FROM request
             WHERE overbill IS NOT NULL ORDER BY id DESC LIMIT ?1",
        )?;
        let rows = query.query_map([count], |row| {
            Ok(Evidence {
                at: row.get::<_, i64>(0)?.cast_unsigned(),
                payee: row.get::<_, [u8; 20]>(1)?.into(),
                model: row.get(2)?,
                overbill: row.get(3)?,
                receipt: row.get(4)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}
