//! From a request to tokens, or to the reason why it is refused. Needs nothing but the model's
//! immutable parts.

use tenzro_protocol::inference::{
    ChatPrompt, EmbedRequest, GenerateError, GenerateRequest, Prompt,
};

use super::{Inner, invalid, tokens_u32};
use crate::chat_template::TemplateError;
use crate::embedder;
use crate::llama::Token;

/// A request that can be computed.
#[derive(Debug)]
pub(super) struct Checked {
    /// Not empty, shorter than the context.
    pub(super) prompt: Vec<Token>,
    /// At least 1; prompt and answer together fit the context.
    pub(super) answer_tokens_max: u32,
    /// The request's logit bias with checked ids.
    pub(super) bias: Vec<(Token, f32)>,
}

impl Inner {
    pub(super) fn check(&self, request: &GenerateRequest) -> Result<Checked, GenerateError> {
        let prompt = self.tokens_of(&request.prompt)?;
        let prompt_tokens = tokens_u32(prompt.len());
        let context_tokens = self.info.context_tokens;
        if prompt_tokens >= context_tokens {
            return Err(GenerateError::ContextLength {
                prompt_tokens,
                context_tokens,
            });
        }
        if request.max_tokens == Some(0) {
            return Err(invalid(
                "max_tokens",
                "max_tokens must be at least 1".to_owned(),
            ));
        }
        let bias = request
            .sampling
            .logit_bias
            .iter()
            .map(|&(token, bias)| match self.model.valid_token(token) {
                Some(id) => Ok((id, bias)),
                None => Err(invalid(
                    "logit_bias",
                    format!("logit_bias names token {token}, which this model does not have"),
                )),
            })
            .collect::<Result<Vec<(Token, f32)>, GenerateError>>()?;
        Ok(Checked {
            prompt,
            answer_tokens_max: request
                .max_tokens
                .unwrap_or(u32::MAX)
                .min(context_tokens - prompt_tokens),
            bias,
        })
    }

    pub(super) fn check_inputs(
        &self,
        request: &EmbedRequest,
    ) -> Result<Vec<Vec<Token>>, GenerateError> {
        let context_tokens = embedder::input_tokens_max(&self.model, self.info.context_tokens);
        let check = |input: &Prompt| {
            if matches!(input, Prompt::Chat(_)) {
                let message = "a conversation cannot be embedded".to_owned();
                return Err(invalid("input", message));
            }
            let tokens = self.tokens_of(input)?;
            let prompt_tokens = tokens_u32(tokens.len());
            if prompt_tokens > context_tokens {
                return Err(GenerateError::ContextLength {
                    prompt_tokens,
                    context_tokens,
                });
            }
            Ok(tokens)
        };
        request.inputs.iter().map(check).collect()
    }

    fn tokens_of(&self, prompt: &Prompt) -> Result<Vec<Token>, GenerateError> {
        let (tokens, param) = match prompt {
            Prompt::Chat(prompt) => (self.chat_tokens(prompt)?, "messages"),
            // The caller wrote the whole prompt, so special tokens in it are meant.
            Prompt::Text(text) => (self.model.tokenize(text, true, true), "prompt"),
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
                self.model.valid_token(token).ok_or_else(|| {
                    invalid(
                        "prompt",
                        format!("token {token} is not in this model's vocabulary"),
                    )
                })
            })
            .collect()
    }

    fn chat_tokens(&self, prompt: &ChatPrompt) -> Result<Vec<Token>, GenerateError> {
        let template_error = |error: &TemplateError| invalid("messages", error.to_string());
        let template = self.template.as_ref().map_err(template_error)?;
        let pieces = template
            .render(prompt)
            .map_err(|error| template_error(&error))?;
        // A template that prints BOS itself must not get a second one.
        let prints_bos = self
            .model
            .bos()
            .map(|bos| self.model.token_text(bos))
            .is_some_and(|bos| !bos.is_empty() && pieces[0].starts_with(&bos));
        let mut tokens = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let add_special = index == 0 && !prints_bos;
            tokens.extend(self.model.tokenize(piece, add_special, true));
        }
        Ok(tokens)
    }
}
