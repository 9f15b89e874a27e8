//! Facts about one function.

use super::ModuleFacts;
use serde::Serialize;

/// Classes of instructions, in the order of [`FunctionFacts::classes`].
pub const CLASSES: [&str; 14] = [
    "control",
    "call",
    "variable",
    "memory",
    "bulk",
    "table",
    "reference",
    "const",
    "integer",
    "float",
    "convert",
    "simd",
    "atomic",
    "other",
];

/// What one function costs to compile.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FunctionCost {
    /// Module it is in.
    pub module: usize,
    /// Index in the function index space of its module.
    pub index: u32,
    /// Byte offset of the body.
    pub offset: usize,
    /// Bytes of the body.
    pub bytes: usize,
    /// Declared locals; parameters are not counted.
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

/// What one function does.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FunctionFacts {
    /// What it costs to compile, and where it is.
    pub cost: FunctionCost,
    /// How many loops it has.
    pub loops: u32,
    /// Loops that call nothing.
    pub loops_without_calls: u32,
    /// Byte offsets of loops that nothing leaves.
    pub endless: Vec<usize>,
    /// Functions that it calls, each once.
    pub calls: Vec<u32>,
    /// How many calls through a table it has: any function of the table may be behind one.
    pub indirect_calls: u32,
    /// How many `unreachable` it has: where a panic or an abort ends.
    pub traps: u32,
    /// How many instructions of each class it has; the classes are [`CLASSES`].
    pub classes: [u32; CLASSES.len()],
    /// Globals that it writes, each once.
    pub global_writes: Vec<u32>,
    /// Fixed addresses that it writes, each once.
    pub static_stores: Vec<u64>,
    /// How many `memory.grow` it has.
    pub memory_grows: u32,
    /// How many `table.grow` it has.
    pub table_grows: u32,
    /// `memory.copy` and `memory.fill` whose length is not a constant.
    pub bulk_dynamic: u32,
    /// Instructions that see the bits of a NaN.
    pub nan_bits: u32,
    /// Constants that it compares something with and that nobody would type by accident, with the byte offset.
    pub rare: Vec<(u64, usize)>,
}

impl FunctionFacts {
    /// Where it is, for a finding.
    pub fn place(&self, module: &ModuleFacts) -> String {
        let FunctionCost { module: number, index, offset, .. } = self.cost;
        match module.name_of(index) {
            Some(name) => {
                let name = crate::base::text::clean(&name, 80);
                format!("module {number} function {index} `{name}` at {offset:#x}")
            }
            None => self.cost.place(),
        }
    }
}
