//! PH5xx, but for cost: what the code does that a reviewer wants to know. None of it refuses a patch by itself: the limits
//! bound every call, and the cast proves every scale.

use super::Rule;
use crate::audit::facts::{FunctionFacts, ModuleFacts};
use crate::audit::graph::{Graph, cycles};
use crate::audit::input::Input;
use crate::audit::report::Finding;
use crate::base::text;

const ENDLESS: Rule = Rule::warn("PH502", "loop-no-exit", "A loop that nothing leaves: only fuel ends it.");
const LONG_LOOPS: Rule = Rule::info("PH503", "loop-no-call", "Loops without calls: where a patch can spend its fuel.");
const RECURSION: Rule =
    Rule::warn("PH504", "recursion", "Functions that call themselves: how deep is only known when it runs.");
const FORMATTING: Rule = Rule { severity: crate::audit::Severity::Info, ..RECURSION };
const NAN_BITS: Rule = Rule::info(
    "PH507",
    "nan-bits",
    "It looks at the bits of floats, NaN payloads too. The engine makes them the same on every CPU.",
);
const UNREACHABLE: Rule =
    Rule::info("PH508", "unreachable-code", "Functions that nothing reaches: code that nobody reviewed in use.");
const BULK: Rule = Rule::info("PH509", "bulk-dynamic", "memory.copy and memory.fill of a length that is worked out.");
const RARE: Rule = Rule::info(
    "PH510",
    "rare-constant-compare",
    "It compares something with a constant that nobody types by accident: a magic number, or a trigger.",
);
const STATEFUL: Rule = Rule::info(
    "PH511",
    "stateful",
    "A call may leave something behind for the next one. Allocators do; an answer that depends on it does not belong in a \
     patch without `state`. `--probe` asks whether it does.",
);
const COUNTER: Rule = Rule { severity: crate::audit::Severity::Warn, ..STATEFUL };
const TRAPS: Rule = Rule::info("PH512", "trap-density", "How many `unreachable` there are: panics and aborts.");

pub(super) const RULES: [Rule; 10] =
    [ENDLESS, LONG_LOOPS, RECURSION, NAN_BITS, UNREACHABLE, BULK, RARE, STATEFUL, TRAPS, super::cost::START];

/// Findings of one rule that are named one by one.
const NAMED: usize = 4;

pub(super) fn check(input: &Input<'_>, out: &mut Vec<Finding>) {
    let facts = input.facts;
    let graph = Graph::of(facts);
    for (index, module) in facts.modules.iter().enumerate() {
        let reached = |function: &&FunctionFacts| graph.hooks_reach(index, function.cost.index);
        let hooks: Vec<&FunctionFacts> = module.code.iter().filter(reached).collect();
        endless(module, out);
        recursion(index, module, &graph, out);
        rare(module, &hooks, out);
        stateful(module, &hooks, out);
        let sum = |of: fn(&FunctionFacts) -> u32| module.code.iter().map(of).fold(0u32, u32::saturating_add);
        let mut count = |rule: &Rule, count: u32, what: &str, fix: &str| {
            if count > 0 {
                out.push(rule.finding(format!("{count} {what}"), fix));
            }
        };
        count(&LONG_LOOPS, sum(|f| f.loops_without_calls), "loops without calls", "nothing: fuel bounds them");
        count(&NAN_BITS, sum(|f| f.nan_bits), "instructions that see the bits of a float", "nothing");
        count(
            &BULK,
            sum(|f| f.bulk_dynamic),
            "copies and fills of a length that is worked out",
            "nothing: memory is bounded",
        );
        let functions = module.code.len();
        count(
            &TRAPS,
            sum(|f| f.traps),
            &format!("`unreachable` in {functions} functions"),
            "nothing: a trap is an answer",
        );
        let dead = module.code.iter().filter(|f| !graph.is_reached(index, f.cost.index)).count();
        if dead > 0 {
            let message = format!("{dead} of {functions} functions are reached by nothing");
            out.push(UNREACHABLE.finding(message, "link with --gc-sections, and with lto"));
        }
    }
}

