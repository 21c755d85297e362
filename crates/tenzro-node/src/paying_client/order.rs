//! How much a request can cost, from what it says.

use tenzro_payments::payer::audit::{AnswerKind, AnswerShape, PromptTokens};
use tenzro_protocol::inference::prompt_bound::{self, text_bytes_max};
use tenzro_protocol::openai::chat::{ChatRequest, Content};
use tenzro_protocol::openai::completions::{CompletionRequest, Input};
use tenzro_protocol::openai::embeddings::EmbeddingRequest;
use tenzro_protocol::openai::{Parameters, Stop};

/// What a request buys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Purchase {
    pub(super) prompt: PromptTokens,
    pub(super) shape: AnswerShape,
}

/// `tokens_max` is what is paid for of one answer at most, whatever the request says.
pub(super) fn chat_order(request: &ChatRequest, tokens_max: u32) -> Purchase {
    let text = request.messages.iter().map(|message| {
        let content = match &message.content {
            Some(Content::Text(text)) => text_bytes_max(text),
            Some(Content::Parts(parts)) => {
                let texts = parts.iter().filter_map(|part| part.text.as_deref());
                // They are joined by line ends.
                texts.map(|text| text_bytes_max(text) + 1).sum()
            }
            None => 0,
        };
        let name = message.name.as_deref().unwrap_or_default();
        content + text_bytes_max(&message.role) + text_bytes_max(name)
    });
    // A template may print its variables.
    let kwargs = request.chat_template_kwargs.as_ref();
    let kwargs = kwargs.and_then(|kwargs| serde_json::to_string(kwargs).ok());
    let bytes = text.sum::<u64>() + kwargs.map_or(0, |text| text_bytes_max(&text));
    Purchase {
        prompt: PromptTokens::of_text(bytes, request.messages.len().max(1)),
        shape: shape(
            &request.parameters,
            request.max_completion_tokens,
            1,
            tokens_max,
        ),
    }
}

pub(super) fn completion_order(request: &CompletionRequest, tokens_max: u32) -> Purchase {
    let (prompt, prompts) = input(&request.prompt);
    Purchase {
        prompt,
        shape: shape(&request.parameters, None, prompts, tokens_max),
    }
}

pub(super) fn embedding_order(request: &EmbeddingRequest) -> Purchase {
    let (prompt, answers) = input(&request.input);
    Purchase {
        prompt,
        shape: AnswerShape {
            kind: AnswerKind::Vectors,
            answers,
            tokens_max: Some(0),
            stop_bytes: 0,
        },
    }
}

/// Tokens of a prompt or several, and how many there are.
fn input(input: &Input) -> (PromptTokens, u32) {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let all = |prompts: Vec<PromptTokens>| {
        let number = count(prompts.len());
        let all = prompts.into_iter().fold(PromptTokens::counted(0), sum);
        (all, number)
    };
    let of_tokens = |tokens: &Vec<u32>| {
        let size = prompt_bound::of_tokens(tokens.len());
        PromptTokens {
            likely: size.least,
            most: size.tokens,
        }
    };
    match input {
        Input::Text(text) => all(vec![of_text(text)]),
        Input::Tokens(tokens) => all(vec![of_tokens(tokens)]),
        Input::Texts(texts) => all(texts.iter().map(|text| of_text(text)).collect()),
        Input::TokenLists(lists) => all(lists.iter().map(of_tokens).collect()),
    }
}

fn of_text(text: &str) -> PromptTokens {
    PromptTokens::of_text(text_bytes_max(text), 0)
}

fn sum(one: PromptTokens, other: PromptTokens) -> PromptTokens {
    PromptTokens {
        likely: one.likely.saturating_add(other.likely),
        most: one.most.saturating_add(other.most),
    }
}

