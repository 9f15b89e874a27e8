//! What a component costs the compiler beyond what stands in its headers. Each number here was found with a bomb of the
//! hostile suite (`tests/suite/hostile/bombs.rs`) that passed every other cap and took the compiler seconds or a GiB.

use super::Caps;
use super::validate::ALLOWED;
use wasmparser::{
    BinaryReaderError, CompositeInnerType, ConstExpr, ElementItems, FuncToValidate, FunctionBody, Operator, Parser,
    Payload, ValidPayload, Validator, ValidatorResources,
};

/// Sums over all modules, and the worst of each function.
#[derive(Debug, Default)]
pub(super) struct Burden {
    /// Types of functions: each becomes a trampoline.
    types: u64,
    /// The most parameters, and the most results, of one type.
    params: u64,
    results: u64,
    /// Instructions of constant expressions.
    constants: u64,
    /// Elements of segments.
    elements: u64,
    /// Exports, globals, segments and imports of the modules.
    items: u64,
    /// Calls, and instructions that become one: of memory and tables as a whole.
    calls: u64,
    /// Branches of the function that has most of them, and of all functions.
    branches: u64,
    branches_sum: u64,
    /// Values that may live at once, times branches: of the worst function, and summed.
    live: u64,
    live_sum: u64,
}

/// What can be counted without knowing types. What it refuses is not validated: a type of a thousand results makes the
/// validator itself slow.
pub(super) fn before_validation(bytes: &[u8], caps: &Caps) -> Vec<String> {
    let mut burden = Burden::default();
    // Where it does not parse, the validator says so.
    let _ = burden.declarations(bytes);
    let mut over = Vec::new();
    let mut cap = |found: u64, most: u64, what: &str| {
        if found > most {
            over.push(format!("{found} {what}; the cap is {most}"));
        }
    };
    cap(burden.types, caps.core_types, "types in core modules");
    cap(burden.params, caps.params, "parameters of one function or block");
    cap(burden.results, caps.results, "results of one function or block");
    cap(burden.constants, caps.constants, "instructions in constant expressions");
    cap(burden.elements, caps.elements, "elements in segments");
    cap(burden.items, caps.core_items, "imports, exports, globals and segments of core modules");
    over
}

/// What needs the heights of the operand stack, which the validator knows. For valid bytes.
pub(super) fn after_validation(bytes: &[u8], caps: &Caps) -> Vec<String> {
    let mut burden = Burden::default();
    let _ = burden.bodies(bytes);
    let mut over = Vec::new();
    let mut cap = |found: u64, most: u64, what: &str| {
        if found > most {
            over.push(format!("{found} {what}; the cap is {most}"));
        }
    };
    cap(burden.calls, caps.calls, "calls and instructions on whole memories and tables");
    cap(burden.branches, caps.branches, "branches in one function");
    cap(burden.branches_sum, caps.branches_sum, "branches over all functions");
    cap(burden.live, caps.live, "live values x branches in one function");
    cap(burden.live_sum, caps.live_sum, "live values x branches over all functions");
    over
}

