//! tokenizer.json, the chat template, and turning tokens into text while they arrive.

mod ends;

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error as TemplateError, ErrorKind, context};
use serde_json::Value;
use tokenizers::Tokenizer as HfTokenizer;

use crate::error::{Refusal, Result, RuntimeError};

/// Work a chat template may do before it is stopped.
const TEMPLATE_FUEL: u64 = 1_000_000;

/// The texts a tokenizer is made of; all but the first may be absent.
#[derive(Debug, Default, Clone)]
pub struct TokenizerFiles {
    /// tokenizer.json.
    pub tokenizer: String,
    /// tokenizer_config.json.
    pub config: Option<String>,
    /// special_tokens_map.json, which older folders have beside tokenizer_config.json.
    pub special_tokens: Option<String>,
    /// generation_config.json.
    pub generation: Option<String>,
    /// config.json: which tokens end a text.
    pub model: Option<String>,
    /// chat_template.jinja.
    pub template: Option<String>,
}

/// A model's tokenizer.
pub struct Tokenizer {
    inner: HfTokenizer,
    template: Option<String>,
    specials: Vec<(String, String)>,
    eos: Vec<u32>,
}

/// One turn of a conversation.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Tokenizer {
    /// From a model folder.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let tokenizer =
            std::fs::read_to_string(&path).map_err(|e| refuse(&path.display().to_string(), e.to_string()))?;
        let optional = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
        Self::new(&TokenizerFiles {
            tokenizer,
            config: optional("tokenizer_config.json"),
            special_tokens: optional("special_tokens_map.json"),
            generation: optional("generation_config.json"),
            model: optional("config.json"),
            template: optional("chat_template.jinja"),
        })
    }

    /// From texts.
    pub fn new(files: &TokenizerFiles) -> Result<Self> {
        let inner = HfTokenizer::from_bytes(files.tokenizer.as_bytes())
            .map_err(|e| refuse("tokenizer.json", format!("not a tokenizer: {e}")))?;
        let parse = |name: &str, text: &Option<String>| -> Result<Value> {
            match text {
                None => Ok(Value::Null),
                Some(t) => serde_json::from_str(t).map_err(|e| refuse(name, format!("not valid JSON: {e}"))),
            }
        };
        let config = parse("tokenizer_config.json", &files.config)?;
        let map = parse("special_tokens_map.json", &files.special_tokens)?;
        let generation = parse("generation_config.json", &files.generation)?;
        let model = parse("config.json", &files.model)?;
        let template = files.template.clone().or_else(|| template_of(&config));
        let specials: Vec<(String, String)> = ["bos_token", "eos_token", "unk_token", "pad_token"]
            .iter()
            .filter_map(|key| special(&config, key).or_else(|| special(&map, key)).map(|v| (key.to_string(), v)))
            .collect();
        let texts = [&config, &map].map(|file| special(file, "eos_token"));
        let eos = ends::union(&inner, texts.into_iter().flatten(), &generation, &model)?;
        Ok(Self { inner, template, specials, eos })
    }

    /// Tokens that end a text: all that the tokenizer, generation_config.json and config.json name, whichever of them, as
    /// vLLM and SGLang have it.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Entries of the vocabulary, added tokens included.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Whether the model has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Text to tokens, with the special tokens that the tokenizer adds by itself.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, true)
    }

    /// A conversation to tokens, by the chat template.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.encode_with(&self.render(messages)?, false)
    }

    /// Text to tokens, with or without the special tokens that the tokenizer adds by itself.
    pub fn encode_with(&self, text: &str, specials: bool) -> Result<Vec<u32>> {
        let encoded = self
            .inner
            .encode_fast(text, specials)
            .map_err(|e| refuse("the prompt", format!("it cannot be tokenized: {e}")))?;
        Ok(encoded.get_ids().to_vec())
    }

    /// Tokens to text, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decode_with(ids, true)
    }

    /// Tokens to text; `skip_special` leaves special tokens out.
    pub fn decode_with(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| refuse("the output", format!("it cannot be decoded: {e}")))
    }

    /// Tokens to text, special tokens included.
    pub fn decode_all(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(|e| refuse("the output", format!("it cannot be decoded: {e}")))
    }

    /// A token as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The same tokenizer with another chat template.
    #[must_use]
    pub fn with_template(mut self, template: String) -> Self {
        self.template = Some(template);
        self
    }

    /// The conversation as the template writes it, ready for the model's answer.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        self.render_with(messages, true, &serde_json::Map::new())
    }

    /// The conversation as the template writes it. `more` are further variables of the template (vLLM's
    /// `chat_template_kwargs`, for example `enable_thinking`).
    pub fn render_with(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        more: &serde_json::Map<String, Value>,
    ) -> Result<String> {
        let Some(template) = &self.template else {
            return Err(refuse("a conversation", "the model has no chat template".to_string()));
        };
        let bad = |e: TemplateError| refuse("the chat template", e.to_string());
        let mut env = Environment::new();
        // As transformers renders templates.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(bad)?);
        env.set_fuel(Some(TEMPLATE_FUEL));
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", |message: String| -> std::result::Result<String, TemplateError> {
            Err(TemplateError::new(ErrorKind::InvalidOperation, message))
        });
        // A fixed date: templates that print today's would make prompts differ from day to day.
        env.add_function("strftime_now", |_: String| "26 Jul 2024".to_string());
        env.add_template("chat", template).map_err(bad)?;
        let specials: BTreeMap<String, String> = self.specials.iter().cloned().collect();
        // What the host sets wins over what a request adds.
        let context = context! {
            messages => Serde(messages),
            add_generation_prompt => add_generation_prompt,
            ..context! { ..minijinja::Value::from(specials), ..minijinja::Value::from(Serde(more)) }
        };
        env.get_template("chat").and_then(|t| t.render(context)).map_err(bad)
    }
}

