//! Operator mutants of a component: one instruction of its main core module is another one, everything else stays. Only
//! in functions that a hook can reach, through calls or tables.

use std::collections::BTreeSet;
use std::ops::Range;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use wasm_encoder::{Encode, Ieee32, Ieee64, Instruction as I};
use wasmparser::{
    BinaryReader, ElementItems, ExternalKind, FunctionBody, Operator as Op, Parser, Payload, TypeRef, ValType,
};

/// One changed instruction.
#[derive(Debug, Clone)]
pub struct Mutant {
    /// The whole component.
    pub bytes: Vec<u8>,
    /// `func 12 +0x34: F32Mul -> [f32.div]`.
    pub what: String,
    /// Its kind, for tables: `operator`, `constant`, `comparison`, `store`, `branch`, `call`.
    pub kind: &'static str,
}

/// A component, taken apart.
pub struct Source {
    component: Vec<u8>,
    /// The section of the core module in it: from its id to its end, and the module alone.
    section: Range<usize>,
    module: Range<usize>,
    /// The same of the code section in the module.
    code_section: Range<usize>,
    bodies: Vec<Range<usize>>,
    points: Vec<Point>,
}

/// An instruction that can be another one.
struct Point {
    body: usize,
    /// In the module.
    at: Range<usize>,
    what: String,
    variants: Vec<(&'static str, Vec<u8>)>,
}

impl Source {
    /// Mutants of everything that a hook can reach.
    pub fn new(component: &[u8]) -> Self {
        Self::of(component, |facts| facts.reachable())
    }

    /// Mutants of what makes numbers: what `scales` and its like call directly and that computes with floats.
    pub fn of_numbers(component: &[u8]) -> Self {
        Self::of(component, |facts| {
            let root = |name: &str| {
                name.contains("#scales") || name.contains("#panel-scales") || name.contains("#activation-scales")
            };
            let allocator = facts.calls_of(&|name| name == "cabi_realloc");
            let called = facts.calls_of(&root);
            called.difference(&allocator).copied().filter(|function| facts.has_floats(*function)).collect()
        })
    }

    fn of(component: &[u8], which: impl Fn(&Facts<'_>) -> BTreeSet<u32>) -> Self {
        let modules = sections(component).into_iter().filter(|s| s.id == 1);
        let section = modules.max_by_key(|s| s.payload.len()).expect("a core module");
        let module = &component[section.payload.clone()];
        let code = sections(module).into_iter().find(|s| s.id == 10).expect("code");
        let facts = Facts::of(module);
        let reachable = which(&facts);
        let points = reachable
            .iter()
            .filter_map(|f| f.checked_sub(facts.imported))
            .flat_map(|body| points(body as usize, &facts.bodies[body as usize], &facts));
        Self {
            points: points.collect(),
            bodies: facts.bodies.iter().map(FunctionBody::range).collect(),
            section: section.start..section.payload.end,
            module: section.payload,
            code_section: code.start..code.payload.end,
            component: component.to_vec(),
        }
    }

    /// Each function of the region, with a trap as its first instruction: who answers as before does not need it.
    pub fn trapped(&self) -> Vec<(usize, Vec<u8>)> {
        let bodies: BTreeSet<usize> = self.points.iter().map(|point| point.body).collect();
        let module = &self.component[self.module.clone()];
        let trap = |body: usize| {
            let range = self.bodies[body].clone();
            let function = FunctionBody::new(BinaryReader::new(&module[range.clone()], range.start));
            let first = function.get_operators_reader().unwrap().original_position();
            (body, self.with(body, first..first, &[0x00]))
        };
        bodies.into_iter().map(trap).collect()
    }

    /// The same, of these functions only.
    pub fn only(mut self, bodies: &BTreeSet<usize>) -> Self {
        self.points.retain(|point| bodies.contains(&point.body));
        self
    }

    /// How many mutants there are.
    pub fn len(&self) -> usize {
        self.points.iter().map(|p| p.variants.len()).sum()
    }

    /// `count` different ones, always the same for a seed.
    pub fn sample(&self, count: usize, seed: u64) -> Vec<Mutant> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut chosen = BTreeSet::new();
        while chosen.len() < count.min(self.len()) {
            // By instruction first: constants have five variants and would be most of it.
            let point = rng.random_range(0..self.points.len());
            let variants: Vec<usize> = (0..self.points[point].variants.len()).collect();
            chosen.extend(variants.choose(&mut rng).map(|variant| (point, *variant)));
        }
        chosen.into_iter().map(|(point, variant)| self.mutant(point, variant)).collect()
    }