fn endless(module: &ModuleFacts, out: &mut Vec<Finding>) {
    for function in module.code.iter().filter(|function| !function.endless.is_empty()).take(NAMED) {
        let message = format!("a loop at {:#x} that nothing leaves", function.endless[0]);
        out.push(ENDLESS.found_at(
            function.place(module),
            message,
            "leave the loop, or say in the review why it never does",
        ));
    }
}

fn recursion(index: usize, module: &ModuleFacts, graph: &Graph, out: &mut Vec<Finding>) {
    let mut named = 0;
    for group in cycles(module).into_iter().filter(|group| group.iter().any(|f| graph.hooks_reach(index, *f))) {
        let names: Vec<String> =
            group.iter().map(|f| module.name_of(*f).unwrap_or_else(|| format!("function {f}"))).collect();
        // What Rust's own library does is known, and bounded by the depth of what is formatted.
        let library = names.iter().all(|name| is_library(name));
        let rule = if library { &FORMATTING } else { &RECURSION };
        named += 1;
        if named > NAMED {
            break;
        }
        let shown =
            names.iter().take(3).map(|name| format!("`{}`", text::clean(name, 80))).collect::<Vec<_>>().join(" → ");
        let place = module.function(group[0]).map(|f| f.place(module)).unwrap_or_default();
        out.push(rule.found_at(
            place,
            format!("{shown}{}", if names.len() > 3 { " → …" } else { "" }),
            "bound the depth; the stack is 512 KiB",
        ));
    }
}

fn rare(module: &ModuleFacts, hooks: &[&FunctionFacts], out: &mut Vec<Finding>) {
    let own = hooks.iter().filter(|f| !module.name_of(f.cost.index).is_some_and(|name| is_library(&name)));
    let all = own.flat_map(|f| f.rare.iter().map(move |found| (f, found)));
    for (function, (constant, offset)) in all.take(NAMED) {
        let message = format!("compares with {constant:#x} at {offset:#x}");
        out.push(RARE.found_at(function.place(module), message, "say in the review what the number is"));
    }
}

fn stateful(module: &ModuleFacts, hooks: &[&FunctionFacts], out: &mut Vec<Finding>) {
    let stack = module.stack_pointer();
    let counters: Vec<&&FunctionFacts> =
        hooks.iter().filter(|f| f.global_writes.iter().any(|global| Some(*global) != stack)).collect();
    for function in counters.iter().take(NAMED) {
        let global = function.global_writes.iter().find(|global| Some(**global) != stack).copied().unwrap_or_default();
        let message = format!("writes global {global}, which is not the stack pointer");
        out.push(COUNTER.found_at(function.place(module), message, "answer from the arguments alone"));
    }
    let names: Vec<String> = hooks
        .iter()
        .filter(|f| !f.static_stores.is_empty())
        .map(|f| module.name_of(f.cost.index).unwrap_or_else(|| format!("function {}", f.cost.index)))
        .filter(|name| !ALLOCATOR.iter().any(|part| name.contains(part)))
        .map(|name| text::clean(&name, 80))
        .collect();
    if !names.is_empty() {
        let shown = names.iter().take(3).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let more = names.len().saturating_sub(3);
        let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
        out.push(
            STATEFUL.finding(format!("writes to fixed addresses: {shown}{tail}"), "answer from the arguments alone"),
        );
    }
}

/// Whether a name is of Rust's own library, or of what it does when something panics.
fn is_library(name: &str) -> bool {
    let begins = ["core::", "alloc::", "std::", "__rustc::", "rust_", "dlmalloc", "<core::", "<alloc::", "<std::"];
    begins.iter().any(|begin| name.starts_with(begin)) || (name.starts_with('<') && name.contains(" as core::"))
}

/// Allocators keep books between calls; that is what they are for.
const ALLOCATOR: [&str; 4] = ["dlmalloc", "__rust_alloc", "__rdl_", "cabi_realloc"];
