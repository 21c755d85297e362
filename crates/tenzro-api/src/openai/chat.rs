//! `POST /v1/chat/completions`.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use tenzro_protocol::inference::{
    self, ChatMessage, ChatPrompt, GenerateEvent, Prompt, ScoredToken,
};
use tenzro_protocol::openai::chat::{
    AssistantMessage, ChatChunk, ChatCompletion, ChatRequest, Choice, ChunkChoice, Content,
    Logprobs, Message, MessageDelta, TokenLogprob, TopLogprob,
};
use tenzro_protocol::openai::{Usage, finish_reason};

use super::Choices;
use super::parameters::{Checked, check_other};
use crate::bill::Payer;
use crate::error::{ApiError, Failure};
use crate::extract::JsonBody;
use crate::request_id;
use crate::server::Limits;
use crate::sse::{self, ChunkWriter, Events};
use crate::state::AppState;

/// Most alternatives per token. Source: OpenAI API reference, `top_logprobs`.
const TOP_LOGPROBS_MAX: u32 = 20;

/// Answers a conversation, as one body or as a stream.
pub(crate) async fn create(
    State(state): State<AppState>,
    payer: Option<Extension<Payer>>,
    JsonBody(request): JsonBody<ChatRequest>,
) -> Result<Response, Failure> {
    let admission = state.admit(&request.model)?;
    let (prompt, checked) = check(request, &state.limits)?;
    let frame = Frame {
        id: request_id::unique("chatcmpl-"),
        created: unix_seconds(),
        model: admission.model.id.clone(),
        fingerprint: state.fingerprint.to_string(),
    };
    let requests = checked.requests(&Prompt::Chat(prompt));
    let payer = payer.map(|Extension(payer)| payer);
    let terms = checked.terms("messages");
    let mut choices = Choices::start(&state, admission, payer, requests, terms).await?;
    if checked.stream {
        choices.wait_for_first(state.limits.keep_alive).await?;
        let writer = Writer::new(frame, &checked);
        return Ok(sse::respond(choices, writer, state.limits.keep_alive));
    }
    let answer = collect(&mut choices, frame, checked.n).await?;
    Ok(choices.settle(Json(answer)).await?)
}

/// What is the same in all chunks of an answer.
struct Frame {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
}

fn check(request: ChatRequest, limits: &Limits) -> Result<(ChatPrompt, Checked), ApiError> {
    check_other(&request.other)?;
    let messages = check_messages(request.messages, limits)?;
    let max_tokens = match request.max_completion_tokens {
        Some(tokens) => Some((tokens, "max_completion_tokens")),
        None => request
            .parameters
            .max_tokens
            .map(|tokens| (tokens, "max_tokens")),
    };
    let logprobs = match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (false, Some(1..)) => {
            return Err(ApiError::invalid(
                "top_logprobs",
                "top_logprobs needs logprobs to be true",
            ));
        }
        (true, Some(count)) if count > TOP_LOGPROBS_MAX => {
            return Err(ApiError::invalid(
                "top_logprobs",
                format!("top_logprobs must be between 0 and {TOP_LOGPROBS_MAX}"),
            ));
        }
        (true, count) => Some(u8::try_from(count.unwrap_or(0)).expect("checked above")),
        (false, _) => None,
    };
    let checked = Checked::new(request.parameters, max_tokens, logprobs, limits)?;
    let prompt = ChatPrompt {
        messages,
        template_kwargs: request.chat_template_kwargs.unwrap_or_default(),
    };
    Ok((prompt, checked))
}

fn check_messages(messages: Vec<Message>, limits: &Limits) -> Result<Vec<ChatMessage>, ApiError> {
    if messages.is_empty() || messages.len() > limits.messages_max {
        return Err(ApiError::invalid(
            "messages",
            format!("messages must have 1 to {} entries", limits.messages_max),
        ));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(index, message)| check_message(index, message))
        .collect()
}

fn check_message(index: usize, message: Message) -> Result<ChatMessage, ApiError> {
    let role = match message.role.as_str() {
        // Templates know the older name.
        "developer" => "system",
        "system" | "user" | "assistant" | "tool" => &message.role,
        _ => {
            return Err(ApiError::invalid(
                format!("messages[{index}].role"),
                "role must be system, developer, user, assistant or tool",
            ));
        }
    };
    for field in ["tool_calls", "function_call", "audio"] {
        if message
            .other
            .get(field)
            .is_some_and(|value| !value.is_null())
        {
            return Err(ApiError::unsupported(&format!("messages[{index}].{field}")));
        }
    }
    let content = match message.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let mut texts = Vec::with_capacity(parts.len());
            for (number, part) in parts.into_iter().enumerate() {
                match (part.kind.as_str(), part.text) {
                    ("text", Some(text)) => texts.push(text),
                    ("text", None) => {
                        return Err(ApiError::invalid(
                            format!("messages[{index}].content[{number}].text"),
                            "a text part needs text",
                        ));
                    }
                    _ => {
                        return Err(ApiError::unsupported(&format!(
                            "messages[{index}].content[{number}].type"
                        )));
                    }
                }
            }
            texts.join("\n")
        }
        None if role == "assistant" => String::new(),
        None => {
            return Err(ApiError::invalid(
                format!("messages[{index}].content"),
                "content is required",
            ));
        }
    };
    Ok(ChatMessage {
        role: role.to_owned(),
        content,
        name: message.name,
    })
}

