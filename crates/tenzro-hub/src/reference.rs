//! What a user may write for a model on the hub: `repo`, `repo:QUANT`, `repo@revision`, `hf.co/…` or
//! the address of a repository or file.

use percent_encoding::percent_decode_str;

/// Names under which the public hub is reached; any configured hub stands in for it.
const PUBLIC_HOSTS: [&str; 3] = ["huggingface.co", "www.huggingface.co", "hf.co"];

/// Longest owner, name or quantization.
const PART_BYTES_MAX: usize = 128;

/// Longest revision or path in a repository.
const PATH_BYTES_MAX: usize = 512;

/// A model on the hub. Every part is safe to stand in a path or an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRef {
    repo: String,
    quant: Option<String>,
    revision: Option<String>,
    filename: Option<String>,
    /// Host of a full address that is not the public hub's, with its port.
    host: Option<String>,
}

/// Why a text names no model on the hub.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a model on the hub: {reason}")]
pub struct ParseReferenceError {
    text: String,
    reason: &'static str,
}

impl ParseReferenceError {
    fn new(text: &str, reason: &'static str) -> Self {
        Self {
            text: text.chars().take(200).collect(),
            reason,
        }
    }
}

impl ModelRef {
    /// Parses any of the forms of the module header.
    pub fn parse(text: &str) -> Result<Self, ParseReferenceError> {
        let error = |reason| ParseReferenceError::new(text, reason);
        let address = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"));
        let (host, path) = match address {
            Some(address) => address
                .split_once('/')
                .ok_or_else(|| error("the address names no repository"))?,
            None => match text.split_once('/') {
                Some((host, path)) if PUBLIC_HOSTS.contains(&host) => (host, path),
                _ => return Self::parse_short(text),
            },
        };
        let path = path.split(['?', '#']).next().unwrap_or("");
        let path = percent_decode_str(path.trim_end_matches('/'))
            .decode_utf8()
            .map_err(|_| error("the address is no text"))?;
        let mut segments = path.splitn(4, '/');
        let (owner, name) = (segments.next(), segments.next());
        let (Some(owner), Some(name)) = (owner, name) else {
            return Err(error("it has no owner, as in owner/name"));
        };
        let reference = Self::parse_short(&format!("{owner}/{name}"))
            .map_err(|inner| error(inner.reason))?;
        let reference = match (segments.next(), segments.next()) {
            (None, _) => reference,
            (Some("tree"), Some(revision)) => reference.with_revision(revision)?,
            (Some("resolve" | "blob"), Some(tail)) => {
                let (revision, file) =
                    split_revision(tail).ok_or_else(|| error("the address names no file"))?;
                reference.with_revision(revision)?.with_filename(file)?
            }
            _ => return Err(error("expected owner/name")),
        };
        let host = host.to_ascii_lowercase();
        Ok(Self {
            host: (!PUBLIC_HOSTS.contains(&host.as_str())).then_some(host),
            ..reference
        })
    }

    /// The same model with one file chosen by name.
    pub fn with_filename(self, file: &str) -> Result<Self, ParseReferenceError> {
        if !is_safe_path(file) {
            let reason = "it is not the path of a file in a repository";
            return Err(ParseReferenceError::new(file, reason));
        }
        Ok(Self {
            filename: Some(file.to_owned()),
            ..self
        })
    }

    /// The same model at a branch, tag or commit.
    pub fn with_revision(self, revision: &str) -> Result<Self, ParseReferenceError> {
        if revision.len() > PATH_BYTES_MAX || !revision.split('/').all(is_plain) {
            let reason = "the revision has characters that none has";
            return Err(ParseReferenceError::new(revision, reason));
        }
        Ok(Self {
            revision: Some(revision.to_owned()),
            ..self
        })
    }

    /// `owner/name`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// Quantization tag such as `Q4_K_M`, when one was asked for.
    pub fn quant(&self) -> Option<&str> {
        self.quant.as_deref()
    }

    /// Branch, tag or commit; `main` when none was asked for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The file that was asked for, by its path or its last part.
    pub fn filename(&self) -> Option<&str> {
        self.filename.as_deref()
    }

    /// The host that a full address named, unless it is the public hub's.
    pub(crate) fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// `owner/name[:QUANT][@revision]`; a revision may have slashes.
    fn parse_short(text: &str) -> Result<Self, ParseReferenceError> {
        let error = |reason| ParseReferenceError::new(text, reason);
        let (rest, revision) = match text.split_once('@') {
            Some((rest, revision)) => (rest, Some(revision)),
            None => (text, None),
        };
        let (repo, quant) = match rest.split_once(':') {
            Some((repo, quant)) => (repo, Some(quant)),
            None => (rest, None),
        };
        let (owner, name) = repo
            .split_once('/')
            .ok_or_else(|| error("it has no owner, as in owner/name"))?;
        if !is_plain(owner) || !is_plain(name) {
            return Err(error(
                "owner and name have letters, digits, '.', '-' and '_'",
            ));
        }
        if quant.is_some_and(|quant| !is_plain(quant)) {
            return Err(error("the quantization has characters that none has"));
        }
        let reference = Self {
            repo: repo.to_owned(),
            quant: quant.map(str::to_owned),
            revision: None,
            filename: None,
            host: None,
        };
        match revision {
            Some(revision) => reference.with_revision(revision),
            None => Ok(reference),
        }
    }
}

