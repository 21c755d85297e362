//! The model servers of this home: `servers/<port>/` with a state file, a log and a lock that is held
//! as long as the server lives, so that a reused process id can never be taken for a server.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

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
}

/// The registry below one home.
#[derive(Debug, Clone)]
pub struct Servers {
    root: PathBuf,
}

/// A claimed port; the claim ends when it is dropped or the process dies.
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
        let directory = self.root.join(port.to_string());
        fs::create_dir_all(&directory)?;
        let lock = open_lock(&directory)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Slot {
                directory,
                _lock: lock,
            })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
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
            .filter(|entry| is_held(&entry.path()))
            .filter_map(|entry| fs::read(entry.path().join("state.json")).ok())
            .filter_map(|bytes| serde_json::from_slice(&bytes).ok())
            .collect();
        records.sort_by_key(|record: &ServerRecord| record.port);
        Ok(records)
    }

    /// Whether the server on that port still lives.
    pub fn is_running(&self, port: u16) -> bool {
        is_held(&self.root.join(port.to_string()))
    }
}

impl Slot {
    /// Makes the server visible to other commands.
    pub fn publish(&self, record: &ServerRecord) -> io::Result<()> {
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

fn is_held(directory: &Path) -> bool {
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
        };
        slot.publish(&record).expect("written");
        assert_eq!(servers.running().expect("readable"), [record]);
        drop(slot);
        assert!(servers.running().expect("readable").is_empty() && !servers.is_running(8080));
    }
}
