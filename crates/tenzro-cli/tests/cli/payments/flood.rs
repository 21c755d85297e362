//! Requests by the thousand that nobody pays for, and what they do to those that are paid for: nothing.

use std::cell::Cell;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use serde_json::json;

use super::http::{Streamed, post};
use super::market::{ChainOf, MODEL, Market, STAKE, Serving, WEALTH, chat, cost_of, wait_until};

/// Connections of the flood.
const CONNECTIONS: usize = 20;
/// Most that the server's memory may grow by, in KiB: buffers of that many connections, and no more.
const GROWTH_MAX: u64 = 16 << 10;

/// Sends so many unpaid requests, each connection one after the other; returns how many were refused with 402.
fn flood(serving: &Serving, requests: usize) -> usize {
    let host = serving.url.strip_prefix("http://").expect("http");
    let (host, _) = host.split_once('/').expect("a path");
    let body = chat(8, true).to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let send = || {
        let stream = TcpStream::connect(host).expect("it listens");
        let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
        let mut refused = 0;
        for _ in 0..requests / CONNECTIONS {
            (&stream).write_all(request.as_bytes()).expect("sent");
            refused += usize::from(status_of_next(&mut reader) == 402);
        }
        refused
    };
    std::thread::scope(|scope| {
        let sending: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(send)).collect();
        let refused = sending.into_iter().map(|one| one.join().expect("sent"));
        refused.sum()
    })
}

/// Reads an answer with a length.
fn status_of_next(reader: &mut impl BufRead) -> u16 {
    let (mut status, mut length) = (0, 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        let line = line.trim_end().to_lowercase();
        if let Some(rest) = line.strip_prefix("http/1.1 ") {
            status = rest[..3].parse().expect("a status");
        } else if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().expect("a length");
        } else if line.is_empty() {
            break;
        }
    }
    reader
        .read_exact(&mut vec![0; length])
        .expect("the whole body");
    status
}

/// Memory of the server's process, in KiB.
fn memory(serving: &Serving) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", serving.pid));
    let status = status.expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.expect("a number")
}

#[test]
fn m22_a_flood_of_unpaid_requests_costs_no_memory_no_money_and_no_paid_answer() {
    let market = Market::new(ChainOf::Consumer);
    let serving = market.serve(0);
    let total = market.buy();
    let books = market.payee_channels();
    // Connections and allocator are warm.
    assert_eq!(flood(&serving, 2_000), 2_000);
    let before = memory(&serving);
    let mut answer = market.ask("v1/chat/completions", &chat(70, true));
    let mut streamed = Streamed::default();
    answer.read_pieces(&mut streamed, 1);
    assert_eq!(flood(&serving, 20_000), 20_000);
    answer.read_pieces(&mut streamed, u128::MAX);
    let grown = memory(&serving).saturating_sub(before);
    assert!(grown < GROWTH_MAX, "{grown} KiB more");

    assert!(
        streamed.is_complete && streamed.error.is_none(),
        "{streamed:?}"
    );
    let total = total + cost_of(&streamed.usage);
    let [before] = books[..] else {
        panic!("{books:?}")
    };
    let after = market.payee_channel();
    assert_eq!((after.id, after.spent), (before.id, total));
    assert_eq!(market.charged(), (2, total));
    let now = (WEALTH - after.deposit, WEALTH - STAKE, after.deposit);
    assert_eq!(market.balances(), now);
}

#[test]
fn m28_a_thousand_bad_requests_do_not_take_a_provider_off() {
    let market = Market::new(ChainOf::Consumer);
    let serving = market.serve(0);
    let mut total = market.buy();
    let url = format!("{}/v1/chat/completions", market.node);
    let mut said = String::new();
    for number in 0..1_000 {
        // By turns one that the node refuses, one that only the provider can refuse, and one that nobody pays.
        let answer = match number % 3 {
            0 => post(&url, &[], "{\"model\": 7}"),
            1 => {
                let mut long = chat(1, false);
                long["messages"][0]["content"] = json!("word ".repeat(2_000));
                post(&url, &[], &long.to_string())
            }
            _ => post(&format!("{}/chat/completions", serving.url), &[], "{}"),
        };
        // A channel has a rate of vouchers, too.
        let expected: &[u16] = [&[400][..], &[400, 429], &[402]][number % 3];
        if !expected.contains(&answer.status) {
            let status = answer.status;
            let _ = writeln!(said, "{number}: {status} {}", answer.text());
        }
    }
    assert_eq!(said, "");
    let endpoint = market
        .consumer
        .json(&["model", "endpoint", "--model", MODEL]);
    assert_eq!(endpoint["status"], "online", "{endpoint}");
    let allowed = || {
        let answer = market.ask("v1/chat/completions", &chat(4, false));
        (answer.status == 200).then(|| cost_of(&answer.json()["usage"]))
    };
    let bought = Cell::new(None);
    wait_until("a new allowance", || {
        bought.set(allowed());
        bought.get().is_some()
    });
    total += bought.get().unwrap_or_default();
    assert_eq!(market.payee_channel().spent, total);
    assert_eq!(market.charged(), (2, total));
}
