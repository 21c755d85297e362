//! Measures payments and writes Markdown tables.
//!
//! ```text
//! vouchers.rs   one core: sign; verify and write down          in this process
//! streams.rs    the same answers, paid and free, in turn (A B A B …)   ─┐ against a real
//! flood.rs      paid answers, alone and under unpaid requests, in turn  ─┘ `model serve --remote`
//! ```

mod flood;
mod streams;
mod vouchers;

use std::path::PathBuf;

use clap::Parser;
use tenzro_ledger::{Address, B256};

#[derive(Debug, Parser)]
#[command(name = "tenzro-payments-bench")]
struct Arguments {
    /// A provider's model server; ends in /v1
    #[arg(long)]
    provider_url: String,
    /// Its wallet
    #[arg(long)]
    provider: Address,
    /// The node that has the ledger
    #[arg(long)]
    rpc: String,
    /// Model id
    #[arg(long)]
    model: String,
    /// File with the private key of a wallet with TNZO
    #[arg(long)]
    key_file: PathBuf,
    /// File with the provider's operator token, which is served for free
    #[arg(long)]
    token_file: PathBuf,
    /// Pairs of answers
    #[arg(long, default_value_t = 20)]
    pairs: usize,
    /// Tokens of an answer
    #[arg(long, default_value_t = 128)]
    tokens: u32,
    /// Unpaid requests per second
    #[arg(long, default_value_t = 5_000)]
    unpaid: u32,
    /// Where books lie: decides which disk is measured
    #[arg(long)]
    folder: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = Arguments::parse();
    let files = tempfile::tempdir_in(&arguments.folder)?;
    let key: B256 = std::fs::read_to_string(&arguments.key_file)?
        .trim()
        .parse()?;
    let token = std::fs::read_to_string(&arguments.token_file)?;
    vouchers::run(files.path()).await?;
    let provider = streams::Provider::connect(&arguments, &key, token.trim(), files.path()).await?;
    streams::run(&provider, arguments.pairs).await?;
    flood::run(&provider, arguments.pairs, arguments.unpaid).await
}

/// The middle value, and those below which so many percent lie.
fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len() * percent / 100).min(values.len().saturating_sub(1));
    values.get(index).copied().unwrap_or(f64::NAN)
}
