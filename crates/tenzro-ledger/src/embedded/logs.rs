//! `eth_getLogs`: which logs match, found by the index that leaves the fewest.

use alloy::eips::BlockNumberOrTag;
use alloy::primitives::{Address, B256};
use alloy::rpc::types::{Filter, FilterBlockOption, Log};
use rusqlite::types::Value;

use super::error::RpcError;
use super::readers::View;
use super::store::{self, LOG_COLUMNS};
use super::view::log_of;

/// Logs in one answer at most.
const LOGS_MAX: usize = 10_000;
/// Bytes of their data at most.
const BYTES_MAX: usize = 16 * 1024 * 1024;
/// Addresses and topics of a filter at most.
const ALTERNATIVES_MAX: usize = 1_000;

/// Which logs are wanted; empty lists let all through.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    blocks: FilterBlockOption,
    addresses: Vec<Address>,
    topics: [Vec<B256>; 4],
}

impl Wanted {
    pub(super) fn new(filter: &Filter) -> Result<Self, RpcError> {
        let wanted = Self {
            blocks: filter.block_option,
            addresses: filter.address.iter().copied().collect(),
            topics: filter
                .topics
                .each_ref()
                .map(|topic| topic.iter().copied().collect()),
        };
        let count = wanted.addresses.len() + wanted.topics.iter().map(Vec::len).sum::<usize>();
        if count > ALTERNATIVES_MAX {
            return Err(RpcError::Limit(format!(
                "the filter has {count} addresses and topics; at most {ALTERNATIVES_MAX} are taken"
            )));
        }
        Ok(wanted)
    }

    /// First and last block that are wanted.
    pub(super) fn range(&self, view: &View<'_>) -> Result<(u64, u64), RpcError> {
        match self.blocks {
            FilterBlockOption::AtBlockHash(hash) => {
                let number = store::number_of(view.conn, hash)?
                    .ok_or_else(|| RpcError::Refused("unknown block".to_owned()))?;
                Ok((number, number))
            }
            FilterBlockOption::Range {
                from_block,
                to_block,
            } => {
                let number = |tag: Option<BlockNumberOrTag>| match tag {
                    Some(BlockNumberOrTag::Number(number)) => number,
                    Some(tag) => view.number(tag).unwrap_or(view.head.number),
                    None => view.head.number,
                };
                let (from, to) = (number(from_block), number(to_block));
                if from > to {
                    return Err(RpcError::Params("invalid block range".to_owned()));
                }
                Ok((from, to))
            }
        }
    }

    /// The matching logs of these blocks, oldest first.
    pub(super) fn between(
        &self,
        view: &View<'_>,
        from: u64,
        to: u64,
    ) -> Result<Vec<Log>, RpcError> {
        let (sql, values) = self.query(from, to);
        let mut statement = view.conn.prepare_cached(&sql)?;
        let mut rows = statement.query(rusqlite::params_from_iter(values))?;
        let mut found = Vec::new();
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            let row = store::log_row(row)?;
            bytes += row.log.data.data.len();
            if found.len() == LOGS_MAX || bytes > BYTES_MAX {
                return Err(RpcError::Limit(format!(
                    "query returned more than {LOGS_MAX} results or 16 MiB; ask for fewer blocks"
                )));
            }
            found.push(row);
        }
        found.sort_unstable_by_key(|row| (row.block, row.position));
        Ok(found.into_iter().map(log_of).collect())
    }

    fn query(&self, from: u64, to: u64) -> (String, Vec<Value>) {
        let [_, topic1, topic2, _] = &self.topics;
        // Topics 1 and 2 name a party or a channel, which few logs have in common.
        let index = if !topic1.is_empty() {
            "INDEXED BY log_by_topic1"
        } else if !topic2.is_empty() {
            "INDEXED BY log_by_topic2"
        } else if !self.addresses.is_empty() {
            "INDEXED BY log_by_address"
        } else {
            ""
        };
        let mut sql = format!(
            "SELECT {LOG_COLUMNS} FROM log {index} CROSS JOIN block ON block.number = log.block
             WHERE log.block BETWEEN ? AND ?"
        );
        let mut values = vec![
            Value::Integer(store::signed(from)),
            Value::Integer(store::signed(to)),
        ];
        let mut among = |column: &str, alternatives: Vec<&[u8]>| {
            if alternatives.is_empty() {
                return;
            }
            let places = vec!["?"; alternatives.len()].join(",");
            sql.push_str(&format!(" AND log.{column} IN ({places})"));
            values.extend(
                alternatives
                    .into_iter()
                    .map(|bytes| Value::Blob(bytes.to_vec())),
            );
        };
        let addresses = self.addresses.iter().map(|address| address.as_slice());
        among("address", addresses.collect());
        for (index, topics) in self.topics.iter().enumerate() {
            let topics = topics.iter().map(|topic| topic.as_slice());
            among(&format!("topic{index}"), topics.collect());
        }
        sql.push_str(&format!(" LIMIT {}", LOGS_MAX + 1));
        (sql, values)
    }
}
