//! How many tokens a bill may have, counted by what arrived and not by what the seller says.
//!
//! Where the caller can count with the model's tokenizer, the count decides; elsewhere a token has at least
//! one byte of text, so the bytes are an upper bound. A model may spell a text with other tokens than its
//! tokenizer would, so a counted text may have [`TOLERANCE_DIVISOR`]th and [`TOLERANCE_TOKENS`] more.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tenzro_protocol::amount::Wei;
use tenzro_protocol::inference::{Prompt, prompt_bound};

use crate::price::{Pricing, Tokens};

/// One more token for so many counted ones. Source: our choice; a sampled text has seldom more than one in
/// fifty tokens that its tokenizer would join.
pub const TOLERANCE_DIVISOR: u64 = 32;
/// More tokens, whatever the count.
pub const TOLERANCE_TOKENS: u64 = 2;
/// Tokens without text that end an answer.
const END_TOKENS: u64 = 2;
/// Guesses for the first offer only: bytes of a token, tokens around a message, and tokens that a template adds.
const BYTES_PER_TOKEN: usize = 3;
const MESSAGE_TOKENS: usize = 8;
const TEMPLATE_TOKENS: usize = 32;
/// Counted text that is kept for the last count; what is beyond counts by its bytes.
const TEXT_BYTES_MAX: usize = 4 << 20;

type Count = dyn Fn(&str) -> Option<u32> + Send + Sync;

/// Counts the tokens of a text; none where it cannot.
#[derive(Clone)]
pub struct Recount(Arc<Count>);

impl Recount {
    /// By that function, which should be the model's tokenizer without special tokens.
    pub fn new(count: impl Fn(&str) -> Option<u32> + Send + Sync + 'static) -> Self {
        Self(Arc::new(count))
    }
}

impl fmt::Debug for Recount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Recount(…)")
    }
}

/// Tokens of a prompt before anybody has counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptTokens {
    /// Paid for at first; a seller that counts more says so.
    pub likely: u32,
    /// More is not paid for.
    pub most: u32,
}

impl PromptTokens {
    /// Counted with the model's tokenizer and template.
    pub fn counted(tokens: u32) -> Self {
        Self {
            likely: tokens,
            most: tokens,
        }
    }

    /// Of a prompt whose tokenizer is not known: between the bounds that sellers go by too.
    pub fn of(prompt: &Prompt) -> Self {
        let most = prompt_bound::prompt_size(prompt).tokens;
        let likely = match prompt {
            Prompt::Chat(chat) => {
                let texts = chat.messages.iter().map(|message| message.content.len());
                let marks = chat.messages.len() * MESSAGE_TOKENS;
                texts.sum::<usize>() / BYTES_PER_TOKEN + marks + TEMPLATE_TOKENS
            }
            Prompt::Text(text) => text.len() / BYTES_PER_TOKEN,
            Prompt::Tokens(tokens) => tokens.len(),
        };
        let likely = u32::try_from(likely).unwrap_or(u32::MAX);
        Self {
            likely: likely.clamp(1, most.max(1)),
            most,
        }
    }

    /// Of a prompt that was counted with the model's own tokenizer and template. A seller's may differ by a
    /// little: in a date that the template prints, or the marks around a text.
    pub fn recounted(tokens: u32) -> Self {
        let slack = u64::from(tokens) / TOLERANCE_DIVISOR + prompt_bound::TEXT_TOKENS_MAX;
        Self {
            likely: tokens,
            most: clamp(u64::from(tokens) + slack),
        }
    }
}

/// What is bought besides the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerShape {
    /// Whether it is paid for window by window.
    pub kind: AnswerKind,
    /// Number of answers.
    pub answers: u32,
    /// Tokens of one answer at most, where the request says so.
    pub tokens_max: Option<u32>,
    /// Bytes of the longest stop string: generated, but not shown.
    pub stop_bytes: u32,
}

