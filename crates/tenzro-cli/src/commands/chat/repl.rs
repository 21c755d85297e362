//! The conversation at the terminal.

use std::path::{Path, PathBuf};

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tenzro_node::config::Config;
use tokio::signal::unix::{SignalKind, signal};

use super::super::session::{Session, message};
use super::place::{FREE, Place};
use super::turn::{Settings, Turn, short};
use crate::output::Output;
use crate::report::Failure;

const HELP: &str = "\
/history      past sessions, newest first
/load ID      go on with one of them
/new          start anew
/model M      ask another served model
/system TEXT  set the system prompt (without TEXT: remove it)
/cost         tokens, TNZO and providers of this session
/save FILE    write this session as Markdown
/help         this
/exit         leave (Ctrl-D too); Ctrl-C stops an answer";

/// Past sessions that `/history` shows.
const HISTORY_SHOWN: usize = 20;

/// The state of the conversation.
pub(super) struct Repl<'a> {
    config: &'a Config,
    place: Place,
    session: Session,
    settings: Settings,
    output: &'a Output,
    chats: PathBuf,
    /// `None` while a line is being read on another thread.
    editor: Option<DefaultEditor>,
}

impl<'a> Repl<'a> {
    pub(super) fn new(
        config: &'a Config,
        place: Place,
        session: Session,
        settings: Settings,
        output: &'a Output,
    ) -> anyhow::Result<Self> {
        let mut editor = DefaultEditor::new()?;
        // There is none before the first time.
        let _ = editor.load_history(&config.home.chat_input_history());
        Ok(Self {
            chats: config.home.chats(),
            config,
            place,
            session,
            settings,
            output,
            editor: Some(editor),
        })
    }

