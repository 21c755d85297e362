//! Any OpenAI-compatible server as the engine: vLLM, SGLang, llama-server, Ollama and others. Tokens
//! are counted by the usage that it reports.

mod answer;
mod unpaid;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use tenzro_api::{GenerateStream, Inference};
use tenzro_protocol::inference::{
    CONTEXT_TOKENS_DEFAULT, EmbedRequest, Embeddings, EngineGauges, GenerateError, GenerateRequest,
    ModelCard, Prompt, PromptSize, ServerState, prompt_bound,
};
use tenzro_protocol::openai::chat::{ChatRequest, Content, Message};
use tenzro_protocol::openai::completions::{CompletionRequest, Input};
use tenzro_protocol::openai::embeddings::{EmbeddingRequest, EncodingFormat, Vector};
use tenzro_protocol::openai::{self, Parameters, Stop, StreamOptions};

use crate::openai_client::{ClientError, OpenAiServer};
use answer::{Allowance, events};
use unpaid::not_paid;

/// One model of an upstream server, served under our id.
#[derive(Debug)]
pub(crate) struct Upstream {
    client: Arc<dyn OpenAiServer>,
    /// Its name there.
    name: String,
    card: ModelCard,
}

impl Upstream {
    /// `card` is what is shown here, `name` the model's name at the upstream server.
    pub(crate) fn new(client: impl OpenAiServer, name: String, card: ModelCard) -> Self {
        let client = Arc::new(client);
        Self { client, name, card }
    }
}

impl Inference for Upstream {
    fn state(&self) -> ServerState {
        ServerState::Ready
    }

    fn models(&self) -> Vec<ModelCard> {
        vec![self.card.clone()]
    }

    fn generate(
        &self,
        _model: &str,
        request: GenerateRequest,
    ) -> BoxFuture<'static, Result<GenerateStream, GenerateError>> {
        let (client, name) = (Arc::clone(&self.client), self.name.clone());
        let context = self.card.context_length.unwrap_or(CONTEXT_TOKENS_DEFAULT);
        Box::pin(async move {
            let parameters = parameters(&request);
            // Nobody pays for more than fits the context.
            let context = request.budget.as_ref().map(|_| context);
            let allowance = Allowance {
                answer_tokens_max: request.max_tokens.or(context),
                budget: request.budget,
            };
            match request.prompt {
                Prompt::Chat(prompt) => {
                    let messages = prompt.messages.into_iter().map(|message| Message {
                        role: message.role,
                        content: Some(Content::Text(message.content)),
                        name: message.name,
                        ..Message::default()
                    });
                    let kwargs = prompt.template_kwargs;
                    let chat = ChatRequest {
                        model: name,
                        messages: messages.collect(),
                        logprobs: request.logprobs.map(|_| true),
                        top_logprobs: request.logprobs.map(u32::from),
                        chat_template_kwargs: (!kwargs.is_empty()).then_some(kwargs),
                        parameters,
                        ..ChatRequest::default()
                    };
                    let chunks = client.chat(chat).await.map_err(|error| refused(&error))?;
                    Ok(events(chunks, allowance).boxed())
                }
                prompt => {
                    let input = input_of(prompt)?;
                    let completion = CompletionRequest {
                        model: name,
                        prompt: input,
                        echo: None,
                        logprobs: request.logprobs.map(u32::from),
                        best_of: None,
                        parameters,
                        other: openai::Other::default(),
                    };
                    let chunks = client.complete(completion).await;
                    let chunks = chunks.map_err(|error| refused(&error))?;
                    Ok(events(chunks, allowance).boxed())
                }
            }
        })
    }

    fn count_prompt(
        &self,
        _model: &str,
        request: &GenerateRequest,
    ) -> BoxFuture<'static, Result<PromptSize, GenerateError>> {
        let size = prompt_bound::prompt_size(&request.prompt);
        Box::pin(async move { Ok(size) })
    }

    fn embed(
        &self,
        _model: &str,
        request: EmbedRequest,
    ) -> BoxFuture<'static, Result<Embeddings, GenerateError>> {
        let (client, model) = (Arc::clone(&self.client), self.name.clone());
        Box::pin(async move {
            let mut vectors = Vec::new();
            let mut prompt_tokens = 0u32;
            let mut costs = Vec::new();
            for input in request.inputs {
                let request = EmbeddingRequest {
                    model: model.clone(),
                    input: input_of(input)?,
                    encoding_format: Some(EncodingFormat::Float),
                    dimensions: None,
                    other: openai::Other::default(),
                };
                let answer = client
                    .embed(request)
                    .await
                    .map_err(|error| refused(&error))?;
                prompt_tokens = prompt_tokens.saturating_add(answer.usage.prompt_tokens);
                costs.push(answer.usage.cost);
                match answer
                    .data
                    .into_iter()
                    .next()
                    .map(|object| object.embedding)
                {
                    Some(Vector::Float(vector)) => vectors.push(vector),
                    _ => return Err(not_understood("it sent no vector")),
                }
            }
            Ok(Embeddings {
                vectors,
                prompt_tokens,
                provider: None,
                cost: openai::total_cost(costs),
            })
        })
    }

    fn count_inputs(
        &self,
        _model: &str,
        request: &EmbedRequest,
    ) -> BoxFuture<'static, Result<PromptSize, GenerateError>> {
        let bound = |all: PromptSize, input: &Prompt| match input {
            Prompt::Chat(_) => Err(conversation()),
            input => Ok(all.plus(prompt_bound::prompt_size(input))),
        };
        let nothing = PromptSize::exact(0);
        let size = request.inputs.iter().try_fold(nothing, bound);
        Box::pin(async move { size })
    }

    fn gauges(&self) -> Option<EngineGauges> {
        None
    }
}

