//! PH5xx, but for cost: what the code does that a reviewer wants to know. None of it refuses a patch by itself: the limits
//! bound every call, and the cast proves every scale.
//!
//! Names of functions are the author's word. They explain findings; what is found, and how bad it is, is decided by the code
//! alone.

use super::Rule;
use crate::audit::ending::{self, Ending, ending};
use crate::audit::facts::{FunctionFacts, ModuleFacts};
use crate::audit::graph::{Graph, cycles};
use crate::audit::input::Input;
use crate::audit::names::looks_like;
use crate::audit::report::{Finding, Severity};
use crate::base::text;

const ENDLESS: Rule = Rule::warn("PH502", "loop-no-exit", "A loop that nothing leaves: only fuel ends it.");
const LONG_LOOPS: Rule = Rule::info("PH503", "loop-no-call", "Loops without calls: where a patch can spend its fuel.");
const RECURSION: Rule = Rule::warn(
    "PH504",
    "recursion",
    "Functions that call themselves: how deep is only known when it runs. A warning where no way through them ends without \
     another call; else a note.",
);
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
const COUNTER: Rule = Rule { severity: Severity::Warn, ..STATEFUL };
const TRAPS: Rule = Rule::info("PH512", "trap-density", "How many `unreachable` there are: panics and aborts.");

pub(super) const RULES: [Rule; 10] =
    [ENDLESS, LONG_LOOPS, RECURSION, NAN_BITS, UNREACHABLE, BULK, RARE, STATEFUL, TRAPS, super::cost::START];

/// Findings of one rule that are named one by one.
const NAMED: usize = 4;
/// The same where honest patches have more than a few, so that those cannot hide another one.
const NAMED_OF_MANY: usize = 16;

pub(super) fn check(input: &Input<'_>, out: &mut Vec<Finding>) {
    let facts = input.facts;
    let graph = Graph::of(facts);
    for (index, module) in facts.modules.iter().enumerate() {
        let reached = |function: &&FunctionFacts| graph.hooks_reach(index, function.cost.index);
        let hooks: Vec<&FunctionFacts> = module.code.iter().filter(reached).collect();
        endless(module, out);
        recursion(input.bytes, index, module, &graph, out);
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
    let all: Vec<&FunctionFacts> = module.code.iter().filter(|function| !function.endless.is_empty()).collect();
    for function in all.iter().take(NAMED) {
        let message = format!("a loop at {:#x} that nothing leaves", function.endless[0]);
        out.push(ENDLESS.found_at(
            function.place(module),
            message,
            "leave the loop, or say in the review why it never does",
        ));
    }
    rest(&ENDLESS, all.len(), NAMED, "functions with such loops", out);
}

/// Says how many were not named.
fn rest(rule: &Rule, found: usize, named: usize, what: &str, out: &mut Vec<Finding>) {
    if let Some(more @ 1..) = found.checked_sub(named) {
        out.push(rule.finding(format!("{more} more {what}"), "ask its author, or read the code"));
    }
}

fn recursion(bytes: &[u8], index: usize, module: &ModuleFacts, graph: &Graph, out: &mut Vec<Finding>) {
    let mut left = ending::READS;
    let reached = |group: &Vec<u32>| group.iter().any(|f| graph.hooks_reach(index, *f));
    let groups = cycles(module).into_iter().filter(reached).map(|group| {
        let ends = ending(bytes, module, &group, &mut left);
        (group, ends)
    });
    let (notes, warnings): (Vec<_>, Vec<_>) = groups.partition(|(_, ends)| *ends == Ending::Possible);
    for (group, ends) in warnings.iter().take(NAMED) {
        let (shown, why) = match ends {
            Ending::Never(some) => (some, "each way through it calls it again"),
            _ => (group, "whether a way out of it exists was not looked at, it is too large"),
        };
        let message = format!("{}: {why}", called(module, shown));
        let place = module.function(shown[0]).map(|f| f.place(module)).unwrap_or_default();
        out.push(RECURSION.found_at(place, message, "end it in some case; else only fuel and the stack of 512 KiB do"));
    }
    rest(&RECURSION, warnings.len(), NAMED, "groups of functions with no way out", out);
    let note = Rule { severity: Severity::Info, ..RECURSION };
    for (group, _) in notes.iter().take(NAMED_OF_MANY) {
        let place = module.function(group[0]).map(|f| f.place(module)).unwrap_or_default();
        out.push(note.found_at(place, called(module, group), "bound the depth; the stack is 512 KiB"));
    }
    rest(&note, notes.len(), NAMED_OF_MANY, "groups of functions that call each other", out);
}

/// A group of functions by name, and what their names suggest if all of them do.
fn called(module: &ModuleFacts, group: &[u32]) -> String {
    let names: Vec<String> =
        group.iter().map(|f| module.name_of(*f).unwrap_or_else(|| format!("function {f}"))).collect();
    let shown = names.iter().take(3).map(|name| format!("`{}`", text::clean(name, 80))).collect::<Vec<_>>();
    let more = if names.len() > 3 { " → …" } else { "" };
    let hint = match looks_like(&names[0]) {
        Some(what) if names.iter().all(|name| looks_like(name).is_some()) => named_like(what),
        _ => String::new(),
    };
    format!("{}{more}{hint}", shown.join(" → "))
}

/// What a name suggests, for the end of a message.
fn named_like(what: &str) -> String {
    format!(" (named like {what}; the name is the author's word)")
}

fn rare(module: &ModuleFacts, hooks: &[&FunctionFacts], out: &mut Vec<Finding>) {
    let all: Vec<_> = hooks.iter().flat_map(|f| f.rare.iter().map(move |found| (f, found))).collect();
    for (function, (constant, offset)) in all.iter().take(NAMED_OF_MANY) {
        let name = module.name_of(function.cost.index);
        let hint = name.and_then(|name| looks_like(&name)).map(named_like).unwrap_or_default();
        let message = format!("compares with {constant:#x} at {offset:#x}{hint}");
        out.push(RARE.found_at(function.place(module), message, "say in the review what the number is"));
    }
    rest(&RARE, all.len(), NAMED_OF_MANY, "comparisons with such constants", out);
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
    rest(&COUNTER, counters.len(), NAMED, "functions that write such globals", out);
    let names: Vec<String> = hooks
        .iter()
        .filter(|f| !f.static_stores.is_empty())
        .map(|f| module.name_of(f.cost.index).unwrap_or_else(|| format!("function {}", f.cost.index)))
        .collect();
    if !names.is_empty() {
        let shown =
            names.iter().take(3).map(|name| format!("`{}`", text::clean(name, 80))).collect::<Vec<_>>().join(", ");
        let more = names.len().saturating_sub(3);
        let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
        let hint = match names.iter().filter(|name| looks_like(name).is_some()).count() {
            0 => String::new(),
            some => format!(
                "; {some} of {} are named like an allocator or the standard library (names are the author's word)",
                names.len()
            ),
        };
        out.push(
            STATEFUL
                .finding(format!("writes to fixed addresses: {shown}{tail}{hint}"), "answer from the arguments alone"),
        );
    }
}
