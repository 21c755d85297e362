//! The models of this home: a small record for each, found by any of its names. The files stay in
//! the cache, or below the home when they were imported.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tenzro_protocol::model_id::{is_meant, is_valid, model_id, nearest};

use crate::cache::{RepoCache, remove_if_there, replace_file};
use crate::choice::tag_of;
use crate::gguf::{GgufError, GgufHeader, read_header};
use crate::hash::{FileStamp, sha256_file};

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its path in the repository, or its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 when it was verified.
    pub sha256: String,
    /// The hub's SHA-256; none for imported files.
    #[serde(default)]
    pub hub_sha256: Option<String>,
    /// What it looked like then.
    pub stamp: FileStamp,
}

impl ModelFile {
    /// Whether the path leads to this file, also by another link.
    fn is_at(&self, path: &Path) -> bool {
        self.path == path || FileStamp::of(path).is_ok_and(|stamp| stamp == self.stamp)
    }
}

/// A model of the library.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LibraryEntry {
    /// Model id on the network.
    pub id: String,
    /// `owner/name`; none for imported files.
    pub repo: Option<String>,
    /// Commit of the repository.
    pub commit: Option<String>,
    /// Quantization tag.
    pub quantization: Option<String>,
    /// First part first; never empty.
    pub files: Vec<ModelFile>,
    /// Licence that the repository or the file declares.
    pub licence: Option<String>,
    /// What the first file says about itself, without its template.
    pub architecture: String,
    /// In tokens.
    pub context_length: Option<u64>,
    /// Weights, of the first file.
    pub parameters: u64,
}

/// Whether a file is what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum HashState {
    /// Hashed when it was fetched; size, time and inode are the same since.
    Unchanged,
    /// Hashed now, and right.
    Verified,
    /// Changed since it was hashed: not to be trusted before it is verified.
    Touched,
    /// Hashed now, and wrong.
    Mismatch {
        /// What it should be.
        expected: String,
        /// What it is.
        actual: String,
    },
    /// The file is gone.
    Missing,
}

/// Why no model was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// No model has that name.
    #[error("no model '{query}' in the library")]
    Unknown {
        /// What was asked for.
        query: String,
        /// Names that are near it.
        nearest: Vec<String>,
    },
    /// Several have it.
    #[error("'{query}' can mean several models: {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        query: String,
        /// Their ids.
        candidates: Vec<String>,
    },
}

/// Why a file was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is no model.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: GgufError,
    },
    /// The id is not valid.
    #[error("'{0}' is no model id: use lower-case letters, digits, '.', '-' and '_'")]
    Id(String),
    /// Another model has the id.
    #[error("the library has a model '{0}' already")]
    Taken(String),
    /// The library cannot be written.
    #[error(transparent)]
    Library(#[from] LibraryError),
}

/// The library cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct LibraryError {
    path: PathBuf,
    source: io::Error,
}

impl LibraryError {
    pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { path, source }
    }
}

/// The records below one home.
#[derive(Debug, Clone)]
pub struct Library {
    records: PathBuf,
    models: PathBuf,
    cache_dir: PathBuf,
}

impl LibraryEntry {
    /// The hash that stands for the weights: that of the first file.
    pub fn sha256(&self) -> &str {
        self.files.first().map_or("", |file| &file.sha256)
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The file that an engine opens.
    pub fn path(&self) -> &Path {
        self.files.first().map_or(Path::new(""), |file| &file.path)
    }

    /// Other names of the model: repository, `repo:QUANT`, file name.
    pub fn aliases(&self) -> Vec<String> {
        let mut aliases = Vec::new();
        if let Some(repo) = &self.repo {
            aliases.push(repo.clone());
            if let Some(quantization) = &self.quantization {
                aliases.push(format!("{repo}:{quantization}"));
            }
        }
        if let Some(name) = self
            .files
            .first()
            .and_then(|file| file.name.rsplit('/').next())
        {
            aliases.push(name.to_owned());
        }
        aliases
    }

    /// Whether the files look as they did when they were hashed; reads no content.
    pub fn quick_state(&self) -> HashState {
        let state = |file: &ModelFile| match FileStamp::of(&file.path) {
            Err(_) => HashState::Missing,
            Ok(stamp) if stamp == file.stamp => HashState::Unchanged,
            Ok(_) => HashState::Touched,
        };
        let mut states = self.files.iter().map(state);
        states
            .find(|state| *state != HashState::Unchanged)
            .unwrap_or(HashState::Unchanged)
    }

    fn answers_to(&self, query: &str) -> bool {
        self.files.iter().any(|file| file.is_at(Path::new(query)))
            || std::iter::once(&self.id)
                .chain(&self.aliases())
                .any(|name| is_meant(query, name))
    }
}

impl Library {
    /// Records in `<home>/library`, imported files in `<home>/models`, the rest in the cache.
    pub fn new(home: &Path, cache_dir: &Path) -> Self {
        Self {
            records: home.join("library"),
            models: home.join("models"),
            cache_dir: cache_dir.to_owned(),
        }
    }

