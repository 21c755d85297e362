//! Brings the bytes of one file to disk: parallel ranges, a journal of those that are complete, and
//! patience with connections.
//!
//! The journal is a text file: a line that names the content (SHA-256, size, range size), then lines
//! that say how many bytes of a range are there from its beginning on, written after these bytes. A
//! killed process loses nothing that is in the journal, since the page cache outlives it; after a
//! power failure the SHA-256 of the whole file decides.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, ETAG};
use tokio_util::sync::CancellationToken;

use crate::cache::replace_file;
use crate::config::Tuning;
use crate::progress::Progress;
use crate::remote::{Located, Remote, RemoteError, chain, retry_after};

/// Longest wait between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Journals larger than this are no journals.
const JOURNAL_BYTES_MAX: u64 = 16 << 20;

/// How many bytes of a range arrive between two lines of the journal: what a killed process may lose
/// of each part.
const JOURNAL_STEP_BYTES: u64 = 1 << 20;

/// What is fetched.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) repo: String,
    pub(crate) commit: String,
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

/// Why the bytes did not arrive. What arrived stays on disk unless the content changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    #[error("cancelled")]
    Cancelled,
    #[error("the file changed on the hub")]
    Changed,
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error("the connection failed {failures} times in a row: {reason}")]
    GaveUp { failures: u32, reason: String },
    #[error("cannot write: {0}")]
    Disk(#[from] io::Error),
}

/// What went wrong with one range.
enum RangeError {
    /// The signed address is no longer valid.
    Expired(StatusCode),
    /// May go better next time.
    Transient(String, Option<Duration>),
    /// The server does not do ranges.
    Whole,
    Fatal(TransferError),
}

/// A piece that is not complete.
#[derive(Debug, Clone, Copy)]
struct Range {
    index: u64,
    /// Next byte.
    from: u64,
    /// Last byte.
    to: u64,
}

/// How many bytes an earlier run left.
pub(crate) fn resumable_bytes(target: &Target, journal: &Path, range_bytes: u64) -> u64 {
    read_journal(journal, target, range_bytes).values().sum()
}

struct Transfer<'a> {
    remote: &'a Remote,
    target: &'a Target,
    tuning: Tuning,
    queue: Mutex<VecDeque<Range>>,
    file: Mutex<File>,
    journal: Mutex<File>,
    located: tokio::sync::Mutex<Option<Located>>,
    etag: Mutex<Option<String>>,
    failures: AtomicU32,
    done_bytes: AtomicU64,
    needs_whole: AtomicBool,
    sink: &'a (dyn Fn(Progress) + Send + Sync),
    /// Bytes of other files of the same download, for progress.
    base_bytes: u64,
    all_bytes: u64,
}

/// Where a transfer writes and what it tells.
pub(crate) struct Destination<'a> {
    pub(crate) incomplete: &'a Path,
    pub(crate) journal: &'a Path,
    /// Bytes of files that are already complete, and of all files.
    pub(crate) progress_bytes: (u64, u64),
    pub(crate) sink: &'a (dyn Fn(Progress) + Send + Sync),
}

/// Brings all bytes of `target` into `destination.incomplete`, going on where an earlier run ended.
pub(crate) async fn fetch(
    remote: &Remote,
    target: &Target,
    tuning: Tuning,
    destination: &Destination<'_>,
    cancel: &CancellationToken,
) -> Result<(), TransferError> {
    let mut tuning = tuning;
    loop {
        let transfer = Transfer::open(remote, target, tuning, destination)?;
        let result = tokio::select! {
            () = cancel.cancelled() => Err(TransferError::Cancelled),
            result = transfer.run() => result,
        };
        if transfer.needs_whole.load(Ordering::Relaxed) && tuning.range_bytes < target.size {
            // One range from the first byte to the last is what any server can do.
            tuning.range_bytes = target.size.max(1);
            continue;
        }
        return result;
    }
}

impl<'a> Transfer<'a> {
    fn open(
        remote: &'a Remote,
        target: &'a Target,
        tuning: Tuning,
        destination: &Destination<'a>,
    ) -> Result<Self, TransferError> {
        let done = if destination.incomplete.exists() {
            read_journal(destination.journal, target, tuning.range_bytes)
        } else {
            BTreeMap::new()
        };
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(destination.incomplete)?;
        file.set_len(target.size)?;
        let journal = open_journal(destination.journal, target, tuning.range_bytes, &done)?;
        let ranges = target.size.div_ceil(tuning.range_bytes);
        let mut done_bytes = 0;
        let mut queue = VecDeque::new();
        for index in 0..ranges {
            let length = range_length(target.size, tuning.range_bytes, index);
            let there = done.get(&index).copied().unwrap_or(0);
            done_bytes += there;
            if there < length {
                let start = index * tuning.range_bytes;
                queue.push_back(Range {
                    index,
                    from: start + there,
                    to: start + length - 1,
                });
            }
        }
        Ok(Self {
            remote,
            target,
            tuning,
            queue: Mutex::new(queue),
            file: Mutex::new(file),
            journal: Mutex::new(journal),
            located: tokio::sync::Mutex::new(None),
            etag: Mutex::new(None),
            failures: AtomicU32::new(0),
            done_bytes: AtomicU64::new(done_bytes),
            needs_whole: AtomicBool::new(false),
            sink: destination.sink,
            base_bytes: destination.progress_bytes.0,
            all_bytes: destination.progress_bytes.1,
        })
    }

