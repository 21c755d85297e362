//! Data to stdout, everything else to stderr.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::arguments::{Color, Global};

/// How this run prints.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) yes: bool,
    color: bool,
}

impl Output {
    pub(crate) fn new(global: &Global) -> Self {
        let color = match global.color {
            Color::Always => true,
            Color::Never => false,
            // clap and the terminal libraries read it the same way: set and not empty.
            Color::Auto => {
                let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                !no_color && io::stderr().is_terminal()
            }
        };
        Self {
            json: global.json,
            quiet: global.quiet,
            yes: global.yes,
            color,
        }
    }

    /// A line of data.
    pub(crate) fn line(&self, text: impl AsRef<str>) {
        self.print(&format!("{}\n", text.as_ref()));
    }

    /// Data without a line end, shown at once. False when nobody reads it: a closed pipe ends the
    /// output, not the program, unless the caller has nothing else to do.
    pub(crate) fn print(&self, text: &str) -> bool {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.as_bytes());
        written.and_then(|()| stdout.flush()).is_ok()
    }

    /// One JSON document on a line of its own.
    pub(crate) fn json(&self, value: &impl Serialize) {
        let text = serde_json::to_string(value).expect("plain data is always JSON");
        self.line(text);
    }

    /// Something that the user may want to know.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            eprint_line(text.as_ref());
        }
    }

    /// A next step.
    pub(crate) fn hint(&self, text: impl AsRef<str>) {
        self.note(format!("{} {}", self.dim("hint:"), text.as_ref()));
    }

    /// Something that is wrong but does not stop the command.
    pub(crate) fn warn(&self, text: impl AsRef<str>) {
        eprint_line(&format!("{} {}", self.bold("warning:"), text.as_ref()));
    }

    pub(crate) fn dim(&self, text: &str) -> String {
        use owo_colors::OwoColorize;
        if self.color {
            text.dimmed().to_string()
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn bold(&self, text: &str) -> String {
        use owo_colors::OwoColorize;
        if self.color {
            text.bold().to_string()
        } else {
            text.to_owned()
        }
    }

    /// A table with a head line.
    pub(crate) fn table(&self, head: &[&str], rows: Vec<Vec<String>>) {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(head.iter().map(|name| name.to_uppercase()))
            .add_rows(rows);
        let text = table.to_string();
        for line in text.lines() {
            self.line(line.trim_end());
        }
    }
}

/// To stderr.
pub(crate) fn eprint_line(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// `98.4 MB`.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_decimal() {
        assert_eq!(super::bytes(999), "999 B");
        assert_eq!(super::bytes(98_362_432), "98.4 MB");
        assert_eq!(super::bytes(1_500_000_000_000_000), "1500.0 TB");
    }
}
