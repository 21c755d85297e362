//! One download from reference to library: resolve, plan, fetch, verify, publish, record.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tenzro_protocol::model_id::nearest;
use tokio_util::sync::CancellationToken;

use crate::cache::RepoCache;
use crate::choice::{ChoiceError, choose, tag_of};
use crate::config::HubConfig;
use crate::gguf::{GgufError, read_header};
use crate::hash::{FileStamp, is_sha256, sha256_file};
use crate::library::{Library, LibraryEntry, LibraryError, ModelFile};
use crate::progress::Progress;
use crate::reference::ModelRef;
use crate::remote::{Listing, Remote, RemoteError, RemoteFile};
use crate::transfer::{self, Destination, Target, TransferError};

/// How often a process that waits for another one looks again.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// Room that is left free on the disk.
const SPARE_BYTES: u64 = 64 << 20;

/// Times that a file may change on the hub during one download.
const CHANGES_MAX: u32 = 2;

/// Why a download failed. Nothing wrong is ever kept.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// 401: no token, or a wrong one; also how the hub answers for repositories that are not there.
    #[error("the hub does not let us see {repo}: it is private, or does not exist")]
    Unauthorized {
        /// `owner/name`.
        repo: String,
        /// Whether a token was sent.
        had_token: bool,
    },
    /// 403.
    #[error("{repo} is gated: its owner has to grant access")]
    Gated {
        /// `owner/name`.
        repo: String,
    },
    /// 404.
    #[error("the hub has no {what}")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// The repository has no such file or quantization.
    #[error("{repo}: {reason}")]
    NoFile {
        /// `owner/name`.
        repo: String,
        /// What was wrong with the choice.
        reason: String,
        /// Files that are near.
        nearest: Vec<String>,
    },
    /// 429, for longer than we wait.
    #[error("the hub asks to slow down")]
    RateLimited {
        /// When it said so.
        retry_after: Option<Duration>,
    },
    /// The disk is too small.
    #[error(
        "{} are needed in {}, and {} of the disk should stay free, but it has only {}",
        megabytes(*needed_bytes), directory.display(), megabytes(SPARE_BYTES), megabytes(*free_bytes)
    )]
    DiskFull {
        /// The cache.
        directory: PathBuf,
        /// What is missing of the model.
        needed_bytes: u64,
        /// Room on the disk.
        free_bytes: u64,
    },
    /// The bytes are not the hub's. They were deleted.
    #[error(
        "{file} is damaged: its SHA-256 is {actual}, the hub says {expected}; nothing was kept"
    )]
    HashMismatch {
        /// Path in the repository.
        file: String,
        /// The hub's hash.
        expected: String,
        /// The hash of what arrived.
        actual: String,
    },
    /// The hub publishes no hash to verify the file by.
    #[error("the hub has no SHA-256 for {file}, so it cannot be verified")]
    NoHash {
        /// Path in the repository.
        file: String,
    },
    /// Verified, but no model.
    #[error("{file} is not a usable model: {source}")]
    NotAModel {
        /// Path in the repository.
        file: String,
        /// Why not.
        source: GgufError,
    },
    /// The connection failed for longer than we try.
    #[error("the download failed: {reason}")]
    Network {
        /// The last failure.
        reason: String,
    },
    /// `HF_HUB_OFFLINE` is set and the cache does not have the model.
    #[error("{repo} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it")]
    Offline {
        /// `owner/name`.
        repo: String,
    },
    /// The cache cannot be written.
    #[error("{}: {source}", path.display())]
    Disk {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The library cannot be written.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// Stopped by the user; what arrived is kept for the next try.
    #[error("stopped; the same command goes on where it ended")]
    Cancelled,
}

