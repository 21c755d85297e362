//! What a download tells while it works.

use serde::Serialize;

/// One step of a download. As JSON each has a field `event`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Progress {
    /// Asking the hub for the files of a revision.
    Resolving {
        /// `owner/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
    },
    /// What will be fetched, before the first byte.
    Plan {
        /// Paths in the repository.
        files: Vec<String>,
        /// Sum of their sizes.
        total_bytes: u64,
        /// Of these, already on disk from an earlier run.
        resumed_bytes: u64,
        /// Quantization tag, when the name tells.
        quantization: Option<String>,
        /// Licence that the repository declares.
        licence: Option<String>,
        /// Whether access must be asked for.
        gated: bool,
        /// Room on the disk.
        free_bytes: u64,
    },
    /// Another process fetches the same file; its result is shared.
    Waiting {
        /// Path in the repository.
        file: String,
    },
    /// Bytes of all files so far.
    Downloading {
        /// On disk.
        done_bytes: u64,
        /// Sum of the sizes.
        total_bytes: u64,
    },
    /// A connection failed and is tried again.
    Retrying {
        /// What failed.
        reason: String,
        /// When it is tried again.
        after_ms: u64,
    },
    /// Computing the SHA-256.
    Verifying {
        /// Path in the repository.
        file: String,
        /// Bytes hashed.
        done_bytes: u64,
        /// Size of the file.
        total_bytes: u64,
    },
    /// A file is verified and in the cache.
    Verified {
        /// Path in the repository.
        file: String,
        /// Its SHA-256.
        sha256: String,
        /// Whether it was in the cache before.
        was_cached: bool,
    },
}
