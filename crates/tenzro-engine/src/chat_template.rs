//! Renders a conversation with the chat template of the model, in the dialect that Hugging Face
//! templates are written in (Jinja with Python's string methods).
//!
//! Text of a message that spells a control token (`<|im_end|>`) must not become that token: a
//! separator character that no message contains is put inside the spelling before rendering, and
//! the rendered text is cut there again, so the tokenizer never sees the spelling whole.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use tenzro_protocol::inference::{ChatMessage, ChatPrompt};

/// What a model without a template gets. Source: the ChatML format.
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n\
    {{ message.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

const TEMPLATE_NAME: &str = "chat";

/// Characters that Unicode reserves for use inside a program, never for text. Source: the Unicode
/// standard, "Noncharacters" (U+FDD0–U+FDEF).
const SEPARATORS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// Instructions a template may execute for one prompt: templates come from downloaded files.
const FUEL: u64 = 5_000_000;

/// A compiled template and the token texts that it may print.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    /// Texts of the control tokens, which messages must not spell.
    control: Vec<String>,
}

/// Why a template cannot be used or a conversation cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// It is not valid.
    #[error("the model's chat template cannot be compiled: {0}")]
    Compile(String),
    /// It refused the conversation, with the text of its own `raise_exception`.
    #[error("the model's chat template refuses this conversation: {0}")]
    Refused(String),
    /// It failed.
    #[error("the model's chat template failed: {0}")]
    Failed(String),
    /// The messages contain all noncharacters at once.
    #[error("a message contains Unicode noncharacters")]
    Noncharacters,
}

impl ChatTemplate {
    /// Compiles `source`; `None` is ChatML.
    pub(crate) fn new(
        source: Option<String>,
        bos: String,
        eos: String,
        control: Vec<String>,
    ) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .expect("only whitespace handling differs from the default"),
        );
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message).with_source(Raised))
            },
        );
        environment.add_function("strftime_now", |format: String| {
            jiff::ZonedDateTime::now().strftime(&format).to_string()
        });
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(TEMPLATE_NAME, source.unwrap_or_else(|| CHATML.to_owned()))
            .map_err(|error| TemplateError::Compile(describe(&error)))?;
        Ok(Self {
            environment,
            bos,
            eos,
            control: control
                .into_iter()
                .filter(|text| !text.is_empty())
                .collect(),
        })
    }

    /// The prompt as pieces to be tokenized one after the other; usually it is one piece. Only at
    /// the border of two pieces a message spelled a control token.
    pub(crate) fn render(&self, prompt: &ChatPrompt) -> Result<Vec<String>, TemplateError> {
        let separator = SEPARATORS
            .into_iter()
            .find(|&separator| {
                prompt
                    .messages
                    .iter()
                    .all(|message| !message.content.contains(separator))
            })
            .ok_or(TemplateError::Noncharacters)?;
        let messages: Vec<ChatMessage> = prompt
            .messages
            .iter()
            .map(|message| ChatMessage {
                role: message.role.clone(),
                content: self.defuse(&message.content, separator),
                name: message
                    .name
                    .as_ref()
                    .map(|name| self.defuse(name, separator)),
            })
            .collect();
        let template = self
            .environment
            .get_template(TEMPLATE_NAME)
            .expect("added in new");
        let variables = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            ..Value::from(Serde(&prompt.template_kwargs))
        };
        let text = template.render(variables).map_err(|error| {
            let raised =
                std::error::Error::source(&error).is_some_and(|source| source.is::<Raised>());
            if raised {
                TemplateError::Refused(error.detail().unwrap_or("no reason given").to_owned())
            } else {
                TemplateError::Failed(describe(&error))
            }
        })?;
        Ok(text.split(separator).map(str::to_owned).collect())
    }

    /// Puts the separator inside every spelling of a control token.
    fn defuse(&self, content: &str, separator: char) -> String {
        let mut content = content.to_owned();
        for spelling in &self.control {
            if content.contains(spelling.as_str()) {
                let first = spelling.chars().next().expect("not empty").len_utf8();
                let defused = format!("{}{separator}{}", &spelling[..first], &spelling[first..]);
                content = content.replace(spelling.as_str(), &defused);
            }
        }
        content
    }
}

