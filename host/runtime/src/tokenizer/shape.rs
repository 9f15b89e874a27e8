//! What a tokenizer.json can make of a text, found by reading it and before anything is built: how many entries it has,
//! how long they are, and by how much its steps can make a text grow. The library that runs it bounds none of that.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::size::Size;

/// Most entries of a vocabulary, merges and added tokens. The largest known has 515,000 merges.
const MOST_ENTRIES: u64 = 1 << 20;
/// Most bytes of one entry. The longest known is a row of 1,024 spaces.
const MOST_ENTRY: u64 = 4 << 10;
/// Most values in all the other parts. The largest known has 3,000.
const MOST_VALUES: u64 = 1 << 16;
/// Most bytes of a text in a part that is put into others: a token that is added, one that stands for what is unknown.
const MOST_TEXT: u64 = 256;
/// Most bytes of a regular expression.
const MOST_PATTERN: u64 = 64 << 10;
/// Steps that together can make a text more times longer are refused. SentencePiece's NFKC, no more than one space in a
/// row, and `▁` for a space make 264.
const MOST_GROWTH: u64 = 512;
/// Most tokens that a post-processor adds to a text.
const MOST_ADDED: u64 = 1 << 10;

/// What was found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// How many times longer normalizers and pre-tokenizers can make a text, at most.
    pub(super) growth: u64,
    /// How many times longer the decoder can make a token.
    pub(super) decoded: u64,
    /// Bytes that one token can become, at most.
    pub(super) token: u64,
}

/// Reads a tokenizer.json; the error says which limit it breaks.
pub(super) fn read(text: &str) -> Result<Shape, String> {
    let not = |e: serde_json::Error| format!("not a tokenizer: {e}");
    let sizes: Sizes = serde_json::from_str(text).map_err(not)?;
    sizes.check()?;
    let parts: Parts = serde_json::from_str(text).map_err(not)?;
    let encode = growth(&parts.normalizer)?.saturating_mul(growth(&parts.pre_tokenizer)?);
    let decode = growth(&parts.decoder)?;
    for (grows, name) in [(encode, "normalizer and pre_tokenizer"), (decode, "decoder")] {
        if grows > MOST_GROWTH {
            return Err(format!(
                "its {name} can make a text {grows} times longer, more than the limit of {MOST_GROWTH}"
            ));
        }
    }
    let added = ids(&parts.post_processor);
    if added > MOST_ADDED {
        return Err(format!(
            "its post_processor can add {added} tokens to a text, more than the limit of {MOST_ADDED}"
        ));
    }
    let longest = sizes.model.vocab.longest.max(sizes.added_tokens.longest);
    Ok(Shape { growth: encode, decoded: decode, token: longest.saturating_mul(decode).max(1) })
}

/// How large the parts are.
#[derive(serde::Deserialize)]
struct Sizes {
    #[serde(default)]
    added_tokens: Size,
    #[serde(default)]
    normalizer: Size,
    #[serde(default)]
    pre_tokenizer: Size,
    #[serde(default)]
    post_processor: Size,
    #[serde(default)]
    decoder: Size,
    #[serde(default)]
    model: Model,
}

#[derive(Default, serde::Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Size,
    #[serde(default)]
    merges: Size,
    #[serde(default)]
    unk_token: Size,
    #[serde(default)]
    continuing_subword_prefix: Size,
    #[serde(default)]
    end_of_word_suffix: Size,
}

