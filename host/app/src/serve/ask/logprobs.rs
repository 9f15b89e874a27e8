//! Log probabilities: how many a request may ask for, and how JSON writes one.

use patchhost_runtime::scheduler::SampleParams;

use super::sampling::out_of_range;
use crate::serve::error::{ApiError, ApiResult};
use crate::serve::state::App;

/// What stands for minus infinity, which JSON does not have; vLLM's number.
const NEVER: f64 = -9999.0;

/// A log probability as JSON has it. Widened, so that a number is the same wherever it is given.
pub fn number(logprob: f32) -> f64 {
    if logprob.is_nan() { NEVER } else { f64::from(logprob).max(NEVER) }
}

/// Most entries per place that a request may have without a look at how many that makes.
const FEW: usize = 1024;
/// Most entries of all places of a request that asks for more.
const MOST: usize = 1 << 24;

/// How many log probabilities per token are wanted; -1 is the whole vocabulary. More than the server gives
/// (`--max-logprobs`) are refused.
pub fn check_logprobs(app: &App, name: &str, asked: Option<i64>) -> ApiResult<Option<usize>> {
    let Some(asked) = asked else { return Ok(None) };
    let limit = app.max_logprobs();
    let wanted = match asked {
        -1 => Some(app.live.engine().model().vocab()),
        n => usize::try_from(n).ok(),
    };
    match wanted {
        Some(n) if n <= limit => Ok(Some(n)),
        None => Err(out_of_range(name, asked, "at least 0, or -1 for the whole vocabulary")),
        Some(_) => {
            let why = format!("it must be at most {limit} (--max-logprobs of the server)");
            let next =
                format!("give another `{name}`, or start the server with a larger --max-logprobs (-1: no limit)");
            Err(ApiError::bad(format!("`{name}` {asked}"), why, next).param(name))
        }
    }
}

/// Refuses a request whose log probabilities could not be held: `--max-logprobs -1` lets everybody ask for a vocabulary at
/// every place.
pub fn check_amount(params: &SampleParams, prompts: &[Vec<u32>], n: usize) -> ApiResult<()> {
    let many = |top: Option<usize>| top.filter(|top| *top > FEW).unwrap_or(0);
    let answer = many(params.logprobs).saturating_mul(params.max_tokens);
    let each = |prompt: &Vec<u32>| many(params.prompt_logprobs).saturating_mul(prompt.len()).saturating_add(answer);
    let all = prompts.iter().map(each).fold(0, usize::saturating_add).saturating_mul(n);
    if all <= MOST {
        return Ok(());
    }
    let why = format!("they can be {all} numbers, and one request may have {MOST}");
    let next = "ask for fewer per token, for fewer tokens, or in several requests";
    Err(ApiError::bad("the log probabilities of this request", why, next).param("logprobs"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_vocabulary_at_every_place_is_bounded_as_a_whole() {
        let asks = |logprobs, prompt_logprobs| SampleParams {
            max_tokens: 100,
            logprobs,
            prompt_logprobs,
            ..SampleParams::default()
        };
        let prompts = vec![vec![0; 50], vec![0; 50]];
        assert!(check_amount(&asks(Some(151_936), None), &prompts[..1], 1).is_ok());
        let error = check_amount(&asks(Some(151_936), None), &prompts, 1).unwrap_err();
        assert!(error.message().contains("30387200 numbers"), "{error}");
        assert!(check_amount(&asks(None, Some(151_936)), &prompts, 1).is_ok());
        assert!(check_amount(&asks(None, Some(151_936)), &prompts, 2).is_err());
        // As many as servers give anyway are not counted.
        assert!(check_amount(&asks(Some(1024), Some(1024)), &prompts, 1000).is_ok());
        assert!(check_amount(&asks(Some(usize::MAX), None), &prompts, usize::MAX).is_err());
    }
}
