//! What a request buys, from what it says.

use tenzro_engine::Tokenizer;
use tenzro_payments::payer::audit::{AnswerKind, AnswerShape, PromptTokens};
use tenzro_protocol::inference::{ChatMessage, ChatPrompt, Prompt};
use tenzro_protocol::openai::chat::{ChatRequest, Content, Message};
use tenzro_protocol::openai::completions::{CompletionRequest, Input};
use tenzro_protocol::openai::embeddings::EmbeddingRequest;
use tenzro_protocol::openai::{Parameters, Stop};

/// What a request buys.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Purchase {
    pub(super) prompts: Vec<Prompt>,
    pub(super) shape: AnswerShape,
}

impl Purchase {
    /// How many tokens the prompts may have: as the model's tokenizer counts them, where it is known.
    pub(super) fn prompt(&self, tokenizer: Option<&Tokenizer>) -> PromptTokens {
        let sizes = self.prompts.iter().map(|prompt| match (prompt, tokenizer) {
            (Prompt::Chat(_) | Prompt::Text(_), Some(tokenizer)) => {
                let counted = tokenizer.count_prompt(prompt);
                // What cannot be counted is not served either, and costs nothing.
                counted.map_or_else(|_| PromptTokens::of(prompt), PromptTokens::recounted)
            }
            _ => PromptTokens::of(prompt),
        });
        sizes.fold(PromptTokens::counted(0), sum)
    }
}

/// `tokens_max` is what is paid for of one answer at most, whatever the request says.
pub(super) fn chat_order(request: &ChatRequest, tokens_max: u32) -> Purchase {
    let prompt = ChatPrompt {
        messages: request.messages.iter().map(message).collect(),
        template_kwargs: request.chat_template_kwargs.clone().unwrap_or_default(),
    };
    Purchase {
        prompts: vec![Prompt::Chat(prompt)],
        shape: shape(
            &request.parameters,
            request.max_completion_tokens,
            1,
            tokens_max,
        ),
    }
}

/// As a model server reads it.
fn message(message: &Message) -> ChatMessage {
    let content = match &message.content {
        Some(Content::Text(text)) => text.clone(),
        Some(Content::Parts(parts)) => {
            let texts = parts.iter().filter_map(|part| part.text.as_deref());
            texts.collect::<Vec<_>>().join("\n")
        }
        None => String::new(),
    };
    let role = match message.role.as_str() {
        "developer" => "system",
        role => role,
    };
    ChatMessage {
        role: role.to_owned(),
        content,
        name: message.name.clone(),
    }
}

pub(super) fn completion_order(request: &CompletionRequest, tokens_max: u32) -> Purchase {
    let prompts = prompts(&request.prompt);
    Purchase {
        shape: shape(&request.parameters, None, count(&prompts), tokens_max),
        prompts,
    }
}

pub(super) fn embedding_order(request: &EmbeddingRequest) -> Purchase {
    let prompts = prompts(&request.input);
    Purchase {
        shape: AnswerShape {
            kind: AnswerKind::Vectors,
            answers: count(&prompts),
            tokens_max: Some(0),
            stop_bytes: 0,
        },
        prompts,
    }
}

fn prompts(input: &Input) -> Vec<Prompt> {
    match input {
        Input::Text(text) => vec![Prompt::Text(text.clone())],
        Input::Tokens(tokens) => vec![Prompt::Tokens(tokens.clone())],
        Input::Texts(texts) => texts.iter().cloned().map(Prompt::Text).collect(),
        Input::TokenLists(lists) => lists.iter().cloned().map(Prompt::Tokens).collect(),
    }
}

fn count(prompts: &[Prompt]) -> u32 {
    u32::try_from(prompts.len()).unwrap_or(u32::MAX)
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
    use tenzro_protocol::inference::prompt_bound;

    use super::*;

    #[test]
    fn what_a_chat_buys_is_its_conversation_within_its_parameters() {
        let request: ChatRequest = serde_json::from_value(json!({
            "model": "m",
            "messages": [
                { "role": "developer", "content": "abc" },
                {
                    "role": "user", "name": "Ada",
                    "content": [{ "type": "text", "text": "d" }, { "type": "text", "text": "e" }],
                },
                { "role": "assistant" },
            ],
            "chat_template_kwargs": { "enable_thinking": false },
            "n": 2, "max_tokens": 9, "max_completion_tokens": 7, "stop": ["x", "long"],
        }))
        .expect("a request");
        let purchase = chat_order(&request, 100);
        let message = |role: &str, content: &str, name: Option<&str>| ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
            name: name.map(str::to_owned),
        };
        let kwargs = json!({ "enable_thinking": false });
        let bought = Prompt::Chat(ChatPrompt {
            messages: vec![
                message("system", "abc", None),
                message("user", "d\ne", Some("Ada")),
                message("assistant", "", None),
            ],
            template_kwargs: kwargs.as_object().expect("an object").clone(),
        });
        assert_eq!(purchase.prompt(None), PromptTokens::of(&bought));
        assert_eq!(purchase.prompts, [bought]);
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
    fn a_buyer_pays_for_every_prompt_that_a_seller_without_a_tokenizer_sets_aside() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        for (input, sold) in [
            (json!([1, 2, 3]), vec![Prompt::Tokens(vec![1, 2, 3])]),
            (
                json!([[1, 2], [3]]),
                vec![Prompt::Tokens(vec![1, 2]), Prompt::Tokens(vec![3])],
            ),
            (json!("\u{958}bc"), vec![text("\u{958}bc")]),
            (json!(["abc", "abcdef"]), vec![text("abc"), text("abcdef")]),
        ] {
            let most: u32 = sold
                .iter()
                .map(|prompt| prompt_bound::prompt_size(prompt).tokens)
                .sum();
            let request = json!({ "model": "m", "prompt": input, "input": input, "n": 3 });
            let completion: CompletionRequest =
                serde_json::from_value(request.clone()).expect("a request");
            let completion = completion_order(&completion, 100);
            let embedding: EmbeddingRequest = serde_json::from_value(request).expect("a request");
            let embedding = embedding_order(&embedding);
            let number = u32::try_from(sold.len()).expect("few");
            assert_eq!(completion.shape.answers, 3 * number);
            assert_eq!(completion.shape.tokens_max, Some(100));
            assert_eq!(embedding.shape.answers, number);
            for purchase in [completion, embedding] {
                assert_eq!(purchase.prompts, sold);
                assert_eq!(purchase.prompt(None).most, most);
            }
        }
    }
}