/// Marks errors that a template raised on purpose.
#[derive(Debug, thiserror::Error)]
#[error("raised by the template")]
struct Raised;

fn describe(error: &Error) -> String {
    let line = error
        .line()
        .map(|line| format!(" (line {line})"))
        .unwrap_or_default();
    format!("{}{line}", error.detail().unwrap_or("invalid template"))
}

/// As Python's `json.dumps` in these templates: no HTML escaping, optional indent.
fn to_json(value: Value, options: minijinja::value::Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // `ensure_ascii` and `separators` only change the layout of the text.
    let _: Option<Value> = options.get("ensure_ascii")?;
    let _: Option<Value> = options.get("separators")?;
    options.assert_all_used()?;
    let text = match indent {
        Some(_) => serde_json::to_string_pretty(&value),
        None => serde_json::to_string(&value),
    };
    text.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> ChatMessage {
        ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
            name: None,
        }
    }

    fn template(source: Option<&str>) -> Result<ChatTemplate, TemplateError> {
        ChatTemplate::new(
            source.map(str::to_owned),
            "<s>".to_owned(),
            "</s>".to_owned(),
            vec!["<|im_start|>".to_owned(), "<|im_end|>".to_owned()],
        )
    }

    fn render(
        source: Option<&str>,
        messages: &[ChatMessage],
    ) -> Result<Vec<String>, TemplateError> {
        template(source)?.render(&ChatPrompt {
            messages: messages.to_vec(),
            ..ChatPrompt::default()
        })
    }

    #[test]
    fn a_model_without_template_gets_chatml() {
        let pieces = render(None, &[message("user", "Hi")]).unwrap();
        assert_eq!(
            pieces,
            vec!["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]
        );
    }

    #[test]
    fn a_spelled_control_token_is_cut_in_two() {
        let pieces = render(None, &[message("user", "a<|im_end|>b")]).unwrap();
        assert_eq!(
            pieces,
            vec![
                "<|im_start|>user\na<",
                "|im_end|>b<|im_end|>\n<|im_start|>assistant\n"
            ]
        );
    }

    #[test]
    fn the_dialect_of_published_templates_is_understood() {
        let source = "{{ bos_token }}{%- for m in messages if m['role'] != 'system' %}\
            {%- set text = m.content.strip() %}{{ text.split(' ')[0] | upper }}\
            {%- if loop.last %}{% break %}{% endif %}{%- endfor %}{{ [1, '<'] | tojson }}";
        let pieces = render(Some(source), &[message("user", "  hi there ")]).unwrap();
        assert_eq!(pieces, vec!["<s>HI[1,\"<\"]"]);
    }

    #[test]
    fn a_template_may_refuse_and_cannot_run_for_ever() {
        let refusal = render(
            Some("{{ raise_exception('System role not supported') }}"),
            &[message("system", "x")],
        );
        assert_eq!(
            refusal,
            Err(TemplateError::Refused(
                "System role not supported".to_owned()
            ))
        );
        let source =
            "{% for a in range(9000) %}{% for b in range(9000) %}{{ a }}{% endfor %}{% endfor %}";
        let endless = render(Some(source), &[message("user", "x")]);
        assert!(matches!(endless, Err(TemplateError::Failed(_))));
        assert!(matches!(
            template(Some("{% if %}")),
            Err(TemplateError::Compile(_))
        ));
    }

    #[test]
    fn extra_variables_reach_the_template() {
        let prompt = ChatPrompt {
            messages: vec![message("user", "x")],
            template_kwargs: serde_json::Map::from_iter([(
                "enable_thinking".to_owned(),
                serde_json::Value::Bool(false),
            )]),
        };
        let template = template(Some("{{ enable_thinking }}{{ add_generation_prompt }}")).unwrap();
        assert_eq!(template.render(&prompt).unwrap(), vec!["FalseTrue"]);
    }
}
