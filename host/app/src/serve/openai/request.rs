//! The fields that completions and chat completions share, and how they are translated.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::serve::error::{ApiError, ApiResult};

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
            pub stop: Option<$crate::serve::ask::Stop>,
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
            /// Log probabilities of the prompt's tokens, with this many of the most likely ones. `--max-logprobs` says how
            /// many there can be; with `--max-logprobs -1`, -1 is all.
            #[schema(minimum = 0, maximum = 20)]
            pub prompt_logprobs: Option<i64>,
            /// Log probabilities of these tokens at every position, with `logprobs`.
            #[schema(max_items = 4096)]
            pub logprob_token_ids: Option<Vec<u32>>,
            /// Give the ids of the prompt's and the answer's tokens too.
            pub return_token_ids: Option<bool>,
            /// Tokens in log probabilities are written `token_id:N`.
            pub return_tokens_as_token_ids: Option<bool>,
            /// The special tokens that the tokenizer adds by itself; the default is true for texts and false for
            /// conversations, whose template writes them.
            pub add_special_tokens: Option<bool>,
            /// Prefixes are shared only with requests that have the same salt.
            #[schema(min_length = 1, max_length = 1024)]
            pub cache_salt: Option<String>,
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
            /// What the answer must be, in OpenAI's words.
            pub response_format: Option<$crate::serve::ask::ResponseFormat>,
            /// What the answer must be, in vLLM's words.
            pub structured_outputs: Option<$crate::serve::ask::StructuredOutputs>,
            /// Older name of `structured_outputs.json`.
            #[schema(value_type = Option<Object>)]
            pub guided_json: Option<serde_json::Value>,
            /// Older name of `structured_outputs.regex`.
            pub guided_regex: Option<String>,
            /// Older name of `structured_outputs.choice`.
            pub guided_choice: Option<Vec<String>>,
            /// Older name of `structured_outputs.grammar`.
            pub guided_grammar: Option<String>,
            #[schema(ignore)]
            logits_processors: Option<serde_json::Value>,
            #[schema(ignore)]
            bad_words: Option<serde_json::Value>,
        }

        impl $name {
            /// Refuses what is not done here, and gives what the request asks for besides its prompts.
            fn asked(&self, app: &$crate::serve::state::App) -> $crate::serve::error::ApiResult<$crate::serve::ask::Asked> {
                let texts = "single tokens can be forbidden by logit_bias -100, texts cannot";
                $crate::serve::ask::refuse(
                    &[
                        ("best_of", &self.best_of, "each sequence is given, none is chosen among several; ask for n"),
                        ("use_beam_search", &self.use_beam_search, "tokens are sampled; there is no beam search"),
                        ("logits_processors", &self.logits_processors, "requests cannot bring code"),
                        ("bad_words", &self.bad_words, texts),
                    ],
                    $crate::serve::ask::harmless,
                )?;
                let mut asked = $crate::serve::ask::SamplingParams {
                    n: self.n,
                    stop: self.stop.clone(),
                    stop_token_ids: self.stop_token_ids.clone(),
                    seed: self.seed,
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    repetition_penalty: self.repetition_penalty,
                    logit_bias: self.logit_bias.clone(),
                    allowed_token_ids: self.allowed_token_ids.clone(),
                    ignore_eos: self.ignore_eos,
                    min_tokens: self.min_tokens,
                    include_stop_str_in_output: self.include_stop_str_in_output,
                    skip_special_tokens: self.skip_special_tokens,
                    prompt_logprobs: self.prompt_logprobs,
                    logprob_token_ids: self.logprob_token_ids.clone(),
                    structured_outputs: self.structured_outputs.clone(),
                    structure: self.structure()?,
                    ..Default::default()
                }
                .asked(app)?;
                asked.params.cache_salt = $crate::serve::ask::cache_salt("cache_salt", self.cache_salt.as_deref())?;
                Ok(asked)
            }

            /// What the answer must be, where `response_format` or one of the older fields says it.
            fn structure(&self) -> $crate::serve::error::ApiResult<Option<$crate::serve::ask::Structure>> {
                use $crate::serve::ask::Structure;
                use patchhost_runtime::grammar::Source;
                let schema = self.guided_json.as_ref();
                Structure::only([
                    self.response_format.as_ref().map(|format| format.structure()).transpose()?.flatten(),
                    schema.map(|schema| Structure::json("guided_json", schema, true)).transpose()?,
                    self.guided_regex.clone().map(|regex| Structure::new("guided_regex", Source::Regex(regex))),
                    self.guided_choice.clone().map(|choice| Structure::new("guided_choice", Source::Choice(choice))),
                    self.guided_grammar.clone().map(|text| Structure::new("guided_grammar", Source::Grammar(text))),
                ])
            }

            /// Whether the tokens are sent as they come, and what a stream says about usage.
            fn streamed(&self) -> $crate::serve::error::ApiResult<Option<$crate::serve::openai::request::StreamOptions>> {
                $crate::serve::openai::request::streamed(self.stream, self.stream_options.as_ref())
            }
        }
    };
}
pub(super) use request;

/// Options of a stream.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
pub struct StreamOptions {
    /// A last chunk without choices says how many tokens were used.
    pub include_usage: Option<bool>,
    /// Every chunk says it.
    pub continuous_usage_stats: Option<bool>,
}

/// The options of a stream, none where the answer comes whole; options without a stream are refused.
pub(super) fn streamed(stream: Option<bool>, options: Option<&StreamOptions>) -> ApiResult<Option<StreamOptions>> {
    match (stream == Some(true), options) {
        (true, options) => Ok(Some(options.cloned().unwrap_or_default())),
        (false, None) => Ok(None),
        (false, Some(_)) => Err(ApiError::bad(
            "`stream_options`",
            "the answer is not a stream",
            "set `stream` to true, or leave `stream_options` away",
        )
        .param("stream_options")),
    }
}