async fn collect(choices: &mut Choices, frame: Frame, n: u32) -> Result<ChatCompletion, ApiError> {
    let mut answers: Vec<Choice> = (0..n)
        .map(|index| Choice {
            index,
            message: AssistantMessage {
                role: "assistant".to_owned(),
                content: Some(String::new()),
                refusal: None,
            },
            logprobs: None,
            finish_reason: None,
        })
        .collect();
    let mut usages = vec![inference::Usage::default(); n as usize];
    while let Some(event) = choices.next().await {
        let (index, event) = event?;
        let answer = &mut answers[index as usize];
        match event {
            GenerateEvent::Started(_) => {}
            GenerateEvent::Delta(delta) => {
                let content = answer.message.content.get_or_insert_default();
                content.push_str(&delta.text);
                if let Some(new) = logprobs(delta.logprobs) {
                    let all = answer.logprobs.get_or_insert(Logprobs {
                        content: Some(Vec::new()),
                        refusal: None,
                    });
                    all.content
                        .get_or_insert_default()
                        .extend(new.content.unwrap_or_default());
                }
            }
            GenerateEvent::Finished(finished) => {
                answer.finish_reason = Some(finish_reason(finished.reason).to_owned());
                usages[index as usize] = finished.usage;
            }
        }
    }
    Ok(ChatCompletion {
        id: frame.id,
        object: "chat.completion".to_owned(),
        created: frame.created,
        model: frame.model,
        system_fingerprint: Some(frame.fingerprint),
        choices: answers,
        usage: Some(Usage::of_choices(&usages)),
    })
}

struct Writer {
    /// Used for one event after the other: only its choice changes.
    chunk: ChatChunk,
    usages: Vec<inference::Usage>,
}

impl Writer {
    fn new(frame: Frame, checked: &Checked) -> Self {
        Self {
            chunk: ChatChunk {
                id: frame.id,
                object: "chat.completion.chunk".to_owned(),
                created: frame.created,
                model: frame.model,
                system_fingerprint: Some(frame.fingerprint),
                choices: Vec::with_capacity(1),
                usage: checked.include_usage.then_some(None),
            },
            usages: vec![inference::Usage::default(); checked.n as usize],
        }
    }
}

impl ChunkWriter for Writer {
    fn event(&mut self, index: u32, event: GenerateEvent, out: &mut Events) {
        let mut choice = ChunkChoice {
            index,
            delta: MessageDelta::default(),
            logprobs: None,
            finish_reason: None,
        };
        match event {
            GenerateEvent::Started(_) => {
                choice.delta = MessageDelta {
                    role: Some("assistant".to_owned()),
                    content: Some(String::new()),
                };
            }
            GenerateEvent::Delta(delta) => {
                choice.delta.content = Some(delta.text);
                choice.logprobs = logprobs(delta.logprobs);
            }
            GenerateEvent::Finished(finished) => {
                choice.finish_reason = Some(finish_reason(finished.reason).to_owned());
                self.usages[index as usize] = finished.usage;
            }
        }
        self.chunk.choices.clear();
        self.chunk.choices.push(choice);
        out.push(&self.chunk);
    }

    fn end(&mut self, out: &mut Events) {
        if let Some(usage) = &mut self.chunk.usage {
            *usage = Some(Usage::of_choices(&self.usages));
            self.chunk.choices.clear();
            out.push(&self.chunk);
        }
    }
}

fn logprobs(tokens: Vec<inference::TokenLogprob>) -> Option<Logprobs> {
    if tokens.is_empty() {
        return None;
    }
    let top = |token: ScoredToken| TopLogprob {
        token: String::from_utf8_lossy(&token.bytes).into_owned(),
        logprob: token.logprob,
        bytes: Some(token.bytes),
    };
    let content = tokens
        .into_iter()
        .map(|token| TokenLogprob {
            token: String::from_utf8_lossy(&token.chosen.bytes).into_owned(),
            logprob: token.chosen.logprob,
            bytes: Some(token.chosen.bytes),
            top_logprobs: token.top.into_iter().map(top).collect(),
        })
        .collect();
    Some(Logprobs {
        content: Some(content),
        refusal: None,
    })
}

/// Now, for `created`.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
