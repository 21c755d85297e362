//! The embedded chain without a socket: create, durable transfers, open again, registry views.

use std::io::{Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use alloy::providers::{DynProvider, Provider};
use anyhow::ensure;
use tenzro_ledger::{Addresses, EmbeddedChain, Ledger};

use crate::report::{Figures, Goal, percentile};
use crate::work::{self, CALLS, PROVIDERS, Transfer};

const CONTRACTS: Addresses = EmbeddedChain::addresses();
const MS: f64 = 1e3;
const US: f64 = 1e6;

/// Leaves the file behind, with all blocks.
pub(crate) async fn measure(
    file: &Path,
    transfers: usize,
    senders: usize,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let chain = EmbeddedChain::open(file)?;
    let create = began.elapsed();
    let provider = chain.provider();
    work::fill_registry(&provider, &CONTRACTS).await?;
    let signed = work::sign_transfers(&provider, CONTRACTS.tnzo, transfers, senders).await?;
    let counts: Vec<usize> = signed.iter().map(Vec::len).collect();
    let began = Instant::now();
    let waits = send_all(&provider, signed).await?;
    let per_second = waits.len() as f64 / began.elapsed().as_secs_f64();
    work::check_transfers(&provider, CONTRACTS.tnzo, &counts).await?;
    drop((provider, chain));

    let began = Instant::now();
    let chain = EmbeddedChain::open(file)?;
    let open = began.elapsed();
    let provider = chain.provider();
    let blocks = provider.get_block_number().await?;
    ensure!(blocks as usize >= transfers, "only {blocks} blocks");
    let (single, page) = call_views(&provider).await?;
    let bytes = std::fs::metadata(file)?.len() as f64 / blocks as f64;

    let mut add = |scenario: &str, figure, goal, value| {
        figures.add(scenario, figure, goal, value, None);
    };
    let scenario = format!("{senders} senders");
    let goal = Goal::AtLeast(1_500.0);
    add(&scenario, "durable transfers/s", goal, per_second);
    for (figure, part) in [
        ("acknowledged after p50 (ms)", 0.5),
        ("acknowledged after p99 (ms)", 0.99),
    ] {
        add(&scenario, figure, Goal::Less, percentile(&waits, part) * MS);
    }
    for (view, times) in [("isActive", single), ("endpointsByModel, 20 rows", page)] {
        for (figure, part) in [("eth_call p50 (µs)", 0.5), ("eth_call p99 (µs)", 0.99)] {
            add(
                view,
                figure,
                Goal::Below(1_000.0),
                percentile(&times, part) * US,
            );
        }
    }
    let opened = format!("open, {transfers} blocks");
    let [create, open] = [create, open].map(|time| time.as_secs_f64() * MS);
    add(&opened, "ms", Goal::Below(300.0), open);
    add("begin a new chain", "ms", Goal::Less, create);
    add("file", "bytes per block", Goal::Less, bytes);
    let sync = percentile(&syncs(file)?, 0.5) * MS;
    add("disk: append 4 KiB and fsync", "p50 (ms)", Goal::Less, sync);
    Ok(())
}

/// How long each waited for its acknowledgement.
async fn send_all(
    provider: &DynProvider,
    signed: Vec<Vec<Transfer>>,
) -> anyhow::Result<Vec<Duration>> {
    let senders: Vec<_> = signed
        .into_iter()
        .map(|own| {
            let provider = provider.clone();
            tokio::spawn(async move {
                let mut waits = Vec::with_capacity(own.len());
                for transfer in own {
                    let began = Instant::now();
                    let _ = provider.send_raw_transaction(&transfer.raw).await?;
                    waits.push(began.elapsed());
                }
                anyhow::Ok(waits)
            })
        })
        .collect();
    let mut waits = Vec::new();
    for sender in senders {
        waits.extend(sender.await??);
    }
    Ok(waits)
}

async fn call_views(provider: &DynProvider) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
    let registry = Ledger::open(provider.clone(), CONTRACTS).await?.registry();
    let (one, all) = (work::is_active()?, work::endpoints_by_model());
    let (mut single, mut page) = (Vec::new(), Vec::new());
    for _ in 0..CALLS {
        let began = Instant::now();
        let is_active = registry.isActive(one.endpointId).call().await?;
        single.push(began.elapsed());
        ensure!(is_active, "the endpoint is not active");
        let began = Instant::now();
        let view = registry.endpointsByModel(all.modelId.clone(), all.offset, all.limit);
        let found = view.call().await?;
        page.push(began.elapsed());
        ensure!(found.len() as u64 == PROVIDERS, "{} endpoints", found.len());
    }
    Ok((single, page))
}

/// What the disk itself takes, beside the ledger's file: bounds whatever is durable.
fn syncs(file: &Path) -> std::io::Result<Vec<Duration>> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let mut scratch = tempfile::tempfile_in(folder)?;
    let mut times = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        scratch.seek(std::io::SeekFrom::End(0))?;
        scratch.write_all(&[7; 4096])?;
        scratch.sync_data()?;
        times.push(began.elapsed());
    }
    Ok(times)
}
