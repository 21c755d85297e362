//! Endpoints that only this node knows, kept in a file so that a restart forgets none.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tenzro_protocol::model_id::is_meant;

use crate::directory::LocalEndpoint;
use crate::home::replace_file;

/// Most local endpoints.
const MAX: usize = 1_000;

/// By endpoint id.
#[derive(Debug)]
pub(crate) struct LocalEndpoints {
    file: PathBuf,
    known: Mutex<BTreeMap<String, LocalEndpoint>>,
}

impl LocalEndpoints {
    /// Reads the file; one that is damaged is an empty one.
    pub(crate) fn open(file: PathBuf) -> Self {
        let known = std::fs::read(&file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self {
            file,
            known: Mutex::new(known),
        }
    }

    pub(crate) fn all(&self) -> BTreeMap<String, LocalEndpoint> {
        self.lock().clone()
    }

    /// Known from when this returns.
    pub(crate) fn add(&self, endpoint: LocalEndpoint) -> io::Result<()> {
        let mut known = self.lock();
        let id = endpoint.id();
        if known.len() >= MAX && !known.contains_key(&id) {
            return Err(io::Error::other(format!("there are {MAX} already")));
        }
        let mut new = known.clone();
        new.insert(id, endpoint);
        self.write(&new)?;
        *known = new;
        Ok(())
    }

    /// Forgets those of a model, or the one at an address; returns what was forgotten.
    pub(crate) fn remove(
        &self,
        model: &str,
        base_url: Option<&str>,
    ) -> io::Result<Vec<LocalEndpoint>> {
        let mut known = self.lock();
        let (gone, new): (BTreeMap<_, _>, BTreeMap<_, _>) =
            known.clone().into_iter().partition(|(_, endpoint)| {
                is_meant(model, &endpoint.model_id)
                    && base_url.is_none_or(|url| url == endpoint.base_url)
            });
        if !gone.is_empty() {
            self.write(&new)?;
            *known = new;
        }
        Ok(gone.into_values().collect())
    }

    fn write(&self, known: &BTreeMap<String, LocalEndpoint>) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(known).map_err(io::Error::other)?;
        replace_file(&self.file, &text)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, LocalEndpoint>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
