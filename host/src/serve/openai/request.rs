//! The fields that completions and chat completions share, and how they become parameters of the scheduler.

use std::collections::BTreeMap;

use patchhost_runtime::scheduler::{LogprobsMode, SampleParams};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::serve::error::{ApiError, ApiResult};

/// Most sequences per prompt.
pub const MAX_N: u32 = 128;

/// Most stop texts, stop tokens, biased, allowed or looked-up tokens.
const MAX_LIST: usize = 4096;

/// Defines a request: its own fields, and those that both requests have. A flattened struct would say the same, but
/// serde then forgets which field an error is in.
macro_rules! request {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* $vis:vis $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, serde::Deserialize, utoipa::ToSchema)]
        pub struct $name {
            $($(#[$field_meta])* $vis $field: $type,)*
            /// The served model, or a loaded adapter; the served model where it is absent.
            pub model: Option<String>,
            /// Sequences per prompt.
            #[schema(minimum = 1, maximum = 128)]
            pub n: Option<u32>,
            /// Send tokens as they come, as server-sent events.
            pub stream: Option<bool>,
            /// Options of the stream.
            pub stream_options: Option<$crate::serve::openai::request::StreamOptions>,
            /// Texts that end a sequence.
            pub stop: Option<$crate::serve::openai::request::Stop>,
            /// Tokens that end a sequence.
            #[schema(max_items = 4096)]
            pub stop_token_ids: Option<Vec<u32>>,
            /// The same seed gives the same tokens, at any load.
            pub seed: Option<i64>,
            /// 0 is greedy.
            #[schema(minimum = 0, maximum = 100)]
            pub temperature: Option<f32>,
            /// Only the most likely tokens whose probabilities sum to this.
            #[schema(minimum = 0.000001, maximum = 1)]
            pub top_p: Option<f32>,
            /// Only this many of the most likely tokens; 0 and -1 are all.
            #[schema(minimum = -1)]
            pub top_k: Option<i32>,
            /// Only tokens at least this times as likely as the best.
            #[schema(minimum = 0, maximum = 1)]
            pub min_p: Option<f32>,
            /// Above 0, tokens that were generated become less likely.
            #[schema(minimum = -2, maximum = 2)]
            pub presence_penalty: Option<f32>,
            /// Above 0, tokens become less likely the more often they were generated.
            #[schema(minimum = -2, maximum = 2)]
            pub frequency_penalty: Option<f32>,
            /// Above 1, tokens of the prompt and the answer become less likely.
            #[schema(minimum = 0.01, maximum = 100)]
            pub repetition_penalty: Option<f32>,
            /// What is added to the logits of tokens, by id.
            #[schema(value_type = Option<std::collections::HashMap<String, f32>>)]
            pub logit_bias: Option<std::collections::BTreeMap<String, f32>>,
            /// Only these tokens are sampled.
            #[schema(min_items = 1, max_items = 4096)]
            pub allowed_token_ids: Option<Vec<u32>>,
            /// Go on behind end tokens.
            pub ignore_eos: Option<bool>,
            /// No end before this many tokens.
            pub min_tokens: Option<u32>,
            /// The stop text is part of the answer.
            pub include_stop_str_in_output: Option<bool>,
            /// Special tokens have no text; the default is true.
            pub skip_special_tokens: Option<bool>,
            /// Log probabilities of the prompt's tokens, with this many of the most likely ones.
            #[schema(minimum = 0, maximum = 20)]
            pub prompt_logprobs: Option<u32>,
            /// Log probabilities of these tokens at every position, with `logprobs`.
            #[schema(max_items = 4096)]
            pub logprob_token_ids: Option<Vec<u32>>,
            /// Give the ids of the prompt's and the answer's tokens too.
            pub return_token_ids: Option<bool>,
            /// Tokens in log probabilities are written `token_id:N`.
            pub return_tokens_as_token_ids: Option<bool>,
            /// Only this many of the last tokens of the prompt.
            #[schema(minimum = 1)]
            pub truncate_prompt_tokens: Option<u32>,
            /// Id of the request: part of the answer's id, and for aborts.
            #[schema(min_length = 1, max_length = 128, pattern = "^[!-~]+$")]
            pub request_id: Option<String>,
            /// Accepted; sequences run in the order in which they come.
            pub priority: Option<i64>,
            /// Accepted; the server does not ask who uses it.
            pub user: Option<String>,
            #[schema(ignore)]
            best_of: Option<serde_json::Value>,
            #[schema(ignore)]
            use_beam_search: Option<serde_json::Value>,
            #[schema(ignore)]
            response_format: Option<serde_json::Value>,
            #[schema(ignore)]
            structured_outputs: Option<serde_json::Value>,
            #[schema(ignore)]
            guided_json: Option<serde_json::Value>,
            #[schema(ignore)]
            guided_regex: Option<serde_json::Value>,
            #[schema(ignore)]
            guided_choice: Option<serde_json::Value>,
            #[schema(ignore)]
            guided_grammar: Option<serde_json::Value>,
            #[schema(ignore)]
            logits_processors: Option<serde_json::Value>,
            #[schema(ignore)]
            bad_words: Option<serde_json::Value>,
        }

        impl $name {
            /// The shared fields.
            fn sampling(&self) -> $crate::serve::openai::request::Sampling<'_> {
                $crate::serve::openai::request::Sampling {
                    n: self.n,
                    stream: self.stream,
                    stream_options: self.stream_options.as_ref(),
                    stop: self.stop.as_ref(),
                    stop_token_ids: self.stop_token_ids.as_deref(),
                    seed: self.seed,
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    repetition_penalty: self.repetition_penalty,
                    logit_bias: self.logit_bias.as_ref(),
                    allowed_token_ids: self.allowed_token_ids.as_deref(),
                    ignore_eos: self.ignore_eos,
                    min_tokens: self.min_tokens,
                    include_stop_str_in_output: self.include_stop_str_in_output,
                    skip_special_tokens: self.skip_special_tokens,
                    prompt_logprobs: self.prompt_logprobs,
                    logprob_token_ids: self.logprob_token_ids.as_deref(),
                    unsupported: [
                        ("best_of", self.best_of.as_ref(), "each sequence is given, none is chosen among several; ask for n"),
                        ("use_beam_search", self.use_beam_search.as_ref(), "tokens are sampled; there is no beam search"),
                        ("response_format", self.response_format.as_ref(), "answers are plain text"),
                        ("structured_outputs", self.structured_outputs.as_ref(), "answers are plain text"),
                        ("guided_json", self.guided_json.as_ref(), "answers are plain text"),
                        ("guided_regex", self.guided_regex.as_ref(), "answers are plain text"),
                        ("guided_choice", self.guided_choice.as_ref(), "answers are plain text"),
                        ("guided_grammar", self.guided_grammar.as_ref(), "answers are plain text"),
                        ("logits_processors", self.logits_processors.as_ref(), "requests cannot bring code"),
                        ("bad_words", self.bad_words.as_ref(), "single tokens can be forbidden by logit_bias -100, texts cannot"),
                    ],
                }
            }
        }
    };
}
pub(super) use request;

