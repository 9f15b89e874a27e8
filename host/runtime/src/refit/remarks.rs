//! What patches may answer, and somebody should know: it is said wherever a refit is reported, or refused where the operator
//! says so.

use std::ops::Range;

use super::{Differs, RefitHooks};
use crate::checkpoint::Checkpoint;
use crate::error::{Refusal, Result, RuntimeError};
use crate::hooks::{Decision, Edges};
use crate::plan::Plan;
use crate::quantize::edges_name;
use crate::words::shown;

/// Tensors that a remark names; it says how many more there are.
const NAMED: usize = 3;

/// What the loader map has elsewhere than the host's own map: a remark, or a refusal under `differs = "refuse"`.
pub(super) fn placements(plan: &Plan, checkpoint: &Checkpoint, hooks: &RefitHooks) -> Result<Option<String>> {
    let (Some(loader), false) = (&hooks.loader, plan.elsewhere.is_empty()) else { return Ok(None) };
    let who = loader.name();
    let names: Vec<&str> = checkpoint.tensors().map(|t| t.name.as_str()).collect();
    let all = plan.elsewhere.iter().map(|(i, e)| {
        let name = names.get(*i).copied().unwrap_or_default();
        format!("`{}` goes to {}, and the host's own map says {}", shown(name), e.placed, e.host)
    });
    let said = some_of(all.collect());
    let what =
        format!("patch `{}` places {} elsewhere than the host's own map", shown(who), tensors(plan.elsewhere.len()));
    if hooks.rules.differs == Differs::Refuse {
        return Err(RuntimeError::Refit(Refusal::new(
            what,
            format!("{said}; the policy says `[loader] differs = \"refuse\"`"),
            "use a loader map that agrees with the names, or let it be remarked only: differs = \"remark\"",
        )));
    }
    Ok(Some(format!("{what}: {said}")))
}

/// Schemes that let NaN or infinity pass: the operator's rule still holds, and whoever reads the plan should know.
pub(super) fn edges(decisions: &[Option<Decision>], checkpoint: &Checkpoint, hooks: &RefitHooks) -> Vec<String> {
    let Some(quant) = &hooks.quant else { return Vec::new() };
    let of = |wanted: Edges| {
        let lax = checkpoint.tensors().zip(decisions).filter_map(move |(tensor, decision)| match decision {
            Some(Decision::Quantize(scheme)) if scheme.cast.edges == wanted => {
                Some(format!("`{}`", shown(&tensor.name)))
            }
            _ => None,
        });
        let lax: Vec<String> = lax.collect();
        (!lax.is_empty()).then(|| {
            let (who, edges, count) = (shown(quant.name()), edges_name(wanted), tensors(lax.len()));
            format!(
                "patch `{who}` quantizes {count} with edges = {edges}, which lets NaN or infinity pass: {}",
                some_of(lax)
            )
        })
    };
    [Edges::PropagateNan, Edges::IgnoreNan].into_iter().filter_map(of).collect()
}

/// A mask must leave something to sample. `ids`: those that the tokenizer has and the output layer computes.
pub(super) fn mask(who: &str, masked: &[Range<u32>], ids: u32) -> Result<Vec<String>> {
    let taken: u32 = masked.iter().map(|r| r.end.min(ids).saturating_sub(r.start.min(ids))).sum();
    let who = shown(who);
    match ids.saturating_sub(taken) {
        0 => Err(RuntimeError::Refit(Refusal::new(
            format!("the mask of patch `{who}`"),
            format!("it leaves none of the {ids} token ids of the tokenizer: nothing could be sampled"),
            "repair the patch, or leave it out; the old weights, if any, keep serving",
        ))),
        1 if ids > 1 => {
            let free = (0..ids).find(|id| !masked.iter().any(|r| r.contains(id))).unwrap_or_default();
            Ok(vec![format!(
                "the mask of patch `{who}` leaves one token id of {ids}: every text will be {free}, {free}, …"
            )])
        }
        _ => Ok(Vec::new()),
    }
}

fn tensors(count: usize) -> String {
    if count == 1 { "1 tensor".to_string() } else { format!("{count} tensors") }
}

/// The first few, and how many more.
fn some_of(all: Vec<String>) -> String {
    let more = all.len().saturating_sub(NAMED);
    let first = all.into_iter().take(NAMED).collect::<Vec<_>>().join("; ");
    if more == 0 { first } else { format!("{first}; and {more} more") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
    use super::mask;

    #[test]
    fn a_mask_leaves_something() {
        assert!(mask("m", &[], 10).unwrap().is_empty());
        assert!(mask("m", &[0..8], 10).unwrap().is_empty());
        assert!(mask("m", &[10..12], 10).unwrap().is_empty(), "padding rows are no ids");
        assert!(mask("m", &[0..3, 4..12], 10).unwrap()[0].contains("every text will be 3, 3"));
        for none in [&[0..10][..], &[0..12], &[0..4, 4..11]] {
            assert!(mask("m", none, 10).unwrap_err().to_string().contains("none of the 10 token ids"));
        }
        assert!(mask("m", &[], 1).unwrap().is_empty(), "a vocabulary of one id is the model's word, not the mask's");
    }
}
