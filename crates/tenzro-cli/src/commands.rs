//! Which command runs what.

mod chain;
mod channel;
mod chat;
mod config;
mod detach;
mod earnings;
mod endpoints;
mod model;
mod network;
mod node;
mod provider;
mod serve;
mod session;
mod stop;
mod wallet;

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
    let mut config = Config::load(arguments.global.home.clone())
        .map_err(|error| Failure::new(error.to_string()).maybe_hint(error.hint()))?;
    let rpc = arguments.global.rpc;
    if let Some(rpc) = &rpc {
        config.set("rpc", rpc.clone());
    }
    match arguments.command {
        Command::Model(Model::Download(download)) => {
            model::download(&config, download, output).await?;
        }
        Command::Model(Model::Import { file, name }) => {
            model::import(&config, &file, name.as_deref(), output)?;
        }
        Command::Model(Model::List { local: true }) => model::list(&config, output)?,
        Command::Model(Model::List { local: false }) => endpoints::models(&config, output).await?,
        Command::Model(Model::Endpoints { model }) => {
            endpoints::list(&config, model.as_deref(), output).await?;
        }
        Command::Model(Model::Endpoint { id, model }) => {
            endpoints::show(&config, id.as_deref(), model.as_deref(), output).await?;
        }
        Command::Model(Model::Info { model }) => return model::info(&config, &model, output),
        Command::Model(Model::Remove { model }) => model::remove(&config, &model, output)?,
        Command::Model(Model::Serve(serve)) => serve::run(&config, serve, output).await?,
        Command::Model(Model::Ps) => stop::list(&config, output)?,
        Command::Model(Model::Stop { model, all }) => {
            stop::run(&config, model.as_deref(), all, output).await?;
        }
        Command::Provider(command) => provider::run(&config, command, output).await?,
        Command::Stake(command) => provider::stake(&config, command, output).await?,
        Command::Wallet(command) => wallet::run(&config, command, output).await?,
        Command::Channel(command) => channel::run(&config, command, output).await?,
        Command::Node(command) => node::run(config, command, output).await?,
        Command::Chain(command) => chain::run(&config, rpc.as_deref(), command, output).await?,
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
