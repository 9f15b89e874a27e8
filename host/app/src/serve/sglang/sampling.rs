//! SGLang's sampling parameters, translated into vLLM's. `custom_params` is none of them: only custom logit processors read
//! it, which are refused, so it is ignored as SGLang does and named as every field that is.

use std::collections::BTreeMap;

use patchhost_runtime::grammar::Source;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::serve::ask::{self, Asked, Stop, Structure, harmless, refuse};
use crate::serve::error::ApiResult;
use crate::serve::state::App;

/// SGLang's sampling parameters.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct SamplingParams {
    /// Most tokens; the default is 128, or what fits.
    pub max_new_tokens: Option<u32>,
    /// No end before this many tokens.
    pub min_new_tokens: Option<u32>,
    /// Texts that end a sequence.
    pub stop: Option<Stop>,
    /// Tokens that end a sequence.
    pub stop_token_ids: Option<Vec<u32>>,
    /// 0 is greedy; the default is 1.
    pub temperature: Option<f32>,
    /// Only the most likely tokens whose probabilities sum to this.
    pub top_p: Option<f32>,
    /// Only this many of the most likely tokens; -1 is all.
    pub top_k: Option<i32>,
    /// Only tokens at least this times as likely as the best.
    pub min_p: Option<f32>,
    /// From -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// From -2 to 2.
    pub presence_penalty: Option<f32>,
    /// Above 1, tokens that were there become less likely.
    pub repetition_penalty: Option<f32>,
    /// Go on behind end tokens.
    pub ignore_eos: Option<bool>,
    /// Special tokens have no text.
    pub skip_special_tokens: Option<bool>,
    /// The stop text is part of the text.
    pub no_stop_trim: Option<bool>,
    /// Sequences.
    pub n: Option<u32>,
    /// What is added to the logits of tokens, by id.
    #[schema(value_type = Option<std::collections::HashMap<String, f32>>)]
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// The same seed gives the same tokens.
    pub sampling_seed: Option<i64>,
    /// The answer is JSON of this schema, given as text or as an object.
    #[schema(value_type = Option<String>)]
    pub json_schema: Option<Value>,
    /// This regular expression matches the answer as a whole.
    pub regex: Option<String>,
    /// The answer follows this grammar, written with `::=`.
    pub ebnf: Option<String>,
    #[schema(ignore)]
    structural_tag: Option<Value>,
    #[schema(ignore)]
    stop_regex: Option<Value>,
}

impl SamplingParams {
    /// Checked, as the scheduler takes it. `token_ids` are those whose log probabilities are wanted at each place.
    pub(super) fn asked(&self, app: &App, token_ids: &[u32]) -> ApiResult<Asked> {
        refuse(
            &[
                ("structural_tag", &self.structural_tag, "a whole answer follows one grammar"),
                ("stop_regex", &self.stop_regex, "stop texts are compared, not matched"),
            ],
            harmless,
        )?;
        let structure = Structure::only([
            self.json_schema.as_ref().map(|schema| Structure::json("json_schema", schema, true)).transpose()?,
            self.regex.clone().map(|regex| Structure::new("regex", Source::Regex(regex))),
            self.ebnf.clone().map(|text| Structure::new("ebnf", Source::Grammar(text))),
        ])?;
        ask::SamplingParams {
            structure,
            n: self.n,
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_ids.clone(),
            seed: self.sampling_seed,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            logit_bias: self.logit_bias.clone(),
            ignore_eos: self.ignore_eos,
            min_tokens: self.min_new_tokens,
            include_stop_str_in_output: self.no_stop_trim,
            skip_special_tokens: self.skip_special_tokens,
            logprob_token_ids: Some(token_ids.to_vec()),
            ..ask::SamplingParams::default()
        }
        .asked(app)
    }
}