    async fn run(&self) -> Result<(), TransferError> {
        self.report();
        let workers = (0..self.tuning.parts.max(1)).map(|_| self.work());
        let results: Vec<Result<(), TransferError>> = join_all(workers).await;
        // The error that explains most: workers that only stopped because of it report nothing.
        results.into_iter().collect()
    }

    async fn work(&self) -> Result<(), TransferError> {
        loop {
            let next = lock(&self.queue).pop_front();
            let Some(mut range) = next else { return Ok(()) };
            match self.fetch_range(&mut range).await {
                Ok(()) => self.note_progress(range)?,
                Err(RangeError::Whole) => {
                    self.needs_whole.store(true, Ordering::Relaxed);
                    lock(&self.queue).clear();
                    return Ok(());
                }
                Err(RangeError::Fatal(error)) => {
                    lock(&self.queue).clear();
                    return Err(error);
                }
                Err(RangeError::Expired(status)) => {
                    *self.located.lock().await = None;
                    let reason = format!("the address of the file is no longer valid ({status})");
                    self.wait_or_give_up(range, reason, Some(Duration::ZERO))
                        .await?;
                }
                Err(RangeError::Transient(reason, after)) => {
                    self.wait_or_give_up(range, reason, after).await?;
                }
            }
        }
    }

    /// Writes into the journal how much of a range is there.
    fn note_progress(&self, range: Range) -> io::Result<()> {
        let Range { index, from, .. } = range;
        let there = from - index * self.tuning.range_bytes;
        // One write, so that the lines of two parts never mix.
        let line = format!("{index} {there}\n");
        lock(&self.journal).write_all(line.as_bytes())
    }

    async fn wait_or_give_up(
        &self,
        range: Range,
        reason: String,
        after: Option<Duration>,
    ) -> Result<(), TransferError> {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        // All parts fail together when the hub is away: each counts.
        let failures_max = self.tuning.failures_max * u32::try_from(self.tuning.parts).unwrap_or(1);
        if failures > failures_max {
            lock(&self.queue).clear();
            return Err(TransferError::GaveUp { failures, reason });
        }
        lock(&self.queue).push_front(range);
        let doublings = failures / u32::try_from(self.tuning.parts.max(1)).unwrap_or(1);
        let wait = after.unwrap_or(self.tuning.backoff * 2u32.pow(doublings.min(10)));
        let wait = wait.min(BACKOFF_MAX);
        (self.sink)(Progress::Retrying {
            reason,
            after_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        });
        tokio::time::sleep(wait).await;
        Ok(())
    }

