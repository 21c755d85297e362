//! What was delivered of every answer of a request.

use tenzro_protocol::inference::{FinishReason, GenerateEvent, Usage};
use tenzro_protocol::openai::{self, finish_reason};

use super::Numbered;

/// Tokens that an event costs. Some have no text: nothing is delivered then.
pub(super) fn tokens_of(event: &GenerateEvent) -> u32 {
    match event {
        GenerateEvent::Delta(delta) if !delta.text.is_empty() => delta.token_count,
        GenerateEvent::Finished(finished) => finished.late_tokens,
        _ => 0,
    }
}

/// What was delivered of every answer.
#[derive(Debug)]
pub(crate) struct Tally {
    answers: Vec<Delivered>,
    /// Answers per prompt.
    n: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Delivered {
    usage: Usage,
    finish: Option<FinishReason>,
}

impl Tally {
    pub(super) fn new(answers: usize, n: u32) -> Self {
        Self {
            answers: vec![Delivered::default(); answers],
            n: n.max(1) as usize,
        }
    }

    pub(super) fn note(&mut self, (index, event): &Numbered) {
        let Some(answer) = self.answers.get_mut(*index as usize) else {
            return;
        };
        let usage = &mut answer.usage;
        usage.completion_tokens = usage.completion_tokens.saturating_add(tokens_of(event));
        match event {
            GenerateEvent::Started(started) => {
                usage.prompt_tokens = started.prompt_tokens;
                usage.cached_tokens = started.cached_tokens;
            }
            GenerateEvent::Delta(_) => {}
            GenerateEvent::Finished(finished) => {
                usage.prompt_tokens = finished.usage.prompt_tokens;
                usage.cached_tokens = finished.usage.cached_tokens;
                answer.finish = Some(finished.reason);
            }
        }
    }

    /// Answers without an end, with what they used so far.
    pub(crate) fn unfinished(&self) -> Vec<(u32, Usage)> {
        let answers = (0u32..).zip(&self.answers);
        answers
            .filter(|(_, answer)| answer.finish.is_none())
            .map(|(index, answer)| (index, answer.usage))
            .collect()
    }

    /// OpenAI's word for the end of all answers: the one of them that is worst.
    pub(crate) fn finish(&self) -> &'static str {
        let reasons = || self.answers.iter().filter_map(|answer| answer.finish);
        let worst = [FinishReason::PaymentRequired, FinishReason::Length]
            .into_iter()
            .find(|reason| reasons().any(|other| other == *reason));
        finish_reason(worst.unwrap_or(FinishReason::Stop))
    }

    pub(super) fn output_tokens(&self) -> u32 {
        let tokens = self
            .answers
            .iter()
            .map(|answer| answer.usage.completion_tokens);
        tokens.fold(0, u32::saturating_add)
    }

    /// Tokens of all prompts whose size the engine has told.
    pub(super) fn prompt_tokens(&self) -> u32 {
        let prompts = self.answers.chunks(self.n).map(|answers| {
            let told = answers.iter().map(|answer| answer.usage.prompt_tokens);
            told.max().unwrap_or(0)
        });
        prompts.fold(0, u32::saturating_add)
    }

    pub(super) fn cached_tokens(&self) -> u32 {
        let per_prompt = self.answers.chunks(self.n).map(|answers| {
            let usages: Vec<Usage> = answers.iter().map(|answer| answer.usage).collect();
            let usage = openai::Usage::of_choices(&usages);
            usage
                .prompt_tokens_details
                .map_or(0, |details| details.cached_tokens)
        });
        per_prompt.fold(0, u32::saturating_add)
    }
}
