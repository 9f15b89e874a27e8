//! Caps on what may reach the compiler. The compiler is where the cheap attacks are: a component of 587 bytes makes
//! wasmtime 48 work for 20 s and take 2.2 GiB, and wasmtime says that this is not its vulnerability.

use serde::{Deserialize, Serialize};

/// Static caps, with what each stops. Real guests need a tenth of most of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Caps {
    /// Bytes of the file.
    pub bytes: usize,
    /// Core modules. A guest without imports has 1; with imports wit-component adds a shim and a fixup.
    pub core_modules: usize,
    /// Nested components. wit-component makes one per exported interface, without code; any other is refused.
    pub shims: usize,
    /// Instances after expanding the tree. The 587 bytes hold 8 levels of 10 instances each: 10^8.
    pub expanded_instances: u64,
    /// Functions of all modules: 50,000 tiny ones take 12 to 17 s.
    pub functions: usize,
    /// Bytes of one function body. The unrolled kernel of a real guest needs 64 to 128 KiB.
    pub body_bytes: usize,
    /// Locals of one function, parameters not counted.
    pub locals: u64,
    /// Depth of blocks in one function.
    pub nesting: usize,
    /// Targets of all `br_table`: 1.2 MB of them take 6 s and 708 MiB.
    pub br_table_targets: u64,
    /// Locals times blocks of one function: 1,200 loops with 1,200 live locals take 3 s.
    pub locals_x_blocks: u64,
    /// The same, summed over all functions: many functions just below the cap.
    pub locals_x_blocks_sum: u64,
    /// Types, imports, exports, aliases, canonical functions of the component, together.
    pub items: usize,
    /// Bytes of the type sections of the component.
    pub type_bytes: usize,
    /// Depth of the types of exported functions.
    pub type_depth: usize,
    /// Pages of 64 KiB of all memories: 1,024 = 64 MiB, the default of `Limits::memory_bytes`.
    pub memory_pages: u64,
    /// Elements of all tables.
    pub table_elements: u64,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            bytes: 1 << 20,
            core_modules: 4,
            shims: 16,
            expanded_instances: 64,
            functions: 4_000,
            body_bytes: 256 << 10,
            locals: 2_000,
            nesting: 256,
            br_table_targets: 16_384,
            locals_x_blocks: 250_000,
            locals_x_blocks_sum: 1_000_000,
            items: 10_000,
            type_bytes: 128 << 10,
            type_depth: 16,
            memory_pages: 1_024,
            table_elements: 10_000,
        }
    }
}
