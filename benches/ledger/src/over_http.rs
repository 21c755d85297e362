//! One round over HTTP: the same work for the node and for anvil, one after the other.

use std::iter::zip;
use std::path::{Path, PathBuf};

use alloy::sol_types::SolCall;
use anyhow::Context;
use serde_json::json;
use tenzro_ledger::embedded::CHAIN_ID;
use tenzro_ledger::{Account, Addresses, EmbeddedChain, FaucetRules, Rules, connect, deploy};

use crate::report::{Figures, Goal, percentile};
use crate::server::{Server, ledger_file};
use crate::work::{self, CALLS};

const MS: f64 = 1e3;
/// What is measured, and how much.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) ours: PathBuf,
    pub(crate) anvil: PathBuf,
    /// Homes are made here.
    pub(crate) folder: PathBuf,
    pub(crate) transfers: usize,
    pub(crate) senders: usize,
}

/// What a round finds about one server.
struct Measured {
    start_ms: f64,
    per_second: f64,
    acknowledged_ms: [f64; 2],
    is_active_ms: [f64; 2],
    endpoints_ms: [f64; 2],
}

/// A home whose node has run before and holds the chain of that file, which is moved.
pub(crate) async fn prepare_used_home(
    setting: &Setting,
    home: &Path,
    file: &Path,
) -> anyhow::Result<()> {
    let to = ledger_file(home);
    std::fs::create_dir_all(to.parent().unwrap_or(home))?;
    std::fs::rename(file, to)?;
    let server = Server::node(&setting.ours, home).await?;
    // The view of the registry has been kept when it shows the providers.
    for method in ["tenzro_listProviders", "tenzro_networkInfo"] {
        server.client.ask(method, json!([])).await?;
    }
    Ok(())
}

/// One round.
pub(crate) async fn measure(
    setting: &Setting,
    used_home: &Path,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let home = tempfile::tempdir_in(&setting.folder)?;
    let server = Server::node(&setting.ours, home.path()).await?;
    let ours = work_on(setting, &server, EmbeddedChain::addresses(), false).await?;
    drop(server);
    let used = Server::node(&setting.ours, used_home).await?.started_after;

    let server = Server::anvil(&setting.anvil).await?;
    let contracts = deploy_on(&server).await?;
    let theirs = work_on(setting, &server, contracts, true).await?;

    let mut add = |scenario: &str, figure, goal, ours, theirs| {
        figures.add(scenario, figure, goal, ours, Some(theirs));
    };
    let (figure, empty) = ("first answer (ms)", theirs.start_ms);
    let start = used.as_secs_f64() * MS;
    let nothing = "start, nothing there yet";
    add(nothing, figure, Goal::Less, ours.start_ms, empty);
    let with_blocks = "start with the chain below (anvil: empty)";
    add(with_blocks, figure, Goal::Below(300.0), start, empty);
    let sending = format!("{} senders", setting.senders);
    let rates = (ours.per_second, theirs.per_second);
    let goal = Goal::AtLeast(1_500.0);
    add(&sending, "transfers/s", goal, rates.0, rates.1);
    let mut add_both = |scenario: &str, figures: [&'static str; 2], goal, ours, theirs| {
        for (figure, (ours, theirs)) in zip(figures, zip::<[f64; 2], [f64; 2]>(ours, theirs)) {
            add(scenario, figure, goal, ours, theirs);
        }
    };
    let waits = ["acknowledged after p50 (ms)", "acknowledged after p99 (ms)"];
    let (our_waits, their_waits) = (ours.acknowledged_ms, theirs.acknowledged_ms);
    add_both(&sending, waits, Goal::Less, our_waits, their_waits);
    let (calls, goal) = (["eth_call p50 (ms)", "eth_call p99 (ms)"], Goal::Below(1.0));
    let (one, page) = ("isActive", "endpointsByModel, 20 rows");
    add_both(one, calls, goal, ours.is_active_ms, theirs.is_active_ms);
    add_both(page, calls, goal, ours.endpoints_ms, theirs.endpoints_ms);
    Ok(())
}

/// Our contracts on anvil, by the account that has the supply on the embedded chain too.
async fn deploy_on(server: &Server) -> anyhow::Result<Addresses> {
    for payer in work::payers()? {
        let coins = json!([payer, "0x56bc75e2d63100000"]);
        server.client.ask("anvil_setBalance", coins).await?;
    }
    let account = Account::new(connect(&server.url)?, CHAIN_ID, work::treasury()?);
    let rules = Rules::standard(account.address(), account.address());
    let faucet = Some(FaucetRules::standard());
    Ok(deploy(&account, rules, faucet, |_, _| {}).await?)
}

async fn work_on(
    setting: &Setting,
    server: &Server,
    contracts: Addresses,
    has_to_be_told_to_mine: bool,
) -> anyhow::Result<Measured> {
    let provider = connect(&server.url)?;
    work::fill_registry(&provider, &contracts).await?;
    let registry = contracts.provider_registry;
    let input = work::is_active()?.abi_encode().into();
    let is_active = server.client.call_often(registry, input, CALLS).await?;
    let input = work::endpoints_by_model().abi_encode().into();
    let endpoints = server.client.call_often(registry, input, CALLS).await?;

    let (token, count) = (contracts.tnzo, setting.transfers);
    let signed = work::sign_transfers(&provider, token, count, setting.senders).await?;
    let counts: Vec<usize> = signed.iter().map(Vec::len).collect();
    let sending = server.client.send_all(signed);
    let (waits, took) = if has_to_be_told_to_mine {
        tokio::select! {
            sent = sending => sent?,
            failed = server.client.mine() => return Err(failed.err().context("cannot mine")?),
        }
    } else {
        sending.await?
    };
    work::check_transfers(&provider, token, &counts).await?;
    let both = |times| [0.5, 0.99].map(|part| percentile(times, part) * MS);
    Ok(Measured {
        start_ms: server.started_after.as_secs_f64() * MS,
        per_second: waits.len() as f64 / took.as_secs_f64(),
        acknowledged_ms: both(&waits),
        is_active_ms: both(&is_active),
        endpoints_ms: both(&endpoints),
    })
}
