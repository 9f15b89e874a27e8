//! The bytes of single tokens. Decoding gives texts, in which half of a character is `�`; who puts tokens together needs the
//! bytes themselves.

use serde_json::Value;
use tokenizers::Tokenizer as HfTokenizer;

use super::Tokenizer;

/// How a vocabulary writes bytes, as its decoder tells.
#[derive(Debug, Default)]
pub(super) struct Spelling {
    /// Each byte is a character of its own (GPT-2's table).
    byte_level: bool,
    /// `<0x0A>` is a byte (SentencePiece).
    fallback: bool,
    /// What stands for what: `▁` for a space.
    replaced: Vec<(String, String)>,
    /// A word's first token lacks this prefix, and a space stands before it (WordPiece).
    inner: Option<String>,
    /// A word's last token has this suffix, and a space follows.
    suffix: Option<String>,
}

impl Spelling {
    pub(super) fn of(tokenizer: &HfTokenizer) -> Self {
        let mut spelling = Self::default();
        if let Some(decoder) = tokenizer.get_decoder().and_then(|decoder| serde_json::to_value(decoder).ok()) {
            spelling.read(&decoder);
        }
        spelling
    }

    fn read(&mut self, decoder: &Value) {
        let text = |name: &str| decoder[name].as_str().map(str::to_owned);
        match decoder["type"].as_str() {
            Some("Sequence") => decoder["decoders"].as_array().into_iter().flatten().for_each(|one| self.read(one)),
            Some("ByteLevel") => self.byte_level = true,
            Some("ByteFallback") => self.fallback = true,
            Some("Metaspace") => self.replaced.extend(text("replacement").map(|sign| (sign, " ".to_owned()))),
            Some("Replace") => {
                let pattern = decoder["pattern"]["String"].as_str().filter(|pattern| !pattern.is_empty());
                self.replaced.extend(pattern.map(str::to_owned).zip(text("content")));
            }
            Some("WordPiece") => self.inner = text("prefix"),
            Some("BPEDecoder") => self.suffix = text("suffix").filter(|suffix| !suffix.is_empty()),
            _ => {}
        }
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        if self.byte_level
            && let Some(bytes) = token.chars().map(byte_of).collect::<Option<Vec<u8>>>()
        {
            return bytes;
        }
        let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
        if self.fallback
            && let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())
        {
            return vec![byte];
        }
        let mut text = token.to_owned();
        if let Some(prefix) = &self.inner {
            text = text.strip_prefix(prefix.as_str()).map_or_else(|| format!(" {text}"), str::to_owned);
        }
        if let Some(suffix) = &self.suffix {
            text = text.replace(suffix.as_str(), " ");
        }
        for (sign, meant) in &self.replaced {
            text = text.replace(sign.as_str(), meant);
        }
        text.into_bytes()
    }
}

/// The byte that a character stands for in GPT-2's table: printable ones for themselves, the others in their order from U+0100.
fn byte_of(c: char) -> Option<u8> {
    let printable = |b: u32| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(c) {
        b if printable(b) => u8::try_from(b).ok(),
        n @ 0x100..=0x143 => (0u8..=255).filter(|b| !printable(u32::from(*b))).nth((n - 0x100) as usize),
        _ => None,
    }
}

impl Tokenizer {
    /// One more than the highest id of a token.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The bytes of a token: of all tokens of a text together, those of the text. Empty for an id that is no token.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        match (self.inner.get_added_tokens_decoder().get(&id), self.inner.id_to_token(id)) {
            (Some(added), _) => added.content.clone().into_bytes(),
            (None, Some(token)) => self.spelling.bytes(&token),
            (None, None) => Vec::new(),
        }
    }

    /// Whether a token is special: a mark, and no part of a text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }
}

/// One more than the highest id, and the ids of special tokens in order.
pub(super) fn ids(tokenizer: &HfTokenizer) -> (usize, Vec<u32>) {
    let size = tokenizer.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
    let added = tokenizer.get_added_tokens_decoder();
    let mut special: Vec<u32> = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
    special.sort_unstable();
    (size, special)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_has_every_byte_once() {
        let mut seen: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
        assert_eq!(
            (byte_of('Ġ'), byte_of('Ċ'), byte_of('é'), byte_of('漢')),
            (Some(b' '), Some(b'\n'), Some(0xE9), None)
        );
    }

    #[test]
    fn each_decoder_spells_in_its_way() {
        let bytes = |decoder: Value, token: &str| {
            let mut spelling = Spelling::default();
            spelling.read(&decoder);
            spelling.bytes(token)
        };
        assert_eq!(bytes(json!({ "type": "ByteLevel" }), "Ġð"), [b' ', 0xF0]);
        let llama = json!({ "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 } ] });
        assert_eq!(bytes(llama.clone(), "<0xF0>"), [0xF0]);
        assert_eq!(bytes(llama, "▁the"), b" the");
        let wordpiece = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
        assert_eq!((bytes(wordpiece.clone(), "##ing"), bytes(wordpiece, "go")), (b"ing".to_vec(), b" go".to_vec()));
        assert_eq!(bytes(json!({ "type": "BPEDecoder", "suffix": "</w>" }), "go</w>"), b"go ");
        assert_eq!(bytes(Value::Null, "<0xF0>"), b"<0xF0>");
    }
}
