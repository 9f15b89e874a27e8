//! The vocabulary as the parser needs it: the bytes of each token, in a trie.

use std::sync::Arc;

use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie, TokenId};

use crate::tokenizer::Tokenizer;

/// Longest token in bytes; longer ones, of which no vocabulary in use has any, are never chosen under a grammar.
const LONGEST: usize = 1000;

/// The tokens of a tokenizer.
pub(super) struct Vocabulary {
    /// As llguidance takes it. Tokens are not forced: which of the possible ones comes is the model's choice.
    pub(super) env: TokEnv,
    /// The token of each byte, where there is one.
    pub(super) bytes: Vec<Option<TokenId>>,
    /// A token that ends a text.
    pub(super) end: Option<TokenId>,
}

impl Vocabulary {
    pub(super) fn of(tokenizer: &Tokenizer) -> Arc<Self> {
        let rows = tokenizer.eos().iter().map(|id| *id as usize + 1).max().unwrap_or(0).max(tokenizer.size());
        let word = |id: usize| {
            let bytes = tokenizer.bytes(id as u32);
            match tokenizer.is_special(id as u32) {
                // What begins with this byte, which no text has, is no text to the parser.
                true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes.as_slice()].concat(),
                false if bytes.len() > LONGEST => Vec::new(),
                false => bytes,
            }
        };
        let mut words: Vec<Vec<u8>> = (0..rows).map(word).collect();
        let mut bytes = vec![None; 256];
        for (id, word) in words.iter().enumerate() {
            if let [byte] = word.as_slice() {
                bytes[usize::from(*byte)].get_or_insert(id as TokenId);
            }
        }
        let ends = tokenizer.eos();
        // A model without an end token still needs one here; it lies behind the vocabulary, where no logit is.
        let none = [words.len() as TokenId];
        if ends.is_empty() {
            words.push(b"\xff<|none|>".to_vec());
        }
        let ends = if ends.is_empty() { none.as_slice() } else { ends };
        for end in ends {
            words[*end as usize] = format!("\u{0}<|end {end}|>").into_bytes();
            words[*end as usize][0] = TokTrie::SPECIAL_TOKEN_MARKER;
        }
        let info = TokRxInfo::new(words.len() as u32, ends[0]);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(ends);
        let end = tokenizer.eos().first().copied();
        Arc::new(Self { env: Arc::new(ApproximateTokEnv::new(trie)), bytes, end })
    }

    pub(super) fn trie(&self) -> &TokTrie {
        self.env.tok_trie()
    }
}
