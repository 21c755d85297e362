//! Progress of long work: a bar on a terminal, a line every 5 % elsewhere, JSON lines with `--json`.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tenzro_hub::Progress;

use crate::output::{Output, bytes};

/// Shortest time between two lines.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// Shows one piece of work after the other.
pub(crate) struct Shower {
    output: Output,
    is_terminal: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bar: Option<ProgressBar>,
    stage: &'static str,
    /// Last step of 5 % that was told, for lines and JSON.
    told: u64,
    /// When a line was told last.
    told_at: Option<Instant>,
}

impl Shower {
    pub(crate) fn new(output: &Output) -> Self {
        Self {
            output: output.clone(),
            is_terminal: io::stderr().is_terminal() && !output.json,
            state: Mutex::default(),
        }
    }

    /// An event of a download.
    pub(crate) fn download(&self, event: &Progress) {
        match event {
            Progress::Downloading {
                done_bytes,
                total_bytes,
            } => self.step("downloading", *done_bytes, *total_bytes, event),
            Progress::Verifying {
                done_bytes,
                total_bytes,
                ..
            } => self.step("verifying", *done_bytes, *total_bytes, event),
            other if self.output.json => self.output.json(other),
            other => {
                self.finish();
                self.output.note(describe(other));
            }
        }
    }

    /// Bytes of some other work.
    pub(crate) fn bytes(&self, stage: &'static str, done: u64, total: u64) {
        let event = serde_json::json!({"event": stage, "done_bytes": done, "total_bytes": total});
        self.step(stage, done, total, &event);
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
        state.stage = "";
    }

    fn step(&self, stage: &'static str, done: u64, total: u64, event: &impl serde::Serialize) {
        if self.output.quiet {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let twentieth = (done.saturating_mul(20)).checked_div(total).unwrap_or(20);
        if state.stage != stage {
            if let Some(bar) = state.bar.take() {
                bar.finish_and_clear();
            }
            state.stage = stage;
            state.told = u64::MAX;
            state.told_at = None;
            if self.is_terminal {
                state.bar = Some(bar(stage, total));
            }
        }
        if let Some(bar) = &state.bar {
            bar.set_position(done);
            return;
        }
        if twentieth == state.told {
            return;
        }
        state.told = twentieth;
        if self.output.json {
            self.output.json(event);
        } else if state.told_at.is_none_or(|at| at.elapsed() < LINE_INTERVAL) {
            // Work that is done in a moment needs no lines.
            state.told_at.get_or_insert_with(Instant::now);
        } else {
            state.told_at = Some(Instant::now());
            let percent = twentieth * 5;
            let text = format!(
                "{stage} {percent:>3}% ({} of {})",
                bytes(done),
                bytes(total)
            );
            self.output.note(text);
        }
    }
}

impl Drop for Shower {
    fn drop(&mut self) {
        self.finish();
    }
}

fn bar(stage: &'static str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{prefix:11} {bar:32} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}",
    )
    .expect("the template is valid")
    .progress_chars("=> ");
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    bar.set_style(style);
    bar.set_prefix(stage);
    bar
}

fn describe(event: &Progress) -> String {
    match event {
        Progress::Resolving { repo, revision } => format!("looking up {repo} ({revision})"),
        Progress::Plan {
            files,
            total_bytes,
            resumed_bytes,
            quantization,
            licence,
            gated,
            free_bytes,
        } => {
            let mut text = format!("{}, {}", files.join(", "), bytes(*total_bytes));
            if let Some(quantization) = quantization {
                text.push_str(&format!(", {quantization}"));
            }
            if let Some(licence) = licence {
                text.push_str(&format!(", licence {licence}"));
            }
            if *gated {
                text.push_str(", gated");
            }
            text.push_str(&format!("; {} free", bytes(*free_bytes)));
            if *resumed_bytes > 0 {
                text.push_str(&format!("; {} are there already", bytes(*resumed_bytes)));
            }
            text
        }
        Progress::Waiting { file } => format!("another process fetches {file}: waiting for it"),
        Progress::Retrying { reason, after_ms } => {
            format!(
                "{reason}; trying again in {:.1} s",
                *after_ms as f64 / 1000.0
            )
        }
        Progress::Verified {
            file,
            sha256,
            was_cached,
        } => {
            let how = if *was_cached { "in the cache, " } else { "" };
            format!("{file}: {how}SHA-256 {sha256} is the hub's")
        }
        Progress::Downloading { .. } | Progress::Verifying { .. } => String::new(),
    }
}
