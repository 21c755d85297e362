//! Load generator: runs scenarios against two OpenAI-compatible servers in turn (A B A B …) and
//! writes medians and ratios as Markdown.
//!
//! ```text
//! scenarios (what is asked) -> load (requests, times) -> compare (rounds, medians) -> report
//!                                      server (start, stop, CPU and memory of the process)
//! ```

mod agree;
mod load;
mod report;
mod scenarios;
mod server;
mod soak;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "tenzro-bench")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run all scenarios against both servers and print a Markdown table
    Compare {
        #[command(flatten)]
        servers: Servers,
        /// Rounds; each runs both servers once per scenario
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Only scenarios whose name contains this
        #[arg(long)]
        only: Option<String>,
    },
    /// Compare the texts of both servers at temperature 0
    Agree {
        #[command(flatten)]
        servers: Servers,
    },
    /// Send many short requests and watch the memory of our server
    Soak {
        #[command(flatten)]
        servers: Servers,
        /// Requests
        #[arg(long, default_value_t = 10_000)]
        requests: usize,
    },
}

/// The two servers under test.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Servers {
    /// Our binary
    #[arg(long)]
    ours: PathBuf,
    /// llama-server
    #[arg(long)]
    llama_server: PathBuf,
    /// The model
    #[arg(long)]
    model: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Arguments::parse().command {
        Command::Compare {
            servers,
            rounds,
            only,
        } => {
            let rows = scenarios::run_all(&servers, rounds, only.as_deref()).await?;
            report::print(&rows, rounds);
            Ok(())
        }
        Command::Agree { servers } => agree::run(&servers).await,
        Command::Soak { servers, requests } => soak::run(&servers, requests).await,
    }
}
