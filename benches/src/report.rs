//! Writes the results as a Markdown table.

use crate::load::median;
use crate::scenarios::Target;

/// Which direction is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

/// All values of one figure.
pub(crate) struct Row {
    pub(crate) scenario: &'static str,
    pub(crate) figure: &'static str,
    pub(crate) better: Better,
    pub(crate) target: Target,
    pub(crate) ours: Vec<f64>,
    pub(crate) theirs: Vec<f64>,
}

/// To stdout.
pub(crate) fn print(rows: &[Row], rounds: usize) {
    println!("Medians of {rounds} rounds, in brackets the smallest and the largest value.\n");
    println!("| scenario | figure | ours | llama-server | ratio | target | reached |");
    println!("|---|---|---|---|---|---|---|");
    for row in rows {
        let ours = median(&mut row.ours.clone());
        let theirs = median(&mut row.theirs.clone());
        // Pair by pair: both values of a round were measured one after the other.
        let mut ratios: Vec<f64> = row
            .ours
            .iter()
            .zip(&row.theirs)
            .map(|(ours, theirs)| ours / theirs)
            .collect();
        let ratio = median(&mut ratios);
        let (target, reached) = match row.target {
            Target::AtLeast(least) => (format!("≥ {least} ×"), ratio >= least),
            Target::AtMost(most) => (format!("≤ {most} ×"), ratio <= most),
            Target::Limit(most) => (format!("≤ {most}"), ours <= most),
        };
        let arrow = match row.better {
            Better::More => "↑",
            Better::Less => "↓",
        };
        println!(
            "| {} | {} {arrow} | {} | {} | {ratio:.2} | {target} | {} |",
            row.scenario,
            row.figure,
            spread(ours, &row.ours),
            spread(theirs, &row.theirs),
            if reached { "yes" } else { "**no**" },
        );
    }
}

fn spread(median: f64, values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{} ({}–{})", short(median), short(least), short(most))
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
