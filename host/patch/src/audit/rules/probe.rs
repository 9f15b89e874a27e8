//! PH95x: what a probe found out by asking (`patchhost audit --probe`, and before a patch becomes live). Here are the ids
//! and texts; `crate::probe` says which check is a finding of which rule.

use super::Rule;

pub const NUMBERS: Rule = Rule::error(
    "PH950",
    "wrong-numbers",
    "Scales differ from those of the profile that it declares, or from native code, in at least one bit.",
);
pub const CONTRACT: Rule =
    Rule::error("PH951", "contract-broken", "The native cast disproved a scale against the contract that it declares.");
pub const PROPERTY: Rule = Rule::error(
    "PH952",
    "property-broken",
    "Scales are not finite and positive, do not grow with amax, or depend on other blocks, places or names.",
);
pub const CHANGING: Rule = Rule::error(
    "PH953",
    "not-deterministic",
    "The same question had another answer: again, in another instance, after many calls, or in unoptimized code.",
);
pub const HIDDEN: Rule = Rule::error(
    "PH954",
    "special-case",
    "The answer is wrong for one number that stands in the component, one layer, or one size of a question.",
);
pub const ANSWERS: Rule = Rule::error(
    "PH955",
    "wrong-answer",
    "A hook gave no answer, one that a refit would refuse, or another one in another order.",
);
pub const COST: Rule = Rule::error("PH956", "fuel-failed", "It reached a limit while its fuel was measured.");
pub const REMARK: Rule =
    Rule::warn("PH957", "probe-remark", "An answer that is allowed, and that somebody should look at before using it.");
pub const UNASKED: Rule = Rule::warn("PH958", "not-asked", "Time was up before everything was asked.");

pub(super) const RULES: [Rule; 9] = [NUMBERS, CONTRACT, PROPERTY, CHANGING, HIDDEN, ANSWERS, COST, REMARK, UNASKED];
