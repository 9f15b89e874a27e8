//! Collects [`Facts`]: linear in the bytes, whatever they are.

use super::Caps;
use super::facts::{Facts, FunctionCost, MemoryFacts, ModuleFacts};
use super::names::{Export, Import};
use crate::abi::text;
use wasmparser::{
    BinaryReaderError, CanonicalFunction, CanonicalOption, ComponentAlias, ComponentExternalKind, ComponentInstance,
    ComponentOuterAliasKind, ComponentTypeRef, Encoding, FunctionBody, Instance, Operator, Parser, Payload, TypeRef,
};

/// What the pass sees.
pub(super) struct Scan {
    pub(super) facts: Facts,
    pub(super) imports: Vec<Import>,
    pub(super) exports: Vec<Export>,
}

/// One level of nesting.
enum Frame {
    Module(usize),
    Component(ComponentFrame),
}

#[derive(Default)]
struct ComponentFrame {
    /// Instances that one instantiation of each component of the index space makes.
    components: Vec<u64>,
    /// Instances that one instantiation of this component makes.
    expanded: u64,
    /// Anything but types, imports, exports and aliases of them.
    does_something: bool,
}

/// Deeper nesting than this is refused by its number, so nothing more needs to be known.
const DEPTH: usize = 16;

/// Reads everything. Stops early, without an error, where a cap is exceeded beyond doubt.
pub(super) fn scan(bytes: &[u8], caps: &Caps) -> Result<Scan, BinaryReaderError> {
    let mut scan = Scan { facts: Facts::default(), imports: Vec::new(), exports: Vec::new() };
    let mut frames: Vec<Frame> = Vec::new();
    let mut body = 0;
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload?;
        if frames.len() > DEPTH || scan.facts.items > caps.items {
            return Ok(scan);
        }
        if let Payload::CodeSectionEntry(function) = &payload {
            if let Some(Frame::Module(module)) = frames.last() {
                scan.function(*module, body, function, caps)?;
                body += 1;
            }
            continue;
        }
        body = 0;
        scan.structure(&mut frames, &payload)?;
        match frames.last_mut() {
            Some(Frame::Module(module)) => scan.module(*module, payload)?,
            Some(Frame::Component(_)) => scan.component(&mut frames, payload)?,
            None => {}
        }
    }
    Ok(scan)
}

