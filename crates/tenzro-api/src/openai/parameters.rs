//! Checks what chats and text completions have in common.

use serde_json::Value;
use tenzro_protocol::inference::{GenerateRequest, Prompt, Sampling};
use tenzro_protocol::openai::{Other, Parameters};

use crate::bill::Terms;
use crate::error::ApiError;
use crate::server::Limits;

/// Fields that OpenAI or llama-server know and this server does not support: silently ignoring them
/// would answer another question.
const UNSUPPORTED: [&str; 23] = [
    "tools",
    "functions",
    "function_call",
    "audio",
    "web_search_options",
    "prediction",
    "moderation",
    "suffix",
    "grammar",
    "json_schema",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "chat_template",
    "stop_token_ids",
    "reasoning_effort",
    "return_progress",
    "input_extra",
    "typical_p",
    "mirostat",
    "xtc_probability",
];

/// Refuses fields that are known but not supported. Null and neutral values are fine.
pub(crate) fn check_other(other: &Other) -> Result<(), ApiError> {
    for (name, value) in other {
        let is_neutral = match name.as_str() {
            "response_format" => value.get("type").and_then(Value::as_str) == Some("text"),
            "tool_choice" | "function_call" => matches!(value.as_str(), Some("none" | "auto")),
            "reasoning_effort" => value == "none",
            "verbosity" => value == "medium",
            "suffix" | "grammar" => value == "",
            "return_progress" => value == false,
            "modalities" => value == &serde_json::json!(["text"]),
            "tools" | "functions" | "stop_token_ids" => value.as_array().is_some_and(Vec::is_empty),
            "mirostat" | "xtc_probability" => value.as_f64() == Some(0.0),
            "typical_p" => value.as_f64() == Some(1.0),
            name => !UNSUPPORTED.contains(&name),
        };
        if !is_neutral && !value.is_null() {
            return Err(ApiError::unsupported(name));
        }
    }
    Ok(())
}

/// The checked parameters of one request.
#[derive(Debug, Clone)]
pub(crate) struct Checked {
    /// Answers per prompt.
    pub(crate) n: u32,
    /// Whether to stream.
    pub(crate) stream: bool,
    /// Whether a stream ends with the usage.
    pub(crate) include_usage: bool,
    template: GenerateRequest,
    seed: Option<u64>,
}

impl Checked {
    /// `max_tokens` is the request's limit under whichever name it came, `logprobs` the number of
    /// alternatives.
    pub(crate) fn new(
        parameters: Parameters,
        max_tokens: Option<(u32, &'static str)>,
        logprobs: Option<u8>,
        limits: &Limits,
    ) -> Result<Self, ApiError> {
        let n = parameters.n.unwrap_or(1);
        if n == 0 || n > limits.choices_max {
            return Err(ApiError::invalid(
                "n",
                format!("n must be between 1 and {}", limits.choices_max),
            ));
        }
        if let Some((0, name)) = max_tokens {
            return Err(ApiError::invalid(
                name,
                format!("{name} must be at least 1"),
            ));
        }
        let stream = parameters.stream.unwrap_or(false);
        if parameters.stream_options.is_some() && !stream {
            return Err(ApiError::invalid(
                "stream_options",
                "stream_options is only allowed with stream",
            ));
        }
        let include_usage = parameters
            .stream_options
            .and_then(|options| options.include_usage)
            .unwrap_or(false);
        let stop = check_stop(parameters.stop.clone().map(|stop| stop.into_vec()), limits)?;
        let sampling = check_sampling(&parameters, limits)?;
        Ok(Self {
            n,
            stream,
            include_usage,
            seed: sampling.seed,
            template: GenerateRequest {
                prompt: Prompt::Text(String::new()),
                max_tokens: max_tokens.map(|(tokens, _)| tokens),
                sampling,
                stop,
                ignore_eos: parameters.ignore_eos.unwrap_or(false),
                logprobs,
                budget: None,
            },
        })
    }

    /// What whoever pays has to know; `prompt` is what the request calls its prompt.
    pub(crate) fn terms(&self, prompt: &'static str) -> Terms {
        Terms {
            n: self.n,
            is_stream: self.stream,
            prompt,
        }
    }

    /// The requests for the `n` answers to one prompt. Each gets a seed of its own.
    pub(crate) fn requests(&self, prompt: &Prompt) -> Vec<GenerateRequest> {
        (0..self.n)
            .map(|index| {
                let mut request = self.template.clone();
                request.prompt = prompt.clone();
                request.sampling.seed = self.seed.map(|seed| seed.wrapping_add(u64::from(index)));
                request
            })
            .collect()
    }
}

fn check_stop(stop: Option<Vec<String>>, limits: &Limits) -> Result<Vec<String>, ApiError> {
    let stop = stop.unwrap_or_default();
    if stop.len() > limits.stop_max {
        return Err(ApiError::invalid(
            "stop",
            format!("stop has more than {} entries", limits.stop_max),
        ));
    }
    let fits = |stop: &String| !stop.is_empty() && stop.len() <= limits.stop_bytes_max;
    if !stop.iter().all(fits) {
        return Err(ApiError::invalid(
            "stop",
            format!(
                "each stop string must have 1 to {} bytes",
                limits.stop_bytes_max
            ),
        ));
    }
    Ok(stop)
}

fn check_sampling(parameters: &Parameters, limits: &Limits) -> Result<Sampling, ApiError> {
    let range = |name: &'static str, value: Option<f32>, least: f32, most: f32| match value {
        Some(value) if !(least..=most).contains(&value) => Err(ApiError::invalid(
            name,
            format!("{name} must be between {least} and {most}"),
        )),
        value => Ok(value),
    };
    let bias = parameters.logit_bias.iter().flatten();
    let logit_bias = bias
        .map(|(token, &bias)| {
            let id = token.parse::<u32>().map_err(|_| {
                ApiError::invalid("logit_bias", "the keys of logit_bias must be token ids")
            })?;
            if !(-100.0..=100.0).contains(&bias) {
                return Err(ApiError::invalid(
                    "logit_bias",
                    "the values of logit_bias must be between -100 and 100",
                ));
            }
            Ok((id, bias))
        })
        .collect::<Result<Vec<(u32, f32)>, ApiError>>()?;
    if logit_bias.len() > limits.logit_bias_max {
        return Err(ApiError::invalid(
            "logit_bias",
            format!("logit_bias has more than {} entries", limits.logit_bias_max),
        ));
    }
    Ok(Sampling {
        temperature: range("temperature", parameters.temperature, 0.0, 2.0)?,
        top_k: parameters.top_k,
        top_p: range("top_p", parameters.top_p, 0.0, 1.0)?,
        min_p: range("min_p", parameters.min_p, 0.0, 1.0)?,
        repeat_penalty: range("repeat_penalty", parameters.repeat_penalty, 0.01, 10.0)?,
        presence_penalty: range("presence_penalty", parameters.presence_penalty, -2.0, 2.0)?,
        frequency_penalty: range("frequency_penalty", parameters.frequency_penalty, -2.0, 2.0)?,
        logit_bias,
        seed: parameters.seed.map(i64::cast_unsigned),
    })
}