impl DownloadError {
    /// What the user can do about it, when there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unauthorized {
                had_token: false, ..
            } => Some("check the name, or set HF_TOKEN if the repository is private".to_owned()),
            Self::Unauthorized { .. } => Some("check the name and HF_TOKEN".to_owned()),
            Self::Gated { repo } => Some(format!(
                "ask for access at https://huggingface.co/{repo}, then set HF_TOKEN"
            )),
            Self::NotFound { .. } => Some("check the name and the revision".to_owned()),
            Self::NoFile { nearest, .. } if !nearest.is_empty() => Some(format!(
                "choose with --filename, for example {}",
                nearest.join(", ")
            )),
            Self::RateLimited { .. } | Self::Network { .. } => {
                Some("run the same command again: it goes on where it ended".to_owned())
            }
            Self::HashMismatch { .. } => Some("run the same command again".to_owned()),
            Self::DiskFull { .. } => {
                Some("free some space, or set HF_HOME to a larger disk".to_owned())
            }
            Self::Offline { .. } => Some("unset HF_HUB_OFFLINE".to_owned()),
            _ => None,
        }
    }

    fn disk(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Disk { path, source }
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// A hub and the cache of what was fetched from it.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
}

/// Told about everything that happens.
type Sink<'a> = &'a (dyn Fn(Progress) + Send + Sync);

impl Hub {
    /// Opens no connection yet.
    pub fn new(config: HubConfig) -> Self {
        Self { config }
    }

    /// Fetches a model, verifies it and records it in the library. Goes on where an earlier run was
    /// killed; shares the work with another process that fetches the same file.
    pub async fn download(
        &self,
        library: &Library,
        reference: &ModelRef,
        sink: &(dyn Fn(Progress) + Send + Sync),
        cancel: &CancellationToken,
    ) -> Result<LibraryEntry, DownloadError> {
        let repo = reference.repo.as_str();
        let cache = RepoCache::new(&self.config.cache_dir, repo);
        if self.config.offline {
            return self.cached(library, reference, &cache, sink).await;
        }
        let remote = Remote::new(&self.config).map_err(|error| self.remote_error(repo, error))?;
        let mut changes = 0;
        loop {
            let job = Job {
                remote: &remote,
                library,
                cache: &cache,
                sink,
                cancel,
            };
            match self.attempt(&job, reference).await {
                Err(Attempt::Changed) if changes < CHANGES_MAX => changes += 1,
                Err(Attempt::Changed) => {
                    return Err(DownloadError::Network {
                        reason: "the file keeps changing on the hub".to_owned(),
                    });
                }
                Err(Attempt::Failed(error)) => return Err(*error),
                Ok(entry) => return Ok(entry),
            }
        }
    }

    async fn attempt(&self, job: &Job<'_>, reference: &ModelRef) -> Result<LibraryEntry, Attempt> {
        let cache = job.cache;
        let listing = self
            .resolve(job.remote, reference, job.sink, job.cancel)
            .await?;
        let chosen = choose_files(reference, &listing)?;
        let plan = self.plan(reference, &listing, &chosen, cache, job.sink)?;
        let mut files = Vec::new();
        let mut done_bytes = 0;
        for target in &plan.targets {
            let progress_bytes = (done_bytes, plan.total_bytes);
            files.push(self.provide(job, target, progress_bytes).await?);
            done_bytes += target.size;
        }
        let header = read_header(&files[0].path).map_err(|source| DownloadError::NotAModel {
            file: files[0].name.clone(),
            source,
        })?;
        cache
            .write_ref(reference.revision(), &listing.commit)
            .map_err(DownloadError::disk(&cache.blobs_dir()))?;
        let licence = listing.licence;
        let entry = job
            .library
            .record(&reference.repo, &listing.commit, licence, files, &header)
            .map_err(DownloadError::from)?;
        Ok(entry)
    }

    async fn resolve(
        &self,
        remote: &Remote,
        reference: &ModelRef,
        sink: Sink<'_>,
        cancel: &CancellationToken,
    ) -> Result<Listing, DownloadError> {
        sink(Progress::Resolving {
            repo: reference.repo.clone(),
            revision: reference.revision().to_owned(),
        });
        let tuning = self.config.tuning;
        for failures in 0.. {
            let listing = tokio::select! {
                () = cancel.cancelled() => return Err(DownloadError::Cancelled),
                listing = remote.listing(&reference.repo, reference.revision()) => listing,
            };
            let error = match listing {
                Ok(listing) => return Ok(listing),
                Err(error) => error,
            };
            if !error.is_retryable() || failures >= tuning.failures_max {
                return Err(self.remote_error(&reference.repo, error));
            }
            let wait = error
                .retry_after()
                .unwrap_or(tuning.backoff * 2u32.pow(failures.min(6)));
            sink(Progress::Retrying {
                reason: error.to_string(),
                after_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            });
            tokio::select! {
                () = cancel.cancelled() => return Err(DownloadError::Cancelled),
                () = tokio::time::sleep(wait) => {}
            }
        }
        unreachable!("the loop ends after failures_max tries")
    }