fn template_of(config: &Value) -> Option<String> {
    match &config["chat_template"] {
        Value::String(t) => Some(t.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|t| t["name"] == "default").or(named.first())?;
            default["template"].as_str().map(str::to_string)
        }
        _ => None,
    }
}

fn special(config: &Value, key: &str) -> Option<String> {
    let value = &config[key];
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_string)
}

fn refuse(what: &str, why: String) -> RuntimeError {
    RuntimeError::Tokenizer(Refusal::new(what, why, "use the tokenizer files that belong to the model"))
}

/// Turns a growing list of tokens into pieces of text. A token can hold half of a UTF-8 character: text is given out
/// only when it is whole.
#[derive(Debug, Default)]
pub struct TextStream {
    ids: Vec<u32>,
    /// First token that still influences how the next ones decode.
    start: usize,
    /// Tokens whose text has been given out.
    given: usize,
    /// Special tokens have text too.
    with_special: bool,
}

impl TextStream {
    /// `skip_special` leaves special tokens out of the text.
    pub fn new(skip_special: bool) -> Self {
        Self { with_special: !skip_special, ..Self::default() }
    }

    fn decode(&self, tokenizer: &Tokenizer, range: std::ops::Range<usize>) -> Result<String> {
        tokenizer.decode_with(&self.ids[range], !self.with_special)
    }

    /// The text that `id` completes; empty if it completes none.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        self.ids.push(id);
        let before = self.decode(tokenizer, self.start..self.given)?;
        let after = self.decode(tokenizer, self.start..self.ids.len())?;
        if after.len() <= before.len() || after.ends_with('\u{FFFD}') {
            return Ok(String::new());
        }
        let piece = after.get(before.len()..).unwrap_or_default().to_string();
        self.start = self.given;
        self.given = self.ids.len();
        Ok(piece)
    }

    /// What is left at the end, incomplete characters replaced.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let before = self.decode(tokenizer, self.start..self.given)?;
        let after = self.decode(tokenizer, self.start..self.ids.len())?;
        self.given = self.ids.len();
        Ok(after.get(before.len()..).unwrap_or_default().to_string())
    }
}
