//! One pass over the bytes: what is there, without validating or compiling any of it.

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
    /// Defined functions.
    pub functions: usize,
    /// Targets of all `br_table`.
    pub br_table_targets: u64,
    /// Locals times blocks, summed over functions.
    pub locals_x_blocks: u64,
    /// `memory.grow` instructions.
    pub memory_grows: u64,
    /// `call_indirect` instructions.
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
    /// String encodings other than UTF-8 among the canonical options.
    pub odd_encodings: usize,
    /// Canonical functions of the async ABI.
    pub async_functions: usize,
    /// Custom sections: name and bytes.
    pub customs: Vec<(String, usize)>,
    /// Depth of the deepest exported type; known after validation.
    pub type_depth: usize,
}

/// One core module.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ModuleFacts {
    /// Byte offset of the module.
    pub offset: usize,
    /// Imported functions.
    pub imported_functions: u32,
    /// Defined functions.
    pub functions: u32,
    /// Memories, defined ones only.
    pub memories: Vec<MemoryFacts>,
    /// Memories and tables that are imported.
    pub imported_memories: u32,
    /// Defined tables: initial and maximum elements.
    pub tables: Vec<(u64, Option<u64>)>,
    /// Whether it has a start function.
    pub start: bool,
}

/// One memory, in pages.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MemoryFacts {
    /// Initial pages.
    pub min: u64,
    /// Maximum pages.
    pub max: Option<u64>,
    /// Shared between threads.
    pub shared: bool,
    /// 64-bit addresses.
    pub memory64: bool,
    /// Pages of another size than 64 KiB.
    pub custom_page: bool,
}

/// What one function costs to compile.
#[derive(Debug, Clone, Serialize)]
pub struct FunctionCost {
    /// Module it is in.
    pub module: usize,
    /// Index in the function index space of its module.
    pub index: u32,
    /// Byte offset of the body.
    pub offset: usize,
    /// Bytes of the body.
    pub bytes: usize,
    /// Declared locals.
    pub locals: u64,
    /// Blocks, loops and ifs.
    pub blocks: u64,
    /// Deepest nesting of them.
    pub nesting: usize,
}

impl FunctionCost {
    /// Where it is, for a finding.
    pub fn place(&self) -> String {
        format!("module {} function {} at {:#x}", self.module, self.index, self.offset)
    }

    /// Register allocation grows with this product.
    pub fn locals_x_blocks(&self) -> u64 {
        self.locals.saturating_mul(self.blocks)
    }
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
}
