//! What is measured, each with its target against llama-server. Source of the targets: the table in
//! the design, "Speed".

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};

use crate::Servers;
use crate::load::{self, Ask, Timing};
use crate::report::{Better, Row};
use crate::server::{Kind, Server, Sizes};

/// One measured quantity of a scenario.
struct Figure {
    name: &'static str,
    better: Better,
    /// What ours must be: a multiple of llama-server's value, or an absolute limit.
    target: Target,
}

#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// At least that multiple.
    AtLeast(f64),
    /// At most that multiple.
    AtMost(f64),
    /// At most that value.
    Limit(f64),
}

type Measure = fn(&Servers, Kind, usize) -> BoxFuture<'_, anyhow::Result<Vec<f64>>>;

struct Scenario {
    name: &'static str,
    figures: &'static [Figure],
    /// One value for each figure. The number of the round makes prompts differ between rounds, so
    /// that nothing is found in a cache by accident.
    measure: Measure,
}

const fn more(name: &'static str, multiple: f64) -> Figure {
    Figure {
        name,
        better: Better::More,
        target: Target::AtLeast(multiple),
    }
}

const fn less(name: &'static str, multiple: f64) -> Figure {
    Figure {
        name,
        better: Better::Less,
        target: Target::AtMost(multiple),
    }
}

const fn limit(name: &'static str, most: f64) -> Figure {
    Figure {
        name,
        better: Better::Less,
        target: Target::Limit(most),
    }
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "one stream, 128 → 128 tokens",
        figures: &[more("tok/s", 0.98)],
        measure: |servers, kind, round| one_stream(servers, kind, round).boxed(),
    },
    Scenario {
        name: "8 streams, nothing shared",
        figures: &[more("tok/s", 1.0), less("slowest / fastest", 1.5)],
        measure: |servers, kind, round| eight_streams(servers, kind, round, 0, 128).boxed(),
    },
    Scenario {
        name: "8 streams, shared 440-token system prompt",
        figures: &[more("tok/s", 1.5), less("TTFT p50 (s)", 0.3)],
        measure: |servers, kind, round| shared(servers, kind, round, 440, 64).boxed(),
    },
    Scenario {
        name: "8 simultaneous arrivals, shared 1,500-token prompt",
        figures: &[more("tok/s", 3.0), less("TTFT p50 (s)", 0.2)],
        measure: |servers, kind, round| shared(servers, kind, round, 1500, 16).boxed(),
    },
    Scenario {
        name: "1,530-token prompt arriving during 3 decodes",
        figures: &[
            less("longest gap (s)", 0.05),
            less("TTFT of the long one (s)", 1.5),
        ],
        measure: |servers, kind, round| long_arrival(servers, kind, round).boxed(),
    },
    Scenario {
        name: "5-turn chat",
        figures: &[limit("TTFT of turn 5 / prefill of its new tokens", 1.1)],
        measure: |servers, kind, round| five_turns(servers, kind, round).boxed(),
    },
    Scenario {
        name: "8 conversations taking turns on 4 slots",
        figures: &[less("TTFT p50 (s)", 0.4)],
        measure: |servers, kind, round| taking_turns(servers, kind, round).boxed(),
    },
    Scenario {
        name: "client leaves in decode",
        figures: &[limit("compute freed after (s)", 0.05)],
        measure: |servers, kind, round| leaves(servers, kind, round, false).boxed(),
    },
    Scenario {
        name: "client leaves in a 1,500-token prefill",
        figures: &[limit("compute freed after (s)", 0.05)],
        measure: |servers, kind, round| leaves(servers, kind, round, true).boxed(),
    },
    Scenario {
        name: "another process keeps both cores busy",
        figures: &[more("tok/s", 5.0)],
        measure: |servers, kind, round| busy_machine(servers, kind, round).boxed(),
    },
    Scenario {
        name: "start to first token, warm page cache",
        figures: &[less("s", 1.1)],
        measure: |servers, kind, round| start_up(servers, kind, round).boxed(),
    },
    Scenario {
        name: "memory, idle after load",
        figures: &[less("MB", 1.1)],
        measure: |servers, kind, _| memory(servers, kind).boxed(),
    },
];

const EIGHT: Sizes = Sizes {
    context: 2048,
    parallel: 8,
};

const FOUR: Sizes = Sizes {
    context: 2048,
    parallel: 4,
};