/// How an answer comes and is paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// Token by token, a window ahead.
    Stream,
    /// At once; all of `tokens_max` is paid ahead.
    Whole,
    /// No text at all, such as vectors: only the prompt costs.
    Vectors,
}

impl AnswerShape {
    /// One streamed answer.
    pub fn stream(tokens_max: Option<u32>) -> Self {
        Self {
            kind: AnswerKind::Stream,
            answers: 1,
            tokens_max,
            stop_bytes: 0,
        }
    }

    /// Most tokens that may be paid for in all: as many as the request allows.
    fn most(&self) -> u64 {
        let most = |tokens| u64::from(tokens) * u64::from(self.answers);
        match self.kind {
            AnswerKind::Vectors => 0,
            _ => self.tokens_max.map_or(u64::from(u32::MAX), most),
        }
    }

    /// Most tokens that may be paid for while `heard` have arrived: a window more of them.
    pub(crate) fn ahead(&self, heard: u32, window_tokens: u32) -> u32 {
        let ahead = match self.kind {
            AnswerKind::Stream => u64::from(heard) + u64::from(window_tokens),
            AnswerKind::Whole | AnswerKind::Vectors => self.most(),
        };
        clamp(ahead.min(self.most()))
    }
}

/// What arrived of an answer.
#[derive(Debug)]
pub struct Heard {
    shape: AnswerShape,
    recount: Option<Recount>,
    bytes: u64,
    /// Kept only to be counted.
    text: String,
    /// Bytes of `text` that `counted` is of.
    counted_to: usize,
    counted: u64,
    /// Bytes that are not in `text`.
    uncounted: u64,
}

impl Heard {
    /// Nothing yet.
    pub fn new(shape: AnswerShape, recount: Option<Recount>) -> Self {
        Self {
            shape,
            recount,
            bytes: 0,
            text: String::new(),
            counted_to: 0,
            counted: 0,
            uncounted: 0,
        }
    }

    /// More text.
    pub fn push(&mut self, text: &str) {
        self.bytes += text.len() as u64;
        if self.recount.is_none() || self.text.len() + text.len() > TEXT_BYTES_MAX {
            self.uncounted += text.len() as u64;
        } else {
            self.text.push_str(text);
        }
    }

    /// Tokens that what arrived can hold at most, while more may come. The text is counted piece by piece,
    /// which counts a token more for a piece that ends inside of one.
    pub fn most_so_far(&mut self) -> u32 {
        if let Some(recount) = &self.recount {
            let piece = &self.text[self.counted_to..];
            let tokens = recount.0(piece).map_or(piece.len() as u64, u64::from);
            self.counted += tokens.min(piece.len() as u64);
            self.counted_to = self.text.len();
        }
        self.bound(self.counted)
    }

    /// Tokens that the whole answer can hold at most.
    pub fn most(&mut self) -> u32 {
        let pieces = self.most_so_far();
        let whole = self
            .recount
            .as_ref()
            .and_then(|recount| recount.0(&self.text));
        whole.map_or(pieces, |tokens| pieces.min(self.bound(u64::from(tokens))))
    }

    fn bound(&self, counted: u64) -> u32 {
        // Without text there is nothing to pay for, however many tokens it took.
        if self.bytes == 0 {
            return 0;
        }
        let answers = u64::from(self.shape.answers);
        let tolerance = match self.recount {
            Some(_) => counted / TOLERANCE_DIVISOR + TOLERANCE_TOKENS,
            None => 0,
        };
        let hidden = answers * (END_TOKENS + u64::from(self.shape.stop_bytes));
        clamp((counted + self.uncounted + tolerance + hidden).min(self.shape.most()))
    }
}

fn clamp(tokens: u64) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

/// What a seller says that it delivered and charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bill {
    /// Tokens.
    pub tokens: Tokens,
    /// Wei.
    pub charged: Wei,
}

/// A bill beside what may be on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overbill {
    /// What the seller asks for.
    pub asked: Bill,
    /// What is paid at most.
    pub most: Bill,
}

