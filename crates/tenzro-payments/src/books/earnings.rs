//! What a provider earned, read from its books.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::OptionalExtension;

use super::read_channels;
use super::schema::{BooksError, amount, read_only};
use crate::channel::Channel;

/// What a model earned on one day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DayEarnings {
    /// UTC, `YYYY-MM-DD`.
    pub day: String,
    /// Model id.
    pub model: String,
    /// Requests that were charged.
    pub requests: u64,
    /// Tokens of prompts.
    pub input_tokens: u64,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Wei.
    pub charged: u128,
}

/// What a provider earned in all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Earnings {
    /// Newest day first.
    pub days: Vec<DayEarnings>,
    /// Wei that were delivered and are not settled, over all channels that are not closed.
    pub unsettled: u128,
    /// Wei that were settled, over all channels.
    pub settled: u128,
    /// Requests that were charged.
    pub requests: u64,
    /// Milliseconds to the first token, over all requests; `None` before the first one.
    pub ttft_ms_mean: Option<f64>,
    /// Channels that are not closed.
    pub channels: u64,
}

/// Reads the earnings from the file, also while a server writes it. Zero where there is no file.
pub fn earnings(path: &Path) -> Result<Earnings, BooksError> {
    let Some(conn) = read_only(path)? else {
        return Ok(Earnings::default());
    };
    // Amounts are blobs, which SQLite cannot add up.
    let mut days: BTreeMap<(String, String), DayEarnings> = BTreeMap::new();
    let mut statement = conn.prepare(
        "SELECT date(at, 'unixepoch'), model, input_tokens, output_tokens, charged FROM request",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let key: (String, String) = (row.get(0)?, row.get(1)?);
        let day = days.entry(key.clone()).or_insert_with(|| DayEarnings {
            day: key.0,
            model: key.1,
            requests: 0,
            input_tokens: 0,
            output_tokens: 0,
            charged: 0,
        });
        day.requests += 1;
        day.input_tokens += u64::from(row.get::<_, u32>(2)?);
        day.output_tokens += u64::from(row.get::<_, u32>(3)?);
        day.charged = day.charged.saturating_add(amount(row, 4)?);
    }
    let mut settled = 0u128;
    let mut statement = conn.prepare("SELECT settled FROM channel")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        settled = settled.saturating_add(amount(row, 0)?);
    }
    let channels = read_channels(&conn, None)?;
    let mean = "SELECT avg(ttft_ms) FROM request WHERE finish <> ''";
    Ok(Earnings {
        requests: days.values().map(|day| day.requests).sum(),
        days: days.into_values().rev().collect(),
        unsettled: channels.iter().map(Channel::unsettled).sum(),
        settled,
        ttft_ms_mean: conn
            .query_row(mean, [], |row| row.get(0))
            .optional()?
            .flatten(),
        channels: channels.len() as u64,
    })
}
