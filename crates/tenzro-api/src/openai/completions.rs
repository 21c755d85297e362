//! `POST /v1/completions`.

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use tenzro_protocol::inference::{self, GenerateEvent, Prompt};
use tenzro_protocol::openai::completions::{
    Completion, CompletionChunk, CompletionRequest, Input, TextChoice, TextLogprobs,
};
use tenzro_protocol::openai::{Usage, finish_reason};

use super::Choices;
use super::chat::unix_seconds;
use super::parameters::{Checked, check_other};
use crate::bill::Payer;
use crate::error::{ApiError, Failure};
use crate::extract::JsonBody;
use crate::request_id;
use crate::server::Limits;
use crate::sse::{self, ChunkWriter, Events};
use crate::state::AppState;

/// Most alternatives per token. Source: OpenAI API reference, `logprobs` of completions.
const LOGPROBS_MAX: u32 = 5;

/// Source: OpenAI API reference, `max_tokens` of completions.
const MAX_TOKENS_DEFAULT: u32 = 16;

/// Continues one or several prompts, as one body or as a stream.
pub(crate) async fn create(
    State(state): State<AppState>,
    payer: Option<Extension<Payer>>,
    JsonBody(request): JsonBody<CompletionRequest>,
) -> Result<Response, Failure> {
    let admission = state.admit(&request.model)?;
    let (prompts, echoes, checked) = check(request, &state.limits)?;
    let requests: Vec<_> = prompts
        .iter()
        .flat_map(|prompt| checked.requests(prompt))
        .collect();
    let writer = Writer {
        chunk: CompletionChunk {
            id: request_id::unique("cmpl-"),
            object: "text_completion".to_owned(),
            created: unix_seconds(),
            model: admission.model.id.clone(),
            system_fingerprint: Some(state.fingerprint.to_string()),
            choices: Vec::with_capacity(1),
            usage: checked.include_usage.then_some(None),
        },
        n: checked.n,
        usages: vec![inference::Usage::default(); requests.len()],
        shown_characters: vec![0; requests.len()],
        echoes,
    };
    let payer = payer.map(|Extension(payer)| payer);
    let terms = checked.terms("prompt");
    let mut choices = Choices::start(&state, admission, payer, requests, terms).await?;
    if checked.stream {
        choices.wait_for_first(state.limits.keep_alive).await?;
        return Ok(sse::respond(choices, writer, state.limits.keep_alive));
    }
    let answer = collect(&mut choices, writer).await?;
    Ok(choices.settle(Json(answer)).await?)
}

type Request = (Vec<Prompt>, Option<Vec<String>>, Checked);

fn check(request: CompletionRequest, limits: &Limits) -> Result<Request, ApiError> {
    check_other(&request.other)?;
    let n = request.parameters.n.unwrap_or(1);
    if request.best_of.is_some_and(|best_of| best_of != n) {
        return Err(ApiError::unsupported("best_of"));
    }
    if request.logprobs.is_some_and(|count| count > LOGPROBS_MAX) {
        return Err(ApiError::invalid(
            "logprobs",
            format!("logprobs must be between 0 and {LOGPROBS_MAX}"),
        ));
    }
    let logprobs = request
        .logprobs
        .map(|count| u8::try_from(count).expect("checked above"));
    let echo = request.echo.unwrap_or(false);
    if echo && logprobs.is_some() {
        let message = "echo is not supported together with logprobs";
        return Err(ApiError::invalid("echo", message));
    }
    let echoes = match (echo, &request.prompt) {
        (false, _) => None,
        (true, Input::Text(text)) => Some(vec![text.clone()]),
        (true, Input::Texts(texts)) => Some(texts.clone()),
        (true, Input::Tokens(_) | Input::TokenLists(_)) => {
            let message = "echo is only supported for prompts that are text";
            return Err(ApiError::invalid("echo", message));
        }
    };
    let prompts = prompts_of(request.prompt, "prompt", limits.choices_max as usize)?;
    if prompts.len().saturating_mul(n as usize) > limits.choices_max as usize {
        return Err(ApiError::invalid(
            "prompt",
            format!("at most {} answers in one request", limits.choices_max),
        ));
    }
    let max_tokens = request.parameters.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT);
    let checked = Checked::new(
        request.parameters,
        Some((max_tokens, "max_tokens")),
        logprobs,
        limits,
    )?;
    Ok((prompts, echoes, checked))
}

