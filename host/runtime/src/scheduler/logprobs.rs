//! Log-probabilities of tokens.

/// What log-probabilities are computed from; the names are vLLM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogprobsMode {
    /// Log-softmax of the model's logits as they are.
    #[default]
    RawLogprobs,
    /// Log-softmax of what is sampled from: after masks, bias, penalties, temperature and filters. Filtered tokens have
    /// probability 0.
    ProcessedLogprobs,
    /// The model's logits themselves.
    RawLogits,
    /// What is sampled from, before the softmax.
    ProcessedLogits,
}

/// The log-probability of one token, and of its rivals.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token_id: u32,
    /// Its log-probability (or logit).
    pub logprob: f32,
    /// How many tokens are at least as likely, itself included: 1 is the best.
    pub rank: u32,
    /// The best tokens, best first; fewer than asked for where fewer are possible.
    pub top: Vec<(u32, f32)>,
    /// Those of [`super::SampleParams::logprob_token_ids`], in order.
    pub extra: Vec<(u32, f32)>,
}
