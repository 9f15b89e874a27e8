//! PH3xx: memories and tables.

use super::Rule;
use crate::audit::facts::MemoryFacts;
use crate::audit::input::Input;
use crate::audit::report::Finding;

const NO_MAX: Rule = Rule::warn("PH301", "no-max-memory", "A memory without a maximum: only the host's limit ends it.");
const OVER_LIMIT: Rule = Rule::error(
    "PH302",
    "memory-over-limit",
    "Memories that may grow beyond the limit, or tables that begin beyond it.",
);
const SHARED: Rule = Rule::error("PH303", "shared-memory", "A memory shared between threads.");
const MULTI: Rule = Rule::error(
    "PH304",
    "multi-memory",
    "More than one memory in a module. Forbidden here because the engine panics if it is forbidden there.",
);
const ODD: Rule = Rule::error("PH305", "memory64-or-page-size", "64-bit memories or other page sizes.");
const GROWABLE_TABLE: Rule = Rule::warn("PH306", "growable-table", "A table without a maximum.");
const GROWS: Rule = Rule::info("PH307", "memory-grow", "It grows its memory; its limit is the host's to keep.");

const MUTABLE_EXPORT: Rule = Rule::warn(
    "PH308",
    "exported-table-or-global-mut",
    "A core module shows a table, or a global that it may write: others could reach into it.",
);

pub(super) const RULES: [Rule; 8] = [NO_MAX, OVER_LIMIT, SHARED, MULTI, ODD, GROWABLE_TABLE, GROWS, MUTABLE_EXPORT];

const LINK_ARG: &str = "link with `-C link-arg=--max-memory=67108864`";

pub(super) fn check(input: &Input<'_>, out: &mut Vec<Finding>) {
    let (facts, caps) = (input.facts, input.caps);
    for (index, module) in facts.modules.iter().enumerate() {
        let place = format!("module {index} at {:#x}", module.offset);
        for memory in &module.memories {
            one(memory, &place, out);
        }
        let memories = module.memories.len() + module.imported_memories as usize;
        if memories > 1 {
            out.push(MULTI.found_at(&place, format!("{memories} memories in one module"), "use one memory"));
        }
        mutable_exports(module, &place, out);
        let grows = module.code.iter().map(|function| function.table_grows).fold(0u32, u32::saturating_add);
        if grows > 0 {
            out.push(GROWABLE_TABLE.found_at(&place, format!("{grows} table.grow"), "use fixed tables"));
        }
        if module.tables.iter().any(|(_, max)| max.is_none()) {
            let message = format!("one of {} tables has no maximum", module.tables.len());
            out.push(GROWABLE_TABLE.found_at(&place, message, "export no growable table"));
        }
    }
    let pages = facts.memory_pages();
    if pages > caps.memory_pages {
        let message = format!("memories of up to {pages} pages together; the limit is {}", caps.memory_pages);
        out.push(OVER_LIMIT.finding(message, LINK_ARG));
    }
    let tables = facts.modules.iter().flat_map(|module| &module.tables);
    let elements = tables.fold(0u64, |sum, (min, _)| sum.saturating_add(*min));
    if elements > caps.table_elements {
        let message = format!("tables of {elements} elements together; the limit is {}", caps.table_elements);
        out.push(OVER_LIMIT.finding(message, "use smaller tables"));
    }
    if facts.memory_grows > 0 {
        out.push(GROWS.finding(format!("{} memory.grow", facts.memory_grows), "nothing: the host limits it"));
    }
}

/// wit-component itself makes modules that export their table: a shim and its fixup. They have no memory.
fn mutable_exports(module: &crate::audit::ModuleFacts, place: &str, out: &mut Vec<Finding>) {
    if module.memories.is_empty() {
        return;
    }
    let mutable = |index: u32| module.globals.get(index as usize).is_some_and(|global| global.mutable);
    for export in &module.exports {
        let what = match export.kind {
            "table" => "the table",
            "global" if mutable(export.index) => "the mutable global",
            _ => continue,
        };
        out.push(MUTABLE_EXPORT.found_at(place, format!("exports {what} `{}`", export.name), "do not export it"));
    }
}

fn one(memory: &MemoryFacts, place: &str, out: &mut Vec<Finding>) {
    if memory.max.is_none() {
        let message = format!("{} pages and no maximum", memory.min);
        out.push(NO_MAX.found_at(place, message, LINK_ARG));
    }
    if memory.shared {
        out.push(SHARED.found_at(place, "a shared memory", "build without threads"));
    }
    if memory.memory64 || memory.custom_page {
        let what = if memory.memory64 { "a 64-bit memory" } else { "a memory with another page size" };
        out.push(ODD.found_at(place, what, "build for wasm32"));
    }
}
