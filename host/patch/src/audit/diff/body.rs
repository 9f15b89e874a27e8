//! Function bodies in a form that does not depend on where things lie: callees by name, types by signature, addresses and
//! positions in the table kept apart. Names are the author's word: `functions` looks at which functions stand behind them.

use crate::audit::facts::readable;
use crate::base::text;
use std::collections::{BTreeSet, HashMap};
use wasmparser::{
    BlockType, CompositeInnerType, ElementItems, FuncType, FunctionBody, KnownCustom, Name, Operator, Parser, Payload,
    TypeRef,
};

/// More of anything than this is not compared: the caps of the audit are below it.
const MANY: usize = 50_000;

/// Texts of instructions, each kept once: a component of a megabyte has a million instructions and few different ones.
#[derive(Default)]
pub(super) struct Words {
    known: HashMap<String, u32>,
    texts: Vec<String>,
}

impl Words {
    fn of(&mut self, text: String) -> u32 {
        if let Some(known) = self.known.get(&text) {
            return *known;
        }
        let number = self.texts.len() as u32;
        self.texts.push(text.clone());
        self.known.insert(text, number);
        number
    }

    pub(super) fn text(&self, number: u32) -> &str {
        self.texts.get(number as usize).map_or("", String::as_str)
    }
}

/// One function, in a form that can be compared with one of another version.
#[derive(Debug, Clone, Default)]
pub(super) struct Body {
    /// Its name without what changes from build to build; empty: it has none.
    pub(super) name: String,
    /// Module, index, byte offset: for people.
    pub(super) place: String,
    /// Its module, and its index there.
    pub(super) module: usize,
    pub(super) index: u32,
    /// Its instructions, as numbers of their texts in [`Words`].
    pub(super) words: Vec<u32>,
    /// Addresses of data: instruction, address.
    pub(super) addresses: Vec<(usize, u64)>,
    /// Constants that may be positions in the table: instruction, function there (its name, and its index).
    pub(super) pointers: Vec<(usize, u32, u32)>,
    /// Functions of the same module that it names: instruction, index. Imported ones are in the instruction's text.
    pub(super) callees: Vec<(usize, u32)>,
}

/// What lies in the memory of a module before it runs.
#[derive(Default)]
pub(super) struct Image {
    segments: Vec<(u64, Vec<u8>)>,
    pages: u64,
    /// Addresses that code or data names: where one thing ends and the next begins.
    pub(super) named: BTreeSet<u64>,
}

impl Image {
    fn lowest(&self) -> Option<u64> {
        self.segments.iter().map(|(address, _)| *address).min()
    }

    /// Whether a number is an address: Rust puts data at 1 MiB, and nothing else is that large and that small.
    pub(super) fn has(&self, value: u64) -> bool {
        self.lowest().is_some_and(|low| low >= 1024 && value >= low && value < self.pages.saturating_mul(1 << 16))
    }

    /// What lies at an address, up to the next thing that anything names, and to `most`. Empty: memory that begins as zeros.
    pub(super) fn at(&self, address: u64, most: usize) -> &[u8] {
        for (start, bytes) in &self.segments {
            let Some(at) = address.checked_sub(*start).and_then(|at| usize::try_from(at).ok()) else { continue };
            let Some(there) = bytes.get(at..) else { continue };
            let next = self.named.range(address + 1..).next().map_or(u64::MAX, |next| next - address);
            let length = there.len().min(most).min(usize::try_from(next).unwrap_or(usize::MAX));
            return &there[..length];
        }
        &[]
    }

    /// The bytes of all segments, one after the other.
    pub(super) fn bytes(&self) -> impl Iterator<Item = u8> + '_ {
        self.segments.iter().flat_map(|(_, bytes)| bytes.iter().copied())
    }

    fn name_pointers(&mut self) {
        let words = self.segments.iter().flat_map(|(_, bytes)| bytes.as_chunks::<4>().0);
        let found: Vec<u64> =
            words.map(|word| u64::from(u32::from_le_bytes(*word))).filter(|word| self.has(*word)).collect();
        self.named.extend(found);
    }
}

/// One of the two versions that are compared.
#[derive(Default)]
pub(super) struct Side {
    pub(super) bodies: Vec<Body>,
    /// What lies in the memory of each module.
    pub(super) images: Vec<Image>,
}

#[derive(Default)]
struct Module<'a> {
    types: Vec<String>,
    /// Type of each function, imported ones first.
    functions: Vec<u32>,
    imports: Vec<String>,
    exports: HashMap<u32, String>,
    names: HashMap<u32, String>,
    elements: Vec<u32>,
    image: Image,
    bodies: Vec<FunctionBody<'a>>,
}

