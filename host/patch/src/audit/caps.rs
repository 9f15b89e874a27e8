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
    /// Types of the core modules: 60,000 trampolines take more than 5 s.
    pub core_types: u64,
    /// Parameters of one function or block: 900 types of 990 parameters take more than 5 s.
    pub params: u64,
    /// Results of one function or block: 10,000 blocks of 990 results take more than a GiB, and the validator a second.
    pub results: u64,
    /// Instructions of constant expressions beyond the one that each has: 400,000 take more than a second.
    pub constants: u64,
    /// Elements in segments: 300,000 take 3 s.
    pub elements: u64,
    /// Imports, exports, globals and segments of the core modules: 90,000 segments take 4 s.
    pub core_items: u64,
    /// Calls, and instructions on whole memories and tables: 70,000 of them take more than 5 s, or a GiB.
    pub calls: u64,
    /// Branches of one function: 25,000 take more than a GiB.
    pub branches: u64,
    /// Branches of all functions: ten functions with 8,000 each take more than 5 s.
    pub branches_sum: u64,
    /// Locals, parameters and operands that may live at once, times the branches of their function: 10,000 operands across
    /// 10,000 loops take 9 s.
    pub live: u64,
    /// The same, summed over all functions.
    pub live_sum: u64,
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
            core_types: 1_000,
            params: 64,
            results: 16,
            constants: 10_000,
            elements: 10_000,
            core_items: 10_000,
            calls: 10_000,
            branches: 4_000,
            branches_sum: 20_000,
            live: 1_000_000,
            live_sum: 3_000_000,
        }
    }
}
