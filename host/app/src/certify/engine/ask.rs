//! A prompt, greedily completed, and what comes back: the same words for every engine.

use serde_json::{Value, json};

use super::Link;
use crate::certify::error::KitError;
use crate::certify::http::Answer;

/// A prompt that is completed greedily.
#[derive(Debug, Clone, Copy)]
pub struct Question<'q> {
    /// Token ids.
    pub prompt: &'q [u32],
    /// So many tokens are wanted, whatever they are.
    pub max_tokens: usize,
}

/// The tokens of an answer, and the log probability of each where the engine gives it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answered {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// One for each token; empty where the engine gives none.
    pub logprobs: Vec<f64>,
}

/// Asks `/v1/completions`, as vLLM and patchhost have it.
pub fn completions(link: &Link, question: &Question<'_>) -> Result<Answered, KitError> {
    let body = json!({
        "model": link.model, "prompt": question.prompt, "max_tokens": question.max_tokens, "temperature": 0,
        "logprobs": 1, "ignore_eos": true, "return_token_ids": true, "return_tokens_as_token_ids": true,
    });
    let answer = link.client.post("/v1/completions", &body)?;
    let choice = answer.json.pointer("/choices/0").filter(|_| answer.good()).ok_or_else(|| odd(link, &answer))?;
    let words = choice.pointer("/logprobs/tokens").and_then(Value::as_array);
    let of_words = || words?.iter().map(|w| w.as_str()?.strip_prefix("token_id:")?.parse().ok()).collect();
    let tokens = choice.get("token_ids").and_then(ids).or_else(of_words).ok_or_else(|| odd(link, &answer))?;
    let logprobs = choice.pointer("/logprobs/token_logprobs").and_then(Value::as_array);
    let logprobs = logprobs.and_then(|all| all.iter().map(Value::as_f64).collect()).unwrap_or_default();
    whole(link, question, Answered { tokens, logprobs })
}

/// Asks `/generate`, as SGLang has it.
pub fn generate(link: &Link, question: &Question<'_>) -> Result<Answered, KitError> {
    let sampling = json!({ "temperature": 0, "max_new_tokens": question.max_tokens, "ignore_eos": true });
    let body = json!({ "input_ids": question.prompt, "sampling_params": sampling, "return_logprob": true });
    let answer = link.client.post("/generate", &body)?;
    let pairs = answer.json.pointer("/meta_info/output_token_logprobs").and_then(Value::as_array);
    let pairs = pairs.filter(|_| answer.good()).ok_or_else(|| odd(link, &answer))?;
    let pair = |pair: &Value| Some((pair.get(0)?.as_f64()?, u32::try_from(pair.get(1)?.as_u64()?).ok()?));
    let pairs: Option<Vec<(f64, u32)>> = pairs.iter().map(pair).collect();
    let (logprobs, tokens) = pairs.ok_or_else(|| odd(link, &answer))?.into_iter().unzip();
    whole(link, question, Answered { tokens, logprobs })
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// An answer that is shorter than it must be, or has fewer log probabilities than tokens, proves nothing.
fn whole(link: &Link, question: &Question<'_>, answered: Answered) -> Result<Answered, KitError> {
    let (tokens, logprobs) = (answered.tokens.len(), answered.logprobs.len());
    if tokens == question.max_tokens && (logprobs == 0 || logprobs == tokens) {
        return Ok(answered);
    }
    let why =
        format!("it has {tokens} tokens and {logprobs} log probabilities, and {} were asked for", question.max_tokens);
    Err(KitError::host(format!("an answer of {}", link.client.url()), why, "look at the log of the server"))
}

fn odd(link: &Link, answer: &Answer) -> KitError {
    let what = format!("a prompt that was sent to {}", link.client.url());
    KitError::host(what, answer.said(), "look at the log of the server")
}