    async fn fetch_range(&self, range: &mut Range) -> Result<(), RangeError> {
        let located = self.locate().await?;
        let etag = lock(&self.etag).clone();
        let response = self
            .remote
            .get_range(located.url, (range.from, range.to), etag.as_deref())
            .await
            .map_err(|error| RangeError::Transient(error.to_string(), None))?;
        let is_all = range.from == 0 && range.to + 1 == self.target.size;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let expected = format!("bytes {}-{}/{}", range.from, range.to, self.target.size);
                let got = response.headers().get(CONTENT_RANGE);
                if got.is_none_or(|got| got.as_bytes() != expected.as_bytes()) {
                    return Err(RangeError::Fatal(TransferError::Changed));
                }
            }
            StatusCode::OK if is_all => {}
            // Not asked with `If-Range`, so the server just does not do ranges.
            StatusCode::OK if etag.is_none() => return Err(RangeError::Whole),
            StatusCode::OK | StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(RangeError::Fatal(TransferError::Changed));
            }
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::GONE) => {
                return Err(RangeError::Expired(status));
            }
            StatusCode::NOT_FOUND => {
                return Err(RangeError::Fatal(TransferError::Remote(
                    RemoteError::NotFound {
                        what: format!("file {}", self.target.path),
                    },
                )));
            }
            status => {
                let after = retry_after(response.headers());
                return Err(RangeError::Transient(
                    format!("the server answered {status}"),
                    after,
                ));
            }
        }
        self.check_etag(&response)?;
        let mut stream = response.bytes_stream();
        let mut noted = range.from;
        while range.from <= range.to {
            let chunk = tokio::time::timeout(self.tuning.stall, stream.next())
                .await
                .map_err(|_| RangeError::Transient("the connection stalled".to_owned(), None))?;
            let Some(chunk) = chunk else {
                return Err(RangeError::Transient(
                    "the connection broke off".to_owned(),
                    None,
                ));
            };
            let chunk = chunk.map_err(|error| RangeError::Transient(chain(&error), None))?;
            let wanted = range.to - range.from + 1;
            if chunk.len() as u64 > wanted {
                return Err(RangeError::Fatal(TransferError::Changed));
            }
            self.write(range.from, &chunk)
                .map_err(|error| RangeError::Fatal(error.into()))?;
            range.from += chunk.len() as u64;
            if range.from - noted >= JOURNAL_STEP_BYTES && range.from <= range.to {
                self.note_progress(*range)
                    .map_err(|error| RangeError::Fatal(error.into()))?;
                noted = range.from;
            }
            self.failures.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The entity must stay the same for all ranges of a run.
    fn check_etag(&self, response: &reqwest::Response) -> Result<(), RangeError> {
        let Some(new) = response
            .headers()
            .get(ETAG)
            .and_then(|etag| etag.to_str().ok())
        else {
            return Ok(());
        };
        // Weak entity tags do not identify bytes.
        if new.starts_with("W/") {
            return Ok(());
        }
        let mut known = lock(&self.etag);
        match known.as_deref() {
            Some(known) if known != new => Err(RangeError::Fatal(TransferError::Changed)),
            Some(_) => Ok(()),
            None => {
                *known = Some(new.to_owned());
                Ok(())
            }
        }
    }

    async fn locate(&self) -> Result<Located, RangeError> {
        let mut located = self.located.lock().await;
        if let Some(located) = &*located {
            return Ok(located.clone());
        }
        let Target {
            repo, commit, path, ..
        } = self.target;
        let fresh = match self.remote.locate(repo, commit, path).await {
            Ok(fresh) => fresh,
            Err(error) if error.is_retryable() => {
                let after = error.retry_after();
                return Err(RangeError::Transient(error.to_string(), after));
            }
            Err(error) => return Err(RangeError::Fatal(error.into())),
        };
        let other_hash = fresh
            .sha256
            .as_ref()
            .is_some_and(|hash| *hash != self.target.sha256);
        let other_size = fresh.size.is_some_and(|size| size != self.target.size);
        if other_hash || other_size {
            return Err(RangeError::Fatal(TransferError::Changed));
        }
        *located = Some(fresh.clone());
        Ok(fresh)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        {
            let mut file = lock(&self.file);
            file.seek(SeekFrom::Start(at))?;
            file.write_all(bytes)?;
        }
        self.done_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.report();
        Ok(())
    }

    fn report(&self) {
        (self.sink)(Progress::Downloading {
            done_bytes: self.base_bytes + self.done_bytes.load(Ordering::Relaxed),
            total_bytes: self.all_bytes,
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn range_length(size: u64, range_bytes: u64, index: u64) -> u64 {
    range_bytes.min(size.saturating_sub(index.saturating_mul(range_bytes)))
}

fn journal_head(target: &Target, range_bytes: u64) -> String {
    format!(
        "tenzro-journal 2 {} {} {range_bytes}",
        target.sha256, target.size
    )
}

/// For each range the bytes that are there; none when the journal is of other content or damaged.
fn read_journal(path: &Path, target: &Target, range_bytes: u64) -> BTreeMap<u64, u64> {
    let mut text = String::new();
    let read =
        File::open(path).and_then(|file| file.take(JOURNAL_BYTES_MAX).read_to_string(&mut text));
    if read.is_err() {
        return BTreeMap::new();
    }
    // A line that a crash cut has no end and does not count.
    let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
    let mut lines = complete.lines();
    if lines.next() != Some(journal_head(target, range_bytes).as_str()) {
        return BTreeMap::new();
    }
    let mut done = BTreeMap::new();
    for line in lines {
        let numbers = line
            .split_once(' ')
            .map(|(index, there)| (index.parse(), there.parse()));
        let Some((Ok(index), Ok(there))) = numbers else {
            continue;
        };
        if there > 0 && there <= range_length(target.size, range_bytes, index) {
            done.insert(index, there);
        }
    }
    done
}

fn open_journal(
    path: &Path,
    target: &Target,
    range_bytes: u64,
    done: &BTreeMap<u64, u64>,
) -> io::Result<File> {
    let mut text = journal_head(target, range_bytes);
    text.push('\n');
    for (index, there) in done {
        text.push_str(&format!("{index} {there}\n"));
    }
    replace_file(path, text.as_bytes())?;
    File::options().append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_counts_only_for_the_same_content_and_whole_lines() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("journal");
        let target = Target {
            repo: "a/b".to_owned(),
            commit: "c".repeat(40),
            path: "x.gguf".to_owned(),
            size: 95,
            sha256: "0".repeat(64),
        };
        let head = journal_head(&target, 10);
        std::fs::write(
            &path,
            format!("{head}\n0 4\n9 5\n0 7\n77 1\n8 11\n9 6\nx\n1 1"),
        )
        .expect("written");
        let there = BTreeMap::from([(0, 7), (9, 5)]);
        assert_eq!(read_journal(&path, &target, 10), there);
        assert_eq!(resumable_bytes(&target, &path, 10), 12);
        let other = Target {
            sha256: "1".repeat(64),
            ..target
        };
        assert!(read_journal(&path, &other, 10).is_empty());
    }
}
