//! Facts about one core module.

use super::{DataFacts, FunctionFacts};
use serde::Serialize;
use std::collections::HashMap;

/// One core module inside the component, and what was counted in it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ModuleFacts {
    /// Byte offset of the module.
    pub offset: usize,
    /// How many functions it imports: they have the first indexes.
    pub imported_functions: u32,
    /// How many functions it defines.
    pub functions: u32,
    /// Memories, defined ones only.
    pub memories: Vec<MemoryFacts>,
    /// Memories and tables that are imported.
    pub imported_memories: u32,
    /// Defined tables: initial and maximum elements.
    pub tables: Vec<(u64, Option<u64>)>,
    /// The start function, if it has one.
    pub start: Option<u32>,
    /// What it imports from other modules of the component, or from the host through it.
    pub imports: Vec<CoreImport>,
    /// What other modules and the component can reach in it.
    pub exports: Vec<CoreExport>,
    /// Defined globals, imported ones first.
    pub globals: Vec<GlobalFacts>,
    /// Functions that stand in tables, or that anything takes a reference to.
    #[serde(skip)]
    pub elements: Vec<u32>,
    /// How many segments fill its tables.
    pub element_segments: u32,
    /// What its memory holds at the start.
    pub data: Vec<DataFacts>,
    /// Defined functions, in order; empty where there are more than the cap.
    #[serde(skip)]
    pub code: Vec<FunctionFacts>,
    /// Exported functions by their exact names: those of [`CoreExport`] are escaped and cut, so they are only shown.
    #[serde(skip)]
    pub exported_functions: HashMap<String, u32>,
    /// Names of functions, as they stand in the name section.
    #[serde(skip)]
    pub names: HashMap<u32, String>,
    /// Custom sections that name its toolchain.
    pub producers: Vec<Producer>,
}

/// One import of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CoreImport {
    /// Module that it comes from.
    pub module: String,
    /// Its name in that module.
    pub name: String,
    /// `func`, `table`, `memory`, `global` or `tag`.
    pub kind: &'static str,
}

/// One export of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CoreExport {
    /// Its name, escaped and cut: only to be shown.
    pub name: String,
    /// `func`, `table`, `memory`, `global` or `tag`.
    pub kind: &'static str,
    /// Index among things of its kind.
    pub index: u32,
}

/// A global: a variable that belongs to the instance and lives from call to call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GlobalFacts {
    /// Whether code may write it.
    pub mutable: bool,
    /// Its first value, where that is a constant.
    pub initial: Option<i64>,
}

/// One memory, in pages.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MemoryFacts {
    /// Pages that it has at the start.
    pub min: u64,
    /// Pages that it may grow to; none: the module sets no end.
    pub max: Option<u64>,
    /// Whether threads could share it. Refused (PH303).
    pub shared: bool,
    /// Whether its addresses have 64 bits. Refused (PH305).
    pub memory64: bool,
    /// Pages of another size than 64 KiB.
    pub custom_page: bool,
}

/// A tool that had a part in making it, as the file itself says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Producer {
    /// `language`, `processed-by` or `sdk`.
    pub field: String,
    /// Name of the tool.
    pub name: String,
    /// Version of the tool.
    pub version: String,
}

impl ModuleFacts {
    /// The function with this index, if it is defined here and was looked at.
    pub fn function(&self, index: u32) -> Option<&FunctionFacts> {
        self.code.get(index.checked_sub(self.imported_functions)? as usize)
    }

    /// The exported function of exactly this name.
    pub fn exported(&self, name: &str) -> Option<u32> {
        self.exported_functions.get(name).copied()
    }

    /// What people call a function: its name without the parts that change from build to build, else an export's, else
    /// its import's.
    pub fn name_of(&self, index: u32) -> Option<String> {
        if let Some(name) = self.names.get(&index) {
            return Some(crate::base::text::clean(&readable(name), 160));
        }
        if let Some(export) = self.exports.iter().find(|export| export.kind == "func" && export.index == index) {
            return Some(crate::base::text::clean(&export.name, 160));
        }
        let import = self.imports.iter().filter(|import| import.kind == "func").nth(index as usize)?;
        Some(crate::base::text::clean(&format!("{}#{}", import.module, import.name), 160))
    }

    /// The global that is taken for the stack pointer: the first one that may be written and begins with an address, which is
    /// where compilers keep it.
    pub fn stack_pointer(&self) -> Option<u32> {
        let stack = |global: &GlobalFacts| global.mutable && global.initial.is_some_and(|first| first >= 4096);
        self.globals.iter().position(stack).map(|index| index as u32)
    }
}

/// A Rust name without its hash; any other name as it is.
pub(crate) fn readable(name: &str) -> String {
    match rustc_demangle::try_demangle(name) {
        Ok(demangled) => format!("{demangled:#}"),
        Err(_) => match name.rfind(".llvm.") {
            Some(at) => name[..at].to_owned(),
            None => name.to_owned(),
        },
    }
}
