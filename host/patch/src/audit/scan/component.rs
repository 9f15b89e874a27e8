//! Sections of components: what is instantiated, imported, exported and lifted.

use super::custom::custom;
use super::pass::{Frame, Scan};
use crate::audit::names::{self, Export, Import};
use wasmparser::{
    BinaryReaderError, CanonicalFunction, CanonicalOption, ComponentAlias, ComponentExternalKind, ComponentInstance,
    ComponentOuterAliasKind, ComponentType, ComponentTypeRef, Instance, Payload,
};

#[derive(Default)]
pub(super) struct ComponentFrame {
    /// Instances that one instantiation of each component of the index space makes.
    pub(super) components: Vec<u64>,
    /// Instances that one instantiation of this component makes.
    pub(super) expanded: u64,
    /// Anything but types, imports, exports and aliases of them.
    pub(super) does_something: bool,
}

impl Scan {
    pub(super) fn component(&mut self, frames: &mut [Frame], payload: Payload<'_>) -> Result<(), BinaryReaderError> {
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
                    alias_of(frame, outer, &alias?);
                }
            }
            Payload::ComponentTypeSection(section) => {
                count(section.count());
                facts.type_bytes = facts.type_bytes.saturating_add(section.range().len());
                if root && facts.type_bytes <= TYPE_BYTES {
                    for ty in section {
                        facts.resources += usize::from(matches!(ty?, ComponentType::Resource { .. }));
                    }
                }
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
                        names::odd(&mut self.facts, "import", import.name.name, offset);
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
                        names::odd(&mut self.facts, "export", export.name.name, offset);
                        self.exports.push(Export { name: export.name.name.to_owned(), offset });
                    }
                }
            }
            Payload::CustomSection(section) => custom(&mut self.facts, None, &section),
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
}

/// More bytes of types than this are refused by their number.
const TYPE_BYTES: usize = 1 << 20;

fn alias_of(frame: &mut ComponentFrame, outer: &[Frame], alias: &ComponentAlias<'_>) {
    match alias {
        ComponentAlias::InstanceExport { kind: ComponentExternalKind::Component, .. } => {
            // Which component that is cannot be known here: as bad as can be.
            frame.components.push(u64::MAX);
            frame.does_something = true;
        }
        ComponentAlias::Outer { kind: ComponentOuterAliasKind::Component, count, index } => {
            let expanded = outer_component(frame, outer, *count, *index);
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