/// Reads the functions and the memory of one version.
pub(super) fn read(bytes: &[u8], words: &mut Words) -> Side {
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
    let mut side = Side::default();
    for (number, module) in modules.iter_mut().enumerate() {
        module.image.name_pointers();
        let bodies = module.bodies(number, words);
        let named: Vec<u64> =
            bodies.iter().flat_map(|body| body.addresses.iter().map(|(_, address)| *address)).collect();
        module.image.named.extend(named);
        side.bodies.extend(bodies);
        side.images.push(std::mem::take(&mut module.image));
    }
    side
}

impl<'a> Module<'a> {
    fn section(&mut self, payload: Payload<'a>) -> Result<(), wasmparser::BinaryReaderError> {
        match payload {
            Payload::TypeSection(section) => {
                for group in section.into_iter().take(MANY) {
                    for ty in group?.into_types() {
                        self.types.push(match &ty.composite_type.inner {
                            CompositeInnerType::Func(func) => signature(func),
                            _ => String::new(),
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
                    self.image.pages = self.image.pages.max(memory?.initial);
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
                    self.image.segments.push((address, segment.data.to_vec()));
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

    fn bodies(&self, module: usize, words: &mut Words) -> Vec<Body> {
        let first = self.imports.len() as u32;
        let mut all = Vec::with_capacity(self.bodies.len());
        for (at, body) in self.bodies.iter().enumerate() {
            let index = first + at as u32;
            let place = format!("module {module} function {index} at {:#x}", body.range().start);
            let mut out = Body { name: self.own_name(index), place, module, index, ..Body::default() };
            // A body that does not decode ends there: what was read is compared.
            let _ = self.body(index, body, words, &mut out);
            all.push(out);
        }
        all
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

    fn signature_of(&self, function: u32) -> &str {
        self.functions.get(function as usize).map_or("", |ty| self.signature(*ty))
    }

    fn signature(&self, ty: u32) -> &str {
        self.types.get(ty as usize).map_or("", String::as_str)
    }

    fn block(&self, ty: BlockType) -> String {
        match ty {
            BlockType::FuncType(index) => self.signature(index).to_owned(),
            other => format!("{other:?}"),
        }
    }

    fn body(
        &self,
        index: u32,
        body: &FunctionBody<'_>,
        words: &mut Words,
        out: &mut Body,
    ) -> Result<(), wasmparser::BinaryReaderError> {
        out.words.push(words.of(format!("func {}", self.signature_of(index))));
        for local in body.get_locals_reader()? {
            out.words.push(words.of(format!("local {:?}", local?)));
        }
        for operator in body.get_operators_reader()? {
            let operator = operator?;
            if let Operator::Call { function_index }
            | Operator::ReturnCall { function_index }
            | Operator::RefFunc { function_index } = &operator
                && *function_index as usize >= self.imports.len()
            {
                out.callees.push((out.words.len(), *function_index));
            }
            let word = match &operator {
                Operator::Call { function_index } => format!("call {}", self.callee(*function_index)),
                Operator::ReturnCall { function_index } => format!("return_call {}", self.callee(*function_index)),
                Operator::RefFunc { function_index } => format!("ref.func {}", self.callee(*function_index)),
                Operator::CallIndirect { type_index, .. } => format!("call_indirect {}", self.signature(*type_index)),
                Operator::Block { blockty } => format!("block {}", self.block(*blockty)),
                Operator::Loop { blockty } => format!("loop {}", self.block(*blockty)),
                Operator::If { blockty } => format!("if {}", self.block(*blockty)),
                Operator::I32Const { value } => self.constant(*value, words, out),
                other => self.memory(other, out),
            };
            out.words.push(words.of(word));
        }
        Ok(())
    }

    fn constant(&self, value: i32, words: &mut Words, out: &mut Body) -> String {
        let at = out.words.len();
        if self.image.has(u64::from(value as u32)) {
            out.addresses.push((at, u64::from(value as u32)));
            return "const address".to_owned();
        }
        // Tables of Rust begin at 1: position 0 is null.
        let entry = usize::try_from(value).ok().and_then(|at| self.elements.get(at.checked_sub(1)?));
        if let Some(function) = entry {
            out.pointers.push((at, words.of(self.callee(*function)), *function));
        }
        format!("const {value}")
    }

    /// Loads and stores whose offset is a whole address.
    fn memory(&self, operator: &Operator<'_>, out: &mut Body) -> String {
        let plain = format!("{operator:?}");
        let Some(at) = plain.find("offset: ") else { return plain };
        let digits: String = plain[at + 8..].chars().take_while(char::is_ascii_digit).collect();
        match digits.parse() {
            Ok(offset) if self.image.has(offset) => {
                out.addresses.push((out.words.len(), offset));
                plain.replacen(&format!("offset: {digits}"), "offset: address", 1)
            }
            _ => plain,
        }
    }
}

/// What a function takes and gives, in few characters: long ones by their digest.
fn signature(func: &FuncType) -> String {
    let text = format!("{:?}", (func.params(), func.results()));
    if text.len() <= 120 { text } else { crate::base::Digest::of(text.as_bytes()).short() }
}
