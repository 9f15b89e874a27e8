//! tokenizer.json, the chat template, and turning tokens into text while they arrive.

mod ends;
mod message;
mod pieces;
mod shape;
mod template;
mod templates;

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::{
    NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer as HfTokenizer, TokenizerImpl,
};

use crate::caught::caught;
use crate::error::{Refusal, Result, RuntimeError};
use crate::files;
pub use message::{Message, Turns};
use pieces::Spelling;
use shape::Shape;
pub use template::{Renderer, Rendering, refused};
use templates::Templates;

/// A text may become so long on the way to tokens, in bytes, and eight times longer than it was: about twenty bytes of
/// memory are needed for each.
const MOST_NORMALIZED: u64 = 16 << 20;
/// Most bytes of a text that is made of tokens at once.
const MOST_TEXT: u64 = 64 << 20;

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
    /// The files of additional_chat_templates: name and text of each.
    pub more_templates: Vec<(String, String)>,
    /// chat_template.json, which folders of processors have.
    pub template_json: Option<String>,
}

/// A model's tokenizer.
pub struct Tokenizer {
    inner: HfTokenizer,
    shape: Shape,
    spelling: Spelling,
    /// One more than the highest id.
    size: usize,
    /// Ids of special tokens, in order.
    special: Vec<u32>,
    renderer: Option<Arc<dyn Renderer>>,
    templates: Templates,
    specials: Vec<(String, String)>,
    eos: Vec<u32>,
}

impl TokenizerFiles {
    /// Those of a model folder, each read up to a bound.
    pub fn read(folder: &Path) -> Result<Self> {
        let bad = |name: &str, e: std::io::Error| {
            let next = files::next_of(&e, TOKENIZER_NEXT);
            RuntimeError::Tokenizer(Refusal::new(folder.join(name).display().to_string(), e.to_string(), next))
        };
        let optional =
            |name: &str, most: u64| files::read_text_if_any(&folder.join(name), most).map_err(|e| bad(name, e));
        let name = "tokenizer.json";
        Ok(Self {
            tokenizer: files::read_text(&folder.join(name), files::TOKENIZER).map_err(|e| bad(name, e))?,
            config: optional("tokenizer_config.json", files::TOKENIZER_CONFIG)?,
            special_tokens: optional("special_tokens_map.json", files::TOKENIZER_CONFIG)?,
            generation: optional("generation_config.json", files::CONFIG)?,
            model: optional("config.json", files::CONFIG)?,
            template: optional("chat_template.jinja", files::TEMPLATE)?,
            more_templates: templates::read(folder)?,
            template_json: optional("chat_template.json", files::TEMPLATE)?,
        })
    }
}

/// The special tokens that have names, which chat templates know.
const SPECIALS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// No token has more bytes of text than this many, in any vocabulary in use.
const MOST_BYTES_PER_TOKEN: usize = 512;

/// Whether a text of so many bytes could fit into so many positions. Asked before a text is tokenized: that takes some hundred
/// times its size, and a chat template can write ten megabytes for one word.
pub fn fits(bytes: usize, positions: usize) -> bool {
    bytes <= positions.saturating_mul(MOST_BYTES_PER_TOKEN)
}

impl Tokenizer {
    /// From a model folder, tried ([`Tokenizer::exercise`]). A file that is made to need much memory does; a program that can
    /// start itself again tries a folder in a child first.
    pub fn open(folder: &Path) -> Result<Self> {
        let tokenizer = Self::new(&TokenizerFiles::read(folder)?)?;
        tokenizer.exercise()?;
        Ok(tokenizer)
    }

    /// From texts.
    pub fn new(files: &TokenizerFiles) -> Result<Self> {
        let bad = |why: String| refuse("tokenizer.json", why);
        let shape = shape::read(&files.tokenizer).map_err(bad)?;
        let mut inner = caught(|| build(&files.tokenizer))
            .map_err(|panic| bad(format!("its reader gave up: {panic}")))?
            .map_err(|e| bad(format!("not a tokenizer: {e}")))?;
        // Engines neither pad nor cut: prompts are as long as they are.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| bad(e.to_string()))?;
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
        let templates = Templates::of(files, &config)?;
        let specials: Vec<(String, String)> = SPECIALS
            .iter()
            .filter_map(|key| special(&config, key).or_else(|| special(&map, key)).map(|v| (key.to_string(), v)))
            .collect();
        let texts = [&config, &map].map(|file| special(file, "eos_token"));
        let eos = ends::union(&inner, texts.into_iter().flatten(), &generation, &model)?;
        let (size, special) = pieces::ids(&inner);
        let spelling = Spelling::of(&inner);
        Ok(Self { inner, shape, spelling, size, special, renderer: None, templates, specials, eos })
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
        self.template(false).is_some()
    }

    /// The chat template of a conversation, with tools or without.
    pub fn template(&self, tools: bool) -> Option<&str> {
        self.templates.choose(tools)
    }

    /// The special tokens that the model's files name (`bos_token` and the like), and their texts.
    pub fn specials(&self) -> &[(String, String)] {
        &self.specials
    }

