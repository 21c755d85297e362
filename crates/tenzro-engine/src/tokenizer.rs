//! A model's tokenizer and chat template: what turns prompts into tokens, for the engine and for those who count
//! what others say that they read and generated.

use std::path::Path;
use std::sync::Arc;

use tenzro_protocol::inference::{ChatPrompt, GenerateError, Prompt};

use crate::chat_template::{ChatTemplate, TemplateError};
use crate::engine::{invalid, tokens_u32};
use crate::llama::{Model, Token};

/// Longest text that is tokenized at once, in bytes.
const TEXT_BYTES_MAX: usize = 64 << 20;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokenizer(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    model: Arc<Model>,
    template: Result<ChatTemplate, TemplateError>,
}

impl Tokenizer {
    /// Reads the vocabulary and the template of a GGUF file and none of its weights. The file has to be one
    /// whose SHA-256 was verified: llama.cpp parses it. The error is its own text.
    pub fn open(path: &Path) -> Result<Self, String> {
        let model = Model::load_vocabulary(path)?;
        if !model.has_tokenizer() {
            return Err("the file has no tokenizer".to_owned());
        }
        Ok(Self::of(Arc::new(model)))
    }

    pub(crate) fn of(model: Arc<Model>) -> Self {
        let template = compile_template(&model);
        Self(Arc::new(Parts { model, template }))
    }

    /// Tokens of a text that is nobody's prompt: without BOS and EOS, and control tokens that it spells are
    /// text. `None` for a text of more than 64 MiB.
    pub fn count(&self, text: &str) -> Option<u32> {
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        u32::try_from(self.0.model.tokenize(text, false, false).len()).ok()
    }

    /// Tokens of a prompt as an engine with this very file counts them, the date aside that some templates
    /// print. The error is why an engine would refuse it.
    pub fn count_prompt(&self, prompt: &Prompt) -> Result<u32, GenerateError> {
        Ok(tokens_u32(self.encode(prompt)?.len()))
    }

    /// Why conversations are refused, if they are.
    pub(crate) fn template_error(&self) -> Option<&TemplateError> {
        self.0.template.as_ref().err()
    }

    /// Not empty.
    pub(crate) fn encode(&self, prompt: &Prompt) -> Result<Vec<Token>, GenerateError> {
        let (tokens, param) = match prompt {
            Prompt::Chat(prompt) => (self.encode_chat(prompt)?, "messages"),
            // The caller wrote the whole prompt, so special tokens in it are meant.
            Prompt::Text(text) => (self.0.model.tokenize(text, true, true), "prompt"),
            Prompt::Tokens(tokens) => (self.known(tokens)?, "prompt"),
        };
        if tokens.is_empty() {
            return Err(invalid(param, format!("{param} is empty")));
        }
        Ok(tokens)
    }

    fn known(&self, tokens: &[u32]) -> Result<Vec<Token>, GenerateError> {
        tokens
            .iter()
            .map(|&token| {
                self.0.model.valid_token(token).ok_or_else(|| {
                    invalid(
                        "prompt",
                        format!("token {token} is not in this model's vocabulary"),
                    )
                })
            })
            .collect()
    }

    fn encode_chat(&self, prompt: &ChatPrompt) -> Result<Vec<Token>, GenerateError> {
        let Parts { model, template } = &*self.0;
        let template_error = |error: &TemplateError| invalid("messages", error.to_string());
        let template = template.as_ref().map_err(template_error)?;
        let pieces = template
            .render(prompt)
            .map_err(|error| template_error(&error))?;
        // A template that prints BOS itself must not get a second one.
        let prints_bos = model
            .bos()
            .map(|bos| model.token_text(bos))
            .is_some_and(|bos| !bos.is_empty() && pieces[0].starts_with(&bos));
        let mut tokens = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let add_special = index == 0 && !prints_bos;
            tokens.extend(model.tokenize(piece, add_special, true));
        }
        Ok(tokens)
    }
}

fn compile_template(model: &Model) -> Result<ChatTemplate, TemplateError> {
    let text = |token: Option<Token>| {
        token
            .map(|token| model.token_text(token))
            .unwrap_or_default()
    };
    let vocab = Token::try_from(model.vocab_size()).unwrap_or(Token::MAX);
    let control = (0..vocab)
        .filter(|&token| model.is_control(token))
        .map(|token| model.token_text(token))
        .collect();
    ChatTemplate::new(
        model.chat_template(),
        text(model.bos()),
        text(model.eos()),
        control,
    )
}