/// Runs every scenario so many rounds, both servers in turn, and collects medians.
pub(crate) async fn run_all(
    servers: &Servers,
    rounds: usize,
    only: Option<&str>,
) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let chosen = SCENARIOS
        .iter()
        .filter(|scenario| only.is_none_or(|only| scenario.name.contains(only)));
    for scenario in chosen {
        let mut ours: Vec<Vec<f64>> = vec![Vec::new(); scenario.figures.len()];
        let mut theirs = ours.clone();
        for round in 0..rounds {
            for (kind, values) in [(Kind::LlamaServer, &mut theirs), (Kind::Ours, &mut ours)] {
                let measured = (scenario.measure)(servers, kind, round).await?;
                eprintln!(
                    "{} · round {round} · {kind:?} · {measured:.4?}",
                    scenario.name
                );
                for (value, all) in measured.into_iter().zip(values) {
                    all.push(value);
                }
            }
        }
        for ((figure, ours), theirs) in scenario.figures.iter().zip(ours).zip(theirs) {
            rows.push(Row {
                scenario: scenario.name,
                figure: figure.name,
                better: figure.better,
                target: figure.target,
                ours,
                theirs,
            });
        }
    }
    Ok(rows)
}

/// Plain words, a different sequence for every seed. About 1.3 tokens a word.
fn words(seed: usize, tokens: usize) -> String {
    const WORDS: [&str; 32] = [
        "river", "stone", "cloud", "garden", "window", "letter", "music", "bread", "forest",
        "winter", "silver", "market", "bridge", "candle", "paper", "mountain", "harbor", "lantern",
        "orchard", "meadow", "thunder", "compass", "village", "ribbon", "anchor", "pepper",
        "saddle", "copper", "violin", "feather", "basket", "island",
    ];
    let mut state = seed as u64 * 0x9e37_79b9 + 12_345;
    let mut text = String::new();
    for _ in 0..tokens * 10 / 12 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        text.push_str(WORDS[(state >> 33) as usize % WORDS.len()]);
        text.push(' ');
    }
    text
}

fn ask(seed: usize, system: &str, prompt_tokens: usize, tokens: u32) -> Ask {
    let mut messages = Vec::new();
    if !system.is_empty() {
        messages.push(("system", system.to_owned()));
    }
    messages.push(("user", format!("{seed}: {}", words(seed, prompt_tokens))));
    Ask { messages, tokens }
}

/// A seed that no other round and no other request has.
fn seed(round: usize, number: usize) -> usize {
    1000 * (round + 1) + number
}

/// So that the first measured request does not pay for anything that only happens once.
async fn warm(server: &Server) -> anyhow::Result<()> {
    load::send(server, &ask(1, "Warm up.", 60, 4)).await?;
    Ok(())
}

async fn one_stream(servers: &Servers, kind: Kind, round: usize) -> anyhow::Result<Vec<f64>> {
    let server = Server::start(kind, servers, FOUR).await?;
    warm(&server).await?;
    let mut rates = Vec::new();
    for number in 0..4 {
        let timing = load::send(&server, &ask(seed(round, number), "Go on.", 90, 128)).await?;
        rates.push(load::throughput(&[timing]));
    }
    Ok(vec![load::median(&mut rates)])
}

async fn eight_streams(
    servers: &Servers,
    kind: Kind,
    round: usize,
    shared_tokens: usize,
    tokens: u32,
) -> anyhow::Result<Vec<f64>> {
    let timings = eight(servers, kind, round, shared_tokens, tokens).await?;
    let rate = |timing: &Timing| f64::from(timing.tokens) / timing.whole.as_secs_f64();
    let slowest = timings.iter().map(rate).fold(f64::INFINITY, f64::min);
    let fastest = timings.iter().map(rate).fold(0.0, f64::max);
    Ok(vec![load::throughput(&timings), fastest / slowest])
}

async fn shared(
    servers: &Servers,
    kind: Kind,
    round: usize,
    shared_tokens: usize,
    tokens: u32,
) -> anyhow::Result<Vec<f64>> {
    let timings = eight(servers, kind, round, shared_tokens, tokens).await?;
    let waits = timings.iter().map(|timing| timing.first_token);
    Ok(vec![load::throughput(&timings), load::median_s(waits)])
}

async fn eight(
    servers: &Servers,
    kind: Kind,
    round: usize,
    shared_tokens: usize,
    tokens: u32,
) -> anyhow::Result<Vec<Timing>> {
    let server = Server::start(kind, servers, EIGHT).await?;
    warm(&server).await?;
    let system = match shared_tokens {
        0 => String::new(),
        shared => format!("Round {round}. {}", words(seed(round, 99), shared)),
    };
    let own = if shared_tokens == 0 { 100 } else { 16 };
    let asks: Vec<Ask> = (0..8)
        .map(|number| ask(seed(round, number), &system, own, tokens))
        .collect();
    load::send_all(&server, &asks).await
}

async fn long_arrival(servers: &Servers, kind: Kind, round: usize) -> anyhow::Result<Vec<f64>> {
    let server = Server::start(kind, servers, FOUR).await?;
    warm(&server).await?;
    let asks: Vec<Ask> = (0..3)
        .map(|number| ask(seed(round, number), "Go on.", 30, 400))
        .collect();
    let long = ask(seed(round, 50), "", 1400, 8);
    let decodes = load::send_all(&server, &asks);
    let late = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        load::send(&server, &long).await
    };
    let (decodes, late) = futures::future::try_join(decodes, late).await?;
    let gap = decodes
        .iter()
        .map(|timing| timing.gap_max)
        .max()
        .unwrap_or_default();
    Ok(vec![gap.as_secs_f64(), late.first_token.as_secs_f64()])
}

