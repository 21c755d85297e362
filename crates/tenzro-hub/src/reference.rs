//! What a user may write for a model on the hub: `repo`, `repo:QUANT`, `repo@revision`, `hf.co/…` or
//! the address of a file.

/// A model on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRef {
    /// `owner/name`.
    pub repo: String,
    /// Quantization tag such as `Q4_K_M`.
    pub quant: Option<String>,
    /// Branch, tag or commit; `None` is `main`.
    pub revision: Option<String>,
    /// One file of the repository.
    pub filename: Option<String>,
}

/// Why a text names no model on the hub.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a model on the hub: {reason}")]
pub struct ParseReferenceError {
    text: String,
    reason: &'static str,
}

impl ModelRef {
    /// Parses any of the forms of the module header.
    pub fn parse(text: &str) -> Result<Self, ParseReferenceError> {
        let error = |reason| ParseReferenceError {
            text: text.chars().take(200).collect(),
            reason,
        };
        let without_scheme = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"));
        let rest = match without_scheme {
            Some(address) => address.split_once('/').map_or("", |(_host, path)| path),
            None => text
                .strip_prefix("hf.co/")
                .or_else(|| text.strip_prefix("huggingface.co/"))
                .unwrap_or(text),
        };
        let rest = rest
            .split(['?', '#'])
            .next()
            .unwrap_or("")
            .trim_end_matches('/');
        let mut segments = rest.splitn(4, '/');
        let (Some(owner), Some(name)) = (segments.next(), segments.next()) else {
            return Err(error("it has no owner, as in owner/name"));
        };
        let mut reference = match (segments.next(), segments.next()) {
            (None, _) => Self::parse_suffixes(owner, name),
            (Some("resolve" | "blob"), Some(tail)) => {
                let (revision, file) = tail
                    .split_once('/')
                    .ok_or_else(|| error("the address names no file"))?;
                Self {
                    repo: format!("{owner}/{name}"),
                    quant: None,
                    revision: Some(revision.to_owned()),
                    filename: Some(file.to_owned()),
                }
            }
            (Some("tree"), Some(revision)) => Self {
                revision: Some(revision.to_owned()),
                ..Self::parse_suffixes(owner, name)
            },
            _ => return Err(error("expected owner/name")),
        };
        if !reference.repo.split('/').all(is_plain) {
            return Err(error(
                "owner and name have letters, digits, '.', '-' and '_'",
            ));
        }
        if let Some(revision) = &mut reference.revision
            && !revision.split('/').all(is_plain)
        {
            return Err(error("the revision has characters that none has"));
        }
        if reference
            .quant
            .as_deref()
            .is_some_and(|quant| !is_plain(quant))
        {
            return Err(error("the quantization has characters that none has"));
        }
        match reference.filename.take() {
            Some(file) => reference.with_filename(&file),
            None => Ok(reference),
        }
    }

    /// The same model with one file chosen by name.
    pub fn with_filename(mut self, file: &str) -> Result<Self, ParseReferenceError> {
        let is_safe = |part: &str| !part.is_empty() && part != "." && part != "..";
        let fits = file.len() <= 512 && !file.contains(['\\', '\0', '?', '#', '%']);
        if !fits || !file.split('/').all(is_safe) {
            return Err(ParseReferenceError {
                text: file.chars().take(200).collect(),
                reason: "it is not the path of a file in a repository",
            });
        }
        self.filename = Some(file.to_owned());
        Ok(self)
    }

    /// The revision to ask for.
    pub(crate) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    fn parse_suffixes(owner: &str, name: &str) -> Self {
        let (name, revision) = match name.split_once('@') {
            Some((name, revision)) => (name, Some(revision.to_owned())),
            None => (name, None),
        };
        let (name, quant) = match name.split_once(':') {
            Some((name, quant)) => (name, Some(quant.to_owned())),
            None => (name, None),
        };
        Self {
            repo: format!("{owner}/{name}"),
            quant,
            revision,
            filename: None,
        }
    }
}

fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= 128
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

    fn reference(repo: &str) -> ModelRef {
        ModelRef {
            repo: repo.to_owned(),
            quant: None,
            revision: None,
            filename: None,
        }
    }

    #[test]
    fn every_form_is_understood() {
        let plain = reference("unsloth/gemma-3-270m-it-GGUF");
        assert_eq!(
            ModelRef::parse("unsloth/gemma-3-270m-it-GGUF"),
            Ok(plain.clone())
        );
        assert_eq!(
            ModelRef::parse("hf.co/unsloth/gemma-3-270m-it-GGUF"),
            Ok(plain)
        );
        assert_eq!(
            ModelRef::parse("a/b:Q8_0@v1.0"),
            Ok(ModelRef {
                quant: Some("Q8_0".to_owned()),
                revision: Some("v1.0".to_owned()),
                ..reference("a/b")
            })
        );
        assert_eq!(
            ModelRef::parse("https://huggingface.co/a/b/resolve/main/dir/x.gguf?download=true"),
            Ok(ModelRef {
                revision: Some("main".to_owned()),
                filename: Some("dir/x.gguf".to_owned()),
                ..reference("a/b")
            })
        );
    }

    #[test]
    fn nothing_leaves_its_directory() {
        for text in [
            "a",
            "",
            "a/..",
            "../b",
            "a/b/resolve/main/../../x",
            "a/b c",
            "a/b:",
            "a/b@",
        ] {
            assert!(ModelRef::parse(text).is_err(), "{text}");
        }
        let valid = ModelRef::parse("a/b").expect("valid");
        for file in ["../x", "/x", "a//b", "a\\b", "."] {
            assert!(valid.clone().with_filename(file).is_err(), "{file}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_a_safe_reference_or_an_error(text in ".{0,60}") {
            if let Ok(reference) = ModelRef::parse(&text) {
                prop_assert_eq!(reference.repo.split('/').count(), 2);
                prop_assert!(!reference.repo.contains(".."), "{}", reference.repo);
            }
        }
    }
}
