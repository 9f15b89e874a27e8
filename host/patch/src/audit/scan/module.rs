//! Sections of core modules, but for the code.

use super::custom::custom;
use super::data;
use super::pass::{ModuleFrame, Scan};
use crate::audit::Caps;
use crate::audit::facts::{CoreExport, CoreImport, Facts, GlobalFacts, MemoryFacts, ModuleFacts};
use crate::audit::names;
use crate::base::text;
use wasmparser::{BinaryReaderError, ConstExpr, ElementItems, ExternalKind, Operator, Payload, TypeRef};

/// More of anything than this is refused by its number, or not worth a line.
pub(super) const MANY: usize = 10_000;

impl Scan {
    pub(super) fn module(
        &mut self,
        frame: &mut ModuleFrame,
        payload: Payload<'_>,
        caps: &Caps,
    ) -> Result<(), BinaryReaderError> {
        let facts = &mut self.facts;
        let index = frame.index;
        match payload {
            Payload::TypeSection(section) => {
                for group in section.into_iter().take(MANY) {
                    let room = MANY.saturating_sub(frame.types.len());
                    frame.types.extend(group?.into_types().take(room));
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports_with_offsets() {
                    let (offset, import) = import?;
                    imported(facts, frame, offset, &import);
                }
            }
            Payload::FunctionSection(section) => {
                let module = &mut facts.modules[index];
                module.functions = section.count();
                facts.functions = facts.functions.saturating_add(section.count() as usize);
                if facts.functions <= caps.functions {
                    for ty in section {
                        frame.functions.push(ty?);
                    }
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    let memory = memory?;
                    facts.modules[index].memories.push(MemoryFacts {
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
                    facts.modules[index].tables.push((ty.initial, ty.maximum));
                }
            }
            Payload::GlobalSection(section) => {
                for global in section.into_iter().take(MANY) {
                    let global = global?;
                    let initial = constant(&global.init_expr);
                    facts.modules[index].globals.push(GlobalFacts { mutable: global.ty.mutable, initial });
                }
            }
            Payload::ExportSection(section) => {
                for (number, export) in section.into_iter_with_offsets().enumerate() {
                    let (offset, export) = export?;
                    names::odd(facts, "core export", export.name, offset);
                    if number < MANY {
                        if let ExternalKind::Func | ExternalKind::FuncExact = export.kind {
                            facts.modules[index].exported_functions.insert(export.name.to_owned(), export.index);
                        }
                        facts.modules[index].exports.push(CoreExport {
                            name: text::clean(export.name, 200),
                            kind: kind(export.kind),
                            index: export.index,
                        });
                    }
                }
            }
            Payload::ElementSection(section) => {
                let module = &mut facts.modules[index];
                module.element_segments = section.count();
                for element in section {
                    elements(module, element?.items)?;
                }
            }
            Payload::DataSection(section) => {
                for segment in section.into_iter().take(MANY) {
                    let segment = segment?;
                    let address = match &segment.kind {
                        wasmparser::DataKind::Active { offset_expr, .. } => constant(offset_expr),
                        wasmparser::DataKind::Passive => None,
                    };
                    let offset = segment.range.end - segment.data.len();
                    let address = address.map(|address| address as u32 as u64);
                    facts.modules[index].data.push(data::segment(segment.data, offset, address));
                }
            }
            Payload::StartSection { func, .. } => facts.modules[index].start = Some(func),
            Payload::CustomSection(section) => custom(facts, Some(index), &section),
            _ => {}
        }
        Ok(())
    }
}

fn imported(facts: &mut Facts, frame: &mut ModuleFrame, offset: usize, import: &wasmparser::Import<'_>) {
    names::odd(facts, "core import", import.module, offset);
    names::odd(facts, "core import", import.name, offset);
    let module = &mut facts.modules[frame.index];
    let kind = match import.ty {
        TypeRef::Func(ty) | TypeRef::FuncExact(ty) => {
            module.imported_functions = module.imported_functions.saturating_add(1);
            frame.functions.push(ty);
            "func"
        }
        TypeRef::Memory(_) => {
            module.imported_memories += 1;
            "memory"
        }
        TypeRef::Table(_) => "table",
        TypeRef::Global(global) => {
            module.globals.push(GlobalFacts { mutable: global.mutable, initial: None });
            "global"
        }
        TypeRef::Tag(_) => "tag",
    };
    if module.imports.len() < MANY {
        let (from, name) = (text::clean(import.module, 200), text::clean(import.name, 200));
        module.imports.push(CoreImport { module: from, name, kind });
    }
}

fn elements(module: &mut ModuleFacts, items: ElementItems<'_>) -> Result<(), BinaryReaderError> {
    let room = |module: &ModuleFacts| MANY.saturating_sub(module.elements.len());
    match items {
        ElementItems::Functions(functions) => {
            for function in functions.into_iter().take(room(module)) {
                module.elements.push(function?);
            }
        }
        ElementItems::Expressions(_, expressions) => {
            for expression in expressions.into_iter().take(room(module)) {
                // A place that holds nothing keeps its place: tables are looked up by position.
                let mut function = u32::MAX;
                for operator in expression?.get_operators_reader() {
                    if let Operator::RefFunc { function_index } = operator? {
                        function = function_index;
                    }
                }
                module.elements.push(function);
            }
        }
    }
    Ok(())
}

fn constant(expression: &ConstExpr<'_>) -> Option<i64> {
    match expression.get_operators_reader().read() {
        Ok(Operator::I32Const { value }) => Some(value.into()),
        Ok(Operator::I64Const { value }) => Some(value),
        _ => None,
    }
}

fn kind(kind: ExternalKind) -> &'static str {
    match kind {
        ExternalKind::Func | ExternalKind::FuncExact => "func",
        ExternalKind::Table => "table",
        ExternalKind::Memory => "memory",
        ExternalKind::Global => "global",
        ExternalKind::Tag => "tag",
    }
}
