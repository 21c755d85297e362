//! Settings of the official client, from the environment variables that it reads.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How the hub is reached and where files are kept.
#[derive(Clone)]
pub struct HubConfig {
    /// Base address without a slash at its end.
    pub endpoint: String,
    /// Sent to the endpoint's own origin and nowhere else.
    pub(crate) token: Option<String>,
    /// The directory `hub` of the standard cache.
    pub cache_dir: PathBuf,
    /// Never open a connection.
    pub offline: bool,
    /// Timing and parallelism.
    pub tuning: Tuning,
}

/// Timing and parallelism of a transfer.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Ranges fetched at the same time.
    pub parts: usize,
    /// Size of a range; what a kill may cost for each part.
    pub range_bytes: u64,
    /// Give a connection up after this long without a byte.
    pub stall: Duration,
    /// First wait after a failure; doubles with each further one.
    pub backoff: Duration,
    /// Failures in a row, without any progress, after which the transfer is given up.
    pub failures_max: u32,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            parts: 8,
            range_bytes: 8 << 20,
            stall: Duration::from_secs(30),
            backoff: Duration::from_millis(500),
            failures_max: 6,
        }
    }
}

impl fmt::Debug for HubConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("cache_dir", &self.cache_dir)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl HubConfig {
    /// The variables that decide where the cache is; the first that is set counts.
    pub const CACHE_VARIABLES: [&str; 4] = [
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HOME",
        "XDG_CACHE_HOME",
    ];

    /// Reads the variables of `huggingface_hub` through `variable`. Precedence of the cache:
    /// `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME/hub`, `XDG_CACHE_HOME/huggingface/hub`,
    /// `~/.cache/huggingface/hub`. Source: huggingface_hub 2.4, `constants.py`.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let flag = |name: &str| {
            set(name).is_some_and(|value| {
                matches!(
                    value.to_ascii_uppercase().as_str(),
                    "1" | "ON" | "YES" | "TRUE"
                )
            })
        };
        let home = PathBuf::from(set("HOME").unwrap_or_else(|| ".".to_owned()));
        let hf_home = set("HF_HOME").map_or_else(
            || {
                set("XDG_CACHE_HOME")
                    .map_or_else(|| home.join(".cache"), PathBuf::from)
                    .join("huggingface")
            },
            PathBuf::from,
        );
        let cache_dir = set("HF_HUB_CACHE")
            .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
            .map_or_else(|| hf_home.join("hub"), PathBuf::from);
        let token_path = set("HF_TOKEN_PATH").map_or_else(|| hf_home.join("token"), PathBuf::from);
        let stored = || {
            (!flag("HF_HUB_DISABLE_IMPLICIT_TOKEN"))
                .then(|| read_token(&token_path))
                .flatten()
        };
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: set("HF_TOKEN")
                .map(|token| token.trim().to_owned())
                .or_else(stored),
            cache_dir,
            offline: flag("HF_HUB_OFFLINE"),
            tuning: Tuning::default(),
        }
    }

    /// Whether a token will be sent.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }
}

fn read_token(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let token = text.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> HubConfig {
        HubConfig::from_variables(|name| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_cache_follows_the_precedence_of_the_official_client() {
        let all = [
            ("HF_HUB_CACHE", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b"),
            ("HF_HOME", "/c"),
            ("XDG_CACHE_HOME", "/d"),
            ("HOME", "/e"),
        ];
        let expected = [
            "/a",
            "/b",
            "/c/hub",
            "/d/huggingface/hub",
            "/e/.cache/huggingface/hub",
        ];
        for (start, expected) in expected.iter().enumerate() {
            assert_eq!(config(&all[start..]).cache_dir, Path::new(expected));
        }
    }

    #[test]
    fn the_token_is_hidden_and_can_come_from_a_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "hf_secret\n").expect("written");
        let path = file.path().to_str().expect("a path");
        let stored = config(&[("HF_TOKEN_PATH", path)]);
        assert_eq!(stored.token.as_deref(), Some("hf_secret"));
        assert!(!format!("{stored:?}").contains("hf_secret"));
        let disabled = config(&[
            ("HF_TOKEN_PATH", path),
            ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
        ]);
        assert!(!disabled.has_token());
    }
}
