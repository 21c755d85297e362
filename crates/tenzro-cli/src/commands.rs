//! Which command runs what.

mod chat;
mod config;
mod model;
mod serve;
mod session;
mod stop;

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use tenzro_hub::{FindError, Library, LibraryEntry};

use crate::arguments::{Arguments, Command, Config as ConfigCommand, Model};
use crate::output::Output;
use crate::report::Failure;
use tenzro_node::config::Config;

/// Runs the command that was typed.
pub(crate) async fn run(arguments: Arguments, output: &Output) -> anyhow::Result<ExitCode> {
    if let Command::Completions { shell } = arguments.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Arguments::command(), "tenzro-cli", &mut script);
        output.print(&String::from_utf8_lossy(&script));
        return Ok(ExitCode::SUCCESS);
    }
    let config = Config::load(arguments.global.home.clone())
        .map_err(|error| Failure::new(error.to_string()).maybe_hint(error.hint()))?;
    match arguments.command {
        Command::Model(Model::Download(download)) => {
            model::download(&config, download, output).await?;
        }
        Command::Model(Model::Import { file, name }) => {
            model::import(&config, &file, name.as_deref(), output)?;
        }
        Command::Model(Model::List { local }) => model::list(&config, local, output)?,
        Command::Model(Model::Info { model }) => return model::info(&config, &model, output),
        Command::Model(Model::Remove { model }) => model::remove(&config, &model, output)?,
        Command::Model(Model::Serve(serve)) => serve::run(&config, serve, output).await?,
        Command::Model(Model::Ps) => stop::list(&config, output)?,
        Command::Model(Model::Stop { model, all }) => {
            stop::run(&config, model.as_deref(), all, output).await?;
        }
        Command::Chat(chat) => return chat::run(&config, chat, output).await,
        Command::Config(ConfigCommand::Show) => config::show(&config, output),
        Command::Completions { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn library(config: &Config) -> Library {
    Library::new(config.home.root(), &config.hub.cache_dir)
}

/// The model of the library that a text names.
fn find(config: &Config, query: &str) -> anyhow::Result<LibraryEntry> {
    let found = library(config).find(query)?;
    found.map_err(|error| {
        let message = error.to_string();
        let hint = match error {
            FindError::Ambiguous { .. } => "use one of these ids".to_owned(),
            FindError::Unknown { .. } if Path::new(query).is_file() => {
                format!("tenzro-cli model import {query}")
            }
            FindError::Unknown { nearest, .. } if query.contains('/') || nearest.is_empty() => {
                format!("tenzro-cli model download {query}")
            }
            FindError::Unknown { nearest, .. } => format!("did you mean {}?", nearest.join(", ")),
        };
        Failure::new(message).hint(hint).into()
    })
}