fn shape(
    parameters: &Parameters,
    newer_max: Option<u32>,
    prompts: u32,
    tokens_max: u32,
) -> AnswerShape {
    let stops = match &parameters.stop {
        None => 0,
        Some(Stop::One(stop)) => stop.len(),
        Some(Stop::Many(stops)) => stops.iter().map(String::len).max().unwrap_or(0),
    };
    let asked = newer_max.or(parameters.max_tokens);
    AnswerShape {
        kind: AnswerKind::Stream,
        answers: parameters.n.unwrap_or(1).saturating_mul(prompts).max(1),
        tokens_max: Some(asked.map_or(tokens_max, |asked| asked.min(tokens_max))),
        stop_bytes: u32::try_from(stops).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tenzro_protocol::inference::{ChatMessage, ChatPrompt, Prompt};

    use super::*;

    #[test]
    fn what_a_chat_buys_is_bounded_by_its_text_and_its_parameters() {
        let request: ChatRequest = serde_json::from_value(json!({
            "model": "m",
            "messages": [
                { "role": "system", "content": "abc" },
                { "role": "user", "name": "ada", "content": [{ "type": "text", "text": "defgh" }] },
            ],
            "n": 2, "max_tokens": 9, "max_completion_tokens": 7, "stop": ["x", "long"],
        }))
        .expect("a request");
        let purchase = chat_order(&request, 100);
        let bytes = 3 + 6 + (5 + 1) + 4 + 3;
        assert_eq!(purchase.prompt, PromptTokens::of_text(bytes, 2));
        let expected = AnswerShape {
            kind: AnswerKind::Stream,
            answers: 2,
            tokens_max: Some(7),
            stop_bytes: 4,
        };
        assert_eq!(purchase.shape, expected);
        let cut = chat_order(&request, 5).shape.tokens_max;
        assert_eq!(cut, Some(5), "more is not paid for");
    }

    #[test]
    fn prompts_of_tokens_are_counted_and_those_of_text_are_bounded() {
        let of = |prompt: serde_json::Value| {
            let request = json!({ "model": "m", "prompt": prompt, "n": 3 });
            let request: CompletionRequest = serde_json::from_value(request).expect("a request");
            let purchase = completion_order(&request, 100);
            assert_eq!(purchase.shape.tokens_max, Some(100));
            (purchase.prompt, purchase.shape.answers)
        };
        let tokens = |likely, most| PromptTokens { likely, most };
        assert_eq!(of(json!([1, 2, 3])), (tokens(3, 3 + 4), 3));
        assert_eq!(of(json!([[1, 2], [3]])), (tokens(3, 3 + 2 * 4), 6));
        assert_eq!(of(json!("abcdef")), (PromptTokens::of_text(6, 0), 3));
        let (two, answers) = of(json!(["abc", "abcdef"]));
        let one = |bytes| PromptTokens::of_text(bytes, 0);
        assert_eq!(two, sum(one(3), one(6)));
        assert_eq!(answers, 6);
    }

    #[test]
    fn a_buyer_pays_for_every_prompt_that_a_seller_without_a_tokenizer_sets_aside() {
        let message = |role: &str, content: &str, name: Option<&str>| ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
            name: name.map(str::to_owned),
        };
        let kwargs = json!({"enable_thinking": false, "\"odd\"": ["\u{958}", {"a": 1.5}]});
        let sold = Prompt::Chat(ChatPrompt {
            messages: vec![
                message("system", "Be brief.\nBe kind.\n\u{1d160}", None),
                message("user", "家\u{958}", Some("Ada")),
            ],
            template_kwargs: kwargs.as_object().expect("an object").clone(),
        });
        let parts = ["Be brief.", "Be kind.", "\u{1d160}"]
            .map(|text| json!({"type": "text", "text": text}));
        let request: ChatRequest = serde_json::from_value(json!({
            "model": "m",
            "messages": [
                { "role": "developer", "content": parts },
                { "role": "user", "name": "Ada", "content": "家\u{958}" },
            ],
            "chat_template_kwargs": kwargs,
        }))
        .expect("a request");
        let seller = prompt_bound::prompt_size(&sold);
        assert!(chat_order(&request, 1).prompt.most >= seller.tokens);
        for (input, sold) in [
            (json!("\u{958}bc"), Prompt::Text("\u{958}bc".to_owned())),
            (json!([1, 2, 3]), Prompt::Tokens(vec![1, 2, 3])),
        ] {
            let request = json!({ "model": "m", "input": input });
            let request: EmbeddingRequest = serde_json::from_value(request).expect("a request");
            let seller = prompt_bound::prompt_size(&sold);
            assert_eq!(embedding_order(&request).prompt.most, seller.tokens);
        }
    }
}
