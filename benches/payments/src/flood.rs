//! Paid answers while somebody sends thousands of unpaid requests in a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::percentile;
use crate::streams::Provider;

/// Connections of the flood.
const CONNECTIONS: u32 = 50;

/// Answers in a row, alone and then under the flood.
const IN_A_ROW: usize = 15;
/// Tokens of an answer: only the first one is timed.
const TOKENS: u32 = 4;

pub(crate) async fn run(provider: &Provider, rounds: usize, unpaid: u32) -> anyhow::Result<()> {
    let (mut alone, mut flooded) = (Vec::new(), Vec::new());
    let mut refused = 0;
    let mut seconds = 0.0;
    let mut number = 10_000;
    for _ in 0..rounds {
        for _ in 0..IN_A_ROW {
            number += 1;
            alone.push(first(provider, number).await?);
        }
        let flood = Flood::start(&provider.url, unpaid)?;
        for _ in 0..IN_A_ROW {
            number += 1;
            flooded.push(first(provider, number).await?);
        }
        let (count, elapsed) = flood.stop().await?;
        (refused, seconds) = (refused + count, seconds + elapsed.as_secs_f64());
    }
    let rate = refused as f64 / seconds;
    let at = |values: &mut [f64]| (percentile(values, 50), percentile(values, 99));
    let ((alone_median, alone_most), (flood_median, flood_most)) =
        (at(&mut alone), at(&mut flooded));
    println!(
        "## Unpaid requests, {} paid answers each\n",
        rounds * IN_A_ROW
    );
    println!("| figure | alone | under {rate:.0} unpaid requests/s | ratio | target | reached |");
    println!("|---|---|---|---|---|---|");
    println!(
        "| paid, first token, median (ms) ↓ | {alone_median:.1} | {flood_median:.1} | {:.2} | – | – |",
        flood_median / alone_median
    );
    let ratio = flood_most / alone_most;
    let reached = if ratio <= 1.2 { "yes" } else { "no" };
    println!(
        "| paid, first token, p99 (ms) ↓ | {alone_most:.1} | {flood_most:.1} | {ratio:.2} | ≤ 1.20 | {reached} |\n"
    );
    Ok(())
}

/// Milliseconds until a paid answer begins.
async fn first(provider: &Provider, number: usize) -> anyhow::Result<f64> {
    let timing = provider.paid(number, TOKENS).await?;
    Ok(timing.first.as_secs_f64() * 1e3)
}

struct Flood {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    began: Instant,
    tasks: Vec<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

impl Flood {
    /// So many requests per second over kept connections.
    fn start(url: &str, per_second: u32) -> anyhow::Result<Self> {
        let parsed: reqwest::Url = url.parse()?;
        let host = parsed.host_str().context("a host")?.to_owned();
        let port = parsed.port_or_known_default().context("a port")?;
        let body = r#"{"model":"m","messages":[{"role":"user","content":"for nothing"}]}"#;
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let (stop, count) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let period = Duration::from_secs_f64(f64::from(CONNECTIONS) / f64::from(per_second));
        let tasks = (0..CONNECTIONS).map(|_| {
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
            tokio::spawn(ask(
                format!("{host}:{port}"),
                request.clone(),
                period,
                stop,
                count,
            ))
        });
        Ok(Self {
            began: Instant::now(),
            tasks: tasks.collect(),
            stop,
            count,
        })
    }

    async fn stop(self) -> anyhow::Result<(u64, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        let elapsed = self.began.elapsed();
        for task in self.tasks {
            task.await??;
        }
        Ok((self.count.load(Ordering::Relaxed), elapsed))
    }
}

async fn ask(
    address: String,
    request: String,
    period: Duration,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut ticks = tokio::time::interval(period);
    let mut answer = vec![0; 16 << 10];
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        stream.write_all(request.as_bytes()).await?;
        let mut read = 0;
        loop {
            let more = stream.read(&mut answer[read..]).await?;
            anyhow::ensure!(more > 0, "the connection was closed");
            read += more;
            let text = String::from_utf8_lossy(&answer[..read]);
            anyhow::ensure!(text.starts_with("HTTP/1.1 402"), "not refused: {text}");
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.context("a length")?.parse()? {
                break;
            }
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
