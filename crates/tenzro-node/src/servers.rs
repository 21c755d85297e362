//! What runs in this home: `servers/<port>/` for each model server and `node/` for the node, with a
//! state file, a log and a lock that is held as long as the process lives, so that a reused process id
//! can never be taken for a server.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::home::{Home, replace_file};

/// What a running server says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Process id.
    pub pid: u32,
    /// Port it listens on.
    pub port: u16,
    /// Address of its API; ends in `/v1`.
    pub base_url: String,
    /// Model id.
    pub model: String,
    /// Other names of the model.
    pub aliases: Vec<String>,
    /// Unix seconds.
    pub started: u64,
    /// Address of the upstream engine, when there is one.
    pub upstream: Option<String>,
    /// Its place on the ledger, when it has one.
    #[serde(default)]
    pub on_ledger: Option<LedgerPlace>,
}

/// Where a model server is registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerPlace {
    /// The address that others use.
    pub base_url: String,
    /// The node that recorded it.
    pub rpc_url: String,
}

/// What a running node says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Process id.
    pub pid: u32,
    /// Port it listens on.
    pub port: u16,
    /// Address of its JSON-RPC, for clients on this machine.
    pub rpc_url: String,
    /// `embedded` or the address of the chain.
    pub chain: String,
    /// EIP-155 id of the chain.
    pub chain_id: u64,
    /// Unix seconds.
    pub started: u64,
}

/// The registry below one home.
#[derive(Debug, Clone)]
pub struct Servers {
    root: PathBuf,
}

/// A claimed port, or the node's place; the claim ends when it is dropped or the process dies.
#[derive(Debug)]
pub struct Slot {
    directory: PathBuf,
    _lock: File,
}

impl Servers {
    /// Creates nothing.
    pub fn new(home: &Home) -> Self {
        Self {
            root: home.servers(),
        }
    }

    /// Where the server on `port` logs when it is detached.
    pub fn log_file(&self, port: u16) -> PathBuf {
        self.root.join(port.to_string()).join("log")
    }

    /// Claims a port for this process; `None` when a server of this home has it.
    pub fn claim(&self, port: u16) -> io::Result<Option<Slot>> {
        Slot::claim(self.root.join(port.to_string()))
    }

    /// Servers that live, by port.
    pub fn running(&self) -> io::Result<Vec<ServerRecord>> {
        let directory = match fs::read_dir(&self.root) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut records: Vec<ServerRecord> = directory
            .flatten()
            .filter_map(|entry| living(&entry.path()))
            .collect();
        records.sort_by_key(|record: &ServerRecord| record.port);
        Ok(records)
    }

    /// Whether the server on that port still lives.
    pub fn is_running(&self, port: u16) -> bool {
        is_held(&self.root.join(port.to_string()))
    }
}

/// The node of this home, when it runs.
pub fn running_node(home: &Home) -> Option<NodeRecord> {
    living(&home.node())
}

/// Whether a node of this home still lives.
pub fn is_node_running(home: &Home) -> bool {
    is_held(&home.node())
}

/// What the process that holds a directory says about itself.
fn living<T: DeserializeOwned>(directory: &Path) -> Option<T> {
    if !is_held(directory) {
        return None;
    }
    let bytes = fs::read(directory.join("state.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

impl Slot {
    /// Claims a directory for this process; `None` when another process has it.
    pub fn claim(directory: PathBuf) -> io::Result<Option<Self>> {
        fs::create_dir_all(&directory)?;
        let lock = open_lock(&directory)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self {
                directory,
                _lock: lock,
            })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Makes the process visible to other commands.
    pub fn publish(&self, record: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(record).expect("records are plain data");
        replace_file(&self.directory.join("state.json"), &text)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The lock says whether the server lives; the file is only tidied up.
        let _ = fs::remove_file(self.directory.join("state.json"));
    }
}

fn open_lock(directory: &Path) -> io::Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(directory.join("lock"))
}

/// Whether a process has claimed that directory.
pub(crate) fn is_held(directory: &Path) -> bool {
    let Ok(lock) = File::options().write(true).open(directory.join("lock")) else {
        return false;
    };
    matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_listed_as_long_as_it_holds_its_port() {
        let home = tempfile::tempdir().expect("a directory");
        let servers = Servers::new(&Home::new(home.path().to_owned()));
        assert!(servers.running().expect("readable").is_empty());
        let slot = servers.claim(8080).expect("writable").expect("free");
        assert!(servers.claim(8080).expect("writable").is_none());
        let record = ServerRecord {
            pid: 1,
            port: 8080,
            base_url: "http://127.0.0.1:8080/v1".to_owned(),
            model: "m".to_owned(),
            aliases: Vec::new(),
            started: 0,
            upstream: None,
            on_ledger: None,
        };
        slot.publish(&record).expect("written");
        assert_eq!(servers.running().expect("readable"), [record]);
        drop(slot);
        assert!(servers.running().expect("readable").is_empty() && !servers.is_running(8080));
    }
}