/// Holds a bill against what was bought and what arrived: what is paid of it, and whether it is too high.
///
/// A streamed or whole answer without any text costs nothing, its prompt included.
pub fn audit(
    pricing: &Pricing,
    prompt: PromptTokens,
    shape: AnswerShape,
    heard_tokens: u32,
    asked: Bill,
) -> (Bill, Option<Overbill>) {
    let is_empty = heard_tokens == 0 && shape.kind != AnswerKind::Vectors;
    let most = Tokens {
        input: if is_empty { 0 } else { prompt.most },
        output: heard_tokens,
    };
    let paid = Tokens {
        input: asked.tokens.input.min(most.input),
        output: asked.tokens.output.min(most.output),
    };
    // A cost beyond 128 bits cannot have been signed for; the asked amount stands then.
    let charged = |tokens| Wei(pricing.cost(tokens).unwrap_or(u128::MAX));
    let agreed = Bill {
        tokens: paid,
        charged: asked.charged.min(charged(paid)),
    };
    let most = Bill {
        tokens: most,
        charged: charged(most),
    };
    let is_fair = agreed.charged == asked.charged;
    (agreed, (!is_fair).then_some(Overbill { asked, most }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tenzro_protocol::inference::{ChatMessage, ChatPrompt};

    use super::*;

    const PRICING: Pricing = Pricing {
        input_per_token: Wei(10),
        output_per_token: Wei(30),
        price_version: 1,
        window_tokens: 32,
    };

    fn words(text: &str) -> Option<u32> {
        u32::try_from(text.split_whitespace().count()).ok()
    }

    fn heard(shape: AnswerShape, recount: Option<Recount>, text: &str) -> u32 {
        let mut heard = Heard::new(shape, recount);
        heard.push(text);
        heard.most()
    }

    fn bill(input: u32, output: u32, charged: u128) -> Bill {
        Bill {
            tokens: Tokens { input, output },
            charged: Wei(charged),
        }
    }

    #[test]
    fn m19_thirty_percent_more_or_split_tokens_are_paid_as_counted_and_flagged() {
        let text = "word ".repeat(100);
        let shape = AnswerShape::stream(Some(1_000));
        let most = heard(shape, Some(Recount::new(words)), &text);
        assert_eq!(most, 100 + 3 + 2 + 2);
        let prompt = PromptTokens::counted(20);
        let honest = bill(20, 100, 200 + 3_000);
        assert_eq!(audit(&PRICING, prompt, shape, most, honest), (honest, None));
        for inflated in [130, 500] {
            let asked = bill(20, inflated, 200 + 30 * u128::from(inflated));
            let (agreed, overbill) = audit(&PRICING, prompt, shape, most, asked);
            assert_eq!(agreed, bill(20, 107, 200 + 107 * 30));
            let most = bill(20, 107, 200 + 107 * 30);
            assert_eq!(overbill, Some(Overbill { asked, most }));
        }
    }

    #[test]
    fn m19_without_a_tokenizer_the_bytes_are_the_bound() {
        let shape = AnswerShape::stream(None);
        assert_eq!(heard(shape, None, "hello"), 5 + 2);
        let with_stop = AnswerShape {
            stop_bytes: 3,
            ..shape
        };
        assert_eq!(heard(with_stop, None, "hello"), 5 + 2 + 3);
        assert_eq!(heard(AnswerShape::stream(Some(4)), None, "hello"), 4);
        let uncountable = Recount::new(|_| None);
        assert_eq!(heard(shape, Some(uncountable), "hello"), 5 + 2 + 2);
    }

    #[test]
    fn m26_an_empty_answer_costs_nothing_and_its_price_is_flagged() {
        let prompt = PromptTokens::counted(20);
        let shape = AnswerShape::stream(None);
        let free = bill(20, 1, 0);
        let nothing = bill(0, 0, 0);
        assert_eq!(audit(&PRICING, prompt, shape, 0, free), (nothing, None));
        let asked = bill(20, 1, 230);
        let (agreed, overbill) = audit(&PRICING, prompt, shape, 0, asked);
        assert_eq!(agreed, nothing);
        let most = nothing;
        assert_eq!(overbill, Some(Overbill { asked, most }));
        let vectors = AnswerShape {
            kind: AnswerKind::Vectors,
            ..shape
        };
        let embedded = bill(20, 0, 200);
        assert_eq!(
            audit(&PRICING, prompt, vectors, 0, embedded),
            (embedded, None)
        );
    }

    #[test]
    fn m18_a_higher_price_on_the_bill_is_not_paid() {
        let shape = AnswerShape::stream(None);
        let asked = bill(20, 5, 351);
        let (agreed, overbill) = audit(&PRICING, PromptTokens::counted(20), shape, 5, asked);
        assert_eq!(agreed, bill(20, 5, 350));
        assert!(overbill.is_some());
        let discount = bill(20, 5, 17);
        let (agreed, overbill) = audit(&PRICING, PromptTokens::counted(20), shape, 5, discount);
        assert_eq!((agreed, overbill), (discount, None));
    }

    proptest! {
        #[test]
        fn m19_no_bill_is_paid_beyond_what_was_bought_and_arrived(
            likely in 0u32..1_000, most in 0u32..1_000, text in "[a-zé ]{0,60}",
            input: u32, output: u32, charged: u128, tokens_max in proptest::option::of(0u32..50),
        ) {
            let shape = AnswerShape::stream(tokens_max);
            let arrived = heard(shape, None, &text);
            prop_assert!(u64::from(arrived) <= text.len() as u64 + END_TOKENS);
            let asked = bill(input, output, charged);
            let prompt = PromptTokens { likely, most };
            let (agreed, overbill) = audit(&PRICING, prompt, shape, arrived, asked);
            let bound = PRICING.cost(Tokens { input: most, output: arrived }).expect("small");
            prop_assert!(agreed.charged.0 <= bound.min(charged));
            prop_assert_eq!(overbill.is_none(), agreed.charged == asked.charged);
        }

        #[test]
        fn counting_in_pieces_never_counts_less_than_counting_at_once(
            pieces in proptest::collection::vec("[ab ]{0,12}", 0..12),
        ) {
            let shape = AnswerShape::stream(None);
            let mut stepwise = Heard::new(shape, Some(Recount::new(words)));
            for piece in &pieces {
                stepwise.push(piece);
                stepwise.most_so_far();
            }
            let so_far = stepwise.most_so_far();
            let whole = heard(shape, Some(Recount::new(words)), &pieces.concat());
            prop_assert!(so_far >= whole);
            prop_assert_eq!(stepwise.most(), whole);
        }

        #[test]
        fn prompts_are_never_thought_longer_than_their_bound(
            texts in proptest::collection::vec(".{0,40}", 1..9),
            tokens in 1u32..,
        ) {
            let messages = texts.iter().map(|text| ChatMessage {
                role: "user".to_owned(),
                content: text.clone(),
                name: None,
            });
            let chat = ChatPrompt { messages: messages.collect(), ..ChatPrompt::default() };
            let list = vec![1; texts.len()];
            for prompt in [
                Prompt::Chat(chat),
                Prompt::Text(texts[0].clone()),
                Prompt::Tokens(list),
            ] {
                let PromptTokens { likely, most } = PromptTokens::of(&prompt);
                prop_assert!(likely >= 1 && likely <= most);
                prop_assert_eq!(most, prompt_bound::prompt_size(&prompt).tokens);
            }
            let PromptTokens { likely, most } = PromptTokens::recounted(tokens);
            prop_assert!(likely == tokens && most >= tokens);
            prop_assert!(u64::from(most) <= u64::from(tokens) * 33 / 32 + 5);
        }
    }
}
