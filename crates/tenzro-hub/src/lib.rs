//! Find, fetch, verify and describe model files.
//!
//! ```text
//! "repo:QUANT@rev" -> reference -> hub (listing, commit) -> choice (which files)
//!     -> transfer (parallel ranges, journal, resume) -> SHA-256 -> cache (blobs, snapshots, refs)
//!     -> library (a record for each model, found by any of its names)
//! ```
//!
//! The files are in the standard Hugging Face cache, so that other tools share them. Nothing becomes
//! visible there before its SHA-256 is the hub's.

mod cache;
mod choice;
mod config;
mod download;
mod gguf;
mod hash;
mod library;
mod progress;
mod reference;
mod remote;
mod transfer;

pub use config::{HubConfig, Tuning};
pub use download::{DownloadError, Hub};
#[doc(hidden)]
pub use gguf::fuzz_header;
pub use gguf::{GgufError, GgufHeader, read_header};
pub use hash::{FileStamp, sha256_file};
pub use library::{
    FindError, HashState, ImportError, Library, LibraryEntry, LibraryError, ModelFile,
};
pub use progress::Progress;
pub use reference::{ModelRef, ParseReferenceError};
