//! The one name of a model on the network, and which names mean it.
//!
//! Rule: an explicit alias, else the catalogue's id for the repository, else the repository's name in
//! lower case without `-GGUF`.

/// Ids of the small chat models that people reach for first: repository name without owner and
/// `-GGUF`, in lower case, to model id.
const CATALOGUE: [(&str, &str); 24] = [
    ("gemma-3-270m-it", "gemma3-270m"),
    ("gemma-3-1b-it", "gemma3-1b"),
    ("gemma-3-4b-it", "gemma3-4b"),
    ("gemma-3-12b-it", "gemma3-12b"),
    ("smollm2-135m-instruct", "smollm2-135m"),
    ("smollm2-360m-instruct", "smollm2-360m"),
    ("smollm2-1.7b-instruct", "smollm2-1.7b"),
    ("smollm3-3b", "smollm3-3b"),
    ("qwen2.5-0.5b-instruct", "qwen2.5-0.5b"),
    ("qwen2.5-1.5b-instruct", "qwen2.5-1.5b"),
    ("qwen2.5-3b-instruct", "qwen2.5-3b"),
    ("qwen2.5-7b-instruct", "qwen2.5-7b"),
    ("qwen3-0.6b", "qwen3-0.6b"),
    ("qwen3-1.7b", "qwen3-1.7b"),
    ("qwen3-4b", "qwen3-4b"),
    ("qwen3-8b", "qwen3-8b"),
    ("llama-3.2-1b-instruct", "llama3.2-1b"),
    ("llama-3.2-3b-instruct", "llama3.2-3b"),
    ("meta-llama-3.1-8b-instruct", "llama3.1-8b"),
    ("tinyllama-1.1b-chat-v1.0", "tinyllama-1.1b"),
    ("mistral-7b-instruct-v0.2", "mistral-7b-v0.2"),
    ("mistral-7b-instruct-v0.3", "mistral-7b-v0.3"),
    ("phi-3.5-mini-instruct", "phi3.5-mini"),
    ("phi-4-mini-instruct", "phi4-mini"),
];

/// Parts of a name that do not tell models apart.
const NOISE: [&str; 4] = ["it", "instruct", "chat", "gguf"];

/// Longest model id.
pub const ID_BYTES_MAX: usize = 96;

/// The id of a repository (`owner/name`) or of a file name without `.gguf`.
pub fn model_id(name: &str) -> String {
    let name = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let name = name.strip_suffix("-gguf").unwrap_or(&name);
    let known = CATALOGUE.iter().find(|(repository, _)| *repository == name);
    known.map_or_else(|| name.to_owned(), |(_, id)| (*id).to_owned())
}

/// Whether a text can be a model id: lower-case letters, digits, `.`, `-` and `_`.
pub fn is_valid(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= ID_BYTES_MAX
        && !id.starts_with('.')
        && id
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

/// The name as it is compared: without case, separators and the parts in `NOISE`. A dot between two
/// digits belongs to a number; any other is a separator.
pub fn comparable(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    let bytes = name.as_bytes();
    let is_digit = |index: Option<usize>| {
        let byte = index.and_then(|index| bytes.get(index));
        byte.is_some_and(u8::is_ascii_digit)
    };
    let mut parts = Vec::new();
    let mut start = 0;
    for (index, character) in name.char_indices() {
        let is_point =
            character == '.' && is_digit(index.checked_sub(1)) && is_digit(index.checked_add(1));
        if !character.is_ascii_alphanumeric() && !is_point {
            parts.push(&name[start..index]);
            start = index + character.len_utf8();
        }
    }
    parts.push(&name[start..]);
    parts.retain(|part| !NOISE.contains(part));
    parts.concat()
}

/// Whether a name that somebody typed means the model that is known by that id or name.
pub fn is_meant(name: &str, known: &str) -> bool {
    let wanted = comparable(name);
    name == known || (!wanted.is_empty() && comparable(known) == wanted)
}

/// How unlike two names are: edits between their comparable forms. Lower is nearer.
pub fn distance(left: &str, right: &str) -> usize {
    let (left, right) = (comparable(left), comparable(right));
    if left.contains(&right) || right.contains(&left) {
        return 0;
    }
    let right: Vec<u8> = right.bytes().take(ID_BYTES_MAX).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, byte) in left.bytes().take(ID_BYTES_MAX).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, other) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(byte != *other);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

/// The up to three names nearest to `wanted`.
pub fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut ranked: Vec<(usize, &str)> = names.map(|name| (distance(wanted, name), name)).collect();
    ranked.sort_unstable();
    ranked.dedup();
    ranked
        .into_iter()
        .take(3)
        .map(|(_, name)| name.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_have_the_ids_of_the_catalogue_or_their_own_name() {
        assert_eq!(model_id("unsloth/gemma-3-270m-it-GGUF"), "gemma3-270m");
        assert_eq!(
            model_id("TheBloke/Mistral-7B-Instruct-v0.2-GGUF"),
            "mistral-7b-v0.2"
        );
        assert_eq!(model_id("someone/My-Model-GGUF"), "my-model");
        for (_, id) in CATALOGUE {
            assert!(is_valid(id), "{id}");
        }
    }

    #[test]
    fn names_are_compared_without_case_separators_and_noise() {
        assert_eq!(
            comparable("Gemma-3_270M-it-GGUF"),
            comparable("gemma3-270m")
        );
        assert_ne!(comparable("gemma3-270m"), comparable("gemma3-1b"));
        assert_ne!(comparable("qwen3-0.6b"), comparable("qwen3-06b"));
        assert_eq!(
            comparable("SmolLM2-135M-Instruct.Q4_1.gguf"),
            comparable("smollm2-135m-q4_1")
        );
        assert!(is_meant("Gemma-3_270M-it-GGUF", "gemma3-270m") && is_meant("chat", "chat"));
        assert!(!is_meant("it", "chat") && !is_meant("gemma3-1b", "gemma3-270m"));
        assert!(!is_valid("../x") && !is_valid("") && !is_valid("A"));
    }

    #[test]
    fn the_nearest_names_come_first() {
        let names = ["gemma3-270m", "qwen3-0.6b", "llama3.2-1b", "gemma3-1b"];
        assert_eq!(nearest("gema3-270m", names.into_iter())[0], "gemma3-270m");
        assert_eq!(nearest("qwen", names.into_iter())[0], "qwen3-0.6b");
    }
}
