//! Log probabilities in the two forms of OpenAI, and prompt log probabilities in vLLM's.

use patchhost_runtime::scheduler::TokenLogprob;
use patchhost_runtime::tokenizer::Tokenizer;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::serve::ask::number;

/// How tokens are written.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    pub tokenizer: &'a Tokenizer,
    /// `token_id:N` instead of the text.
    pub as_ids: bool,
}

impl Writer<'_> {
    /// The text of one token.
    pub fn token(&self, id: u32) -> String {
        match self.as_ids {
            true => format!("token_id:{id}"),
            false => self.tokenizer.decode_all(&[id]).unwrap_or_default(),
        }
    }
}

/// Log probabilities of a completion: parallel lists.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// The text of each token.
    pub tokens: Vec<String>,
    /// Its log probability; none for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<f64>>,
    /// The most likely tokens at its place with theirs, its own among them.
    #[schema(value_type = Vec<Option<std::collections::HashMap<String, f64>>>)]
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where its text begins, in characters.
    pub text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Adds a token whose text begins at character `offset`. Returns where the text of the next token begins.
    pub fn push(&mut self, id: u32, logprob: Option<&TokenLogprob>, offset: usize, writer: Writer<'_>) -> usize {
        let text = writer.token(id);
        let len = if writer.as_ids {
            writer.tokenizer.decode_all(&[id]).map_or(0, |t| t.chars().count())
        } else {
            text.chars().count()
        };
        self.tokens.push(text);
        self.token_logprobs.push(logprob.map(|l| number(l.logprob)));
        self.top_logprobs.push(logprob.map(|l| {
            let own = (l.token_id, l.logprob);
            let mut top = Map::new();
            for (id, logprob) in l.top.iter().chain([&own]).chain(&l.extra) {
                // Two tokens can have one text: the more likely one is kept.
                top.entry(writer.token(*id)).or_insert_with(|| Value::from(number(*logprob)));
            }
            top
        }));
        self.text_offset.push(offset);
        offset + len
    }
}

/// Log probabilities of a chat completion.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// One entry per token.
    pub content: Vec<ChatLogprob>,
}

/// Log probability of one token.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatLogprob {
    /// Its text.
    pub token: String,
    /// Its log probability.
    pub logprob: f64,
    /// Its own bytes, also where its text is a part of a character: those of all tokens together are the text's.
    pub bytes: Vec<u8>,
    /// The most likely tokens at its place, best first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// Log probability of a token that could have been.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// Its log probability.
    pub logprob: f64,
    /// Its own bytes, also where its text is a part of a character: those of all tokens together are the text's.
    pub bytes: Vec<u8>,
}

/// One entry of [`ChatLogprobs`].
pub fn chat(l: &TokenLogprob, writer: Writer<'_>) -> ChatLogprob {
    let top = |(id, logprob): &(u32, f32)| {
        let token = writer.token(*id);
        TopLogprob { bytes: writer.tokenizer.bytes(*id), token, logprob: number(*logprob) }
    };
    let token = writer.token(l.token_id);
    ChatLogprob {
        bytes: writer.tokenizer.bytes(l.token_id),
        token,
        logprob: number(l.logprob),
        top_logprobs: l.top.iter().chain(&l.extra).map(top).collect(),
    }
}

/// Log probability of a token of a prompt, as vLLM gives it: by id.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PromptLogprob {
    /// Its log probability.
    pub logprob: f64,
    /// How many tokens are at least as likely; absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// Its text.
    pub decoded_token: String,
}

/// Log probabilities of a prompt: one entry per token, none for the first.
pub type PromptLogprobs = Vec<Option<std::collections::BTreeMap<String, PromptLogprob>>>;

/// Log probabilities of a prompt.
pub fn prompt(all: &[Option<TokenLogprob>], writer: Writer<'_>) -> PromptLogprobs {
    let entry = |l: &TokenLogprob| {
        let top = l.top.iter().enumerate().map(|(i, (id, logprob))| (*id, *logprob, Some(i as u32 + 1)));
        let extra = l.extra.iter().map(|(id, logprob)| (*id, *logprob, None));
        // Its own entry comes last: it has the true rank.
        let own = [(l.token_id, l.logprob, Some(l.rank))];
        let one = |(id, logprob, rank): (u32, f32, Option<u32>)| {
            (id.to_string(), PromptLogprob { logprob: number(logprob), rank, decoded_token: writer.token(id) })
        };
        extra.chain(top).chain(own).map(one).collect()
    };
    all.iter().map(|l| l.as_ref().map(entry)).collect()
}
