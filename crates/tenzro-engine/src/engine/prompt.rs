//! From a request to what is computed, or to the reason why it is refused. Needs nothing but the model's
//! immutable parts.

use tenzro_protocol::inference::{EmbedRequest, GenerateError, GenerateRequest, Prompt};

use super::{Inner, invalid, tokens_u32};
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
        let prompt = self.tokenizer.encode(&request.prompt)?;
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
            let tokens = self.tokenizer.encode(input)?;
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
}