impl Burden {
    fn declarations(&mut self, bytes: &[u8]) -> Result<(), BinaryReaderError> {
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::TypeSection(section) => {
                    for group in section {
                        for ty in group?.into_types() {
                            self.types += 1;
                            if let CompositeInnerType::Func(ty) = ty.composite_type.inner {
                                self.params = self.params.max(ty.params().len() as u64);
                                self.results = self.results.max(ty.results().len() as u64);
                            }
                        }
                    }
                }
                Payload::ImportSection(section) => self.items += u64::from(section.count()),
                Payload::ExportSection(section) => self.items += u64::from(section.count()),
                Payload::GlobalSection(section) => {
                    self.items += u64::from(section.count());
                    for global in section {
                        self.constant(&global?.init_expr)?;
                    }
                }
                Payload::DataSection(section) => {
                    self.items += u64::from(section.count());
                    for data in section {
                        if let wasmparser::DataKind::Active { offset_expr, .. } = data?.kind {
                            self.constant(&offset_expr)?;
                        }
                    }
                }
                Payload::ElementSection(section) => {
                    self.items += u64::from(section.count());
                    for element in section {
                        let element = element?;
                        if let wasmparser::ElementKind::Active { offset_expr, .. } = &element.kind {
                            self.constant(offset_expr)?;
                        }
                        match element.items {
                            ElementItems::Functions(items) => self.elements += u64::from(items.count()),
                            ElementItems::Expressions(_, items) => {
                                self.elements += u64::from(items.count());
                                for item in items {
                                    self.constant(&item?)?;
                                }
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Its instructions, but the one that every constant has.
    fn constant(&mut self, expression: &ConstExpr<'_>) -> Result<(), BinaryReaderError> {
        let mut count = 0u64;
        for operator in expression.get_operators_reader() {
            operator?;
            count += 1;
        }
        self.constants += count.saturating_sub(2);
        Ok(())
    }

    fn bodies(&mut self, bytes: &[u8]) -> Result<(), BinaryReaderError> {
        let mut validator = Validator::new_with_features(ALLOWED);
        for payload in Parser::new(0).parse_all(bytes) {
            if let ValidPayload::Func(function, body) = validator.payload(&payload?)? {
                self.body(function, &body)?;
            }
        }
        Ok(())
    }

    fn body(
        &mut self,
        function: FuncToValidate<ValidatorResources>,
        body: &FunctionBody<'_>,
    ) -> Result<(), BinaryReaderError> {
        let mut validator = function.into_validator(Default::default());
        let mut locals = body.get_binary_reader();
        validator.read_locals(&mut locals)?;
        let (mut branches, mut height) = (0u64, 0u64);
        for operator in body.get_operators_reader()?.into_iter_with_offsets() {
            let (operator, offset) = operator?;
            validator.op(offset, &operator)?;
            height = height.max(u64::from(validator.operand_stack_height()));
            branches += branches_of(&operator);
            self.calls += u64::from(is_call(&operator));
        }
        // Parameters are locals too.
        let values = height.saturating_add(u64::from(validator.len_locals()));
        let live = values.saturating_mul(branches);
        self.branches = self.branches.max(branches);
        self.branches_sum = self.branches_sum.saturating_add(branches);
        self.live = self.live.max(live);
        self.live_sum = self.live_sum.saturating_add(live);
        Ok(())
    }
}

/// How many basic blocks it begins.
fn branches_of(operator: &Operator<'_>) -> u64 {
    match operator {
        Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } | Operator::Else => 1,
        Operator::Br { .. } | Operator::BrIf { .. } | Operator::Return => 1,
        Operator::BrTable { targets } => u64::from(targets.len()) + 1,
        Operator::CallIndirect { .. } => 2,
        _ => 0,
    }
}

/// Calls of functions, and of the host's code for memories and tables.
fn is_call(operator: &Operator<'_>) -> bool {
    matches!(
        operator,
        Operator::Call { .. }
            | Operator::CallIndirect { .. }
            | Operator::MemoryGrow { .. }
            | Operator::MemoryCopy { .. }
            | Operator::MemoryFill { .. }
            | Operator::MemoryInit { .. }
            | Operator::DataDrop { .. }
            | Operator::TableGrow { .. }
            | Operator::TableCopy { .. }
            | Operator::TableFill { .. }
            | Operator::TableInit { .. }
            | Operator::TableGet { .. }
            | Operator::TableSet { .. }
            | Operator::ElemDrop { .. }
            | Operator::RefFunc { .. }
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Every honest patch stays far below every cap, so that a finding means something.
    #[test]
    fn the_bundled_guests_need_a_quarter_of_each_cap() {
        let caps = Caps::default();
        let quarter = Caps {
            core_types: caps.core_types / 4,
            params: caps.params / 4,
            results: caps.results / 4,
            constants: caps.constants / 4,
            elements: caps.elements / 4,
            core_items: caps.core_items / 4,
            calls: caps.calls / 4,
            branches: caps.branches / 4,
            branches_sum: caps.branches_sum / 4,
            live: caps.live / 4,
            live_sum: caps.live_sum / 4,
            ..caps
        };
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests");
        let mut tried = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|x| x == "wasm") {
                let bytes = std::fs::read(&path).unwrap();
                assert_eq!(before_validation(&bytes, &quarter), [""; 0], "{}", path.display());
                assert_eq!(after_validation(&bytes, &quarter), [""; 0], "{}", path.display());
                tried += 1;
            }
        }
        assert!(tried >= 7);
    }

    #[test]
    fn operands_and_parameters_count_as_live() {
        let caps = Caps { live: 40, ..Caps::default() };
        let parse = |body: &str| wat::parse_str(format!("(module (func (param i32 i32) {body}))")).unwrap();
        let blocks = "(block (br_if 0 (local.get 0)))".repeat(6);
        assert_eq!(after_validation(&parse(&blocks), &caps).len(), 0, "3 values, 12 branches");
        let deep = format!("{} {blocks} {}", "local.get 0 ".repeat(4), "drop ".repeat(4));
        assert_eq!(after_validation(&parse(&deep), &caps).len(), 1, "7 values, 12 branches");
    }
}
