//! Collects figures over the rounds and writes them as a Markdown table.

use std::time::Duration;

/// Which direction is good, and what the design asks of ours where it does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    Less,
    AtLeast(f64),
    Below(f64),
}

/// What ours is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    None,
    Anvil,
}

#[derive(Debug)]
struct Row {
    scenario: String,
    figure: &'static str,
    goal: Goal,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

/// The rows of a table, in the order in which they came first.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    rows: Vec<Row>,
}

impl Figures {
    /// Takes the values of one round.
    pub(crate) fn add(
        &mut self,
        scenario: &str,
        figure: &'static str,
        goal: Goal,
        ours: f64,
        theirs: Option<f64>,
    ) {
        let known = |row: &&mut Row| row.scenario == scenario && row.figure == figure;
        if let Some(row) = self.rows.iter_mut().find(known) {
            row.ours.push(ours);
            row.theirs.extend(theirs);
            return;
        }
        self.rows.push(Row {
            scenario: scenario.to_owned(),
            figure,
            goal,
            ours: vec![ours],
            theirs: theirs.into_iter().collect(),
        });
    }

    /// To stdout.
    pub(crate) fn print(&self, peer: Peer) {
        let (heads, rule) = match peer {
            Peer::Anvil => ("| anvil | ratio ", "|---|---"),
            Peer::None => ("", ""),
        };
        println!("| scenario | figure | ours {heads}| target | reached |");
        println!("|---|---|---{rule}|---|---|");
        for row in &self.rows {
            let theirs = match peer {
                Peer::Anvil => format!("| {} | {:.2} ", spread(&row.theirs), row.ratio()),
                Peer::None => String::new(),
            };
            let ours = median(&row.ours);
            let (target, reached) = match row.goal {
                Goal::AtLeast(least) => (format!("≥ {least}"), verdict(ours >= least)),
                Goal::Below(most) => (format!("< {most}"), verdict(ours < most)),
                Goal::Less => ("–".to_owned(), "–"),
            };
            let arrow = match row.goal {
                Goal::AtLeast(_) => "↑",
                Goal::Less | Goal::Below(_) => "↓",
            };
            let (scenario, figure) = (&row.scenario, row.figure);
            let ours = spread(&row.ours);
            println!("| {scenario} | {figure} {arrow} | {ours} {theirs}| {target} | {reached} |");
        }
    }
}

impl Row {
    /// Pair by pair: both values of a round were measured one after the other.
    fn ratio(&self) -> f64 {
        let pairs = self.ours.iter().zip(&self.theirs);
        let ratios: Vec<f64> = pairs.map(|(ours, theirs)| ours / theirs).collect();
        median(&ratios)
    }
}

fn verdict(reached: bool) -> &'static str {
    if reached { "yes" } else { "**no**" }
}

/// Seconds within which that part of all ended.
pub(crate) fn percentile(times: &[Duration], part: f64) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let index = (times.len().saturating_sub(1) as f64 * part) as usize;
    times.get(index).map_or(f64::NAN, Duration::as_secs_f64)
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let [median, least, most] = [median(values), least, most].map(short);
    format!("{median} ({least}–{most})")
}

fn short(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    }
}
