//! What one patch may use, and which accident or attack each number stops.

use serde::{Deserialize, Serialize};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Limits of one patch. They are part of its generation digest: a patch with other limits is another generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of all linear memories and tables of one instance together. Stops a leak, and a component that spreads
    /// its memory over several modules (wasmtime's own limit is per memory).
    pub memory_bytes: usize,
    /// Elements of all tables of one instance together. Stops a table of ten million entries, 80 MB on the host.
    pub table_elements: usize,
    /// Core instances in one store. Stops instantiation bombs that got past the audit.
    pub instances: usize,
    /// Linear memories in one store. Each reserves 4 GiB of address space.
    pub memories: usize,
    /// Tables in one store.
    pub tables: usize,
    /// Fuel of any call before its size counts: `describe`, `configure`, `activation`, start functions. Stops a loop
    /// without end after the same instruction on every rank.
    pub fuel_base: u64,
    /// Fuel per tensor in `decide` and `resolve`, on top of `fuel_base`. Stops quadratic name matching. `fp8_block`
    /// needs 6,000.
    pub fuel_per_tensor: u64,
    /// Fuel per byte of config.json in `decide`, `resolve` and `activation`: a patch may parse it.
    pub fuel_per_config_byte: u64,
    /// Fuel of `scales`, `scales-with-moments` and `activation-scales` before blocks count. Small: they are called
    /// thousands of times in a refit, and a looping one must not cost seconds.
    pub fuel_scales_base: u64,
    /// Fuel per block in those calls. `fp8_block` needs 76.
    pub fuel_per_block: u64,
    /// Fuel per element of the panel in `panel-scales`, on top of `fuel_scales_base`. Measured with `fp8_block_mse`,
    /// which tries several scales for each block: 122 per element with 16 candidates, 490 with 64, the most it can be
    /// set to. That is for small blocks; large ones need less.
    pub fuel_per_element: u64,
    /// The most fuel that one call gets, however large its input: enough for a loop of one to four seconds. `fp8_block`
    /// needs 6,000 per tensor in `decide`, so this is enough for 131,072 tensors.
    pub fuel_max: u64,
    /// Wall time of `describe`, `configure`, `decide`, `resolve` and `activation`, in milliseconds. Fuel counts
    /// instructions; this stops calls whose instructions are slow: loads that miss every cache, divisions, a host that
    /// swaps. An honest patch needs a thousandth of it.
    pub wall_decide_ms: u64,
    /// Wall time of `scales`, `scales-with-moments` and `activation-scales`, in milliseconds.
    pub wall_scales_ms: u64,
    /// Wall time of `panel-scales`, in milliseconds.
    pub wall_panel_ms: u64,
    /// Wall time of `export-state` and of `import-state`: a swap waits for them.
    pub wall_state_ms: u64,
    /// Bytes of an answer beyond its exact expected size: room for an error text. Stops a list of gigabytes, which the
    /// host would have to allocate.
    pub output_slack: usize,
    /// Most bytes of any one answer.
    pub output_max: usize,
    /// How often `panel-scales` may read its panel: values read at most this many times the values it has. Stops a
    /// guest that makes the host copy rows for ever, which costs the guest no fuel.
    pub panel_reads: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 64 * MIB,
            table_elements: 10_000,
            instances: 8,
            memories: 2,
            tables: 4,
            fuel_base: 50_000_000,
            fuel_per_tensor: 20_000,
            fuel_per_config_byte: 200,
            fuel_scales_base: 2_000_000,
            fuel_per_block: 2_000,
            fuel_per_element: 1_000,
            fuel_max: 2_000_000_000,
            wall_decide_ms: 8_000,
            wall_scales_ms: 8_000,
            wall_panel_ms: 8_000,
            wall_state_ms: 2_000,
            output_slack: 4 * KIB,
            output_max: 64 * MIB,
            panel_reads: 16,
        }
    }
}

impl Limits {
    /// Whether every instance can get what these limits promise.
    pub(crate) fn check(&self) -> Result<(), String> {
        let most = |name: &str, value: usize, most: usize| match value <= most {
            true => Ok(()),
            false => Err(format!("{name} is {value}; it can be at most {most}")),
        };
        most("memory_bytes", self.memory_bytes, SLOT_MEMORY_BYTES)?;
        most("table_elements", self.table_elements, SLOT_TABLE_ELEMENTS)
    }
}

/// Stack of a guest. Stops recursion; the worker's own stack is larger, so that the host never overflows first.
pub(super) const STACK_BYTES: usize = 512 * KIB;

/// The largest memory that any [`Limits`] can give: the size of a slot of the pooling allocator.
pub(super) const SLOT_MEMORY_BYTES: usize = 1 << 30;

/// The largest table that any [`Limits`] can give.
pub(super) const SLOT_TABLE_ELEMENTS: usize = 20_000;

/// Memory that a returned slot keeps, so that the next instance does not fault its pages in again.
pub(super) const KEEP_RESIDENT: usize = MIB;
