//! `tenzro_chat`: one answer of whoever serves the model, paid with the node's wallet.

use std::sync::{Arc, Weak};
use std::time::Instant;

use futures::StreamExt;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tenzro_api::{Caller, GenerateStream};
use tenzro_protocol::amount::Wei;
use tenzro_protocol::inference::{
    ChatMessage, ChatPrompt, Finished, GenerateError, GenerateEvent, GenerateRequest, Prompt,
    Sampling,
};
use tenzro_protocol::json_rpc::{RpcError, code};
use tenzro_protocol::openai::{Stop, finish_reason};

use super::params::{read, required};
use super::{NodeRpc, internal, not_operator};
use crate::choice::Demand;
use crate::network_inference::NetworkInference;

/// Messages of a conversation. Source: the limits of the OpenAI API here.
const MESSAGES_MAX: usize = 2048;
/// Stop strings, and bytes of each.
const STOP_MAX: usize = 4;
const STOP_BYTES_MAX: usize = 512;
/// Longest answer in bytes.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Strategies that a request may name; of one endpoint all choose the same.
const STRATEGIES: [&str; 4] = ["price", "latency", "reputation", "weighted"];

#[derive(Debug, Deserialize)]
struct ChatParam {
    #[serde(alias = "model_id", alias = "modelId")]
    model: Option<String>,
    messages: Option<Vec<Message>>,
    #[serde(alias = "maxTokens", alias = "max_completion_tokens")]
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    #[serde(alias = "topP")]
    top_p: Option<f32>,
    stop: Option<Stop>,
    seed: Option<i64>,
    strategy: Option<String>,
    /// Wei for a token of the prompt, and for a token of the answer.
    #[serde(alias = "maxPrice")]
    max_price: Option<Wei>,
    provider: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    content: String,
    name: Option<String>,
}

impl NodeRpc {
    pub(super) async fn chat(&self, caller: Caller, params: Value) -> Result<Value, RpcError> {
        if !self.may_spend(caller) {
            return Err(not_operator());
        }
        let param: ChatParam = read(params, &["model", "messages"])?;
        let model = required(param.model.clone(), "model")?;
        let request = request(&param)?;
        self.catch_up().await;
        let network = self.network.get().and_then(Weak::upgrade);
        let network: Arc<NetworkInference> = network.ok_or_else(|| internal("not complete yet"))?;
        let began = Instant::now();
        let demand = Demand::of_answer(&request);
        let chosen = network
            .choose(&model, demand, param.provider.as_deref(), param.max_price)
            .await
            .map_err(|error| from_engine(&error))?;
        let endpoint = chosen.endpoint.clone();
        let stream = chosen.generate(request).await;
        let answer = collect(stream.map_err(|error| from_engine(&error))?).await?;
        let usage = answer.finished.usage;
        let total = usage.prompt_tokens.saturating_add(usage.completion_tokens);
        let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(json!({
            "id": format!("chat-{:x}", Timestamp::now().as_nanosecond()),
            "model": endpoint.model_id,
            "model_id": endpoint.model_id,
            "provider": endpoint.provider,
            "endpoint_id": endpoint.endpoint_id,
            "content": answer.text,
            "response": answer.text,
            "output": answer.text,
            "message": {"role": "assistant", "content": answer.text},
            "finish_reason": finish_reason(answer.finished.reason),
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "total_tokens": total,
            },
            "tokens_used": total,
            "cost": usage.cost,
            "cost_tnzo": usage.cost.map(Wei::tnzo),
            "latency_ms": milliseconds,
        }))
    }
}

fn request(param: &ChatParam) -> Result<GenerateRequest, RpcError> {
    let invalid = |message: String| Err(RpcError::invalid_params(message));
    let messages = required(param.messages.as_ref(), "messages")?;
    if messages.is_empty() || messages.len() > MESSAGES_MAX {
        return invalid(format!("messages: must have 1 to {MESSAGES_MAX} entries"));
    }
    if let Some(strategy) = &param.strategy
        && !STRATEGIES.contains(&strategy.as_str())
    {
        return invalid(format!(
            "strategy: must be one of {}",
            STRATEGIES.join(", ")
        ));
    }
    let mut conversation = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        let role = match message.role.as_str() {
            "developer" => "system",
            role @ ("system" | "user" | "assistant" | "tool") => role,
            _ => {
                return invalid(format!(
                    "messages[{index}].role: must be system, user, assistant or tool"
                ));
            }
        };
        conversation.push(ChatMessage {
            role: role.to_owned(),
            content: message.content.clone(),
            name: message.name.clone(),
        });
    }
    let range = |name: &str, value: Option<f32>, most: f32| match value {
        Some(value) if !(0.0..=most).contains(&value) => Err(RpcError::invalid_params(format!(
            "{name}: must be between 0 and {most}"
        ))),
        value => Ok(value),
    };
    if param.max_tokens == Some(0) {
        return invalid("max_tokens: must be at least 1".to_owned());
    }
    let stop = param.stop.clone().map(Stop::into_vec).unwrap_or_default();
    let is_odd = |one: &String| one.is_empty() || one.len() > STOP_BYTES_MAX;
    if stop.len() > STOP_MAX || stop.iter().any(is_odd) {
        return invalid(format!(
            "stop: at most {STOP_MAX} strings of 1 to {STOP_BYTES_MAX} bytes"
        ));
    }
    Ok(GenerateRequest {
        prompt: Prompt::Chat(ChatPrompt {
            messages: conversation,
            template_kwargs: Default::default(),
        }),
        max_tokens: param.max_tokens,
        sampling: Sampling {
            temperature: range("temperature", param.temperature, 2.0)?,
            top_p: range("top_p", param.top_p, 1.0)?,
            seed: param.seed.map(i64::cast_unsigned),
            ..Sampling::default()
        },
        stop,
        ignore_eos: false,
        logprobs: None,
        budget: None,
    })
}

struct Whole {
    text: String,
    finished: Finished,
}

async fn collect(mut stream: GenerateStream) -> Result<Whole, RpcError> {
    let mut text = String::new();
    while let Some(event) = stream.next().await {
        match event.map_err(|error| from_engine(&error))? {
            GenerateEvent::Started(_) => {}
            GenerateEvent::Delta(delta) if text.len() + delta.text.len() > ANSWER_BYTES_MAX => {
                return Err(RpcError::new(code::SERVER, "the answer is too long"));
            }
            GenerateEvent::Delta(delta) => text.push_str(&delta.text),
            GenerateEvent::Finished(finished) => return Ok(Whole { text, finished }),
        }
    }
    Err(RpcError::new(code::SERVER, "the answer broke off"))
}

fn from_engine(error: &GenerateError) -> RpcError {
    match error {
        GenerateError::ContextLength { .. }
        | GenerateError::UpstreamContextLength { .. }
        | GenerateError::Invalid { .. } => RpcError::invalid_params(error.to_string()),
        GenerateError::Unavailable { .. } => RpcError::new(code::NOT_FOUND, error.to_string()),
        GenerateError::Payment { .. } => RpcError::new(code::TRANSACTION, error.to_string()),
        GenerateError::QueueFull { .. }
        | GenerateError::UpstreamBusy { .. }
        | GenerateError::Upstream { .. } => RpcError::new(code::ENDPOINT, error.to_string()),
        GenerateError::Internal { message } => internal(message),
    }
}
