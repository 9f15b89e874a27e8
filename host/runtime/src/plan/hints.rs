//! What is added to the refusal of a checkpoint: what is probably behind it.

use crate::checkpoint::Checkpoint;
use crate::error::{Refusal, RuntimeError};
use crate::hooks::HookError;
use crate::refit::Setup;
use crate::rename::Proposal;

/// Where a name is not known, or a loader map refuses names, the wrapper of a trainer may have left its prefix in it: then the
/// rename that would help is said. `name`: the tensor that is refused, if it is one.
pub(super) fn below_wrappers(
    setup: &Setup<'_>,
    checkpoint: &Checkpoint,
    name: Option<&str>,
    mut error: RuntimeError,
) -> RuntimeError {
    let known = |name: &str| setup.registry.knows(name) || setup.allow_unknown.allows(name).is_some();
    if name.is_some_and(known) {
        return error;
    }
    let names = name.into_iter().chain(checkpoint.tensors().map(|t| t.name.as_str()));
    let Some(proposal) = Proposal::of(names, known) else { return error };
    if let RuntimeError::Refit(Refusal { why, next, .. }) | RuntimeError::Hook(HookError { why, next, .. }) = &mut error
    {
        why.push_str(&proposal.why());
        *next = proposal.next();
    }
    error
}

/// Where a checkpoint does not fit, sizes that config.json leaves out are the first thing to look at.
pub(super) fn with_assumed(assumed: &[String], mut error: RuntimeError) -> RuntimeError {
    if let (RuntimeError::Refit(Refusal { why, .. }) | RuntimeError::Hook(HookError { why, .. }), false) =
        (&mut error, assumed.is_empty())
    {
        why.push_str(&format!(
            "; config.json leaves out {}, and the family's default stands for it",
            assumed.join(", ")
        ));
    }
    error
}