async fn five_turns(servers: &Servers, kind: Kind, round: usize) -> anyhow::Result<Vec<f64>> {
    let server = Server::start(kind, servers, FOUR).await?;
    warm(&server).await?;
    let mut messages = vec![("system", words(seed(round, 1), 200))];
    let mut last = None;
    let mut before = 0;
    for turn in 0..5 {
        messages.push((
            "user",
            format!("{turn} {}", words(seed(round, turn + 2), 40)),
        ));
        let timing = load::send(
            &server,
            &Ask {
                messages: messages.clone(),
                tokens: 40,
            },
        )
        .await?;
        messages.push(("assistant", timing.text.clone()));
        let new_tokens = timing.prompt_tokens - before;
        before = timing.prompt_tokens + timing.tokens;
        last = Some((timing, new_tokens));
    }
    let (last, new_tokens) = last.expect("five turns were made");
    // What new tokens cost on top of the same context when all of it is cached, for each of them.
    let context = last.prompt_tokens - new_tokens;
    let mut again = messages[..messages.len() - 2].to_vec();
    again.push(("user", format!("x {}", words(seed(round, 77), 40))));
    let reference = Ask {
        messages: again,
        tokens: 2,
    };
    let reference = load::send(&server, &reference).await?;
    let per_token = |timing: &Timing| {
        timing.first_token.as_secs_f64() / f64::from(timing.prompt_tokens - context)
    };
    Ok(vec![per_token(&last) / per_token(&reference)])
}

async fn taking_turns(servers: &Servers, kind: Kind, round: usize) -> anyhow::Result<Vec<f64>> {
    let server = Server::start(kind, servers, FOUR).await?;
    warm(&server).await?;
    let mut conversations: Vec<load::Messages> = (0..8)
        .map(|number| {
            vec![(
                "system",
                format!("{number} {}", words(seed(round, number), 250)),
            )]
        })
        .collect();
    let mut waits = Vec::new();
    for turn in 0..4 {
        for (number, messages) in conversations.iter_mut().enumerate() {
            messages.push((
                "user",
                format!("{turn} {}", words(seed(round, 20 + turn * 8 + number), 24)),
            ));
            let timing = load::send(
                &server,
                &Ask {
                    messages: messages.clone(),
                    tokens: 16,
                },
            )
            .await?;
            messages.push(("assistant", timing.text));
            if turn > 0 {
                waits.push(timing.first_token);
            }
        }
    }
    Ok(vec![load::median_s(waits.into_iter())])
}

async fn leaves(
    servers: &Servers,
    kind: Kind,
    round: usize,
    in_prefill: bool,
) -> anyhow::Result<Vec<f64>> {
    let server = Server::start(kind, servers, FOUR).await?;
    warm(&server).await?;
    if in_prefill {
        let long = ask(seed(round, 1), "", 1400, 8);
        let sent = load::send(&server, &long);
        // Well inside the prefill, which takes seconds.
        let _ = tokio::time::timeout(Duration::from_millis(500), sent).await;
    } else {
        load::send_and_leave(&server, &ask(seed(round, 1), "Go on.", 60, 500), 40).await?;
    }
    Ok(vec![server.time_until_idle().await?.as_secs_f64()])
}

/// Processes that compute without end; killed when dropped.
struct Burners(Vec<Child>);

impl Burners {
    fn start() -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        let children = (0..cores)
            .map(|_| {
                Command::new("sh")
                    .args(["-c", "while :; do :; done"])
                    .spawn()
            })
            .collect::<Result<Vec<Child>, _>>()?;
        Ok(Self(children))
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn busy_machine(servers: &Servers, kind: Kind, round: usize) -> anyhow::Result<Vec<f64>> {
    let server = Server::start(kind, servers, FOUR).await?;
    warm(&server).await?;
    let burners = Burners::start()?;
    let timing = load::send(&server, &ask(seed(round, 1), "Go on.", 20, 64)).await?;
    drop(burners);
    Ok(vec![load::throughput(&[timing])])
}

async fn start_up(servers: &Servers, kind: Kind, round: usize) -> anyhow::Result<Vec<f64>> {
    // Reads the file once and, for ours, imports it.
    drop(Server::start(kind, servers, FOUR).await?);
    let started = Instant::now();
    let server = Server::spawn(kind, servers, FOUR)?;
    server.wait_until_ready().await?;
    let ready = started.elapsed();
    let timing = load::send(&server, &ask(seed(round, 1), "Go on.", 16, 2)).await?;
    Ok(vec![(ready + timing.first_token).as_secs_f64()])
}

async fn memory(servers: &Servers, kind: Kind) -> anyhow::Result<Vec<f64>> {
    let server = Server::start(kind, servers, FOUR).await?;
    Ok(vec![server.memory_bytes()? as f64 / 1e6])
}
