//! `/v1/chat/completions/render` and `/v1/completions/render`, as vLLM has them: what a request would generate from, without
//! generating. The answer is a body for `/inference/v1/generate`.

use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::request::StreamOptions;
use crate::serve::ask::{Asked, Structure};

/// A rendered prompt, with all that `/inference/v1/generate` takes.
#[derive(Debug, Serialize, ToSchema)]
pub struct Rendered {
    /// An id for the request.
    pub request_id: String,
    /// The tokens of the prompt.
    pub token_ids: Vec<u32>,
    /// Always none: prompts are text.
    #[schema(value_type = Option<Object>)]
    pub features: Option<Value>,
    /// How tokens are chosen.
    #[schema(value_type = Object)]
    pub sampling_params: Map<String, Value>,
    /// The model that was asked.
    pub model: String,
    /// Whether the tokens are to be sent as they come.
    pub stream: bool,
    /// What a stream says about usage.
    pub stream_options: Option<StreamOptions>,
    /// Whose prefixes are shared.
    pub cache_salt: Option<String>,
    /// As it was asked for; sequences run in the order in which they come.
    pub priority: i64,
}

/// The parameters of a request in vLLM's words; those that ask for nothing are left away.
pub fn sampling_params(asked: &Asked) -> Map<String, Value> {
    let p = &asked.params;
    let list = |ids: &[u32]| Some(json!(ids)).filter(|_| !ids.is_empty());
    let flag = |flag: bool, usual: bool| Some(json!(flag)).filter(|_| flag != usual);
    let float = |value: f32, usual: f32| Some(json!(short(value))).filter(|_| value != usual);
    let bias: Map<String, Value> = p.logit_bias.iter().map(|(id, b)| (id.to_string(), json!(short(*b)))).collect();
    let all = [
        ("n", Some(json!(asked.n))),
        ("temperature", Some(json!(short(p.temperature)))),
        ("top_p", Some(json!(short(p.top_p)))),
        ("top_k", Some(json!(p.top_k))),
        ("min_p", Some(json!(short(p.min_p)))),
        ("max_tokens", Some(json!(p.max_tokens))),
        ("min_tokens", Some(json!(p.min_tokens)).filter(|_| p.min_tokens > 0)),
        // Two's complement, as it came.
        ("seed", p.seed.map(|seed| json!(seed as i64))),
        ("presence_penalty", float(p.presence_penalty, 0.0)),
        ("frequency_penalty", float(p.frequency_penalty, 0.0)),
        ("repetition_penalty", float(p.repetition_penalty, 1.0)),
        ("logit_bias", Some(json!(bias)).filter(|_| !bias.is_empty())),
        ("allowed_token_ids", p.allowed_token_ids.as_deref().map(|ids| json!(ids))),
        ("stop", Some(json!(p.stop)).filter(|_| !p.stop.is_empty())),
        ("stop_token_ids", list(&p.stop_token_ids)),
        ("logprobs", p.logprobs.map(|n| json!(n))),
        ("prompt_logprobs", p.prompt_logprobs.map(|n| json!(n))),
        ("logprob_token_ids", list(&p.logprob_token_ids)),
        ("ignore_eos", flag(p.ignore_eos, false)),
        ("include_stop_str_in_output", flag(p.include_stop_str_in_output, false)),
        ("skip_special_tokens", flag(p.skip_special_tokens, true)),
        ("structured_outputs", asked.structure.as_ref().map(Structure::structured_outputs)),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// A number as short as it was written: 0.7, and not what is nearest to that in 32 bits.
fn short(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
