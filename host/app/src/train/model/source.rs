//! From the names of the registry to master weights.

use std::collections::BTreeMap;

use candle_core::Var;
use patchhost_runtime::hooks::Slot;
use patchhost_runtime::registry::{ParamId, Registry};

use crate::train::error::{Result, usage};
use crate::train::masters::Masters;

/// Finds the master weight that writes a part of a runtime tensor.
pub(super) struct Source<'a> {
    registry: &'a Registry,
    masters: &'a Masters,
    /// Checkpoint name by runtime tensor and part.
    names: BTreeMap<(ParamId, usize), String>,
}

impl<'a> Source<'a> {
    pub(super) fn new(registry: &'a Registry, masters: &'a Masters) -> Self {
        let mut names = BTreeMap::new();
        for name in registry.checkpoint_names() {
            let Some(place) = registry.native(name).or_else(|| registry.expert_names(name)) else { continue };
            let decl = &registry.params()[place.param];
            if let Some(part) = decl.part_index(place.expert.unwrap_or(0), place.slot) {
                names.insert((place.param, part), name.to_string());
            }
        }
        Self { registry, masters, names }
    }

    /// A runtime tensor of one part.
    pub(super) fn whole(&self, param: &str) -> Result<Var> {
        self.part(param, 0, Slot::Whole)
    }

    /// A part of a runtime tensor, of one expert where it has experts.
    pub(super) fn part(&self, param: &str, expert: usize, slot: Slot) -> Result<Var> {
        let id = self.registry.find(param);
        let part = id.and_then(|id| Some((id, self.registry.params()[id].part_index(expert, slot)?)));
        let name = part.and_then(|part| self.names.get(&part));
        let shown = name.map_or(param, String::as_str);
        match name.and_then(|name| self.masters.get(name)) {
            Some(master) => Ok(master.var.clone()),
            None => Err(usage(
                format!("tensor `{shown}`"),
                "the checkpoint does not hold it under this name; the trainer takes one tensor per projection and expert",
                "give a checkpoint in the family's own layout (experts that are stacked in one tensor must be split)",
            )),
        }
    }
}
