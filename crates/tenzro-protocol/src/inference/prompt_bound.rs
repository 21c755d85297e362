//! How many tokens a prompt can have at most and at least, for a tokenizer that is not known: no token stands
//! for less than one byte of text, and hardly any for more than 16. A seller sets the upper bound aside, and a
//! buyer pays no more.
//!
//! Holds for byte-level BPE and for SentencePiece with byte fallback. Tokenizers may bring text into
//! Unicode's form NFC first, which lengthens a few characters; they are counted with the length that
//! they then have. A tokenizer that goes on to NFKC is outside the bound.

use super::{ChatPrompt, Prompt, PromptSize};

/// Tokens around one message: its marks, and line ends between them. ChatML needs 5 besides the role,
/// Llama 3 needs 4.
const MESSAGE_TOKENS_MAX: u64 = 16;

/// Tokens that a template adds once: BOS, the head of the answer, a date, and the system prompt that
/// some bring when the conversation has none. Those of Mistral and SmolLM3 have about 300.
const TEMPLATE_TOKENS_MAX: u64 = 512;

/// Tokens that are added to a plain text or to token ids: BOS, EOS, a separator and the blank that
/// SentencePiece puts first.
pub const TEXT_TOKENS_MAX: u64 = 4;

/// Bytes of text that a token stands for at most. Source: our choice; the longest tokens of vocabularies are
/// runs of blanks or dashes, words have 4 to 5 bytes in English.
const TOKEN_BYTES_MAX: u64 = 16;

/// Between which bounds the tokens of a prompt are.
pub fn prompt_size(prompt: &Prompt) -> PromptSize {
    match prompt {
        Prompt::Chat(chat) => {
            let texts = chat.messages.iter().map(|message| message.content.len());
            size(text_tokens_min(texts.sum()), chat_tokens_max(chat))
        }
        Prompt::Text(text) => {
            let most = text_bytes_max(text) + TEXT_TOKENS_MAX;
            size(text_tokens_min(text.len()), most)
        }
        Prompt::Tokens(tokens) => of_tokens(tokens.len()),
    }
}

/// The same for a prompt of that many token ids.
fn of_tokens(tokens: usize) -> PromptSize {
    let tokens = count(tokens);
    size(tokens, tokens + TEXT_TOKENS_MAX)
}

fn size(least: u64, most: u64) -> PromptSize {
    let clamp = |tokens| u32::try_from(tokens).unwrap_or(u32::MAX);
    PromptSize {
        tokens: clamp(most),
        least: clamp(least),
    }
}

fn text_tokens_min(bytes: usize) -> u64 {
    (count(bytes) / TOKEN_BYTES_MAX).max(1)
}

fn chat_tokens_max(chat: &ChatPrompt) -> u64 {
    let messages: u64 = chat
        .messages
        .iter()
        .map(|message| {
            let name = message.name.as_deref().unwrap_or_default();
            let texts = [&message.role, &message.content, name];
            texts.map(text_bytes_max).iter().sum::<u64>() + MESSAGE_TOKENS_MAX
        })
        .sum();
    // A template may print what the request sets.
    let kwargs = chat.template_kwargs.iter();
    let kwargs: u64 = kwargs
        .map(|(name, value)| text_bytes_max(name) + text_bytes_max(&value.to_string()))
        .sum();
    messages + kwargs + TEMPLATE_TOKENS_MAX
}

/// Bytes of the text in UTF-8, after NFC if that is more.
fn text_bytes_max(text: &str) -> u64 {
    text.chars()
        .map(|c| count(c.len_utf8()) * nfc_growth_max(c))
        .sum()
}

/// By which factor NFC may lengthen a character. Source: the canonical decompositions that
/// composition excludes (Unicode 16, CompositionExclusions.txt), in ranges that hold all of them.
fn nfc_growth_max(c: char) -> u64 {
    match c {
        '\u{344}'
        | '\u{958}'..='\u{95f}'
        | '\u{9dc}'..='\u{9df}'
        | '\u{a33}'..='\u{a5e}'
        | '\u{b5c}'..='\u{b5d}'
        | '\u{f43}'..='\u{fb9}'
        | '\u{2adc}'
        | '\u{fa6c}'..='\u{fb4e}' => 2,
        '\u{1d15e}'..='\u{1d1c0}' => 3,
        _ => 1,
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::inference::ChatMessage;

    fn bounds(prompt: &Prompt) -> (u32, u32) {
        let size = prompt_size(prompt);
        (size.least, size.tokens)
    }

    #[test]
    fn every_byte_that_a_template_may_print_counts() {
        assert_eq!(bounds(&Prompt::Text("größe".to_owned())), (1, 7 + 4));
        assert_eq!(bounds(&Prompt::Text("a".repeat(163))), (10, 163 + 4));
        assert_eq!(bounds(&Prompt::Tokens(vec![1; 9])), (9, 9 + 4));
        let message = |role: &str, content: &str, name: Option<&str>| ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
            name: name.map(str::to_owned),
        };
        let kwargs = json!({"think": "no"});
        let chat = Prompt::Chat(ChatPrompt {
            messages: vec![
                message("system", "Be brief.", None),
                message("user", "家", Some("Ada")),
            ],
            template_kwargs: kwargs.as_object().expect("an object").clone(),
        });
        let texts = 6 + 9 + 4 + 3 + 3;
        let kwargs = 5 + 4;
        assert_eq!(bounds(&chat), (1, texts + 2 * 16 + kwargs + 512));
    }

    #[test]
    fn characters_that_normalisation_lengthens_count_as_much_as_they_become() {
        // U+1D160 becomes three characters of four bytes each, U+0958 two of three.
        assert_eq!(text_bytes_max("\u{1d160}"), 12);
        assert_eq!(text_bytes_max("a\u{958}"), 1 + 6);
    }
}