    /// All models by id. Records that cannot be read are left out with a warning.
    pub fn list(&self) -> Result<Vec<LibraryEntry>, LibraryError> {
        let directory = match fs::read_dir(&self.records) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(LibraryError::at(&self.records)(error)),
        };
        let mut entries = Vec::new();
        for item in directory.flatten() {
            let path = item.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let record = fs::read(&path)
                .ok()
                .and_then(|bytes| serde_json::from_slice::<LibraryEntry>(&bytes).ok())
                .filter(|entry| !entry.files.is_empty() && is_valid(&entry.id));
            match record {
                Some(entry) => entries.push(entry),
                None => tracing::warn!(path = %path.display(), "not a library record"),
            }
        }
        entries.sort_by(|left, right| left.id.cmp(&right.id));
        Ok(entries)
    }

    /// The model that `query` names: id, repository, `repo:QUANT`, file name or path.
    pub fn find(&self, query: &str) -> Result<Result<LibraryEntry, FindError>, LibraryError> {
        let entries = self.list()?;
        if let Some(exact) = entries.iter().find(|entry| entry.id == query) {
            return Ok(Ok(exact.clone()));
        }
        let mut found: Vec<&LibraryEntry> = entries
            .iter()
            .filter(|entry| entry.answers_to(query))
            .collect();
        Ok(match (found.pop(), found.len()) {
            (Some(entry), 0) => Ok(entry.clone()),
            (Some(entry), _) => Err(FindError::Ambiguous {
                query: query.to_owned(),
                candidates: found
                    .iter()
                    .map(|e| &e.id)
                    .chain([&entry.id])
                    .cloned()
                    .collect(),
            }),
            (None, _) => Err(FindError::Unknown {
                query: query.to_owned(),
                nearest: nearest(query, entries.iter().map(|entry| entry.id.as_str())),
            }),
        })
    }

    /// Takes a file that is on disk into the library: hashed, and linked where the file system can,
    /// else copied. `progress` is called with the bytes hashed.
    pub fn import(
        &self,
        path: &Path,
        id: Option<&str>,
        progress: impl FnMut(u64) -> bool,
    ) -> Result<LibraryEntry, ImportError> {
        let header = read_header(path).map_err(|source| ImportError::Gguf {
            path: path.to_owned(),
            source,
        })?;
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let id = id.map_or_else(|| id_of_file(&name), str::to_owned);
        if !is_valid(&id) {
            return Err(ImportError::Id(id));
        }
        let sha256 = sha256_file(path, progress).map_err(LibraryError::at(path))?;
        let entries = self.list()?;
        if let Some(same_id) = entries.into_iter().find(|entry| entry.id == id) {
            if same_id.sha256() == sha256 && same_id.quick_state() == HashState::Unchanged {
                return Ok(same_id);
            }
            if same_id.sha256() != sha256 {
                return Err(ImportError::Taken(id));
            }
        }
        let folder = self.models.join(&id);
        fs::create_dir_all(&folder).map_err(LibraryError::at(&folder))?;
        let kept = folder.join(&name);
        remove_if_there(&kept).map_err(LibraryError::at(&kept))?;
        let source = fs::canonicalize(path).map_err(LibraryError::at(path))?;
        if fs::hard_link(&source, &kept).is_err() {
            fs::copy(&source, &kept).map_err(|source| {
                // A part of a model helps nobody, least of all on a full disk.
                let _ = fs::remove_file(&kept);
                let _ = fs::remove_dir(&folder);
                LibraryError::at(&kept)(source)
            })?;
        }
        let file = ModelFile {
            size: fs::metadata(&kept).map_err(LibraryError::at(&kept))?.len(),
            stamp: FileStamp::of(&kept).map_err(LibraryError::at(&kept))?,
            path: kept,
            name,
            sha256,
            hub_sha256: None,
        };
        let entry = self.describe(id, vec![file], &header);
        self.save(&entry)?;
        Ok(entry)
    }