impl Sizes {
    fn check(&self) -> Result<(), String> {
        let lists =
            [("vocab", &self.model.vocab), ("merges", &self.model.merges), ("added_tokens", &self.added_tokens)];
        for (name, list) in lists {
            if list.entries > MOST_ENTRIES {
                return Err(format!("its {name} have {} entries, more than the limit of {MOST_ENTRIES}", list.entries));
            }
            if list.longest > MOST_ENTRY {
                let longest = list.longest;
                return Err(format!("an entry of its {name} has {longest} bytes, more than the limit of {MOST_ENTRY}"));
            }
        }
        let parts = [
            ("normalizer", &self.normalizer),
            ("pre_tokenizer", &self.pre_tokenizer),
            ("post_processor", &self.post_processor),
            ("decoder", &self.decoder),
        ];
        for (name, part) in parts {
            if part.values > MOST_VALUES {
                return Err(format!("its {name} has {} values, more than the limit of {MOST_VALUES}", part.values));
            }
        }
        let texts = [
            ("pre_tokenizer", &self.pre_tokenizer, MOST_PATTERN),
            ("post_processor", &self.post_processor, MOST_TEXT),
            ("decoder", &self.decoder, MOST_TEXT),
            ("unk_token", &self.model.unk_token, MOST_TEXT),
            ("continuing_subword_prefix", &self.model.continuing_subword_prefix, MOST_TEXT),
            ("end_of_word_suffix", &self.model.end_of_word_suffix, MOST_TEXT),
        ];
        for (name, part, most) in texts {
            if part.longest > most {
                return Err(format!("its {name} has a text of {} bytes, more than the limit of {most}", part.longest));
            }
        }
        Ok(())
    }
}

/// The parts that are looked into; what is large is not among them.
#[derive(serde::Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
}

/// How many times longer a step can make a text. Read by the fields and not by the name of the kind, since the library
/// guesses the kind where there is no name.
fn growth(step: &Value) -> Result<u64, String> {
    let fields = match step {
        Value::Array(steps) => {
            return steps.iter().try_fold(1u64, |all, step| Ok(all.saturating_mul(growth(step)?)));
        }
        Value::Object(fields) => fields,
        _ => return Ok(1),
    };
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let bytes = |name: &str| text(name).map_or(0, |text| text.len() as u64);
    let mut all = match text("type") {
        // The longest of each; `ﷺ` has eleven times the bytes.
        Some("NFKC" | "NFKD") => 11,
        Some("NFC" | "NFD") => 3,
        Some("BertNormalizer") => 6,
        Some("Lowercase" | "ByteLevel") => 2,
        Some("FixedLength") if fields.get("length").is_some_and(|length| length == 0) => {
            return Err("its pre_tokenizer cuts a text into pieces of length 0".to_owned());
        }
        _ => 1,
    };
    if let Some(content) = text("content") {
        let content = content.len() as u64;
        // A regular expression may match where there is nothing.
        all *= match fields.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str) {
            Some("") => return Err("it replaces the empty text, which is everywhere".to_owned()),
            Some(pattern) => content.div_ceil(pattern.len() as u64).max(1),
            None => content + 1,
        };
    }
    // Once for each piece, and a piece has a byte at least.
    all = all.saturating_mul(1 + bytes("prepend")).saturating_mul(1 + bytes("replacement"));
    all = all.saturating_mul(text("precompiled_charsmap").map_or(1, longest_replacement).max(1));
    for inner in fields.values().filter(|value| value.is_array() || value.is_object()) {
        all = all.saturating_mul(growth(inner)?);
    }
    Ok(all)
}

/// The longest text in a SentencePiece charsmap, which is, in base64: the length of a trie, the trie, and texts that end
/// with 0.
fn longest_replacement(charsmap: &str) -> u64 {
    // What is no base64 is refused by the library.
    let bytes = STANDARD.decode(charsmap).unwrap_or_default();
    let trie = bytes.first_chunk::<4>().map_or(0, |head| u32::from_le_bytes(*head) as usize);
    let texts = bytes.get(trie.saturating_add(4)..).unwrap_or_default();
    texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0) as u64
}

/// How many tokens a post-processor can add to a text: for each place of a template the tokens of its name.
fn ids(processor: &Value) -> u64 {
    match processor {
        Value::Array(all) => all.iter().map(ids).fold(0, u64::saturating_add),
        Value::Object(fields) => {
            let length = |list: &Value| list.as_array().map_or(0, |list| list.len() as u64);
            let longest = fields.get("special_tokens").and_then(Value::as_object).map_or(0, |tokens| {
                let of = |token: &Value| ["ids", "tokens"].iter().filter_map(|name| token.get(name)).map(length).max();
                tokens.values().filter_map(of).max().unwrap_or(0)
            });
            let places = ["single", "pair"].iter().filter_map(|name| fields.get(*name)).map(length).max();
            let own = places.unwrap_or(0).saturating_mul(longest.max(1));
            fields.values().map(ids).fold(own, u64::saturating_add)
        }
        _ => 0,
    }
}
