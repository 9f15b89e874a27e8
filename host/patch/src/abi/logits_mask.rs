//! `patchhost:patch/logits-mask`: which token ids are never sampled.

use super::bindings::logits_mask as wit;
use super::guest::{Guest, Subject};
use super::model::check_question;
use crate::base::Function;
use patchhost_runtime::hooks::{HookCause, HookError, LogitsMask, ModelInfo};
use std::ops::Range;
use std::sync::Arc;

lower!(logits_mask: lower_model);

/// Most ranges in an answer.
const RANGES: usize = 65_536;

/// A patch as the runtime's [`LogitsMask`].
pub(crate) struct MaskAdapter(pub(crate) Arc<Guest>);

impl LogitsMask for MaskAdapter {
    fn name(&self) -> &str {
        &self.0.info().name
    }

    fn masked(&self, model: &ModelInfo, rows: u32, vocabulary: u32) -> Result<Vec<Range<u32>>, HookError> {
        let guest = &self.0;
        let subject = Subject::Nothing;
        let fail = |cause, why| guest.error(Function::Masked, &subject, cause, why);
        check_question(model, &[]).map_err(|why| fail(HookCause::Limit, why))?;
        let budget = guest.limits().model_budget(0, model.config.len(), RANGES * size_of::<wit::Range>());
        let answer = guest.call(Function::Masked, &subject, &budget, None, |store, exports| {
            let Some(exports) = &exports.logits_mask else { return Ok(Err("no export `logits-mask`".into())) };
            exports.call_masked(store, lower::model(model), rows, vocabulary)
        })?;
        let ranges: Vec<Range<u32>> = answer.iter().map(|r| r.first..r.end).collect();
        check(&ranges, rows).map_err(|why| fail(HookCause::BadOutput, why))?;
        Ok(ranges)
    }
}

/// What the interface says of an answer.
pub(crate) fn check(ranges: &[Range<u32>], rows: u32) -> Result<(), String> {
    if ranges.len() > RANGES {
        return Err(format!("{} ranges; the interface allows {RANGES}", ranges.len()));
    }
    let mut end = 0;
    for (i, r) in ranges.iter().enumerate() {
        if r.start >= r.end || r.end > rows || r.start < end {
            return Err(format!(
                "range {i} is {}..{}; ranges are ascending, not empty, disjoint and below {rows}",
                r.start, r.end
            ));
        }
        end = r.end;
    }
    let masked: u64 = ranges.iter().map(|r| u64::from(r.end - r.start)).sum();
    if masked == u64::from(rows) {
        return Err(format!("all {rows} ids are masked: nothing could be sampled"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    #[allow(clippy::single_range_in_vec_init, clippy::reversed_empty_ranges)]
    fn ranges_are_checked() {
        assert!(check(&[], 10).is_ok() && check(&[0..3, 3..5, 9..10], 10).is_ok());
        for bad in [&[0..10][..], &[0..5, 5..10], &[3..3], &[5..4], &[9..11], &[0..5, 4..6], &[5..6, 0..1]] {
            assert!(check(bad, 10).is_err(), "{bad:?}");
        }
    }
}