/// The four shapes of a prompt or embedding input as a list; `name` is the field.
pub(super) fn prompts_of(
    input: Input,
    name: &'static str,
    count_max: usize,
) -> Result<Vec<Prompt>, ApiError> {
    let prompts: Vec<Prompt> = match input {
        Input::Text(text) => vec![Prompt::Text(text)],
        Input::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
        Input::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
        Input::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
    };
    let is_empty = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => text.is_empty(),
        Prompt::Tokens(tokens) => tokens.is_empty(),
        Prompt::Chat(_) => false,
    };
    if prompts.is_empty() || prompts.iter().any(is_empty) {
        return Err(ApiError::invalid(name, format!("{name} must not be empty")));
    }
    if prompts.len() > count_max {
        return Err(ApiError::invalid(
            name,
            format!("{name} has more than {count_max} entries"),
        ));
    }
    Ok(prompts)
}

async fn collect(choices: &mut Choices, mut writer: Writer) -> Result<Completion, ApiError> {
    let mut answers: Vec<TextChoice> = (0u32..)
        .zip(&writer.usages)
        .map(|(index, _)| writer.empty(index))
        .collect();
    while let Some(event) = choices.next().await {
        let (index, event) = event?;
        let answer = &mut answers[index as usize];
        if let Some(part) = writer.part(index, event) {
            answer.text.push_str(&part.text);
            if let Some(new) = part.logprobs {
                let all = answer.logprobs.get_or_insert_default();
                all.tokens.extend(new.tokens);
                all.token_logprobs.extend(new.token_logprobs);
                all.top_logprobs.extend(new.top_logprobs);
                all.text_offset.extend(new.text_offset);
            }
            answer.finish_reason = part.finish_reason.or(answer.finish_reason.take());
        }
    }
    let usage = writer.usage();
    Ok(Completion {
        id: writer.chunk.id,
        object: writer.chunk.object,
        created: writer.chunk.created,
        model: writer.chunk.model,
        system_fingerprint: writer.chunk.system_fingerprint,
        choices: answers,
        usage: Some(usage),
    })
}

struct Writer {
    /// Used for one event after the other: only its choice changes.
    chunk: CompletionChunk,
    /// Answers per prompt.
    n: u32,
    usages: Vec<inference::Usage>,
    /// Characters of each answer so far, for `text_offset`.
    shown_characters: Vec<usize>,
    /// Texts to repeat before the answers, one per prompt.
    echoes: Option<Vec<String>>,
}

impl Writer {
    fn usage(&self) -> Usage {
        let per_prompt: Vec<Usage> = self
            .usages
            .chunks(self.n as usize)
            .map(Usage::of_choices)
            .collect();
        Usage::sum(&per_prompt)
    }

    fn empty(&self, index: u32) -> TextChoice {
        TextChoice {
            index,
            text: String::new(),
            logprobs: None,
            finish_reason: None,
        }
    }

    /// What an event adds to the answer with that number.
    fn part(&mut self, index: u32, event: GenerateEvent) -> Option<TextChoice> {
        let mut choice = self.empty(index);
        match event {
            GenerateEvent::Started(_) => {
                let prompt = (index / self.n) as usize;
                choice.text = self.echoes.as_ref()?.get(prompt)?.clone();
            }
            GenerateEvent::Delta(delta) => {
                choice.text = delta.text;
                choice.logprobs = self.logprobs(index, delta.logprobs);
            }
            GenerateEvent::Finished(finished) => {
                choice.finish_reason = Some(finish_reason(finished.reason).to_owned());
                self.usages[index as usize] = finished.usage;
            }
        }
        Some(choice)
    }

    fn logprobs(
        &mut self,
        index: u32,
        tokens: Vec<inference::TokenLogprob>,
    ) -> Option<TextLogprobs> {
        if tokens.is_empty() {
            return None;
        }
        let shown = &mut self.shown_characters[index as usize];
        let mut all = TextLogprobs::default();
        for token in tokens {
            let text = String::from_utf8_lossy(&token.chosen.bytes).into_owned();
            all.text_offset.push(*shown);
            *shown += text.chars().count();
            all.tokens.push(text);
            all.token_logprobs.push(token.chosen.logprob);
            all.top_logprobs.push(
                token
                    .top
                    .into_iter()
                    .map(|top| {
                        let text = String::from_utf8_lossy(&top.bytes).into_owned();
                        (text, top.logprob)
                    })
                    .collect(),
            );
        }
        Some(all)
    }
}

impl ChunkWriter for Writer {
    fn event(&mut self, index: u32, event: GenerateEvent, out: &mut Events) {
        if let Some(choice) = self.part(index, event) {
            self.chunk.choices.clear();
            self.chunk.choices.push(choice);
            out.push(&self.chunk);
        }
    }

    fn end(&mut self, out: &mut Events) {
        if self.chunk.usage.is_some() {
            self.chunk.usage = Some(Some(self.usage()));
            self.chunk.choices.clear();
            out.push(&self.chunk);
        }
    }
}