    fn plan(
        &self,
        reference: &ModelRef,
        listing: &Listing,
        chosen: &[RemoteFile],
        cache: &RepoCache,
        sink: Sink<'_>,
    ) -> Result<Plan, DownloadError> {
        let mut targets = Vec::new();
        let (mut total_bytes, mut resumed_bytes) = (0u64, 0u64);
        for file in chosen {
            let sha256 = file.sha256.clone().ok_or_else(|| DownloadError::NoHash {
                file: file.path.clone(),
            })?;
            let target = Target {
                repo: reference.repo.clone(),
                commit: listing.commit.clone(),
                path: file.path.clone(),
                size: file.size,
                sha256,
            };
            total_bytes = total_bytes.saturating_add(file.size);
            resumed_bytes += if cache.blob(&target.sha256).exists() {
                file.size
            } else {
                let journal = cache.journal(&target.sha256);
                transfer::resumable_bytes(&target, &journal, self.config.tuning.range_bytes)
            };
            targets.push(target);
        }
        let directory = cache.blobs_dir();
        std::fs::create_dir_all(&directory).map_err(DownloadError::disk(&directory))?;
        let free_bytes =
            fs4::available_space(&directory).map_err(DownloadError::disk(&directory))?;
        sink(Progress::Plan {
            files: chosen.iter().map(|file| file.path.clone()).collect(),
            total_bytes,
            resumed_bytes,
            quantization: chosen.first().and_then(|file| tag_of(&file.path)),
            licence: listing.licence.clone(),
            gated: listing.gated,
            free_bytes,
        });
        let needed_bytes = total_bytes - resumed_bytes;
        if needed_bytes > 0 && needed_bytes.saturating_add(SPARE_BYTES) > free_bytes {
            return Err(DownloadError::DiskFull {
                directory,
                needed_bytes,
                free_bytes,
            });
        }
        Ok(Plan {
            targets,
            total_bytes,
        })
    }

    /// One verified file in the cache, fetched if need be.
    async fn provide(
        &self,
        job: &Job<'_>,
        target: &Target,
        progress_bytes: (u64, u64),
    ) -> Result<ModelFile, Attempt> {
        let (cache, sink) = (job.cache, job.sink);
        let blobs = cache.blobs_dir();
        let lock = cache
            .prepare(&target.sha256)
            .map_err(DownloadError::disk(&blobs))?;
        lock_patiently(&lock, &target.path, sink, job.cancel)
            .await
            .map_err(|error| match error {
                Some(error) => DownloadError::disk(&blobs)(error),
                None => DownloadError::Cancelled,
            })?;
        let blob = cache.blob(&target.sha256);
        let was_cached = blob.exists();
        if was_cached {
            // Another tool, or an earlier run, put it there.
            if !job.library.is_verified(&blob, &target.sha256) {
                let actual = self.hash(&blob, target, sink, job.cancel).await?;
                if actual != target.sha256 {
                    std::fs::remove_file(&blob).map_err(DownloadError::disk(&blob))?;
                    return Err(mismatch(target, actual).into());
                }
            }
        } else {
            self.fetch(job, target, progress_bytes).await?;
        }
        let link = |error| DownloadError::disk(&blobs)(error);
        cache
            .link(&target.commit, &target.path, &target.sha256)
            .map_err(link)?;
        sink(Progress::Verified {
            file: target.path.clone(),
            sha256: target.sha256.clone(),
            was_cached,
        });
        let path = cache.snapshot(&target.commit, &target.path);
        Ok(ModelFile {
            stamp: FileStamp::of(&path).map_err(DownloadError::disk(&path))?,
            path,
            name: target.path.clone(),
            size: target.size,
            sha256: target.sha256.clone(),
            hub_sha256: Some(target.sha256.clone()),
        })
    }

