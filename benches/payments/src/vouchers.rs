//! Vouchers by themselves: how many one core signs, and how many are verified and on the disk.

use std::path::Path;
use std::time::{Duration, Instant};

use futures::StreamExt;
use tenzro_ledger::{Address, B256};
use tenzro_payments::books::{Books, Change};
use tenzro_payments::channel::Channel;
use tenzro_payments::escrow::EscrowChannel;
use tenzro_payments::signature::Signer;
use tenzro_payments::voucher::{Domain, Voucher};

/// Vouchers of one round.
const COUNT: u32 = 40_000;
/// Channels that they are for.
const CHANNELS: u32 = 64;
/// Vouchers that wait for the disk at the same time.
const AT_ONCE: usize = 512;
const ROUNDS: usize = 5;

pub(crate) async fn run(folder: &Path) -> anyhow::Result<()> {
    let domain = Domain::new(1337, Address::repeat_byte(7));
    let signer = Signer::from_bytes(&B256::repeat_byte(1)).expect("a key");
    let (mut sign, mut verify, mut accept) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let began = Instant::now();
        let vouchers: Vec<Voucher> = (0..COUNT)
            .map(|number| domain.sign_voucher(&signer, channel_id(number), u128::from(number) + 1))
            .collect();
        sign.push(rate(began.elapsed()));
        let began = Instant::now();
        for voucher in &vouchers {
            anyhow::ensure!(domain.voucher_signer(voucher) == Ok(signer.address()));
        }
        verify.push(rate(began.elapsed()));
        accept.push(
            accepted(
                &folder.join(format!("{round}.sqlite")),
                &domain,
                &signer,
                &vouchers,
            )
            .await?,
        );
    }
    println!("## Vouchers\n");
    println!("| figure | median | smallest | largest | target | reached |");
    println!("|---|---|---|---|---|---|");
    row("sign, vouchers/s on one core", &mut sign, 25_000.0);
    row("verify, vouchers/s on one core", &mut verify, f64::NAN);
    row(
        "verify on one core and write down with fsync, vouchers/s",
        &mut accept,
        10_000.0,
    );
    println!();
    Ok(())
}

/// Verifies on one thread and waits for the books, as the payee does.
async fn accepted(
    path: &Path,
    domain: &Domain,
    signer: &Signer,
    vouchers: &[Voucher],
) -> anyhow::Result<f64> {
    let (books, _) = Books::open(path, "bench", |_| false)?;
    for number in 0..CHANNELS {
        let found = EscrowChannel {
            payer: signer.address(),
            payee: Address::ZERO,
            signer: signer.address(),
            deposit: u128::MAX,
            settled: 0,
            is_closing: false,
            is_final: false,
        };
        let channel = Channel::new(channel_id(number), &found);
        books.write(Change::Channel(Box::new(channel))).await?;
    }
    let began = Instant::now();
    let written = futures::stream::iter(vouchers).map(|voucher| {
        let is_signed = domain.voucher_signer(voucher) == Ok(signer.address());
        let change = Change::Voucher {
            channel_id: voucher.channel_id,
            amount: voucher.amount.0,
            signature: voucher.signature,
            binds_requests: false,
        };
        let books = &books;
        async move {
            anyhow::ensure!(is_signed);
            Ok(books.write(change).await?)
        }
    });
    let results: Vec<anyhow::Result<()>> = written.buffer_unordered(AT_ONCE).collect().await;
    let elapsed = began.elapsed();
    for result in results {
        result?;
    }
    Ok(rate(elapsed))
}

fn channel_id(number: u32) -> B256 {
    B256::with_last_byte(u8::try_from(number % CHANNELS).expect("few"))
}

fn rate(elapsed: Duration) -> f64 {
    f64::from(COUNT) / elapsed.as_secs_f64()
}

fn row(name: &str, values: &mut [f64], target: f64) {
    let median = crate::percentile(values, 50);
    let (least, most) = (values[0], values[values.len() - 1]);
    let (target, reached) = match target.is_nan() {
        true => ("–".to_owned(), "–"),
        false if median >= target => (format!("≥ {target:.0}"), "yes"),
        false => (format!("≥ {target:.0}"), "no"),
    };
    println!("| {name} | {median:.0} | {least:.0} | {most:.0} | {target} | {reached} |");
}
