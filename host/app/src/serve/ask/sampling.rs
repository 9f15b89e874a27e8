//! How tokens are chosen: the parameters of a request, checked before the scheduler sees them.
//!
//! The words are vLLM's, which TRL sends as they are; the other dialects translate theirs into them.

use std::collections::BTreeMap;
use std::sync::Arc;

use patchhost_runtime::scheduler::SampleParams;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::logprobs::check_logprobs;
use super::structured::{Structure, StructuredOutputs};
use super::unsupported::{harmless, refuse};
use crate::base::text::clean;
use crate::serve::doors::Door;
use crate::serve::error::{ApiError, ApiResult};
use crate::serve::state::App;

/// Most sequences per prompt.
const MAX_N: u32 = 128;

/// Most stop texts, stop tokens, biased, allowed or looked-up tokens.
const MAX_LIST: usize = 4096;

/// Most bytes of a salt of the prefix cache.
const MAX_SALT: usize = 1024;

/// One text or several that end a sequence.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a string or a list of strings")]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// vLLM's sampling parameters.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct SamplingParams {
    /// Sequences.
    pub n: Option<u32>,
    /// 0 is greedy; the default is 1.
    pub temperature: Option<f32>,
    /// Only the most likely tokens whose probabilities sum to this.
    pub top_p: Option<f32>,
    /// Only this many of the most likely tokens; 0 and -1 are all.
    pub top_k: Option<i32>,
    /// Only tokens at least this times as likely as the best.
    pub min_p: Option<f32>,
    /// The same seed gives the same tokens.
    pub seed: Option<i64>,
    /// Texts that end a sequence.
    pub stop: Option<Stop>,
    /// Tokens that end a sequence.
    pub stop_token_ids: Option<Vec<u32>>,
    /// Most tokens; the default is 16.
    pub max_tokens: Option<u32>,
    /// No end before this many tokens.
    pub min_tokens: Option<u32>,
    /// Log probabilities of the sampled tokens and of this many of the best.
    pub logprobs: Option<i64>,
    /// The same for the prompt.
    pub prompt_logprobs: Option<i64>,
    /// Log probabilities of these tokens at every position.
    pub logprob_token_ids: Option<Vec<u32>>,
    /// From -2 to 2.
    pub presence_penalty: Option<f32>,
    /// From -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// Above 1, tokens that were there become less likely.
    pub repetition_penalty: Option<f32>,
    /// What is added to the logits of tokens, by id.
    #[schema(value_type = Option<std::collections::HashMap<String, f32>>)]
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// Only these tokens are sampled.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Go on behind end tokens.
    pub ignore_eos: Option<bool>,
    /// The stop text is part of the text.
    pub include_stop_str_in_output: Option<bool>,
    /// Special tokens have no text.
    pub skip_special_tokens: Option<bool>,
    /// What the answer must be.
    pub structured_outputs: Option<StructuredOutputs>,
    /// The older name of `structured_outputs`.
    pub guided_decoding: Option<StructuredOutputs>,
    /// The same, said by other fields of a request.
    #[serde(skip)]
    #[schema(ignore)]
    pub structure: Option<Structure>,
    /// Refused.
    #[schema(ignore)]
    pub bad_words: Option<Value>,
    /// Refused.
    #[schema(ignore)]
    pub logits_processors: Option<Value>,
}

/// What a request asks for besides its prompts.
pub struct Asked {
    /// Sequences per prompt.
    pub n: usize,
    /// How tokens are chosen; `max_tokens` and `logprobs` are the endpoint's.
    pub params: SampleParams,
    /// What the answer must be; [`Asked::structured`] makes it a part of `params`.
    pub structure: Option<Structure>,
}

impl Asked {
    /// With the grammar of the answer, compiled.
    pub async fn structured(mut self, app: &Arc<App>) -> ApiResult<Self> {
        if let Some(structure) = &self.structure {
            self.params.grammar = Some(structure.compiled(app).await?);
        }
        Ok(self)
    }
}