    async fn fetch(
        &self,
        job: &Job<'_>,
        target: &Target,
        progress_bytes: (u64, u64),
    ) -> Result<(), Attempt> {
        let cache = job.cache;
        let incomplete = cache.incomplete(&target.sha256);
        let journal = cache.journal(&target.sha256);
        let destination = Destination {
            incomplete: &incomplete,
            journal: &journal,
            progress_bytes,
            sink: job.sink,
        };
        let tuning = self.config.tuning;
        let fetched = transfer::fetch(job.remote, target, tuning, &destination, job.cancel).await;
        match fetched {
            Ok(()) => {}
            Err(TransferError::Changed) => {
                cache
                    .discard(&target.sha256)
                    .map_err(DownloadError::disk(&incomplete))?;
                return Err(Attempt::Changed);
            }
            Err(TransferError::Cancelled) => return Err(DownloadError::Cancelled.into()),
            Err(TransferError::Disk(source)) => {
                return Err(DownloadError::disk(&incomplete)(source).into());
            }
            Err(TransferError::Remote(error)) => {
                return Err(self.remote_error(&target.repo, error).into());
            }
            Err(error @ TransferError::GaveUp { .. }) => {
                return Err(DownloadError::Network {
                    reason: error.to_string(),
                }
                .into());
            }
        }
        let actual = self.hash(&incomplete, target, job.sink, job.cancel).await?;
        if actual != target.sha256 {
            cache
                .discard(&target.sha256)
                .map_err(DownloadError::disk(&incomplete))?;
            return Err(mismatch(target, actual).into());
        }
        cache
            .publish_blob(&target.sha256)
            .map_err(DownloadError::disk(&incomplete))?;
        Ok(())
    }

    /// Hashes on a thread of its own, so that the caller stays responsive.
    async fn hash(
        &self,
        path: &Path,
        target: &Target,
        sink: Sink<'_>,
        cancel: &CancellationToken,
    ) -> Result<String, DownloadError> {
        let (sender, mut done) = tokio::sync::watch::channel(0u64);
        let (file, stop) = (path.to_owned(), cancel.clone());
        let mut hashing = tokio::task::spawn_blocking(move || {
            sha256_file(&file, |bytes| {
                sender.send_replace(bytes);
                !stop.is_cancelled()
            })
        });
        let hashed = loop {
            tokio::select! {
                hashed = &mut hashing => break hashed,
                Ok(()) = done.changed() => sink(Progress::Verifying {
                    file: target.path.clone(),
                    done_bytes: *done.borrow_and_update(),
                    total_bytes: target.size,
                }),
            }
        };
        match hashed {
            Ok(Ok(hash)) => Ok(hash),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {
                Err(DownloadError::Cancelled)
            }
            Ok(Err(error)) => Err(DownloadError::disk(path)(error)),
            Err(_) => Err(DownloadError::disk(path)(io::Error::other(
                "hashing panicked",
            ))),
        }
    }

    /// What the cache has, without a connection. Files that no record vouches for are hashed and
    /// compared with the name of their blob, which is the hub's hash.
    async fn cached(
        &self,
        library: &Library,
        reference: &ModelRef,
        cache: &RepoCache,
        sink: Sink<'_>,
    ) -> Result<LibraryEntry, DownloadError> {
        let offline = || DownloadError::Offline {
            repo: reference.repo.clone(),
        };
        let revision = reference.revision();
        let commit = cache
            .read_ref(revision)
            .unwrap_or_else(|| revision.to_owned());
        let known = cache.snapshot_files(&commit);
        let files: Vec<RemoteFile> = known
            .into_iter()
            .filter(|(_, blob)| is_sha256(blob))
            .map(|(path, blob)| RemoteFile {
                size: FileStamp::of(&cache.blob(&blob)).map_or(0, |stamp| stamp.size),
                sha256: Some(blob),
                path,
            })
            .collect();
        let listing = Listing {
            commit: commit.clone(),
            licence: None,
            gated: false,
            files,
        };
        let chosen = choose_files(reference, &listing).map_err(|_| offline())?;
        let never = CancellationToken::new();
        let mut model_files = Vec::new();
        for file in chosen {
            let sha256 = file.sha256.clone().ok_or_else(offline)?;
            let target = Target {
                repo: reference.repo.clone(),
                commit: commit.clone(),
                path: file.path,
                size: file.size,
                sha256,
            };
            let blob = cache.blob(&target.sha256);
            if !library.is_verified(&blob, &target.sha256) {
                let actual = self.hash(&blob, &target, sink, &never).await?;
                if actual != target.sha256 {
                    return Err(mismatch(&target, actual));
                }
            }
            let path = cache.snapshot(&commit, &target.path);
            model_files.push(ModelFile {
                stamp: FileStamp::of(&path).map_err(DownloadError::disk(&path))?,
                path,
                name: target.path,
                size: target.size,
                hub_sha256: Some(target.sha256.clone()),
                sha256: target.sha256,
            });
        }
        let header =
            read_header(&model_files[0].path).map_err(|source| DownloadError::NotAModel {
                file: model_files[0].name.clone(),
                source,
            })?;
        let entry = library.record(&reference.repo, &commit, None, model_files, &header)?;
        Ok(entry)
    }

