//! How the tokens of one job are chosen. Names and meaning are those of vLLM's sampling parameters.

use std::sync::Arc;

use super::logprobs::LogprobsMode;
use crate::error::{Refusal, Result, RuntimeError};
use crate::grammar::Grammar;

/// Most stop texts.
pub const MAX_STOPS: usize = 64;

/// Most bytes of a stop text.
pub const MAX_STOP_BYTES: usize = 1024;

/// How the tokens of one job are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleParams {
    /// Most tokens to generate; 0 computes the prompt only.
    pub max_tokens: usize,
    /// No end before this many tokens.
    pub min_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// Only this many best; 0 is all.
    pub top_k: usize,
    /// Only the best whose probabilities sum to this; 1 is all.
    pub top_p: f32,
    /// Only those at least this share of the best one's probability; 0 is all.
    pub min_p: f32,
    /// The same seed gives the same text; none draws one.
    pub seed: Option<u64>,
    /// Taken from the logit of every token that was generated; -2 to 2.
    pub presence_penalty: f32,
    /// The same, once per occurrence; -2 to 2.
    pub frequency_penalty: f32,
    /// Makes tokens of the prompt and of the text less likely where above 1.
    pub repetition_penalty: f32,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Only these tokens are sampled.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// These tokens are never sampled.
    pub bad_token_ids: Vec<u32>,
    /// Texts that end the generation.
    pub stop: Vec<String>,
    /// Tokens that end the generation, besides the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Go on after the model's end tokens.
    pub ignore_eos: bool,
    /// Give out the stop text or stop token too.
    pub include_stop_str_in_output: bool,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Log-probabilities of this many best tokens besides the sampled one's; 0 is the sampled one's only. At most as many as
    /// the vocabulary has.
    pub logprobs: Option<usize>,
    /// Tokens whose log-probabilities are wanted at every position.
    pub logprob_token_ids: Vec<u32>,
    /// The same as `logprobs` for the tokens of the prompt; always of the raw logits.
    pub prompt_logprobs: Option<usize>,
    /// What `logprobs` are computed from.
    pub logprobs_mode: LogprobsMode,
    /// Prefixes are shared only with jobs that have the same salt, or none like this one.
    pub cache_salt: Option<Arc<str>>,
    /// Only texts of this grammar are generated. They end when nothing can follow, and where they can, before `max_tokens` cuts
    /// them.
    pub grammar: Option<Arc<Grammar>>,
}

impl Default for SampleParams {
    fn default() -> Self {
        Self {
            max_tokens: 16,
            min_tokens: 0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            allowed_token_ids: None,
            bad_token_ids: Vec::new(),
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            include_stop_str_in_output: false,
            skip_special_tokens: true,
            logprobs: None,
            logprob_token_ids: Vec::new(),
            prompt_logprobs: None,
            logprobs_mode: LogprobsMode::RawLogprobs,
            cache_salt: None,
            grammar: None,
        }
    }
}

impl SampleParams {
    /// Refuses values outside of their ranges, by name. `vocab` is the number of rows of the output.
    pub fn check(&self, vocab: usize) -> Result<()> {
        let bad = |what: String, why: String, next: &str| Err(RuntimeError::Request(Refusal::new(what, why, next)));
        let number = |name: &str, value: f32, good: bool, range: &str| match good {
            true => Ok(()),
            false => bad(format!("{name} {value}"), format!("it must be {range}"), &format!("give another {name}")),
        };
        let p = self;
        number("temperature", p.temperature, p.temperature.is_finite() && p.temperature >= 0.0, "0 (greedy) or more")?;
        number("top_p", p.top_p, p.top_p > 0.0 && p.top_p <= 1.0, "greater than 0 and at most 1")?;
        number("min_p", p.min_p, (0.0..=1.0).contains(&p.min_p), "from 0 to 1")?;
        number("presence_penalty", p.presence_penalty, p.presence_penalty.abs() <= 2.0, "from -2 to 2")?;
        number("frequency_penalty", p.frequency_penalty, p.frequency_penalty.abs() <= 2.0, "from -2 to 2")?;
        let positive = p.repetition_penalty.is_finite() && p.repetition_penalty > 0.0;
        number("repetition_penalty", p.repetition_penalty, positive, "greater than 0")?;
        if p.min_tokens > p.max_tokens {
            let why = format!("it is more than max_tokens {}", p.max_tokens);
            return bad(format!("min_tokens {}", p.min_tokens), why, "give less, or a greater max_tokens");
        }
        for (name, n) in [("logprobs", p.logprobs), ("prompt_logprobs", p.prompt_logprobs)] {
            if let Some(n) = n.filter(|n| *n > vocab) {
                return bad(format!("{name} {n}"), format!("the vocabulary has {vocab} tokens"), "ask for fewer");
            }
        }
        if p.stop.len() > MAX_STOPS {
            let what = format!("stop with {} texts", p.stop.len());
            return bad(what, format!("the most is {MAX_STOPS}"), "give fewer");
        }
        if let Some(text) = p.stop.iter().find(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
            let what = format!("stop with a text of {} bytes", text.len());
            return bad(what, format!("each must have from 1 to {MAX_STOP_BYTES}"), "leave it out or shorten it");
        }
        if p.allowed_token_ids.as_ref().is_some_and(Vec::is_empty) {
            return bad("allowed_token_ids".to_string(), "it is empty".to_string(), "name a token, or leave it out");
        }
        if let Some((id, bias)) = p.logit_bias.iter().find(|(_, b)| !b.is_finite()) {
            let what = format!("logit_bias {bias} of token {id}");
            return bad(what, "it must be finite".to_string(), "use bad_token_ids to forbid a token");
        }
        let biased = p.logit_bias.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        let lists: [(&str, &[u32]); 5] = [
            ("logit_bias", &biased),
            ("allowed_token_ids", p.allowed_token_ids.as_deref().unwrap_or_default()),
            ("bad_token_ids", &p.bad_token_ids),
            ("stop_token_ids", &p.stop_token_ids),
            ("logprob_token_ids", &p.logprob_token_ids),
        ];
        for (name, ids) in lists {
            if ids.len() > vocab {
                let why = format!("it has {} entries, and the vocabulary {vocab}", ids.len());
                return bad(name.to_string(), why, "name each token once");
            }
            if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
                let why = format!("the vocabulary ends at {vocab}");
                return bad(format!("token id {id} in {name}"), why, "use ids of the model's tokenizer");
            }
        }
        Ok(())
    }
}