/// Revision and file of `main/dir/x.gguf`. Pull requests (`refs/pr/1`) are the only revisions with
/// slashes that an address can hold without doubt.
fn split_revision(tail: &str) -> Option<(&str, &str)> {
    let slashes = if tail.starts_with("refs/pr/") { 3 } else { 1 };
    let (at, _) = tail.match_indices('/').nth(slashes - 1)?;
    Some((&tail[..at], &tail[at + 1..]))
}

/// Whether a text may be joined to a directory without leaving it, here and in an address.
pub(crate) fn is_safe_path(path: &str) -> bool {
    let is_safe = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.len() <= PATH_BYTES_MAX
        && !path.contains(|character: char| character == '\\' || character.is_control())
        && path.split('/').all(is_safe)
}

fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= PART_BYTES_MAX
        && part != "."
        && !part.contains("..")
        && part
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Repository, quantization, revision, file, host.
    type Parts<'a> = (&'a str, Option<&'a str>, &'a str, Option<&'a str>, Option<&'a str>);

    fn parts(reference: &ModelRef) -> Parts<'_> {
        (
            reference.repo(),
            reference.quant(),
            reference.revision(),
            reference.filename(),
            reference.host(),
        )
    }

    #[test]
    fn every_form_is_understood() {
        let gemma = "unsloth/gemma-3-270m-it-GGUF";
        let hub = "https://huggingface.co/a/b";
        let cases: [(String, Parts<'_>); 11] = [
            (gemma.into(), (gemma, None, "main", None, None)),
            (format!("hf.co/{gemma}"), (gemma, None, "main", None, None)),
            (format!("hf.co/{gemma}:Q8_0"), (gemma, Some("Q8_0"), "main", None, None)),
            ("a/b:Q8_0@v1.0".into(), ("a/b", Some("Q8_0"), "v1.0", None, None)),
            ("a/b@refs/pr/2".into(), ("a/b", None, "refs/pr/2", None, None)),
            (hub.into(), ("a/b", None, "main", None, None)),
            (format!("{hub}/tree/dev"), ("a/b", None, "dev", None, None)),
            (
                format!("{hub}/resolve/main/dir/x.gguf?download=true"),
                ("a/b", None, "main", Some("dir/x.gguf"), None),
            ),
            (
                format!("{hub}/blob/refs%2Fpr%2F1/my%20model.gguf"),
                ("a/b", None, "refs/pr/1", Some("my model.gguf"), None),
            ),
            (
                "http://Mirror.example:8000/a/b/resolve/v1/x.gguf".into(),
                ("a/b", None, "v1", Some("x.gguf"), Some("mirror.example:8000")),
            ),
            ("https://www.huggingface.co/a/b/".into(), ("a/b", None, "main", None, None)),
        ];
        for (text, expected) in cases {
            let reference = ModelRef::parse(&text).expect(&text);
            assert_eq!(parts(&reference), expected, "{text}");
        }
    }

    #[test]
    fn nothing_leaves_its_directory() {
        for text in [
            "a",
            "",
            "a/..",
            "../b",
            "a/b/c",
            "a/b c",
            "a/b:",
            "a/b@",
            "a/b@x/../y",
            "hf.co/a",
            "https://huggingface.co",
            "https://huggingface.co/a/b/resolve/main",
            "https://huggingface.co/a/b/resolve/main/../../x",
            "https://huggingface.co/a/b/resolve/main/%2e%2e/x",
            "https://huggingface.co/a/b/resolve/main/%ff",
            "https://huggingface.co/a/b/settings/x",
        ] {
            assert!(ModelRef::parse(text).is_err(), "{text}");
        }
        let valid = ModelRef::parse("a/b").expect("valid");
        for file in ["../x", "/x", "a//b", "a\\b", ".", "a\0b"] {
            assert!(valid.clone().with_filename(file).is_err(), "{file}");
        }
        assert!(valid.with_revision("../../x").is_err());
    }

    proptest! {
        #[test]
        fn any_text_gives_a_safe_reference_or_an_error(
            text in prop_oneof![
                ".{0,60}",
                "(https?://|hf.co/)?[a-z./%2e:@]{0,12}/[a-zA-Z.:@/%]{0,30}",
            ],
        ) {
            if let Ok(reference) = ModelRef::parse(&text) {
                let (repo, quant, revision, filename, _) = parts(&reference);
                prop_assert_eq!(repo.split('/').count(), 2);
                for part in [Some(repo), quant, Some(revision), filename].into_iter().flatten() {
                    prop_assert!(is_safe_path(part), "{}", part);
                    prop_assert!(!part.split('/').any(|step| step == ".."), "{}", part);
                }
            }
        }
    }
}
