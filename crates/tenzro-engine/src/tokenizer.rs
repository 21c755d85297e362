//! A model's tokenizer by itself: to count what others say that they generated.

use std::path::Path;
use std::sync::Arc;

use crate::llama::Model;

/// Longest text that is tokenized at once, in bytes.
const TEXT_BYTES_MAX: usize = 64 << 20;

/// Reads the vocabulary of a GGUF file and none of its weights; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokenizer(Arc<Model>);

impl Tokenizer {
    /// The file has to be one whose SHA-256 was verified: llama.cpp parses it. The error is its own text.
    pub fn open(path: &Path) -> Result<Self, String> {
        let model = Model::load_vocabulary(path)?;
        if !model.has_tokenizer() {
            return Err("the file has no tokenizer".to_owned());
        }
        Ok(Self(Arc::new(model)))
    }

    /// Tokens of a text that is nobody's prompt: without BOS and EOS, and control tokens that it spells are
    /// text. `None` for a text of more than 64 MiB.
    pub fn count(&self, text: &str) -> Option<u32> {
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        u32::try_from(self.0.tokenize(text, false, false).len()).ok()
    }
}
