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
const SIMD: Rule = Rule::info("PH408", "simd-used", "SIMD instructions: where compilers have had most wrong code.");

pub(super) const RULES: [Rule; 8] = [NOT_ALLOWED, RELAXED, THREADS, EXCEPTIONS, GC, TAIL_CALL, STACK_SWITCHING, SIMD];

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
        let message = crate::abi::text::clean(error.message(), 300);
        out.push(NOT_ALLOWED.found_at(place, message, "build with the default features of wasm32"));
    }
}

fn rule(id: &str) -> Rule {
    let all = RULES.iter().chain(&memory::RULES).chain(&world::RULES);
    all.copied().find(|rule| rule.id == id).unwrap_or(NOT_ALLOWED)
}

pub(super) fn check(input: &Input<'_>, out: &mut Vec<Finding>) {
    if let Some(count) = input.facts.proposals.get("simd") {
        out.push(SIMD.finding(format!("{count} SIMD instructions"), "nothing: the host checks every answer"));
    }
}
