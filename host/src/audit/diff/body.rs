//! Function bodies in a form that does not depend on where things lie: callees by name, types by signature, addresses of
//! data by what lies there.

use crate::abi::text;
use crate::audit::facts::readable;
use std::collections::HashMap;
use wasmparser::{
    BlockType, CompositeInnerType, ElementItems, FuncType, FunctionBody, KnownCustom, Name, Operator, Parser, Payload,
    TypeRef,
};

/// More of anything than this is not compared: the caps of the audit are below it.
const MANY: usize = 50_000;
/// Printable bytes that make an address one of a text.
const TEXT: usize = 6;

/// One function.
#[derive(Debug, Clone, Default)]
pub(super) struct Body {
    /// Its name without what changes from build to build; empty: it has none.
    pub(super) name: String,
    /// Module, index, byte offset: for people.
    pub(super) place: String,
    /// One text per instruction.
    pub(super) tokens: Vec<String>,
    /// Constants that may be positions in the table: token, position, name of the function there.
    pub(super) pointers: HashMap<usize, String>,
}

#[derive(Default)]
struct Module<'a> {
    types: Vec<Option<FuncType>>,
    /// Type of each function, imported ones first.
    functions: Vec<u32>,
    imports: Vec<String>,
    exports: HashMap<u32, String>,
    names: HashMap<u32, String>,
    elements: Vec<u32>,
    data: Vec<(u64, &'a [u8])>,
    pages: u64,
    bodies: Vec<FunctionBody<'a>>,
}

/// All data of all modules, and their functions.
pub(super) fn read(bytes: &[u8]) -> (Vec<u8>, Vec<Body>) {
    let mut modules: Vec<Module<'_>> = Vec::new();
    for payload in Parser::new(0).parse_all(bytes) {
        // What cannot be read ends the comparison there: the audit says what is wrong.
        let Ok(payload) = payload else { break };
        if let Payload::Version { encoding: wasmparser::Encoding::Module, .. } = payload {
            modules.push(Module::default());
        } else if let Some(module) = modules.last_mut() {
            // A section that cannot be read leaves its facts out.
            let _ = module.section(payload);
        }
    }
    let data =
        modules.iter().flat_map(|module| module.data.iter().flat_map(|(_, bytes)| bytes.iter().copied())).collect();
    let bodies = modules.iter().enumerate().flat_map(|(index, module)| module.bodies(index)).take(MANY).collect();
    (data, bodies)
}

