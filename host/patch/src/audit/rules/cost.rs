//! PH5xx: what it costs to compile.

use super::Rule;
use crate::audit::facts::FunctionCost;
use crate::audit::input::Input;
use crate::audit::report::Finding;

pub(super) const START: Rule = Rule::warn("PH501", "start-function", "Code that runs when it is instantiated.");
const INDIRECT: Rule = Rule::info("PH505", "indirect-calls", "Calls whose target is not known statically.");
const COST: Rule = Rule::error(
    "PH506",
    "compile-cost",
    "More functions, locals, blocks, nesting or branch targets than the compiler takes in good time: 50,000 tiny \
     functions take it 17 s, 1.2 MB of br_table 6 s and 700 MiB.",
);

pub(super) const RULES: [Rule; 2] = [INDIRECT, COST];

const SPLIT: &str = "split the function, or build it with opt-level = \"s\"";

/// A finding about the sum of what is to be compiled.
pub(super) fn too_much(message: String) -> Finding {
    COST.finding(message, "make the component smaller and simpler; an honest patch stays a tenth below each cap")
}

pub(super) fn check(input: &Input<'_>, out: &mut Vec<Finding>) {
    let (facts, caps) = (input.facts, input.caps);
    let mut sum = |what: &str, found: u64, cap: u64| {
        if found > cap {
            out.push(COST.finding(format!("{found} {what}; the cap is {cap}"), "make the component smaller"));
        }
    };
    sum("functions", facts.functions as u64, caps.functions as u64);
    sum("targets of br_table", facts.br_table_targets, caps.br_table_targets);
    sum("locals x blocks over all functions", facts.locals_x_blocks, caps.locals_x_blocks_sum);
    sum("types, imports, exports, aliases and instances", facts.items as u64, caps.items as u64);
    sum("bytes of types", facts.type_bytes as u64, caps.type_bytes as u64);

    let mut worst = |what: &str, cost: &Option<FunctionCost>, of: fn(&FunctionCost) -> u64, cap: u64| {
        if let Some(cost) = cost
            && of(cost) > cap
        {
            let message = format!("{} {what} in one function; the cap is {cap}", of(cost));
            out.push(COST.found_at(cost.place(), message, SPLIT));
        }
    };
    worst("bytes", &facts.largest, |cost| cost.bytes as u64, caps.body_bytes as u64);
    worst("locals", &facts.most_locals, |cost| cost.locals, caps.locals);
    worst("nested blocks", &facts.deepest, |cost| cost.nesting as u64, caps.nesting as u64);
    worst("locals x blocks", &facts.costliest, FunctionCost::locals_x_blocks, caps.locals_x_blocks);

    for (index, module) in facts.modules.iter().enumerate() {
        let place = format!("module {index} at {:#x}", module.offset);
        if let Some(function) = module.start {
            let name = module.name_of(function).map(|name| format!(" `{name}`")).unwrap_or_default();
            let message = format!("it has a start function: function {function}{name}");
            out.push(START.found_at(place, message, "do nothing before a hook is called; fuel bounds it"));
        } else if module.exported("_initialize").is_some() {
            let initialize = Finding {
                severity: crate::audit::Severity::Info,
                ..START.finding("it has `_initialize`", "nothing: fuel bounds it")
            };
            out.push(initialize);
        }
    }
    if facts.indirect_calls > 0 {
        out.push(INDIRECT.finding(format!("{} call_indirect", facts.indirect_calls), "nothing"));
    }
}
