//! Names, proposals and classes of instructions, from wasmparser's own table.

use crate::audit::facts::CLASSES;
use std::collections::BTreeMap;
use std::sync::LazyLock;
use wasmparser::Operator;

macro_rules! define_ordinal {
    ($( @$proposal:ident $op:ident $({ $($arg:ident: $argty:ty),* })? => $visit:ident ($($ann:tt)*) )*) => {
        /// Position of each instruction in [`TABLE`].
        enum Ordinal { $($op),* }

        /// Proposal, name in Rust, name of the visitor.
        const TABLE: &[(&str, &str, &str)] = &[$((stringify!($proposal), stringify!($op), stringify!($visit))),*];

        /// Position of an instruction in the table.
        pub(super) fn ordinal(operator: &Operator<'_>) -> usize {
            match operator {
                $( Operator::$op { .. } => Ordinal::$op as usize, )*
                _ => TABLE.len(),
            }
        }
    };
}
wasmparser::for_each_operator!(define_ordinal);

/// Index of the class of each instruction.
static CLASS: LazyLock<Vec<u8>> =
    LazyLock::new(|| TABLE.iter().map(|(proposal, op, _)| class_index(class(proposal, op))).collect());

/// Index into [`CLASSES`] of an instruction by its ordinal.
pub(super) fn class_of(ordinal: usize) -> usize {
    CLASS.get(ordinal).map_or(CLASSES.len() - 1, |class| usize::from(*class))
}

fn class_index(class: &str) -> u8 {
    CLASSES.iter().position(|known| *known == class).map_or(CLASSES.len() - 1, |index| index).try_into().unwrap_or(0)
}

fn class(proposal: &str, op: &str) -> &'static str {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| op.starts_with(prefix));
    let has = |parts: &[&str]| parts.iter().any(|part| op.contains(part));
    match proposal {
        "simd" | "relaxed_simd" => return "simd",
        "threads" | "shared_everything_threads" => return "atomic",
        _ => {}
    }
    if starts(&["Call", "ReturnCall"]) {
        "call"
    } else if starts(&["Local", "Global"]) {
        "variable"
    } else if starts(&["MemoryCopy", "MemoryFill", "MemoryInit", "DataDrop"]) {
        "bulk"
    } else if starts(&["Memory"]) || has(&["Load", "Store"]) {
        "memory"
    } else if starts(&["Table", "Elem"]) {
        "table"
    } else if starts(&["Ref"]) {
        "reference"
    } else if has(&["Const"]) {
        "const"
    } else if has(&["Convert", "Reinterpret", "Promote", "Demote", "Wrap", "Extend", "TruncF", "TruncSat"]) {
        "convert"
    } else if starts(&["I32", "I64"]) {
        "integer"
    } else if starts(&["F32", "F64"]) {
        "float"
    } else if starts(&["Block", "Loop", "If", "Else", "End", "Br", "Return", "Unreachable", "Nop", "Drop", "Select"]) {
        "control"
    } else {
        "other"
    }
}

/// `visit_i32_add` → `i32.add`, as the text format writes it.
fn text_name(visit: &str) -> String {
    const SPACES: [&str; 16] = [
        "i32", "i64", "f32", "f64", "v128", "i8x16", "i16x8", "i32x4", "i64x2", "f32x4", "f64x2", "memory", "table",
        "local", "global", "ref",
    ];
    let name = visit.strip_prefix("visit_").unwrap_or(visit);
    match name.split_once('_') {
        Some((space, rest)) if SPACES.contains(&space) => format!("{space}.{rest}"),
        _ => name.to_owned(),
    }
}

/// Names in the text format, in the order of the table; leaked once, because facts hold them as `&'static str`.
static NAMES: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
    let names = TABLE.iter().map(|(_, _, visit)| &*Box::leak(text_name(visit).into_boxed_str()));
    names.collect()
});

/// How often each instruction occurs.
pub(in crate::audit) struct Histogram(Vec<u64>);

impl Default for Histogram {
    fn default() -> Self {
        Self(vec![0; TABLE.len() + 1])
    }
}

impl Histogram {
    pub(super) fn count(&mut self, ordinal: usize) {
        self.0[ordinal.min(TABLE.len())] += 1;
    }

    fn seen(&self) -> impl Iterator<Item = (usize, u64)> {
        self.0.iter().copied().enumerate().filter(|(_, count)| *count > 0)
    }

    pub(super) fn by_name(&self) -> BTreeMap<&'static str, u64> {
        self.seen().map(|(ordinal, count)| (NAMES.get(ordinal).copied().unwrap_or("unknown"), count)).collect()
    }

    /// Those of the first WebAssembly left out.
    pub(super) fn by_proposal(&self) -> BTreeMap<&'static str, u64> {
        let mut sums = BTreeMap::new();
        for (ordinal, count) in self.seen() {
            let proposal = TABLE.get(ordinal).map_or("unknown", |(proposal, _, _)| proposal);
            if proposal != "mvp" {
                *sums.entry(proposal).or_insert(0) += count;
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_has_a_name_and_few_are_in_no_class() {
        assert_eq!(text_name("visit_i32_add"), "i32.add");
        assert_eq!(text_name("visit_br_if"), "br_if");
        let class_of_op = |op: &str| {
            let (at, _) = TABLE.iter().enumerate().find(|(_, entry)| entry.1 == op).expect("an instruction");
            CLASSES[class_of(at)]
        };
        for (op, class) in [
            ("I32Add", "integer"),
            ("F32Trunc", "float"),
            ("I32TruncF32S", "convert"),
            ("I32ReinterpretF32", "convert"),
            ("I64Load32U", "memory"),
            ("MemoryFill", "bulk"),
            ("MemoryGrow", "memory"),
            ("CallIndirect", "call"),
            ("F32x4Add", "simd"),
            ("V128Load", "simd"),
            ("TableGrow", "table"),
            ("BrTable", "control"),
            ("GlobalSet", "variable"),
            ("F64Const", "const"),
        ] {
            assert_eq!(class_of_op(op), class, "{op}");
        }
        let mvp = TABLE.iter().enumerate().filter(|(_, entry)| entry.0 == "mvp");
        let classless: Vec<_> = mvp.filter(|(at, _)| CLASSES[class_of(*at)] == "other").collect();
        assert!(classless.is_empty(), "{classless:?}");
    }
}
