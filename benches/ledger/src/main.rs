//! Measures the ledger and writes two Markdown tables: the embedded chain by itself against the
//! design's targets, and the node against anvil, in turn (A B A B …), driven by one client over HTTP.
//!
//! ```text
//! work.rs (contracts, registry, signed transfers)
//!    ├─ in_process.rs (embedded chain, no socket) ──────────────────┐
//!    └─ over_http.rs (rounds) ── server.rs (node, anvil) ── client.rs ┴─▶ report.rs
//! ```

mod client;
mod in_process;
mod over_http;
mod report;
mod server;
mod work;

use std::path::PathBuf;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "tenzro-ledger-bench")]
struct Arguments {
    /// Our binary
    #[arg(long)]
    ours: PathBuf,
    /// anvil
    #[arg(long)]
    anvil: PathBuf,
    /// Rounds; each measures everything once
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Transfers of the embedded chain by itself, and blocks of the file that is opened afterwards
    #[arg(long, default_value_t = 100_000)]
    transfers: usize,
    /// Transfers to each server over HTTP
    #[arg(long, default_value_t = 20_000)]
    http_transfers: usize,
    /// Wallets that send at the same time, one transaction after the other each
    #[arg(long, default_value_t = 256)]
    senders: usize,
    /// Where the ledgers lie: decides which disk is measured [default: the temporary folder]
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = Arguments::parse();
    let folder = arguments.folder.unwrap_or_else(std::env::temp_dir);
    let files = tempfile::tempdir_in(folder)?;
    let setting = over_http::Setting {
        ours: arguments.ours,
        anvil: arguments.anvil,
        folder: files.path().to_owned(),
        transfers: arguments.http_transfers,
        senders: arguments.senders,
    };
    let mut alone = report::Figures::default();
    let mut against = report::Figures::default();
    let used_home = files.path().join("used");
    for round in 1..=arguments.rounds {
        eprintln!("round {round}: the embedded chain by itself");
        let file = files.path().join(format!("ledger-{round}.sqlite"));
        in_process::measure(&file, arguments.transfers, arguments.senders, &mut alone).await?;
        if round == 1 {
            over_http::prepare_used_home(&setting, &used_home, &file).await?;
        } else {
            std::fs::remove_file(&file)?;
        }
        eprintln!("round {round}: over HTTP");
        over_http::measure(&setting, &used_home, &mut against).await?;
    }
    println!(
        "Medians of {} rounds, in brackets the smallest and the largest value.\n",
        arguments.rounds
    );
    println!("## The node against anvil, over HTTP\n");
    against.print(report::Peer::Anvil);
    println!("\n## The embedded chain by itself, without a socket\n");
    alone.print(report::Peer::None);
    Ok(())
}
