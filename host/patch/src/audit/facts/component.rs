//! Facts about the file as a whole.

use super::{FunctionCost, ModuleFacts, Producer};
use serde::Serialize;
use std::collections::BTreeMap;

/// What was counted. Numbers are sums over all modules unless they say otherwise.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Facts {
    /// Core modules, in order.
    pub modules: Vec<ModuleFacts>,
    /// Nested components that only re-export: wit-component makes one per exported interface.
    pub shims: usize,
    /// Nested components that hold code, instances or further components.
    pub nested_components: usize,
    /// Deepest nesting of components.
    pub component_depth: usize,
    /// Instances after expanding the tree of components; saturates.
    pub expanded_instances: u64,
    /// Types, imports, exports, aliases, instances and canonical functions of the components.
    pub items: usize,
    /// Bytes of all component type sections.
    pub type_bytes: usize,
    /// Functions that the core modules define.
    pub functions: usize,
    /// Targets of all `br_table`.
    pub br_table_targets: u64,
    /// Locals times blocks, summed over functions.
    pub locals_x_blocks: u64,
    /// How often the code asks for more memory (`memory.grow`).
    pub memory_grows: u64,
    /// Calls through tables (`call_indirect`): their targets are not known before they run.
    pub indirect_calls: u64,
    /// The function with the largest body.
    pub largest: Option<FunctionCost>,
    /// The function with the most locals.
    pub most_locals: Option<FunctionCost>,
    /// The function with the deepest nesting.
    pub deepest: Option<FunctionCost>,
    /// The function with the most locals times blocks.
    pub costliest: Option<FunctionCost>,
    /// Instructions by proposal, those of the first WebAssembly left out.
    pub proposals: BTreeMap<&'static str, u64>,
    /// How often each instruction occurs, by its name in the text format.
    pub opcodes: BTreeMap<&'static str, u64>,
    /// String encodings other than UTF-8 among the canonical options.
    pub odd_encodings: usize,
    /// Canonical functions of the async ABI.
    pub async_functions: usize,
    /// Resource types that the component defines.
    pub resources: usize,
    /// Core modules that nothing instantiates, by index.
    pub dead_modules: Vec<usize>,
    /// Core functions that the host calls.
    pub lifted: Vec<Lifted>,
    /// Lifted functions of which it is not known what they are in which module.
    #[serde(skip)]
    pub lifted_unknown: usize,
    /// Custom sections: name and bytes.
    pub customs: Vec<(String, usize)>,
    /// Those whose content is not completely what their name says, or is not read here: name and bytes.
    #[serde(skip)]
    pub unread_customs: Vec<(String, usize)>,
    /// Bytes of all custom sections with debug information.
    pub debug_bytes: usize,
    /// Names that are not plain ASCII: what they name, the name (escaped), its offset.
    pub odd_names: Vec<(&'static str, String, usize)>,
    /// What the component's own producers section names.
    pub producers: Vec<Producer>,
    /// Depth of the deepest exported type; known after validation.
    pub type_depth: usize,
    /// Lifted functions that return lists or strings and have no post-return, by export; known after validation.
    pub leaks: Vec<String>,
}

/// One core function that is lifted to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lifted {
    /// Index of the core module that has it.
    pub module: usize,
    /// Its name among the module's exports.
    pub export: String,
    /// Index among the component's functions.
    #[serde(skip)]
    pub component_function: u32,
    /// Whether it has a post-return.
    pub post_return: bool,
}

impl Facts {
    /// Proposals beyond the first WebAssembly that are used.
    pub fn needs(&self) -> Vec<&'static str> {
        self.proposals.keys().copied().collect()
    }

    /// Maximum pages of all memories together; a memory without a maximum counts its initial pages.
    pub fn memory_pages(&self) -> u64 {
        let memories = self.modules.iter().flat_map(|module| &module.memories);
        memories.fold(0, |sum, memory| sum.saturating_add(memory.max.unwrap_or(memory.min)))
    }

    /// Every producer that any section names, each once.
    pub fn all_producers(&self) -> Vec<&Producer> {
        let mut all: Vec<&Producer> = Vec::new();
        for one in self.modules.iter().flat_map(|module| &module.producers).chain(&self.producers) {
            if !all.contains(&one) {
                all.push(one);
            }
        }
        all
    }

    /// Bytes of all function bodies.
    pub fn code_bytes(&self) -> usize {
        self.modules.iter().flat_map(|module| &module.code).map(|function| function.cost.bytes).sum()
    }

    /// Bytes of all data segments.
    pub fn data_bytes(&self) -> usize {
        self.modules.iter().flat_map(|module| &module.data).map(|segment| segment.size).sum()
    }

    /// Instructions by class, over all functions.
    pub fn classes(&self) -> BTreeMap<&'static str, u64> {
        let mut sums = BTreeMap::new();
        for function in self.modules.iter().flat_map(|module| &module.code) {
            for (class, count) in super::CLASSES.iter().zip(function.classes).filter(|(_, count)| *count > 0) {
                *sums.entry(*class).or_insert(0) += u64::from(count);
            }
        }
        sums
    }
}