impl SamplingParams {
    /// Checks everything that can be judged without the model. `max_tokens` and `logprobs` are left to the endpoint: their
    /// defaults differ. What log probabilities are is vLLM's way; other doors say theirs afterwards.
    pub fn asked(&self, app: &App) -> ApiResult<Asked> {
        let texts = "single tokens can be forbidden by logit_bias -100, texts cannot";
        refuse(
            &[
                ("bad_words", &self.bad_words, texts),
                ("logits_processors", &self.logits_processors, "requests cannot bring code"),
            ],
            harmless,
        )?;
        let n = self.n.unwrap_or(1);
        if !(1..=MAX_N).contains(&n) {
            return Err(out_of_range("n", n, &format!("from 1 to {MAX_N}")));
        }
        for (name, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            if value.is_some_and(|v| !(-2.0..=2.0).contains(&v)) {
                return Err(out_of_range(name, value.unwrap_or_default(), "from -2 to 2"));
            }
        }
        for (name, value) in [("temperature", self.temperature), ("repetition_penalty", self.repetition_penalty)] {
            if value.is_some_and(|v| !(0.0..=100.0).contains(&v)) {
                return Err(out_of_range(name, value.unwrap_or_default(), "from 0 to 100"));
            }
        }
        if self.repetition_penalty == Some(0.0) {
            return Err(out_of_range("repetition_penalty", 0, "greater than 0"));
        }
        let top_k = match self.top_k.unwrap_or(0) {
            -1 => 0,
            k if k >= 0 => k as usize,
            k => return Err(out_of_range("top_k", k, "-1 (all) or greater")),
        };
        let stop = match &self.stop {
            None => Vec::new(),
            Some(Stop::One(text)) => vec![text.clone()],
            Some(Stop::Many(texts)) => texts.clone(),
        };
        if stop.len() > 64 || stop.iter().any(|s| s.is_empty() || s.len() > 1024) {
            let why = "it is at most 64 texts of 1 to 1024 bytes";
            return Err(ApiError::bad("`stop`", why, "give fewer, shorter or no stop texts").param("stop"));
        }
        let lists = [
            ("stop_token_ids", self.stop_token_ids.as_ref().map_or(0, Vec::len)),
            ("allowed_token_ids", self.allowed_token_ids.as_ref().map_or(0, Vec::len)),
            ("logprob_token_ids", self.logprob_token_ids.as_ref().map_or(0, Vec::len)),
            ("logit_bias", self.logit_bias.as_ref().map_or(0, BTreeMap::len)),
        ];
        for (name, len) in lists {
            if len > MAX_LIST {
                return Err(out_of_range(&format!("{name} of {len} entries"), "", "at most 4096 long").param(name));
            }
        }
        let prompt_logprobs = check_logprobs(app, "prompt_logprobs", self.prompt_logprobs)?;
        let params = SampleParams {
            min_tokens: self.min_tokens.unwrap_or(0) as usize,
            temperature: self.temperature.unwrap_or(1.0),
            top_k,
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            // Two's complement: every seed is a seed of its own.
            seed: self.seed.map(|seed| seed as u64),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            logit_bias: self.bias()?,
            allowed_token_ids: self.allowed_token_ids.clone(),
            stop,
            stop_token_ids: self.stop_token_ids.clone().unwrap_or_default(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            include_stop_str_in_output: self.include_stop_str_in_output.unwrap_or(false),
            skip_special_tokens: self.skip_special_tokens.unwrap_or(true),
            logprob_token_ids: self.logprob_token_ids.clone().unwrap_or_default(),
            prompt_logprobs,
            logprobs_mode: app.logprobs_mode(Door::Vllm),
            ..SampleParams::default()
        };
        let of = |given: &Option<StructuredOutputs>, field| given.as_ref().map(|s| s.structure(field)).transpose();
        let structure = Structure::only([
            self.structure.clone(),
            of(&self.structured_outputs, "structured_outputs")?.flatten(),
            of(&self.guided_decoding, "guided_decoding")?.flatten(),
        ])?;
        Ok(Asked { n: n as usize, params, structure })
    }

    /// `logit_bias` with its keys as token ids.
    fn bias(&self) -> ApiResult<Vec<(u32, f32)>> {
        let entry = |(id, bias): (&String, &f32)| {
            let bad = |why: &str| {
                let id = clean(id, 40);
                ApiError::bad(format!("`logit_bias` of `{id}`"), why, "give token ids with numbers from -100 to 100")
                    .param("logit_bias")
            };
            let token = id.parse::<u32>().map_err(|_| bad("the key is not the id of a token"))?;
            match bias {
                b if (-100.0..=100.0).contains(b) => Ok((token, *b)),
                _ => Err(bad("the value is not from -100 to 100")),
            }
        };
        self.logit_bias.iter().flatten().map(entry).collect()
    }
}

/// The salt of the prefix cache, as the scheduler takes it. Empty ones are refused, as vLLM does.
pub fn cache_salt(name: &str, given: Option<&str>) -> ApiResult<Option<Arc<str>>> {
    match given {
        Some(salt) if salt.is_empty() || salt.len() > MAX_SALT => {
            let why = format!("it has {} bytes, and must have from 1 to {MAX_SALT}", salt.len());
            Err(ApiError::bad(format!("`{name}`"), why, format!("give another `{name}`, or none")).param(name))
        }
        given => Ok(given.map(Arc::from)),
    }
}

/// Refuses a value outside of its range.
pub(super) fn out_of_range(name: &str, value: impl std::fmt::Display, range: &str) -> ApiError {
    ApiError::bad(format!("`{name}` {value}"), format!("it must be {range}"), format!("give another `{name}`"))
        .param(name)
}