    fn mutant(&self, point: usize, variant: usize) -> Mutant {
        let Point { body, at, what, variants } = &self.points[point];
        let (kind, new) = &variants[variant];
        Mutant {
            bytes: self.with(*body, at.clone(), new),
            what: format!("func {body} +{:#x}: {what} -> {new:02x?}", at.start - self.bodies[*body].start),
            kind,
        }
    }

    /// The component with these bytes in the place of an instruction.
    fn with(&self, body: usize, at: Range<usize>, new: &[u8]) -> Vec<u8> {
        let module = &self.component[self.module.clone()];
        let mut code = Vec::new();
        self.bodies.len().encode(&mut code);
        for (i, range) in self.bodies.iter().enumerate() {
            let body = match i == body {
                true => [&module[range.start..at.start], new, &module[at.end..range.end]].concat(),
                false => module[range.clone()].to_vec(),
            };
            body.encode(&mut code);
        }
        let module = splice(module, &self.code_section, 10, &code);
        splice(&self.component, &self.section, 1, &module)
    }
}

/// A section in the place of another.
fn splice(bytes: &[u8], section: &Range<usize>, id: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = bytes[..section.start].to_vec();
    out.push(id);
    payload.encode(&mut out);
    out.extend(&bytes[section.end..]);
    out
}

struct Section {
    id: u8,
    start: usize,
    payload: Range<usize>,
}

/// Of a module or a component: both are eight bytes, then sections.
fn sections(bytes: &[u8]) -> Vec<Section> {
    let (mut at, mut all) = (8, Vec::new());
    while at < bytes.len() {
        let (start, id) = (at, bytes[at]);
        let (mut length, mut shift) = (0usize, 0);
        loop {
            at += 1;
            length |= usize::from(bytes[at] & 0x7f) << shift;
            shift += 7;
            if bytes[at] < 0x80 {
                break;
            }
        }
        let payload = at + 1..at + 1 + length;
        at = payload.end;
        all.push(Section { id, start, payload });
    }
    all
}

/// What is known of a module.
#[derive(Default)]
struct Facts<'a> {
    types: Vec<(Vec<ValType>, Vec<ValType>)>,
    /// Type of each function, imported ones first.
    functions: Vec<u32>,
    imported: u32,
    exports: Vec<(&'a str, u32)>,
    elements: BTreeSet<u32>,
    bodies: Vec<FunctionBody<'a>>,
}

impl<'a> Facts<'a> {
    fn of(module: &'a [u8]) -> Self {
        let mut facts = Self::default();
        for payload in Parser::new(0).parse_all(module) {
            match payload.unwrap() {
                Payload::TypeSection(types) => {
                    facts.types.extend(types.into_iter_err_on_gc_types().map(|t| {
                        let t = t.unwrap();
                        (t.params().to_vec(), t.results().to_vec())
                    }));
                }
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        if let TypeRef::Func(index) = import.unwrap().ty {
                            facts.functions.push(index);
                            facts.imported += 1;
                        }
                    }
                }
                Payload::FunctionSection(functions) => {
                    facts.functions.extend(functions.into_iter().map(|f| f.unwrap()))
                }
                Payload::ExportSection(exports) => {
                    let functions = exports.into_iter().map(|e| e.unwrap()).filter(|e| e.kind == ExternalKind::Func);
                    facts.exports.extend(functions.map(|e| (e.name, e.index)));
                }
                Payload::ElementSection(elements) => {
                    for element in elements {
                        if let ElementItems::Functions(functions) = element.unwrap().items {
                            facts.elements.extend(functions.into_iter().map(|f| f.unwrap()));
                        }
                    }
                }
                Payload::CodeSectionEntry(body) => facts.bodies.push(body),
                _ => {}
            }
        }
        facts
    }

    /// Whether a function computes with floats: what words errors does not.
    fn has_floats(&self, function: u32) -> bool {
        let Some(body) = function.checked_sub(self.imported).map(|i| &self.bodies[i as usize]) else { return false };
        let float = |op: Op<'_>| format!("{op:?}").starts_with("F32");
        body.get_operators_reader().unwrap().into_iter().filter(|op| float(op.clone().unwrap())).count() >= 3
    }

    /// Functions that these exports call, directly or through others.
    fn calls_of(&self, root: &dyn Fn(&str) -> bool) -> BTreeSet<u32> {
        let mut open: Vec<u32> = self.exports.iter().filter(|(name, _)| root(name)).map(|(_, f)| *f).collect();
        let mut seen: BTreeSet<u32> = open.iter().copied().collect();
        while let Some(function) = open.pop() {
            let Some(body) = function.checked_sub(self.imported).map(|i| &self.bodies[i as usize]) else { continue };
            for op in body.get_operators_reader().unwrap() {
                if let Op::Call { function_index } = op.unwrap()
                    && seen.insert(function_index)
                {
                    open.push(function_index);
                }
            }
        }
        seen
    }

    /// Functions that a hook can reach. What only `describe` and `configure` run is not one.
    fn reachable(&self) -> BTreeSet<u32> {
        let is_hook =
            |name: &str| name.starts_with("patchhost:patch/") && !name.starts_with("patchhost:patch/identity");
        let mut open: Vec<u32> = self.exports.iter().filter(|(name, _)| is_hook(name)).map(|(_, f)| *f).collect();
        let mut seen: BTreeSet<u32> = open.iter().copied().collect();
        while let Some(function) = open.pop() {
            let Some(body) = function.checked_sub(self.imported).map(|i| &self.bodies[i as usize]) else { continue };
            let mut add = |callee: u32| {
                if seen.insert(callee) {
                    open.push(callee);
                }
            };
            for op in body.get_operators_reader().unwrap() {
                match op.unwrap() {
                    Op::Call { function_index } | Op::RefFunc { function_index } => add(function_index),
                    Op::CallIndirect { .. } => self.elements.iter().for_each(|f| add(*f)),
                    _ => {}
                }
            }
        }
        seen
    }
}

