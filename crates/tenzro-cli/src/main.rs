//! The `tenzro-cli` binary: serve GGUF models, earn TNZO with them, and chat.
//!
//! ```text
//! arguments -> config (flags > environment > file > defaults) -> commands/<command> -> output
//!                                                                        └─ errors -> report
//! ```

mod arguments;
mod commands;
mod output;
mod progress;
mod report;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use arguments::Arguments;
use output::Output;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output::new(&arguments.global);
    start_log(arguments.global.verbose);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(commands::run(arguments, &output)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(code) => code,
        Err(error) => report::print(&error, &output),
    }
}

/// Warnings always, more with each `-v`; to stderr.
fn start_log(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        2 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        // A log in a file is read with other tools.
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}
