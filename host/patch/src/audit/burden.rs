//! What a component costs the compiler beyond what stands in its headers. Each number here was found with a bomb of the
//! hostile suite (`tests/suite/hostile/bombs.rs`) that passed every other cap and took the compiler seconds or a GiB.

use super::Caps;
use super::validate::ALLOWED;
use wasmparser::types::Types;
use wasmparser::{
    BinaryReaderError, CompositeInnerType, ConstExpr, ElementItems, FrameKind, FrameStack, FuncToValidate,
    FuncValidatorAllocations, FunctionBody, Operator, Parser, Payload, ValidPayload, Validator, ValidatorResources,
    VisitOperator, VisitSimdOperator,
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
    /// Elements in the segments that fill tables.
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

/// Validates with the allowed proposals, as wasmparser's `validate_all` does, and counts in the same pass what needs the
/// heights of the operand stack: validating each body twice was a third of an audit.
pub(super) fn validate(bytes: &[u8]) -> Result<(Types, Burden), BinaryReaderError> {
    let mut validator = Validator::new_with_features(ALLOWED);
    let mut parser = Parser::new(0);
    parser.set_features(ALLOWED);
    let (mut bodies, mut types) = (Vec::new(), None);
    for payload in parser.parse_all(bytes) {
        match validator.payload(&payload?)? {
            ValidPayload::Func(function, body) => bodies.push((function, body)),
            // The last one ends the root.
            ValidPayload::End(found) => types = Some(found),
            _ => {}
        }
    }
    let mut burden = Burden::default();
    let mut allocations = FuncValidatorAllocations::default();
    for (function, body) in bodies {
        allocations = burden.body(function, &body, allocations)?;
    }
    match types {
        Some(types) => Ok((types, burden)),
        // Not reached: the parser refuses bytes that end early.
        None => Err(not_ended(bytes)),
    }
}

/// wasmparser's own words for bytes without an end; its errors cannot be made outside of it.
fn not_ended(bytes: &[u8]) -> BinaryReaderError {
    let mut reader = wasmparser::BinaryReader::new(&[], bytes.len());
    reader.read_u8().err().unwrap_or_else(|| unreachable!("there is no byte to read"))
}

/// Which of the caps on bodies are exceeded.
pub(super) fn after_validation(burden: &Burden, caps: &Caps) -> Vec<String> {
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

    fn body(
        &mut self,
        function: FuncToValidate<ValidatorResources>,
        body: &FunctionBody<'_>,
        allocations: FuncValidatorAllocations,
    ) -> Result<FuncValidatorAllocations, BinaryReaderError> {
        let mut validator = function.into_validator(allocations);
        let mut reader = body.get_binary_reader();
        validator.read_locals(&mut reader)?;
        reader.set_features(ALLOWED);
        let (mut counted, mut height) = (Counted::default(), 0u64);
        while !reader.eof() {
            let inner = validator.visitor(reader.original_position());
            reader.visit_operator(&mut Counting { inner, counted: &mut counted })??;
            height = height.max(u64::from(validator.operand_stack_height()));
        }
        reader.finish_expression(&validator.visitor(reader.original_position()))?;
        let Counted { branches, calls } = counted;
        // Parameters are locals too.
        let values = height.saturating_add(u64::from(validator.len_locals()));
        let live = values.saturating_mul(branches);
        self.calls = self.calls.saturating_add(calls);
        self.branches = self.branches.max(branches);
        self.branches_sum = self.branches_sum.saturating_add(branches);
        self.live = self.live.max(live);
        self.live_sum = self.live_sum.saturating_add(live);
        Ok(validator.into_allocations())
    }
}

/// What one body adds.
#[derive(Default)]
struct Counted {
    branches: u64,
    calls: u64,
}

/// The validator's visitor, with a look at each instruction before it.
struct Counting<'c, V> {
    inner: V,
    counted: &'c mut Counted,
}

macro_rules! count_and_validate {
    ($( @$proposal:ident $op:ident $({ $($arg:ident: $argty:ty),* })? => $visit:ident ($($ann:tt)*) )*) => {
        $(
            fn $visit(&mut self $($(, $arg: $argty)*)?) -> Self::Output {
                // Made to be looked at: which one it is is known here, so nothing of it is left in the code.
                let operator = Operator::$op $({ $($arg: $arg.clone()),* })?;
                self.counted.branches += branches_of(&operator);
                self.counted.calls += u64::from(is_call(&operator));
                self.inner.$visit($($($arg),*)?)
            }
        )*
    };
}

// Most arguments are `Copy`, those of `br_table` and `try_table` are not; one macro makes all.
#[allow(clippy::clone_on_copy)]
impl<'a, V: VisitOperator<'a>> VisitOperator<'a> for Counting<'_, V> {
    type Output = V::Output;

    /// No SIMD instruction branches or calls: they go to the validator as they are.
    fn simd_visitor(&mut self) -> Option<&mut dyn VisitSimdOperator<'a, Output = Self::Output>> {
        self.inner.simd_visitor()
    }

    wasmparser::for_each_visit_operator!(count_and_validate);
}

impl<V: FrameStack> FrameStack for Counting<'_, V> {
    fn current_frame(&self) -> Option<FrameKind> {
        self.inner.current_frame()
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
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests");
        let mut tried = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|x| x == "wasm") {
                let bytes = std::fs::read(&path).unwrap();
                assert_eq!(before_validation(&bytes, &quarter), [""; 0], "{}", path.display());
                let (_, burden) = validate(&bytes).unwrap();
                assert_eq!(after_validation(&burden, &quarter), [""; 0], "{}", path.display());
                // The pass is `validate_all`'s own.
                Validator::new_with_features(ALLOWED).validate_all(&bytes).unwrap();
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
        let over = |body: &str| after_validation(&validate(&parse(body)).unwrap().1, &caps).len();
        assert_eq!(over(&blocks), 0, "3 values, 12 branches");
        let deep = format!("{} {blocks} {}", "local.get 0 ".repeat(4), "drop ".repeat(4));
        assert_eq!(over(&deep), 1, "7 values, 12 branches");
    }
}
