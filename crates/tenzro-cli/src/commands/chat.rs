//! `chat`: one answer, or a conversation at the terminal.

mod place;
mod repl;
mod turn;

use std::io::{IsTerminal, Read};
use std::process::ExitCode;

use serde_json::json;
use tenzro_node::config::Config;
use tenzro_protocol::amount::Wei;
use tokio_util::sync::CancellationToken;

use super::session::{Session, message};
use crate::arguments::Chat;
use crate::output::Output;
use crate::report::Failure;
use place::Place;
use turn::{Settings, Turn};

/// Most of what is piped in: beyond it no model's context reaches.
const PIPED_BYTES_MAX: u64 = 8 << 20;

pub(super) async fn run(config: &Config, chat: Chat, output: &Output) -> anyhow::Result<ExitCode> {
    let prompt = prompt(chat.prompt.clone())?;
    let wanted = chat.model.clone().or_else(|| config.get("chat.model"));
    let place = Place::find(config, wanted.as_deref()).await?;
    let settings = Settings {
        max_tokens: chat.max_tokens.or_else(|| config.get("chat.max_tokens")),
        temperature: chat.temperature,
    };
    let system = chat.system.clone().or_else(|| config.get("chat.system"));
    let session = Session::new(&place.model, system);
    match prompt {
        Some(prompt) => once(&place, session, &prompt, settings, &chat, output).await,
        None => {
            let repl = repl::Repl::new(config, place, session, settings, output)?;
            repl.run().await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The argument, what is piped in, or both; `None` at a terminal without an argument.
fn prompt(argument: Option<String>) -> anyhow::Result<Option<String>> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Ok(argument);
    }
    let mut piped = String::new();
    stdin
        .lock()
        .take(PIPED_BYTES_MAX)
        .read_to_string(&mut piped)?;
    let piped = piped.trim_end();
    let prompt = match (argument, piped.is_empty()) {
        (Some(argument), true) => argument,
        (Some(argument), false) => format!("{argument}\n\n{piped}"),
        (None, false) => piped.to_owned(),
        (None, true) => {
            return Err(Failure::new("there is nothing to answer")
                .hint("give a prompt, or pipe one in")
                .into());
        }
    };
    Ok(Some(prompt))
}

async fn once(
    place: &Place,
    session: Session,
    prompt: &str,
    settings: Settings,
    chat: &Chat,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let mut conversation = session.conversation();
    conversation.push(message("user", prompt));
    let streams = !chat.no_stream && !output.json;
    let unread = CancellationToken::new();
    let show = |text: &str| {
        if streams && !output.print(text) {
            unread.cancel();
        }
    };
    let turn = Turn::run(place, conversation, settings, show);
    let turn = tokio::select! {
        biased;
        // As in `chat … | head -1`: nobody waits for the rest.
        () = unread.cancelled() => return Ok(ExitCode::SUCCESS),
        turn = turn => turn?,
        _ = tokio::signal::ctrl_c() => {
            output.line("");
            return Ok(ExitCode::from(130));
        }
    };
    if output.json {
        output.json(&json!({
            "model": session.model,
            "content": turn.text,
            "finish_reason": turn.finish_reason,
            "usage": turn.usage,
            "seconds_to_first_token": turn.first_token.map(|wait| wait.as_secs_f64()),
            "tokens_per_second": turn.tokens_per_second(),
            "provider": turn.provider(),
            "cost_wei": turn.cost(),
            "cost_tnzo": turn.cost().map(Wei::tnzo),
        }));
    } else if streams {
        output.line("");
    } else {
        output.line(&turn.text);
    }
    if !output.json {
        output.note(output.dim(&turn.footer(&session.model)));
    }
    Ok(ExitCode::SUCCESS)
}
