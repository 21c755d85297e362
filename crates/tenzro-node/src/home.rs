//! Where this user's files are: `config.toml`, `keystore/`, `rpc.token`, `node/`, `library/`, `models/`,
//! `payments/`, `servers/<port>/`, `chats/`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The home directory of one user or one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// Nothing is created yet.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Settings.
    pub fn config_file(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// Wallets.
    pub fn keystore(&self) -> PathBuf {
        self.root.join("keystore")
    }

    /// Whoever can read it may act with the node's wallet.
    pub fn operator_token_file(&self) -> PathBuf {
        self.root.join("rpc.token")
    }

    /// The node's state, log and ledger.
    pub fn node(&self) -> PathBuf {
        self.root.join("node")
    }

    /// Books of payment channels: what this home's wallets earned and spent.
    pub fn payments(&self) -> PathBuf {
        self.root.join("payments")
    }

    /// One directory for each running model server.
    pub fn servers(&self) -> PathBuf {
        self.root.join("servers")
    }

    /// One file for each chat session.
    pub fn chats(&self) -> PathBuf {
        self.root.join("chats")
    }

    /// Lines typed into the chat.
    pub fn chat_input_history(&self) -> PathBuf {
        self.root.join("chat-input-history")
    }
}

/// Writes a small file so that a crash leaves the old or the new content, readable by the owner only.
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let mut options = File::options();
    options.create(true).truncate(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)
}