fn points(body: usize, function: &FunctionBody<'_>, facts: &Facts<'_>) -> Vec<Point> {
    let end = function.range().end;
    let reader = function.get_operators_reader().unwrap();
    let ops: Vec<(Op<'_>, usize)> = reader.into_iter_with_offsets().map(|op| op.unwrap()).collect();
    let ends: Vec<usize> = ops.iter().skip(1).map(|(_, at)| *at).chain([end]).collect();
    let point = |((op, at), end): (&(Op<'_>, usize), &usize)| {
        let variants = variants(op, facts);
        // What is put before an instruction leaves it as it is.
        let what = format!("{op:?}").chars().take(60).collect();
        (!variants.is_empty()).then_some((*at..*end, what, variants))
    };
    let found = ops.iter().zip(&ends).filter_map(point);
    let made = found.map(|(at, what, variants)| Point {
        body,
        variants: variants.into_iter().map(|(kind, new)| (kind, new.bytes(&at, function))).collect(),
        at,
        what,
    });
    made.collect()
}

/// What stands in the place of an instruction.
enum New {
    /// Others.
    Instead(Vec<I<'static>>),
    /// This one first, then it.
    Before(I<'static>),
}

impl New {
    fn bytes(self, at: &Range<usize>, function: &FunctionBody<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            New::Instead(all) => all.iter().for_each(|i| i.encode(&mut bytes)),
            New::Before(first) => {
                first.encode(&mut bytes);
                let start = function.range().start;
                bytes.extend(&function.as_bytes()[at.start - start..at.end - start]);
            }
        }
        bytes
    }
}

fn variants(op: &Op<'_>, facts: &Facts<'_>) -> Vec<(&'static str, New)> {
    let all = |kind, with: Vec<I<'static>>| with.into_iter().map(|i| (kind, New::Instead(vec![i]))).collect();
    if let Some(with) = operator(op) {
        return all("operator", with);
    }
    if let Some(with) = comparison(op) {
        return all("comparison", with);
    }
    match op {
        // The bit that is turned follows from the value, so that a mutant is the same whatever was drawn before.
        Op::I32Const { value: v } => {
            let values = [v.wrapping_add(1), v.wrapping_sub(1), v.wrapping_mul(2), v ^ 1 << (v.count_ones() * 7 % 32)];
            constants(values.into_iter().filter(|new| new != v).map(I::I32Const))
        }
        Op::I64Const { value: v } => {
            let values = [v.wrapping_add(1), v.wrapping_sub(1), v.wrapping_mul(2), v ^ 1 << (v.count_ones() * 7 % 64)];
            constants(values.into_iter().filter(|new| new != v).map(I::I64Const))
        }
        Op::F32Const { value } => {
            let (v, bits) = (f32::from_bits(value.bits()), value.bits());
            let values = [
                bits.wrapping_add(1),
                bits.wrapping_sub(1),
                (v * 2.0).to_bits(),
                bits ^ 1 << (bits.count_ones() * 7 % 32),
            ];
            constants(values.into_iter().filter(|new| *new != bits).map(|b| I::F32Const(Ieee32::new(b))))
        }
        Op::F64Const { value } => {
            let (v, bits) = (f64::from_bits(value.bits()), value.bits());
            let values = [
                bits.wrapping_add(1),
                bits.wrapping_sub(1),
                (v * 2.0).to_bits(),
                bits ^ 1 << (bits.count_ones() * 7 % 64),
            ];
            constants(values.into_iter().filter(|new| *new != bits).map(|b| I::F64Const(Ieee64::new(b))))
        }
        Op::I32Store { .. }
        | Op::I64Store { .. }
        | Op::F32Store { .. }
        | Op::F64Store { .. }
        | Op::I32Store8 { .. }
        | Op::I32Store16 { .. }
        | Op::I64Store8 { .. }
        | Op::I64Store16 { .. }
        | Op::I64Store32 { .. }
        | Op::V128Store { .. } => vec![("store", New::Instead(vec![I::Drop, I::Drop]))],
        Op::MemoryCopy { .. } | Op::MemoryFill { .. } => {
            vec![("store", New::Instead(vec![I::Drop, I::Drop, I::Drop]))]
        }
        Op::BrIf { .. } | Op::If { .. } | Op::Select => vec![("branch", New::Before(I::I32Eqz))],
        Op::Call { function_index } => {
            let (params, results) = &facts.types[facts.functions[*function_index as usize] as usize];
            let zeros: Option<Vec<I<'static>>> = results.iter().map(|t| zero(*t)).collect();
            let zeros = zeros.map(|zeros| params.iter().map(|_| I::Drop).chain(zeros).collect());
            zeros.map(|zeros| ("call", New::Instead(zeros))).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

fn constants(values: impl Iterator<Item = I<'static>>) -> Vec<(&'static str, New)> {
    values.map(|value| ("constant", New::Instead(vec![value]))).collect()
}

fn zero(ty: ValType) -> Option<I<'static>> {
    Some(match ty {
        ValType::I32 => I::I32Const(0),
        ValType::I64 => I::I64Const(0),
        ValType::F32 => I::F32Const(Ieee32::new(0)),
        ValType::F64 => I::F64Const(Ieee64::new(0)),
        ValType::V128 => I::V128Const(0),
        ValType::Ref(_) => return None,
    })
}

/// `A => B, C;`: in the place of A stands B, or C.
macro_rules! table {
    ($op:expr, $($from:ident => $($to:ident),+;)*) => {
        match $op {
            $(Op::$from => Some(vec![$(I::$to),+]),)*
            _ => None,
        }
    };
}

fn operator(op: &Op<'_>) -> Option<Vec<I<'static>>> {
    table!(op,
        I32Add => I32Sub; I32Sub => I32Add; I32Mul => I32DivU, I32Add; I32DivU => I32Mul; I32DivS => I32Mul;
        I32RemU => I32DivU; I32And => I32Or; I32Or => I32And; I32Xor => I32Or;
        I32Shl => I32ShrU; I32ShrU => I32Shl, I32ShrS; I32ShrS => I32Shl, I32ShrU;
        I64Add => I64Sub; I64Sub => I64Add; I64Mul => I64DivU, I64Add; I64DivU => I64Mul; I64And => I64Or; I64Or => I64And;
        I64Shl => I64ShrU; I64ShrU => I64Shl, I64ShrS; I64ShrS => I64Shl, I64ShrU;
        F32Add => F32Sub; F32Sub => F32Add; F32Mul => F32Div; F32Div => F32Mul; F32Min => F32Max; F32Max => F32Min;
        F32Abs => F32Neg; F32Ceil => F32Floor; F32Floor => F32Ceil; F32Nearest => F32Trunc; F32Sqrt => F32Abs;
        F64Add => F64Sub; F64Sub => F64Add; F64Mul => F64Div; F64Div => F64Mul; F64Min => F64Max; F64Max => F64Min;
        I8x16Add => I8x16Sub; I16x8Add => I16x8Sub; I16x8MaxU => I16x8MinU; I16x8MaxS => I16x8MinS; I16x8MinU => I16x8MaxU;
        I16x8Shl => I16x8ShrU; I16x8ShrU => I16x8Shl; I32x4Add => I32x4Sub; I32x4Sub => I32x4Add; I32x4Shl => I32x4ShrU;
        I32x4ShrU => I32x4Shl; I32x4ShrS => I32x4Shl; I32x4MaxU => I32x4MinU; I32x4MinU => I32x4MaxU;
        I32x4MaxS => I32x4MinS; I32x4MinS => I32x4MaxS; V128And => V128Or; V128Or => V128And; V128Xor => V128Or;
        V128AndNot => V128And;
        F32x4Add => F32x4Sub; F32x4Sub => F32x4Add; F32x4Mul => F32x4Div; F32x4Div => F32x4Mul; F32x4Min => F32x4Max;
        F32x4Max => F32x4Min; F32x4PMin => F32x4PMax; F32x4PMax => F32x4PMin; F32x4Abs => F32x4Neg;
        F64x2Add => F64x2Sub; F64x2Sub => F64x2Add; F64x2Mul => F64x2Div; F64x2Div => F64x2Mul;
    )
}

fn comparison(op: &Op<'_>) -> Option<Vec<I<'static>>> {
    table!(op,
        I32Eq => I32Ne; I32Ne => I32Eq; I32LtU => I32GeU, I32LeU; I32LeU => I32GtU, I32LtU; I32GtU => I32LeU, I32GeU;
        I32GeU => I32LtU, I32GtU; I32LtS => I32GeS, I32LeS; I32LeS => I32GtS, I32LtS; I32GtS => I32LeS, I32GeS;
        I32GeS => I32LtS, I32GtS;
        I64Eq => I64Ne; I64Ne => I64Eq; I64LtU => I64GeU, I64LeU; I64LeU => I64GtU, I64LtU; I64GtU => I64LeU, I64GeU;
        I64GeU => I64LtU, I64GtU; I64LtS => I64GeS; I64GtS => I64LeS;
        F32Eq => F32Ne; F32Ne => F32Eq; F32Lt => F32Ge, F32Le; F32Le => F32Gt, F32Lt; F32Gt => F32Le, F32Ge;
        F32Ge => F32Lt, F32Gt;
        F64Eq => F64Ne; F64Ne => F64Eq; F64Lt => F64Ge, F64Le; F64Le => F64Gt, F64Lt; F64Gt => F64Le, F64Ge;
        F64Ge => F64Lt, F64Gt;
        F32x4Eq => F32x4Ne; F32x4Ne => F32x4Eq; F32x4Lt => F32x4Ge, F32x4Le; F32x4Le => F32x4Gt, F32x4Lt;
        F32x4Gt => F32x4Le, F32x4Ge; F32x4Ge => F32x4Lt, F32x4Gt; I32x4Eq => I32x4Ne; I32x4GtS => I32x4LeS;
        I32x4GtU => I32x4LeU; I32x4LtU => I32x4GeU; I32x4LtS => I32x4GeS;
    )
}

#[test]
fn an_instruction_in_its_own_place_changes_nothing() {
    for name in ["fp8_block", "fp8_block_mse"] {
        let bytes = patchhost::patch::resolve(name).unwrap().bytes().to_vec();
        let source = Source::new(&bytes);
        assert!(source.len() > 1_000, "{name}: {}", source.len());
        let module = source.module.start;
        for point in source.points.iter().step_by(97) {
            let same = bytes[module + point.at.start..module + point.at.end].to_vec();
            assert!(source.with(point.body, point.at.clone(), &same) == bytes, "{name}: {}", point.what);
        }
        let (a, b) = (source.sample(50, 3), source.sample(50, 3));
        assert!(a.iter().zip(&b).all(|(a, b)| a.bytes == b.bytes && a.bytes != bytes));
        let kinds: BTreeSet<_> = source.sample(500, 1).iter().map(|m| m.kind).collect();
        assert_eq!(kinds.len(), 6, "{kinds:?}");
        let valid = |m: &Mutant| wasmparser::validate(&m.bytes).map(|_| ()).map_err(|e| format!("{}: {e}", m.what));
        source.sample(200, 2).iter().for_each(|m| valid(m).unwrap());
        for (body, trapped) in source.trapped() {
            wasmparser::validate(&trapped).unwrap_or_else(|e| panic!("{name}, function {body}: {e}"));
        }
    }
}