impl<'a> Module<'a> {
    fn section(&mut self, payload: Payload<'a>) -> Result<(), wasmparser::BinaryReaderError> {
        match payload {
            Payload::TypeSection(section) => {
                for group in section.into_iter().take(MANY) {
                    for ty in group?.into_types() {
                        self.types.push(match ty.composite_type.inner {
                            CompositeInnerType::Func(func) => Some(func),
                            _ => None,
                        });
                    }
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    if let TypeRef::Func(ty) | TypeRef::FuncExact(ty) = import.ty {
                        self.functions.push(ty);
                        self.imports.push(text::clean(&format!("{}#{}", import.module, import.name), 160));
                    }
                }
            }
            Payload::FunctionSection(section) => {
                for ty in section.into_iter().take(MANY) {
                    self.functions.push(ty?);
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    self.pages = self.pages.max(memory?.initial);
                }
            }
            Payload::ExportSection(section) => {
                for export in section.into_iter().take(MANY) {
                    let export = export?;
                    if export.kind == wasmparser::ExternalKind::Func {
                        self.exports.insert(export.index, text::clean(export.name, 160));
                    }
                }
            }
            Payload::ElementSection(section) => {
                for element in section {
                    if let ElementItems::Functions(functions) = element?.items {
                        for function in functions.into_iter().take(MANY) {
                            self.elements.push(function?);
                        }
                    }
                }
            }
            Payload::DataSection(section) => {
                for segment in section.into_iter().take(MANY) {
                    let segment = segment?;
                    let address = match &segment.kind {
                        wasmparser::DataKind::Active { offset_expr, .. } => {
                            match offset_expr.get_operators_reader().read() {
                                Ok(Operator::I32Const { value }) => u64::from(value as u32),
                                _ => u64::MAX,
                            }
                        }
                        wasmparser::DataKind::Passive => u64::MAX,
                    };
                    self.data.push((address, segment.data));
                }
            }
            Payload::CodeSectionEntry(body) if self.bodies.len() < MANY => self.bodies.push(body),
            Payload::CustomSection(section) => {
                if let KnownCustom::Name(reader) = section.as_known() {
                    for subsection in reader {
                        let Ok(Name::Function(functions)) = subsection else { continue };
                        for naming in functions.into_iter().take(MANY).flatten() {
                            self.names.insert(naming.index, text::clean(&readable(naming.name), 200));
                        }
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn bodies(&self, number: usize) -> Vec<Body> {
        let first = self.imports.len() as u32;
        let one = |(at, body): (usize, &FunctionBody<'a>)| {
            let index = first + at as u32;
            let place = format!("module {number} function {index} at {:#x}", body.range().start);
            let mut out = Body { name: self.own_name(index), place, ..Body::default() };
            // A body that does not decode ends there: what was read is compared.
            let _ = self.body(index, body, &mut out);
            out
        };
        self.bodies.iter().enumerate().map(one).collect()
    }

    fn own_name(&self, index: u32) -> String {
        self.names.get(&index).or_else(|| self.exports.get(&index)).cloned().unwrap_or_default()
    }

    /// What a callee is called; without a name, what it takes and gives.
    fn callee(&self, index: u32) -> String {
        if let Some(import) = self.imports.get(index as usize) {
            return import.clone();
        }
        let name = self.own_name(index);
        if name.is_empty() { format!("?{}", self.signature_of(index)) } else { name }
    }

    fn signature_of(&self, function: u32) -> String {
        self.functions.get(function as usize).map(|ty| self.signature(*ty)).unwrap_or_default()
    }

    fn signature(&self, ty: u32) -> String {
        self.types.get(ty as usize).and_then(Option::as_ref).map(|func| format!("{func:?}")).unwrap_or_default()
    }

    fn block(&self, ty: BlockType) -> String {
        match ty {
            BlockType::FuncType(index) => self.signature(index),
            other => format!("{other:?}"),
        }
    }

    /// What an address means: text, some other data, or memory that begins as zeros; none: no address.
    fn address(&self, value: u64) -> Option<String> {
        let lowest = self.data.iter().map(|(address, _)| *address).min()?;
        if value < lowest || value >= self.pages.saturating_mul(1 << 16) || lowest < 1024 {
            return None;
        }
        for (address, bytes) in &self.data {
            let Some(at) = value.checked_sub(*address).and_then(|at| usize::try_from(at).ok()) else { continue };
            let Some(there) = bytes.get(at..) else { continue };
            if !there.is_empty() {
                let text: Vec<u8> =
                    there.iter().copied().take(TEXT).take_while(|b| b.is_ascii_graphic() || *b == b' ').collect();
                let is_text = text.len() == TEXT;
                return Some(if is_text {
                    format!("data {}", String::from_utf8_lossy(&text))
                } else {
                    "data".to_owned()
                });
            }
        }
        Some("zeros".to_owned())
    }

    fn body(&self, index: u32, body: &FunctionBody<'_>, out: &mut Body) -> Result<(), wasmparser::BinaryReaderError> {
        out.tokens.push(format!("func {}", self.signature_of(index)));
        for local in body.get_locals_reader()? {
            out.tokens.push(format!("local {:?}", local?));
        }
        for operator in body.get_operators_reader()? {
            let operator = operator?;
            let token = match &operator {
                Operator::Call { function_index } => format!("call {}", self.callee(*function_index)),
                Operator::ReturnCall { function_index } => format!("return_call {}", self.callee(*function_index)),
                Operator::RefFunc { function_index } => format!("ref.func {}", self.callee(*function_index)),
                Operator::CallIndirect { type_index, .. } => format!("call_indirect {}", self.signature(*type_index)),
                Operator::Block { blockty } => format!("block {}", self.block(*blockty)),
                Operator::Loop { blockty } => format!("loop {}", self.block(*blockty)),
                Operator::If { blockty } => format!("if {}", self.block(*blockty)),
                Operator::I32Const { value } => self.constant(*value, out),
                other => self.memory(other),
            };
            out.tokens.push(token);
        }
        Ok(())
    }

    fn constant(&self, value: i32, out: &mut Body) -> String {
        if let Some(meaning) = self.address(u64::from(value as u32)) {
            return format!("const {meaning}");
        }
        // Tables of Rust begin at 1: position 0 is null.
        let entry = usize::try_from(value).ok().and_then(|at| self.elements.get(at.checked_sub(1)?));
        if let Some(function) = entry {
            out.pointers.insert(out.tokens.len(), self.callee(*function));
        }
        format!("const {value}")
    }

    /// Loads and stores whose offset is a whole address.
    fn memory(&self, operator: &Operator<'_>) -> String {
        let plain = format!("{operator:?}");
        let Some(at) = plain.find("offset: ") else { return plain };
        let digits: String = plain[at + 8..].chars().take_while(char::is_ascii_digit).collect();
        let meaning = digits.parse().ok().and_then(|offset| self.address(offset));
        match meaning {
            Some(meaning) => plain.replacen(&format!("offset: {digits}"), &format!("offset: {meaning}"), 1),
            None => plain,
        }
    }
}
