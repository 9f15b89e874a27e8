//! PH4xx and what goes with them: proposals outside the list.

use super::{Rule, file, memory, world};
use crate::audit::input::Input;
use crate::audit::report::Finding;
use crate::audit::validate;
use wasmparser::BinaryReaderError;

const NOT_ALLOWED: Rule = Rule::error("PH401", "feature-not-allowed", "A proposal outside the list.");
const RELAXED: Rule = Rule::error("PH402", "relaxed-simd", "Results differ between CPUs.");
const THREADS: Rule = Rule::error("PH403", "threads-atomics", "Second tier in wasmtime, and no use to a patch.");
const EXCEPTIONS: Rule = Rule::error("PH404", "exceptions", "Not compiled into the host.");
const GC: Rule = Rule::error("PH405", "gc", "Not compiled into the host.");
const TAIL_CALL: Rule = Rule::error("PH406", "tail-call", "Not needed by any Rust guest.");
const STACK_SWITCHING: Rule = Rule::error("PH407", "stack-switching", "Not compiled into the host.");
const BELOW_TIER_1: Rule =
    Rule::error("PH409", "below-tier-1", "A proposal that is not tier 1 in the engine of this host.");
const SIMD: Rule = Rule::info("PH408", "simd-used", "SIMD instructions: where compilers have had most wrong code.");

pub(super) const RULES: [Rule; 9] =
    [NOT_ALLOWED, RELAXED, THREADS, EXCEPTIONS, GC, TAIL_CALL, STACK_SWITCHING, SIMD, BELOW_TIER_1];

/// Proposals that are tier 1 in wasmtime 48 (its `docs/stability-tiers.md`) and allowed here; the first WebAssembly is not a
/// proposal.
const TIER_1: [&str; 8] = [
    "simd",
    "bulk_memory",
    "reference_types",
    "sign_extension",
    "saturating_float_to_int",
    "multi_value",
    "mutable_global",
    "extended_const",
];

/// Why the validator refused: proposals by name if the bytes are valid with all of them, else its own words.
pub(in crate::audit) fn explain(bytes: &[u8], error: &BinaryReaderError, out: &mut Vec<Finding>) {
    if let Err(error) = validate::valid_with_everything(bytes) {
        out.push(file::invalid(&error));
        return;
    }
    let place = format!("offset {:#x}", error.offset());
    let needed = validate::needed(bytes);
    for (id, what) in &needed {
        let rule = rule(id);
        out.push(rule.found_at(&place, format!("needs {what}"), "build with the default features of wasm32"));
    }
    if needed.is_empty() {
        let message = crate::base::text::clean(error.message(), 300);
        out.push(NOT_ALLOWED.found_at(place, message, "build with the default features of wasm32"));
    }
}

fn rule(id: &str) -> Rule {
    let all = RULES.iter().chain(&memory::RULES).chain(&world::RULES);
    all.copied().find(|rule| rule.id == id).unwrap_or(NOT_ALLOWED)
}

pub(super) fn check(input: &Input<'_>, out: &mut Vec<Finding>) {
    for (proposal, count) in input.facts.proposals.iter().filter(|(proposal, _)| !TIER_1.contains(proposal)) {
        out.push(
            BELOW_TIER_1
                .finding(format!("{count} instructions of `{proposal}`"), "build with the default features of wasm32"),
        );
    }
    if let Some(count) = input.facts.proposals.get("simd") {
        out.push(SIMD.finding(format!("{count} SIMD instructions"), "nothing: the host checks every answer"));
    }
}
