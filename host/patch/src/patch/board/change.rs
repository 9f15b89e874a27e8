//! Which set comes out when one patch comes in.

use super::{SwapError, SwapErrorKind};
use crate::base::Hook;
use crate::patch::{Generation, Patch, PatchSet};
use std::sync::Arc;

/// The set that a candidate would be in, for trying it.
pub fn probe_set(active: &Generation, patch: &Arc<Patch>) -> Result<PatchSet, SwapError> {
    replaced(active.set(), patch, true)
}

/// The set with `patch` in the place of those that claim its hooks (of observers: of those that have its name). A hook
/// that would be left without a patch is refused unless forced: the change would do more than it says.
pub(super) fn replaced(set: &PatchSet, patch: &Arc<Patch>, force: bool) -> Result<PatchSet, SwapError> {
    let exclusive = |p: &Patch| p.hooks().iter().copied().filter(|h| !h.shared()).collect::<Vec<_>>();
    let mine = exclusive(patch);
    let goes =
        |old: &Patch| old.info().name == patch.info().name || exclusive(old).iter().any(|hook| mine.contains(hook));
    let mut next: Vec<Arc<Patch>> = Vec::new();
    let mut placed = false;
    for old in set.patches() {
        if !goes(old) {
            next.push(old.clone());
            continue;
        }
        // The rows of `fp8_block_mse` are a part of block-quant: a patch without them is a full replacement.
        let lost = exclusive(old).into_iter().find(|hook| *hook != Hook::BlockQuantRows && !mine.contains(hook));
        if let (Some(hook), false) = (lost, force) {
            return Err(SwapError::new(
                SwapErrorKind::Conflict,
                format!("patch `{}` in the place of `{}`", patch.info().name, old.info().name),
                format!("hook {hook} would be left without a patch"),
                "give a patch that claims it too, or force the change with a reason",
            ));
        }
        if !std::mem::replace(&mut placed, true) {
            next.push(patch.clone());
        }
    }
    if !placed {
        next.push(patch.clone());
    }
    PatchSet::new(next).map_err(|conflict| {
        SwapError::new(
            SwapErrorKind::Conflict,
            format!("patch `{}`", patch.info().name),
            conflict.to_string().replace('\n', " "),
            "leave one of the two out",
        )
    })
}
