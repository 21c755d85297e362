//! Chat sessions on disk: one JSON file each, written after every complete turn.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tenzro_node::replace_file;
use tenzro_protocol::amount::Wei;
use tenzro_protocol::inference::ChatMessage;

use crate::report::Failure;

/// One conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Session {
    /// Also the name of its file.
    pub(super) id: String,
    pub(super) model: String,
    #[serde(default)]
    pub(super) system: Option<String>,
    /// Without the system prompt, oldest first.
    pub(super) messages: Vec<ChatMessage>,
    /// Tokens of all turns.
    #[serde(default)]
    pub(super) prompt_tokens: u64,
    #[serde(default)]
    pub(super) completion_tokens: u64,
    /// Of all turns whose cost is known.
    #[serde(default)]
    pub(super) cost: Wei,
    /// Turns that cost something that nobody has said.
    #[serde(default)]
    pub(super) unknown_costs: u32,
    /// Wallets that were paid, in the order of their first turn.
    #[serde(default)]
    pub(super) providers: Vec<String>,
}

impl Session {
    pub(super) fn new(model: &str, system: Option<String>) -> Self {
        let milliseconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis());
        Self {
            id: format!("{milliseconds:x}-{:x}", std::process::id()),
            model: model.to_owned(),
            system,
            messages: Vec::new(),
            prompt_tokens: 0,
            completion_tokens: 0,
            cost: Wei::ZERO,
            unknown_costs: 0,
            providers: Vec::new(),
        }
    }

    /// Takes in what a turn cost, and who was paid.
    pub(super) fn add_cost(&mut self, cost: Option<Wei>, provider: Option<&str>) {
        match cost {
            Some(Wei(cost)) => self.cost = Wei(self.cost.0.saturating_add(cost)),
            None => self.unknown_costs = self.unknown_costs.saturating_add(1),
        }
        if let Some(provider) = provider
            && !self.providers.iter().any(|known| known == provider)
        {
            self.providers.push(provider.to_owned());
        }
    }

    /// What is sent to the model.
    pub(super) fn conversation(&self) -> Vec<ChatMessage> {
        let system = self.system.as_ref().map(|system| message("system", system));
        system
            .into_iter()
            .chain(self.messages.iter().cloned())
            .collect()
    }

    /// The beginning of the first question.
    pub(super) fn first_line(&self) -> String {
        let first = self.messages.first().map_or("", |message| &message.content);
        let line = first.lines().next().unwrap_or("");
        line.chars().take(60).collect()
    }

    /// Writes the session below `chats`; when this returns, a crash loses nothing of it.
    pub(super) fn save(&self, chats: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(chats)?;
        let text = serde_json::to_vec_pretty(self).context("a session is plain data")?;
        replace_file(&chats.join(format!("{}.json", self.id)), &text)
            .with_context(|| format!("cannot write below {}", chats.display()))
    }

    /// Reads a session by its id or an unambiguous beginning of it.
    pub(super) fn load(chats: &Path, id: &str) -> anyhow::Result<Self> {
        let sessions = Self::list(chats);
        let mut matching: Vec<Self> = sessions
            .into_iter()
            .filter(|session| session.id.starts_with(id))
            .collect();
        match (matching.pop(), matching.len()) {
            (Some(session), 0) if !id.is_empty() => Ok(session),
            (None, _) => Err(Failure::new(format!("there is no session '{id}'"))
                .hint("/history lists them")
                .into()),
            _ => Err(Failure::new(format!("'{id}' can mean several sessions"))
                .hint("/history lists them")
                .into()),
        }
    }

    /// All sessions, newest first. Files that are none are left out.
    pub(super) fn list(chats: &Path) -> Vec<Self> {
        let mut files: Vec<PathBuf> = fs::read_dir(chats)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "json")
            })
            .collect();
        // Ids begin with the time in digits of the same length.
        files.sort_unstable();
        let read = |path: &PathBuf| serde_json::from_slice(&fs::read(path).ok()?).ok();
        files.iter().rev().filter_map(read).collect()
    }
}

pub(super) fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
        name: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_kept_listed_and_found_by_a_part_of_their_id() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut old = Session::new("m", Some("Be brief.".to_owned()));
        old.id = "100-a".to_owned();
        old.messages.push(message("user", "First line\nsecond"));
        old.add_cost(Some(Wei(7)), Some("0xa"));
        old.add_cost(Some(Wei(8)), Some("0xb"));
        old.add_cost(None, Some("0xa"));
        assert_eq!((old.cost, old.unknown_costs), (Wei(15), 1));
        assert_eq!(old.providers.len(), 2);
        let mut new = Session::new("m", None);
        new.id = "200-b".to_owned();
        for session in [&old, &new] {
            session.save(directory.path()).expect("written");
        }
        fs::write(directory.path().join("x.json"), "no session").expect("written");
        assert_eq!(Session::list(directory.path()), [new.clone(), old.clone()]);
        assert_eq!(Session::load(directory.path(), "10").expect("found"), old);
        assert!(Session::load(directory.path(), "3").is_err());
        assert!(Session::load(directory.path(), "").is_err());
        assert_eq!(old.first_line(), "First line");
        assert_eq!(old.conversation()[0].role, "system");
    }
}