    /// Text to tokens, with the special tokens that the tokenizer adds by itself.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, true)
    }

    /// Text to tokens, with or without the special tokens that the tokenizer adds by itself.
    pub fn encode_with(&self, text: &str, specials: bool) -> Result<Vec<u32>> {
        let bad = |why: String| refuse("the prompt", why);
        let (bytes, growth) = (text.len() as u64, self.shape.growth);
        if bytes.saturating_mul(growth) > MOST_NORMALIZED.saturating_add(bytes.saturating_mul(8)) {
            return Err(RuntimeError::Request(Refusal::new(
                format!("a prompt of {bytes} bytes"),
                format!(
                    "this tokenizer can make a text {growth} times longer, and {MOST_NORMALIZED} bytes is the limit of that"
                ),
                "shorten the prompt",
            )));
        }
        let encoded = caught(|| self.inner.encode_fast(text, specials))
            .map_err(|panic| bad(format!("the tokenizer gave up: {panic}")))?
            .map_err(|e| bad(format!("it cannot be tokenized: {e}")))?;
        Ok(encoded.get_ids().to_vec())
    }

    /// Tokens to text, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decode_with(ids, true)
    }

    /// Tokens to text; `skip_special` leaves special tokens out.
    pub fn decode_with(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let bad = |why: String| refuse("the output", why);
        if (ids.len() as u64).saturating_mul(self.shape.token) > MOST_TEXT {
            let bytes = |id: &u32| self.inner.id_to_token(*id).map_or(0, |token| token.len() as u64);
            let grows = self.shape.decoded.saturating_mul(ids.iter().map(bytes).sum());
            if grows > MOST_TEXT {
                let why = format!("{} tokens can become {grows} bytes, more than the limit of {MOST_TEXT}", ids.len());
                return Err(RuntimeError::Request(Refusal::new("the tokens", why, "give fewer at once")));
            }
        }
        caught(|| self.inner.decode(ids, skip_special))
            .map_err(|panic| bad(format!("the tokenizer gave up: {panic}")))?
            .map_err(|e| bad(format!("it cannot be decoded: {e}")))
    }

    /// Tokens to text, special tokens included.
    pub fn decode_all(&self, ids: &[u32]) -> Result<String> {
        self.decode_with(ids, false)
    }

    /// Encodes and decodes what a request may hold, so that a tokenizer that fails on it is refused with its model and not
    /// with a request. Texts that the tokenizer does not know are no failure.
    pub fn exercise(&self) -> Result<()> {
        /// Tokens that are decoded at each end of the vocabulary.
        const ENDS: usize = 1000;
        let bad = |why: String| refuse("tokenizer.json", why);
        let long = ["a", " ", "\n", "é", "漢", "0"].map(|text| text.repeat(300));
        let texts = ["", "KING HENRY.\nHello, world!", "\u{0}\t ünï\u{301} ﷺ 🎉 12345", "<|endoftext|></s>[UNK]"];
        let mut seen = Vec::new();
        for text in texts.into_iter().chain(long.iter().map(String::as_str)) {
            let encoded = caught(|| self.inner.encode_fast(text, true)).map_err(|panic| {
                bad(format!("it cannot encode {:?}…: {panic}", text.chars().take(20).collect::<String>()))
            })?;
            seen.extend(encoded.map(|e| e.get_ids().to_vec()).unwrap_or_default());
        }
        let all = self.vocabulary();
        let ends = (0..all.min(ENDS)).chain(all.saturating_sub(ENDS)..all).map(|id| vec![id as u32]);
        seen.truncate(ENDS);
        for ids in ends.chain([seen]) {
            // An error here is an error of a request.
            let _ = caught(|| self.inner.decode(&ids, false))
                .map_err(|panic| bad(format!("it cannot decode the tokens {ids:?}: {panic}")))?;
        }
        Ok(())
    }

    /// A token as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The same tokenizer with another chat template.
    #[must_use]
    pub fn with_template(mut self, template: String) -> Self {
        self.templates = Templates::one(template);
        self
    }

    /// The same tokenizer, with chat templates rendered elsewhere.
    #[must_use]
    pub fn with_renderer(mut self, renderer: Arc<dyn Renderer>) -> Self {
        self.renderer = Some(renderer);
        self
    }

    /// The conversation as the template writes it, ready for the model's answer.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        self.render_with(Turns { messages: messages.to_vec(), add_generation_prompt: true, ..Turns::default() })
    }

    /// The conversation as the template writes it.
    pub fn render_with(&self, turns: Turns) -> Result<String> {
        let own = || self.template(turns.tools.is_some()).map(str::to_owned);
        let Some(template) = turns.template.clone().or_else(own) else {
            return Err(refuse("a conversation", "the model has no chat template".to_string()));
        };
        let rendering = Rendering {
            template,
            messages: turns.messages,
            tools: turns.tools,
            documents: turns.documents,
            specials: self.specials.iter().cloned().collect(),
            add_generation_prompt: turns.add_generation_prompt,
            continue_final_message: turns.continue_final_message,
            more: turns.more,
            now: Some(template::now()),
        };
        rendering.check()?;
        match &self.renderer {
            Some(elsewhere) => elsewhere.render(&rendering),
            None => rendering.apart(),
        }
    }
}

/// Builds the library's tokenizer. It reads a model of any kind twice into memory before it looks which kind it is; the one
/// kind that large models have is read as what it is.
fn build(text: &str) -> tokenizers::Result<HfTokenizer> {
    type Bpe =
        TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, tokenizers::DecoderWrapper>;
    match serde_json::from_str::<Bpe>(text) {
        Ok(tokenizer) => Ok(tokenizer.into()),
        Err(_) => HfTokenizer::from_bytes(text),
    }
}

fn special(config: &Value, key: &str) -> Option<String> {
    let value = &config[key];
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_string)
}

const TOKENIZER_NEXT: &str = "use the tokenizer files that belong to the model";

fn refuse(what: &str, why: String) -> RuntimeError {
    RuntimeError::Tokenizer(Refusal::new(what, why, TOKENIZER_NEXT))
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