/// Options of a stream.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// A last chunk without choices says how many tokens were used.
    pub include_usage: Option<bool>,
    /// Every chunk says it.
    pub continuous_usage_stats: Option<bool>,
}

/// One text or several that end a sequence.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a string or a list of strings")]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// The shared fields of a request.
pub(in crate::serve) struct Sampling<'a> {
    pub n: Option<u32>,
    pub stream: Option<bool>,
    pub stream_options: Option<&'a StreamOptions>,
    pub stop: Option<&'a Stop>,
    pub stop_token_ids: Option<&'a [u32]>,
    pub seed: Option<i64>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<i32>,
    pub min_p: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub logit_bias: Option<&'a BTreeMap<String, f32>>,
    pub allowed_token_ids: Option<&'a [u32]>,
    pub ignore_eos: Option<bool>,
    pub min_tokens: Option<u32>,
    pub include_stop_str_in_output: Option<bool>,
    pub skip_special_tokens: Option<bool>,
    pub prompt_logprobs: Option<u32>,
    pub logprob_token_ids: Option<&'a [u32]>,
    /// Name, value and reason of what is refused.
    pub unsupported: [(&'static str, Option<&'a serde_json::Value>, &'static str); 10],
}

/// What a request asks for besides its prompts.
pub(in crate::serve) struct Asked {
    /// Sequences per prompt.
    pub n: usize,
    /// How tokens are chosen; `max_tokens` and `logprobs` are the endpoint's.
    pub params: SampleParams,
    /// Usage in a last chunk.
    pub include_usage: bool,
    /// Usage in every chunk.
    pub continuous_usage: bool,
}

impl Sampling<'_> {
    /// Checks everything that can be judged without the model.
    pub fn asked(&self, max_logprobs: usize, mode: LogprobsMode) -> ApiResult<Asked> {
        for (name, value, why) in self.unsupported {
            if value.is_some_and(|v| !harmless(name, v)) {
                return Err(ApiError::unsupported(name, why));
            }
        }
        let n = self.n.unwrap_or(1);
        if !(1..=MAX_N).contains(&n) {
            return Err(out_of_range("n", n, &format!("from 1 to {MAX_N}")));
        }
        if self.stream_options.is_some() && self.stream != Some(true) {
            return Err(ApiError::bad(
                "`stream_options`",
                "the answer is not a stream",
                "set `stream` to true, or leave `stream_options` away",
            )
            .param("stream_options"));
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
        let stop = match self.stop {
            None => Vec::new(),
            Some(Stop::One(text)) => vec![text.clone()],
            Some(Stop::Many(texts)) => texts.clone(),
        };
        if stop.len() > 64 || stop.iter().any(|s| s.is_empty() || s.len() > 1024) {
            let why = "it is at most 64 texts of 1 to 1024 bytes";
            return Err(ApiError::bad("`stop`", why, "give fewer, shorter or no stop texts").param("stop"));
        }
        let lists = [
            ("stop_token_ids", self.stop_token_ids.map_or(0, <[u32]>::len)),
            ("allowed_token_ids", self.allowed_token_ids.map_or(0, <[u32]>::len)),
            ("logprob_token_ids", self.logprob_token_ids.map_or(0, <[u32]>::len)),
            ("logit_bias", self.logit_bias.map_or(0, BTreeMap::len)),
        ];
        for (name, len) in lists {
            if len > MAX_LIST {
                return Err(out_of_range(&format!("{name} of {len} entries"), "", "at most 4096 long").param(name));
            }
        }
        check_logprobs("prompt_logprobs", self.prompt_logprobs, max_logprobs)?;
        let options = self.stream_options.cloned().unwrap_or_default();
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
            allowed_token_ids: self.allowed_token_ids.map(<[u32]>::to_vec),
            stop,
            stop_token_ids: self.stop_token_ids.unwrap_or_default().to_vec(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            include_stop_str_in_output: self.include_stop_str_in_output.unwrap_or(false),
            skip_special_tokens: self.skip_special_tokens.unwrap_or(true),
            logprob_token_ids: self.logprob_token_ids.unwrap_or_default().to_vec(),
            prompt_logprobs: self.prompt_logprobs.map(|n| n as usize),
            logprobs_mode: mode,
            ..SampleParams::default()
        };
        Ok(Asked {
            n: n as usize,
            params,
            include_usage: options.include_usage.unwrap_or(false),
            continuous_usage: options.continuous_usage_stats.unwrap_or(false),
        })
    }

    fn bias(&self) -> ApiResult<Vec<(u32, f32)>> {
        let entry = |(id, bias): (&String, &f32)| {
            let bad = |why: &str| {
                let id = crate::base::text::clean(id, 40);
                ApiError::bad(format!("`logit_bias` of `{id}`"), why, "give token ids with numbers from -100 to 100")
                    .param("logit_bias")
            };
            let token = id.parse::<u32>().map_err(|_| bad("the key is not the id of a token"))?;
            match bias {
                b if (-100.0..=100.0).contains(b) => Ok((token, *b)),
                _ => Err(bad("the value is not from -100 to 100")),
            }
        };
        self.logit_bias.into_iter().flatten().map(entry).collect()
    }
}

/// Refuses more log probabilities than the server gives.
pub fn check_logprobs(name: &str, value: Option<u32>, limit: usize) -> ApiResult<()> {
    match value {
        Some(n) if n as usize > limit => {
            let e = out_of_range(name, n, &format!("at most {limit}"));
            Err(e)
        }
        _ => Ok(()),
    }
}

/// Values that ask for nothing: `null` never gets here, clients send these as defaults.
fn harmless(name: &str, value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match (name, value) {
        (_, Value::Bool(false)) => true,
        ("best_of", Value::Number(n)) => n.as_u64() == Some(1),
        ("response_format", Value::Object(format)) => format.get("type").and_then(Value::as_str) == Some("text"),
        (_, Value::Array(list)) => list.is_empty(),
        _ => false,
    }
}

/// A value outside of its range.
pub fn out_of_range(name: &str, value: impl std::fmt::Display, range: &str) -> ApiError {
    ApiError::bad(format!("`{name}` {value}"), format!("it must be {range}"), format!("give another `{name}`"))
        .param(name)
}