fn parameters(request: &GenerateRequest) -> Parameters {
    let sampling = &request.sampling;
    let bias = sampling.logit_bias.iter();
    Parameters {
        n: None,
        max_tokens: request.max_tokens,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k,
        min_p: sampling.min_p,
        repeat_penalty: sampling.repeat_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        logit_bias: (!sampling.logit_bias.is_empty()).then(|| {
            bias.map(|(token, bias)| (token.to_string(), *bias))
                .collect()
        }),
        seed: sampling.seed.map(u64::cast_signed),
        stop: (!request.stop.is_empty()).then(|| Stop::Many(request.stop.clone())),
        stream: Some(true),
        stream_options: Some(StreamOptions {
            include_usage: Some(true),
        }),
        ignore_eos: request.ignore_eos.then_some(true),
    }
}

fn input_of(prompt: Prompt) -> Result<Input, GenerateError> {
    match prompt {
        Prompt::Text(text) => Ok(Input::Text(text)),
        Prompt::Tokens(tokens) => Ok(Input::Tokens(tokens)),
        Prompt::Chat(_) => Err(conversation()),
    }
}

fn conversation() -> GenerateError {
    GenerateError::Invalid {
        param: "input",
        message: "a conversation cannot be embedded".to_owned(),
    }
}

fn not_understood(message: &str) -> GenerateError {
    GenerateError::Upstream {
        status: None,
        message: message.to_owned(),
    }
}

fn refused(error: &ClientError) -> GenerateError {
    match error {
        ClientError::Server {
            status,
            error: object,
            retry_after,
        } => {
            let code = object.code.as_deref().unwrap_or_default();
            let is_overflow = matches!(
                code,
                "context_length_exceeded" | "exceed_context_size_error"
            );
            match status {
                400 if is_overflow => GenerateError::UpstreamContextLength {
                    message: object.message.clone(),
                },
                400 | 422 => GenerateError::Invalid {
                    param: "prompt",
                    message: object.message.clone(),
                },
                429 => GenerateError::UpstreamBusy {
                    message: object.message.clone(),
                    retry_after: retry_after.unwrap_or(Duration::from_secs(1)),
                },
                503 => GenerateError::Unavailable {
                    message: object.message.clone(),
                },
                status => GenerateError::Upstream {
                    status: Some(*status),
                    message: object.message.clone(),
                },
            }
        }
        ClientError::Payment(error) => not_paid(error),
        ClientError::Connection(message) | ClientError::Protocol(message) => {
            GenerateError::Upstream {
                status: None,
                message: message.clone(),
            }
        }
    }
}