impl Scan {
    /// Pushes and pops levels.
    fn structure(&mut self, frames: &mut Vec<Frame>, payload: &Payload<'_>) -> Result<(), BinaryReaderError> {
        match payload {
            Payload::Version { encoding: Encoding::Module, range, .. } => {
                self.facts.modules.push(ModuleFacts { offset: range.start, ..ModuleFacts::default() });
                frames.push(Frame::Module(self.facts.modules.len() - 1));
            }
            Payload::Version { encoding: Encoding::Component, .. } => {
                self.facts.component_depth = self.facts.component_depth.max(frames.len());
                frames.push(Frame::Component(ComponentFrame::default()));
            }
            Payload::End(_) => {
                if let Some(Frame::Component(done)) = frames.pop() {
                    match frames.last_mut() {
                        Some(Frame::Component(parent)) => {
                            parent.components.push(done.expanded);
                            let counter = if done.does_something {
                                &mut self.facts.nested_components
                            } else {
                                &mut self.facts.shims
                            };
                            *counter += 1;
                        }
                        _ => self.facts.expanded_instances = done.expanded,
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn module(&mut self, module: usize, payload: Payload<'_>) -> Result<(), BinaryReaderError> {
        let facts = &mut self.facts;
        match payload {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    match import?.ty {
                        TypeRef::Func(_) | TypeRef::FuncExact(_) => facts.modules[module].imported_functions += 1,
                        TypeRef::Memory(_) => facts.modules[module].imported_memories += 1,
                        _ => {}
                    }
                }
            }
            Payload::FunctionSection(section) => {
                facts.modules[module].functions = section.count();
                facts.functions = facts.functions.saturating_add(section.count() as usize);
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    let memory = memory?;
                    facts.modules[module].memories.push(MemoryFacts {
                        min: memory.initial,
                        max: memory.maximum,
                        shared: memory.shared,
                        memory64: memory.memory64,
                        custom_page: memory.page_size_log2.is_some_and(|log2| log2 != 16),
                    });
                }
            }
            Payload::TableSection(section) => {
                for table in section {
                    let ty = table?.ty;
                    facts.modules[module].tables.push((ty.initial, ty.maximum));
                }
            }
            Payload::StartSection { .. } => facts.modules[module].start = true,
            Payload::CustomSection(section) => facts.customs.push(custom(section.name(), section.data())),
            _ => {}
        }
        Ok(())
    }

    fn component(&mut self, frames: &mut [Frame], payload: Payload<'_>) -> Result<(), BinaryReaderError> {
        let root = frames.len() == 1;
        let Some((Frame::Component(frame), outer)) = frames.split_last_mut() else { return Ok(()) };
        let facts = &mut self.facts;
        let mut count = |items: u32| facts.items = facts.items.saturating_add(items as usize);
        match payload {
            Payload::ModuleSection { .. } | Payload::ComponentStartSection { .. } => frame.does_something = true,
            Payload::ComponentSection { .. } => frame.does_something = true,
            Payload::InstanceSection(section) => {
                count(section.count());
                frame.does_something = true;
                for instance in section {
                    if let Instance::Instantiate { .. } = instance? {
                        frame.expanded = frame.expanded.saturating_add(1);
                    }
                }
            }
            Payload::ComponentInstanceSection(section) => {
                count(section.count());
                frame.does_something = true;
                for instance in section {
                    if let ComponentInstance::Instantiate { component_index, .. } = instance? {
                        let inner = frame.components.get(component_index as usize).copied().unwrap_or(u64::MAX);
                        frame.expanded = frame.expanded.saturating_add(inner).saturating_add(1);
                    }
                }
            }
            Payload::ComponentAliasSection(section) => {
                count(section.count());
                for alias in section {
                    match alias? {
                        ComponentAlias::InstanceExport { kind: ComponentExternalKind::Component, .. } => {
                            // Which component that is cannot be known here: as bad as can be.
                            frame.components.push(u64::MAX);
                            frame.does_something = true;
                        }
                        ComponentAlias::Outer { kind: ComponentOuterAliasKind::Component, count, index } => {
                            let expanded = outer_component(frame, outer, count, index);
                            frame.components.push(expanded);
                            frame.does_something = true;
                        }
                        ComponentAlias::Outer { kind: ComponentOuterAliasKind::CoreModule, .. }
                        | ComponentAlias::CoreInstanceExport { .. }
                        | ComponentAlias::InstanceExport { kind: ComponentExternalKind::Module, .. } => {
                            frame.does_something = true;
                        }
                        _ => {}
                    }
                }
            }
            Payload::ComponentTypeSection(section) => {
                count(section.count());
                facts.type_bytes = facts.type_bytes.saturating_add(section.range().len());
            }
            Payload::CoreTypeSection(section) => count(section.count()),
            Payload::ComponentCanonicalSection(section) => {
                count(section.count());
                frame.does_something = true;
                for function in section {
                    self.canonical(&function?);
                }
            }
            Payload::ComponentImportSection(section) => {
                count(section.count());
                for import in section.into_iter_with_offsets() {
                    let (offset, import) = import?;
                    if let ComponentTypeRef::Component(_) = import.ty {
                        frame.components.push(u64::MAX);
                    }
                    if root {
                        self.imports.push(Import { name: import.name.name.to_owned(), offset });
                    }
                }
            }
            Payload::ComponentExportSection(section) => {
                count(section.count());
                for export in section.into_iter_with_offsets() {
                    let (offset, export) = export?;
                    if export.kind == ComponentExternalKind::Component {
                        let inner = frame.components.get(export.index as usize).copied().unwrap_or(u64::MAX);
                        frame.components.push(inner);
                    }
                    if root {
                        self.exports.push(Export { name: export.name.name.to_owned(), offset });
                    }
                }
            }
            Payload::CustomSection(section) => facts.customs.push(custom(section.name(), section.data())),
            _ => {}
        }
        Ok(())
    }

    fn canonical(&mut self, function: &CanonicalFunction) {
        match function {
            CanonicalFunction::Lift { options, .. } | CanonicalFunction::Lower { options, .. } => {
                for option in options {
                    match option {
                        CanonicalOption::UTF16 | CanonicalOption::CompactUTF16 => self.facts.odd_encodings += 1,
                        CanonicalOption::Async | CanonicalOption::Callback(_) => self.facts.async_functions += 1,
                        _ => {}
                    }
                }
            }
            CanonicalFunction::ResourceNew { .. }
            | CanonicalFunction::ResourceDrop { .. }
            | CanonicalFunction::ResourceRep { .. } => {}
            _ => self.facts.async_functions += 1,
        }
    }

    fn function(
        &mut self,
        module: usize,
        body: u32,
        function: &FunctionBody<'_>,
        caps: &Caps,
    ) -> Result<(), BinaryReaderError> {
        let mut cost = FunctionCost {
            module,
            index: self.facts.modules[module].imported_functions.saturating_add(body),
            offset: function.range().start,
            bytes: function.range().len(),
            locals: 0,
            blocks: 0,
            nesting: 0,
        };
        for local in function.get_locals_reader()? {
            cost.locals += u64::from(local?.0);
        }
        if cost.bytes <= caps.body_bytes {
            self.operators(&mut cost, function)?;
        }
        let facts = &mut self.facts;
        facts.locals_x_blocks = facts.locals_x_blocks.saturating_add(cost.locals_x_blocks());
        keep(&mut facts.largest, &cost, |cost| cost.bytes as u64);
        keep(&mut facts.most_locals, &cost, |cost| cost.locals);
        keep(&mut facts.deepest, &cost, |cost| cost.nesting as u64);
        keep(&mut facts.costliest, &cost, FunctionCost::locals_x_blocks);
        Ok(())
    }

    fn operators(&mut self, cost: &mut FunctionCost, function: &FunctionBody<'_>) -> Result<(), BinaryReaderError> {
        let facts = &mut self.facts;
        let mut depth = 0usize;
        for operator in function.get_operators_reader()? {
            let operator = operator?;
            match &operator {
                Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } | Operator::TryTable { .. } => {
                    cost.blocks += 1;
                    depth += 1;
                    cost.nesting = cost.nesting.max(depth);
                }
                Operator::End => depth = depth.saturating_sub(1),
                Operator::BrTable { targets } => facts.br_table_targets += u64::from(targets.len()) + 1,
                Operator::MemoryGrow { .. } => facts.memory_grows += 1,
                Operator::CallIndirect { .. } => facts.indirect_calls += 1,
                _ => {}
            }
            let proposal = proposal(&operator);
            if proposal != "mvp" {
                *facts.proposals.entry(proposal).or_default() += 1;
            }
        }
        Ok(())
    }
}

fn outer_component(frame: &ComponentFrame, outer: &[Frame], count: u32, index: u32) -> u64 {
    let index = index as usize;
    let found = match (count as usize).checked_sub(1) {
        None => frame.components.get(index),
        Some(up) => match outer.iter().rev().nth(up) {
            Some(Frame::Component(outer)) => outer.components.get(index),
            _ => None,
        },
    };
    found.copied().unwrap_or(u64::MAX)
}

fn keep(slot: &mut Option<FunctionCost>, cost: &FunctionCost, key: impl Fn(&FunctionCost) -> u64) {
    if slot.as_ref().is_none_or(|kept| key(cost) > key(kept)) {
        *slot = Some(cost.clone());
    }
}

fn custom(name: &str, data: &[u8]) -> (String, usize) {
    (text::clean(name, 80), data.len())
}

/// The proposal an instruction belongs to, from wasmparser's own table.
macro_rules! define_proposal {
    ($( @$proposal:ident $op:ident $({ $($arg:ident: $argty:ty),* })? => $visit:ident ($($ann:tt)*) )*) => {
        fn proposal(operator: &Operator<'_>) -> &'static str {
            match operator {
                $( Operator::$op { .. } => stringify!($proposal), )*
                _ => "unknown",
            }
        }
    };
}
wasmparser::for_each_operator!(define_proposal);
