//! Log probabilities: how many a request may ask for, and how JSON writes one.

use super::sampling::out_of_range;
use crate::serve::error::ApiResult;

/// What stands for minus infinity, which JSON does not have; vLLM's number.
const NEVER: f64 = -9999.0;

/// A log probability as JSON has it. Widened, so that a number is the same wherever it is given.
pub fn number(logprob: f32) -> f64 {
    if logprob.is_nan() { NEVER } else { f64::from(logprob).max(NEVER) }
}

/// How many log probabilities per token are wanted; more than the server gives (`--max-logprobs`) are refused.
pub fn check_logprobs(name: &str, asked: Option<u32>, limit: usize) -> ApiResult<Option<usize>> {
    match asked {
        Some(n) if n as usize > limit => Err(out_of_range(name, n, &format!("at most {limit}"))),
        _ => Ok(asked.map(|n| n as usize)),
    }
}
