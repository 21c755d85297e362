//! The layout of the standard Hugging Face cache.
//!
//! ```text
//! models--owner--name/blobs/<sha256>                      the bytes, and <sha256>.incomplete
//!                    /snapshots/<commit>/<path>           relative link into blobs
//!                    /refs/<revision>                     the commit
//! .locks/models--owner--name/<sha256>.lock                flock of whoever fetches
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Directories of one repository.
#[derive(Debug, Clone)]
pub(crate) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// `repo` is a checked `owner/name`.
    pub(crate) fn new(cache_dir: &Path, repo: &str) -> Self {
        let folder = format!("models--{}", repo.replace('/', "--"));
        Self {
            root: cache_dir.join(&folder),
            locks: cache_dir.join(".locks").join(folder),
        }
    }

    pub(crate) fn blob(&self, sha256: &str) -> PathBuf {
        self.root.join("blobs").join(sha256)
    }

    pub(crate) fn incomplete(&self, sha256: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{sha256}.incomplete"))
    }

    pub(crate) fn journal(&self, sha256: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{sha256}.journal"))
    }

    pub(crate) fn snapshot(&self, commit: &str, path: &str) -> PathBuf {
        self.root.join("snapshots").join(commit).join(path)
    }

    pub(crate) fn blobs_dir(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// Makes the directories and returns the opened lock file, not locked yet.
    pub(crate) fn prepare(&self, sha256: &str) -> io::Result<File> {
        fs::create_dir_all(self.blobs_dir())?;
        fs::create_dir_all(&self.locks)?;
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.locks.join(format!("{sha256}.lock")))
    }

    /// Makes a finished download visible: durable bytes first, then the name.
    pub(crate) fn publish_blob(&self, sha256: &str) -> io::Result<()> {
        let incomplete = self.incomplete(sha256);
        File::open(&incomplete)?.sync_all()?;
        fs::rename(&incomplete, self.blob(sha256))?;
        sync_dir(&self.blobs_dir())?;
        remove_if_there(&self.journal(sha256))
    }

    /// Forgets an unfinished or damaged download.
    pub(crate) fn discard(&self, sha256: &str) -> io::Result<()> {
        remove_if_there(&self.incomplete(sha256))?;
        remove_if_there(&self.journal(sha256))
    }

    /// Lets `path` of the commit lead to the blob. `path` is a checked relative path.
    pub(crate) fn link(&self, commit: &str, path: &str, sha256: &str) -> io::Result<()> {
        let link = self.snapshot(commit, path);
        let parent = link.parent().expect("below the snapshot directory");
        fs::create_dir_all(parent)?;
        let depth = path.split('/').count() + 1;
        let mut target = PathBuf::new();
        for _ in 0..depth {
            target.push("..");
        }
        target.push("blobs");
        target.push(sha256);
        if fs::read_link(&link).is_ok_and(|existing| existing == target) {
            return Ok(());
        }
        remove_if_there(&link)?;
        symlink(&target, &link)
    }

    /// Remembers which commit a revision means.
    pub(crate) fn write_ref(&self, revision: &str, commit: &str) -> io::Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        let parent = path.parent().expect("below the refs directory");
        fs::create_dir_all(parent)?;
        replace_file(&path, commit.as_bytes())
    }

    /// The commit that a revision meant when it was last asked for.
    pub(crate) fn read_ref(&self, revision: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        let commit = text.trim().to_owned();
        let is_commit = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_commit.then_some(commit)
    }

    /// Paths of a snapshot whose blobs are there, with the names of the blobs.
    pub(crate) fn snapshot_files(&self, commit: &str) -> Vec<(String, String)> {
        let root = self.root.join("snapshots").join(commit);
        let mut files = Vec::new();
        let mut open = vec![root.clone()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    open.push(path);
                    continue;
                }
                let blob = fs::read_link(&path)
                    .ok()
                    .and_then(|target| Some(target.file_name()?.to_str()?.to_owned()));
                let relative = path.strip_prefix(&root).ok().and_then(Path::to_str);
                if let (Some(blob), Some(relative), true) = (blob, relative, path.is_file()) {
                    files.push((relative.to_owned(), blob));
                }
            }
        }
        files
    }

    /// Removes a link and, when no other link of the repository leads to it, its blob.
    pub(crate) fn remove(&self, commit: &str, path: &str, sha256: &str) -> io::Result<()> {
        remove_if_there(&self.snapshot(commit, path))?;
        let snapshots = fs::read_dir(self.root.join("snapshots"));
        let is_used = snapshots.into_iter().flatten().flatten().any(|entry| {
            let commit = entry.file_name().to_string_lossy().into_owned();
            let files = self.snapshot_files(&commit);
            files.iter().any(|(_, blob)| blob == sha256)
        });
        if is_used {
            return Ok(());
        }
        remove_if_there(&self.blob(sha256))
    }
}

/// Writes a small file so that a crash leaves the old or the new content.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let mut file = File::create(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    // Not every system can open a directory.
    match File::open(path) {
        Ok(directory) => directory.sync_all(),
        Err(_) => Ok(()),
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Windows lets only some users make links: copy instead, as the official client does.
#[cfg(not(unix))]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    let from = link.parent().unwrap_or(link).join(target);
    fs::copy(from, link).map(|_| ())
}