    /// Reads and answers until the user leaves.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        // From now on Ctrl-C ends no more than an answer, also between two lines and on terminals
        // where the editor does not read the key itself.
        let _interrupts = signal(SignalKind::interrupt())?;
        self.output.note(format!(
            "{} at {} · /help lists the commands",
            self.place.model, self.place.base_url
        ));
        while let Some(line) = self.read().await? {
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let result = match line.strip_prefix('/') {
                Some("exit" | "quit") => break,
                Some(command) => self.command(command).await,
                None => self.answer(line).await,
            };
            if let Err(error) = result {
                crate::report::print(&error, self.output);
            }
        }
        Ok(())
    }

    /// The next line; `None` at the end of the input.
    async fn read(&mut self) -> anyhow::Result<Option<String>> {
        let mut editor = self.editor.take().expect("given back by the last read");
        let reading = tokio::task::spawn_blocking(move || {
            let line = editor.readline(">>> ");
            (editor, line)
        });
        let (mut editor, line) = reading.await?;
        let line = match line {
            Ok(line) => {
                editor.add_history_entry(line.as_str())?;
                let path = self.config.home.chat_input_history();
                std::fs::create_dir_all(self.config.home.root())?;
                editor.append_history(&path)?;
                Some(line)
            }
            // Ctrl-C at the prompt only clears the line.
            Err(ReadlineError::Interrupted) => Some(String::new()),
            Err(ReadlineError::Eof) => None,
            Err(error) => return Err(error.into()),
        };
        self.editor = Some(editor);
        Ok(line)
    }

    /// Adds a turn to the session when it is complete; else the session stays as it was.
    async fn answer(&mut self, question: &str) -> anyhow::Result<()> {
        let mut conversation = self.session.conversation();
        conversation.push(message("user", question));
        let show = |text: &str| {
            self.output.print(text);
        };
        let turn = Turn::run(&self.place, conversation, self.settings, show);
        let turn = tokio::select! {
            turn = turn => turn?,
            _ = tokio::signal::ctrl_c() => {
                self.output.line("");
                let paid = match self.place.is_network() {
                    true => "; what had arrived may have to be paid",
                    false => "",
                };
                let stopped = format!("stopped; this turn is not kept{paid}");
                self.output.note(self.output.dim(&stopped));
                return Ok(());
            }
        };
        self.output.line("");
        let session = &mut self.session;
        session.messages.push(message("user", question));
        session.messages.push(message("assistant", &turn.text));
        session.prompt_tokens += u64::from(turn.usage.prompt_tokens);
        session.completion_tokens += u64::from(turn.usage.completion_tokens);
        session.add_cost(turn.cost(), turn.provider());
        session.save(&self.chats)?;
        let footer = turn.footer(&self.session.model);
        self.output.note(self.output.dim(&footer));
        Ok(())
    }

    async fn command(&mut self, command: &str) -> anyhow::Result<()> {
        let (name, argument) = match command.split_once(char::is_whitespace) {
            Some((name, argument)) => (name, argument.trim()),
            None => (command, ""),
        };
        match (name, argument) {
            ("help", _) => self.output.line(HELP),
            ("history", _) => self.show_history(),
            ("load", "") => return Err(usage("/load ID")),
            ("load", id) => self.load(id).await?,
            ("new", _) => {
                self.session = Session::new(&self.place.model, self.session.system.take());
                self.output.note("a new session");
            }
            ("model", "") => self.output.line(&self.session.model),
            ("model", model) => self.change_model(model).await?,
            ("system", text) => {
                self.session.system = (!text.is_empty()).then(|| text.to_owned());
                let state = if text.is_empty() { "removed" } else { "set" };
                self.output.note(format!("system prompt {state}"));
            }
            ("cost", _) => self.show_cost(),
            ("save", "") => return Err(usage("/save FILE")),
            ("save", file) => self.save_as_markdown(Path::new(file))?,
            _ => {
                return Err(Failure::new(format!("there is no command /{name}"))
                    .hint("/help lists them")
                    .into());
            }
        }
        Ok(())
    }

    fn show_cost(&self) {
        let session = &self.session;
        let paid: Vec<String> = session.providers.iter().map(|one| short(one)).collect();
        let to = match (paid.as_slice(), session.unknown_costs) {
            ([], 0) => FREE.to_owned(),
            ([], _) => "to unknown providers".to_owned(),
            (paid, _) => format!("to {}", paid.join(", ")),
        };
        let more = match session.unknown_costs {
            0 => String::new(),
            answers => format!(", and {answers} answers whose cost is unknown"),
        };
        self.output.line(format!(
            "{} tokens in, {} tokens out, {} TNZO{more}: {to}",
            session.prompt_tokens,
            session.completion_tokens,
            session.cost.tnzo()
        ));
    }

    fn show_history(&self) {
        let sessions = Session::list(&self.chats);
        if sessions.is_empty() {
            self.output.note("no past sessions");
        }
        for session in sessions.iter().take(HISTORY_SHOWN) {
            self.output.line(format!(
                "{}  {}  {}",
                session.id,
                session.model,
                session.first_line()
            ));
        }
    }

    async fn load(&mut self, id: &str) -> anyhow::Result<()> {
        let session = Session::load(&self.chats, id)?;
        // Its model may be served no more: then the present one goes on.
        if session.model != self.session.model {
            match Place::find(self.config, Some(&session.model)).await {
                Ok(place) => self.place = place,
                Err(_) => self.output.note(format!(
                    "{} is not served: going on with {}",
                    session.model, self.place.model
                )),
            }
        }
        for message in &session.messages {
            let prompt = if message.role == "user" { ">>> " } else { "" };
            self.output.line(format!("{prompt}{}", message.content));
        }
        self.session = Session {
            model: self.place.model.clone(),
            ..session
        };
        Ok(())
    }

    async fn change_model(&mut self, model: &str) -> anyhow::Result<()> {
        let place = Place::find(self.config, Some(model)).await?;
        self.session.model.clone_from(&place.model);
        self.output
            .note(format!("{} at {}", place.model, place.base_url));
        self.place = place;
        Ok(())
    }

    fn save_as_markdown(&self, file: &Path) -> anyhow::Result<()> {
        let mut text = format!("# Chat with {}\n", self.session.model);
        for message in self.session.conversation() {
            text.push_str(&format!("\n## {}\n\n{}\n", message.role, message.content));
        }
        std::fs::write(file, text)
            .map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
        self.output.note(format!("written to {}", file.display()));
        Ok(())
    }
}

fn usage(text: &str) -> anyhow::Error {
    Failure::new(format!("usage: {text}")).into()
}