    fn remote_error(&self, repo: &str, error: RemoteError) -> DownloadError {
        let repo = repo.to_owned();
        match error {
            RemoteError::Unauthorized => DownloadError::Unauthorized {
                repo,
                had_token: self.config.has_token(),
            },
            RemoteError::Gated => DownloadError::Gated { repo },
            RemoteError::NotFound { what } => DownloadError::NotFound { what },
            RemoteError::RateLimited { retry_after } => DownloadError::RateLimited { retry_after },
            error @ (RemoteError::Status(_)
            | RemoteError::Network(_)
            | RemoteError::BadAnswer(_)) => DownloadError::Network {
                reason: error.to_string(),
            },
        }
    }
}

struct Plan {
    targets: Vec<Target>,
    total_bytes: u64,
}

/// What is the same for all files of a download.
struct Job<'a> {
    remote: &'a Remote,
    library: &'a Library,
    cache: &'a RepoCache,
    sink: Sink<'a>,
    cancel: &'a CancellationToken,
}

/// How one attempt ended.
enum Attempt {
    /// The content changed on the hub meanwhile: start over.
    Changed,
    Failed(Box<DownloadError>),
}

impl From<DownloadError> for Attempt {
    fn from(error: DownloadError) -> Self {
        Self::Failed(Box::new(error))
    }
}

fn choose_files(reference: &ModelRef, listing: &Listing) -> Result<Vec<RemoteFile>, DownloadError> {
    let paths: Vec<&str> = listing
        .files
        .iter()
        .map(|file| file.path.as_str())
        .collect();
    let chosen = choose(
        &paths,
        reference.filename.as_deref(),
        reference.quant.as_deref(),
    );
    let chosen = chosen.map_err(|error| DownloadError::NoFile {
        repo: reference.repo.clone(),
        reason: error.to_string(),
        nearest: match error {
            ChoiceError::NoMatch { nearest, .. } => nearest,
            ChoiceError::NoModel => Vec::new(),
            ChoiceError::MissingPart { missing } => nearest(&missing, paths.iter().copied()),
        },
    })?;
    let file = |path: &String| listing.files.iter().find(|file| file.path == *path);
    Ok(chosen.iter().filter_map(file).cloned().collect())
}

fn mismatch(target: &Target, actual: String) -> DownloadError {
    DownloadError::HashMismatch {
        file: target.path.clone(),
        expected: target.sha256.clone(),
        actual,
    }
}

/// Waits until no other process holds the lock. `None` is cancelled.
async fn lock_patiently(
    lock: &File,
    file: &str,
    sink: Sink<'_>,
    cancel: &CancellationToken,
) -> Result<(), Option<io::Error>> {
    let mut has_told = false;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(Some(error)),
            Err(TryLockError::WouldBlock) => {}
        }
        if !std::mem::replace(&mut has_told, true) {
            sink(Progress::Waiting {
                file: file.to_owned(),
            });
        }
        tokio::select! {
            () = cancel.cancelled() => return Err(None),
            () = tokio::time::sleep(LOCK_POLL) => {}
        }
    }
}