    /// Makes a record of fetched files.
    pub(crate) fn record(
        &self,
        repo: &str,
        commit: &str,
        licence: Option<String>,
        files: Vec<ModelFile>,
        header: &GgufHeader,
    ) -> Result<LibraryEntry, LibraryError> {
        let id = model_id(repo);
        let quantization = files
            .first()
            .and_then(|file| tag_of(&file.name))
            .or_else(|| header.quantization.clone());
        // Another quantization of the same repository keeps its id and gets the tag added.
        let taken = self.list()?.into_iter().any(|entry| {
            entry.id == id
                && (entry.repo.as_deref() != Some(repo) || entry.quantization != quantization)
        });
        let id = match (&quantization, taken) {
            (Some(tag), true) => format!("{id}-{}", tag.to_ascii_lowercase()),
            _ => id,
        };
        let entry = LibraryEntry {
            repo: Some(repo.to_owned()),
            commit: Some(commit.to_owned()),
            quantization,
            licence: licence.or_else(|| header.licence.clone()),
            ..self.describe(id, files, header)
        };
        self.save(&entry)?;
        Ok(entry)
    }

    /// Hashes all files and compares with the record and the hub's hash. `progress` is called with
    /// the bytes hashed of all files.
    pub fn verify(
        &self,
        entry: &LibraryEntry,
        mut progress: impl FnMut(u64) -> bool,
    ) -> Result<HashState, LibraryError> {
        let mut before = 0;
        let mut entry = entry.clone();
        for file in &mut entry.files {
            if !file.path.exists() {
                return Ok(HashState::Missing);
            }
            let actual = sha256_file(&file.path, |done| progress(before + done))
                .map_err(LibraryError::at(&file.path))?;
            let expected = file.hub_sha256.as_ref().unwrap_or(&file.sha256);
            if actual != *expected {
                return Ok(HashState::Mismatch {
                    expected: expected.clone(),
                    actual,
                });
            }
            before += file.size;
            file.stamp = FileStamp::of(&file.path).map_err(LibraryError::at(&file.path))?;
        }
        self.save(&entry)?;
        Ok(HashState::Verified)
    }

    /// Removes a model: the record, and its files unless the cache needs them for another snapshot.
    pub fn remove(&self, entry: &LibraryEntry) -> Result<(), LibraryError> {
        for file in &entry.files {
            let removed = match (&entry.repo, &entry.commit, &file.hub_sha256) {
                (Some(repo), Some(commit), Some(hash)) => {
                    RepoCache::new(&self.cache_dir, repo).remove(commit, &file.name, hash)
                }
                _ if file.path.starts_with(&self.models) => remove_if_there(&file.path),
                _ => Ok(()),
            };
            removed.map_err(LibraryError::at(&file.path))?;
        }
        let _ = fs::remove_dir(self.models.join(&entry.id));
        let record = self.record_path(&entry.id);
        remove_if_there(&record).map_err(LibraryError::at(&record))
    }

    /// Whether a file was verified before and looks the same since.
    pub(crate) fn is_verified(&self, path: &Path, sha256: &str) -> bool {
        let Ok(stamp) = FileStamp::of(path) else {
            return false;
        };
        let entries = self.list().unwrap_or_default();
        entries
            .iter()
            .flat_map(|entry| &entry.files)
            .any(|file| file.sha256 == sha256 && file.stamp == stamp)
    }

    fn describe(&self, id: String, files: Vec<ModelFile>, header: &GgufHeader) -> LibraryEntry {
        LibraryEntry {
            id,
            repo: None,
            commit: None,
            quantization: header
                .quantization
                .clone()
                .or_else(|| files.first().and_then(|file| tag_of(&file.name))),
            files,
            licence: header.licence.clone(),
            architecture: header.architecture.clone(),
            context_length: header.context_length,
            parameters: header.parameters,
        }
    }

    fn save(&self, entry: &LibraryEntry) -> Result<(), LibraryError> {
        fs::create_dir_all(&self.records).map_err(LibraryError::at(&self.records))?;
        let path = self.record_path(&entry.id);
        let text = serde_json::to_vec_pretty(entry).expect("records are plain data");
        replace_file(&path, &text).map_err(LibraryError::at(&path))
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.records.join(format!("{id}.json"))
    }
}

/// The id of an imported file: that of its name without extension and quantization.
fn id_of_file(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    let stem = lower.strip_suffix(".gguf").unwrap_or(&lower);
    let stem = match tag_of(name) {
        Some(tag) => stem
            .strip_suffix(&tag.to_ascii_lowercase())
            .map_or(stem, |rest| rest.trim_end_matches(['.', '-'])),
        None => stem,
    };
    model_id(stem).replace(
        |character: char| !character.is_ascii_alphanumeric() && !".-_".contains(character),
        "-",
    )
}
