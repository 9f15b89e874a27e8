//! What one call may use, worked out from the limits and the size of the question.

use super::Limits;
use crate::base::Function;
use std::time::Duration;

/// Fuel, time and output of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) fuel: u64,
    /// Names of the limits that the fuel was worked out from: messages say which one to raise.
    pub(crate) formula: &'static str,
    pub(crate) wall: Duration,
    /// Bytes that the answer may make the host allocate.
    pub(crate) output: usize,
}

impl Limits {
    /// Instantiation, `describe` and `configure`.
    pub(crate) fn setup_budget(&self) -> Budget {
        self.budget(self.fuel_base, "fuel_base", self.wall_decide_ms, 16 * self.output_slack)
    }

    /// `resolve`, `decide` and `activation`: `output` bytes for `tensors` tensors and the text of a config.json.
    pub(crate) fn model_budget(&self, tensors: usize, config_bytes: usize, output: usize) -> Budget {
        let fuel = self
            .fuel_base
            .saturating_add(times(self.fuel_per_tensor, tensors))
            .saturating_add(times(self.fuel_per_config_byte, config_bytes));
        let formula = "fuel_base + tensors x fuel_per_tensor + config bytes x fuel_per_config_byte";
        self.budget(fuel, formula, self.wall_decide_ms, output)
    }

    /// `scales`, `scales-with-moments` and `activation-scales`: one f32 out per block.
    pub(crate) fn scales_budget(&self, blocks: usize) -> Budget {
        let fuel = self.fuel_scales_base.saturating_add(times(self.fuel_per_block, blocks));
        self.budget(fuel, "fuel_scales_base + blocks x fuel_per_block", self.wall_scales_ms, blocks.saturating_mul(4))
    }

    /// `panel-scales`: one f32 out per block, after looking at every element.
    pub(crate) fn panel_budget(&self, elements: usize, blocks: usize) -> Budget {
        let fuel = self
            .fuel_scales_base
            .saturating_add(times(self.fuel_per_block, blocks))
            .saturating_add(times(self.fuel_per_element, elements));
        let formula = "fuel_scales_base + blocks x fuel_per_block + elements x fuel_per_element";
        self.budget(fuel, formula, self.wall_panel_ms, blocks.saturating_mul(4))
    }

    /// `export-state` and `import-state`: `output` bytes of state out.
    pub(crate) fn state_budget(&self, output: usize) -> Budget {
        self.budget(self.fuel_base, "fuel_base", self.wall_state_ms, output)
    }

    /// Wall time of a call of this function, in milliseconds.
    pub(crate) fn wall_ms(&self, function: Function) -> u64 {
        match function {
            Function::Scales | Function::ScalesWithMoments | Function::ActivationScales => self.wall_scales_ms,
            Function::PanelScales => self.wall_panel_ms,
            Function::ExportState | Function::ImportState => self.wall_state_ms,
            _ => self.wall_decide_ms,
        }
    }

    fn budget(&self, fuel: u64, formula: &'static str, wall_ms: u64, output: usize) -> Budget {
        Budget {
            fuel: fuel.min(self.fuel_max),
            formula: if fuel > self.fuel_max { "fuel_max" } else { formula },
            wall: Duration::from_millis(wall_ms),
            output: output.saturating_add(self.output_slack).min(self.output_max),
        }
    }
}

fn times(fuel: u64, count: usize) -> u64 {
    fuel.saturating_mul(u64::try_from(count).unwrap_or(u64::MAX))
}
