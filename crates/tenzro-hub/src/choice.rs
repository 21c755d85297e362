//! Which files of a repository make the model that was asked for.
//!
//! A tag matches when it stands in the file name before `.` or `-`, in any case. Without a tag:
//! `Q4_K_M`, else `Q8_0`, else the first model file. All parts of a split model belong together;
//! helper files (projectors, importance matrices, draft models) are no models. Source: llama.cpp,
//! `common_get_hf_file`.

use tenzro_protocol::model_id::nearest;

/// Tags that are tried when none is asked for.
const DEFAULT_TAGS: [&str; 2] = ["Q4_K_M", "Q8_0"];

/// Parts of the names of files that are no models.
const HELPERS: [&str; 6] = ["mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"];

/// Why no file was chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChoiceError {
    /// The repository has no GGUF file.
    #[error("the repository has no GGUF model file")]
    NoModel,
    /// None has that name or tag.
    #[error("no file matches '{wanted}'")]
    NoMatch {
        /// What was asked for.
        wanted: String,
        /// Files to choose from, nearest first.
        nearest: Vec<String>,
    },
    /// Parts of a split model are missing.
    #[error("the repository lacks part {missing} of the split model")]
    MissingPart {
        /// Its path.
        missing: String,
    },
}

/// The paths to fetch, first part first. `paths` are those of the repository.
pub(crate) fn choose(
    paths: &[&str],
    filename: Option<&str>,
    tag: Option<&str>,
) -> Result<Vec<String>, ChoiceError> {
    let mut models: Vec<&str> = paths
        .iter()
        .copied()
        .filter(|path| is_model(path))
        .collect();
    models.sort_unstable();
    if models.is_empty() && filename.is_none() {
        return Err(ChoiceError::NoModel);
    }
    let no_match = |wanted: &str| ChoiceError::NoMatch {
        wanted: wanted.to_owned(),
        nearest: nearest(wanted, models.iter().copied()),
    };
    let first = if let Some(filename) = filename {
        let exact = paths.iter().find(|path| **path == filename);
        *exact.ok_or_else(|| no_match(filename))?
    } else if let Some(tag) = tag {
        find_tag(&models, tag).ok_or_else(|| no_match(tag))?
    } else {
        DEFAULT_TAGS
            .iter()
            .find_map(|tag| find_tag(&models, tag))
            .unwrap_or(models[0])
    };
    parts_of(first, paths)
}

/// The quantization tag in a file name, such as `Q4_K_M`.
pub(crate) fn tag_of(path: &str) -> Option<String> {
    let name = path.rsplit('/').next()?.to_ascii_uppercase();
    let stem = name.strip_suffix(".GGUF")?;
    let stem = split_number(stem).map_or(stem, |(base, _, _)| base);
    let is_tag = |part: &&str| {
        let digits = part
            .strip_prefix("IQ")
            .or_else(|| part.strip_prefix("TQ"))
            .or_else(|| part.strip_prefix('Q'));
        matches!(*part, "F16" | "F32" | "BF16" | "MXFP4")
            || digits.is_some_and(|rest| {
                rest.starts_with(|first: char| first.is_ascii_digit()) && rest.contains('_')
            })
    };
    stem.rsplit(['.', '-']).find(is_tag).map(str::to_owned)
}

fn is_model(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    name.ends_with(".gguf") && !HELPERS.iter().any(|helper| name.contains(helper))
}

fn find_tag<'a>(models: &[&'a str], tag: &str) -> Option<&'a str> {
    let tag = tag.to_ascii_lowercase();
    models.iter().copied().find(|path| {
        let path = path.to_ascii_lowercase();
        path.match_indices(&tag).any(|(at, _)| {
            let before = path[..at].chars().next_back();
            let after = path[at + tag.len()..].chars().next();
            !before.is_some_and(|character| character.is_ascii_alphanumeric())
                && matches!(after, Some('.' | '-'))
        })
    })
}

/// `("model", 1, 3)` for `model-00001-of-00003`.
fn split_number(stem: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = stem.rsplit_once('-')?;
    let (rest, of) = rest.rsplit_once('-')?;
    let (base, index) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !of.eq_ignore_ascii_case("of") || !is_number(index) || !is_number(count) {
        return None;
    }
    Some((base, index.parse().ok()?, count.parse().ok()?))
}

fn parts_of(path: &str, paths: &[&str]) -> Result<Vec<String>, ChoiceError> {
    let stem = path.strip_suffix(".gguf").unwrap_or(path);
    let Some((base, _, count)) = split_number(stem) else {
        return Ok(vec![path.to_owned()]);
    };
    (1..=count.min(9999))
        .map(|index| {
            let part = format!("{base}-{index:05}-of-{count:05}.gguf");
            if paths.contains(&part.as_str()) {
                Ok(part)
            } else {
                Err(ChoiceError::MissingPart { missing: part })
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 9] = [
        "README.md",
        "mmproj-model-f16.gguf",
        "model-IQ4_XS.gguf",
        "model-Q2_K.gguf",
        "model-Q4_K_M.gguf",
        "model.Q8_0.gguf",
        "big/model-BF16-00001-of-00002.gguf",
        "big/model-BF16-00002-of-00002.gguf",
        "imatrix_unsloth.gguf",
    ];

    #[test]
    fn the_default_is_a_middle_quantization() {
        assert_eq!(choose(&FILES, None, None).unwrap(), ["model-Q4_K_M.gguf"]);
        let few = ["a-Q2_K.gguf", "a-Q8_0.gguf"];
        assert_eq!(choose(&few, None, None).unwrap(), ["a-Q8_0.gguf"]);
        assert_eq!(
            choose(&["x-Q2_K.gguf"], None, None).unwrap(),
            ["x-Q2_K.gguf"]
        );
        assert_eq!(choose(&FILES[..2], None, None), Err(ChoiceError::NoModel));
    }

    #[test]
    fn tags_match_in_any_case_and_only_whole() {
        assert_eq!(
            choose(&FILES, None, Some("q8_0")).unwrap(),
            ["model.Q8_0.gguf"]
        );
        assert_eq!(
            choose(&FILES, None, Some("q4_k_m")).unwrap(),
            ["model-Q4_K_M.gguf"]
        );
        assert!(matches!(
            choose(&FILES, None, Some("Q4_K")),
            Err(ChoiceError::NoMatch { nearest, .. }) if nearest.contains(&"model-Q4_K_M.gguf".to_owned())
        ));
    }

    #[test]
    fn all_parts_of_a_split_model_are_fetched() {
        let parts = choose(&FILES, None, Some("BF16")).unwrap();
        assert_eq!(parts, &FILES[6..8]);
        assert_eq!(
            choose(&FILES[..7], None, Some("BF16")),
            Err(ChoiceError::MissingPart {
                missing: FILES[7].to_owned()
            })
        );
    }

    #[test]
    fn tags_are_read_from_names() {
        for (name, tag) in [
            ("SmolLM2-135M-Instruct.Q4_1.gguf", Some("Q4_1")),
            ("big/model-BF16-00001-of-00002.gguf", Some("BF16")),
            ("gemma-3-270m-it-UD-Q4_K_XL.gguf", Some("Q4_K_XL")),
            ("Qwen3-0.6B.gguf", None),
        ] {
            assert_eq!(tag_of(name).as_deref(), tag, "{name}");
        }
    }
}
