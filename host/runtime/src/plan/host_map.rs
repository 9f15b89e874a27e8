//! The host's own map as a reference: what a loader map places elsewhere than the names say.

use crate::checkpoint::CheckpointTensor;
use crate::hooks::{Placement, Slot};
use crate::registry::{NativePlace, Registry};
use crate::words::shown;

/// A tensor that a loader map has elsewhere than the host's own map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    /// Where it goes: target, slot, expert, and whether it is transposed.
    pub placed: String,
    /// Where the host's own map puts it, in the same words.
    pub host: String,
}

/// Compares one placement with the host's own map. None: they agree, or the host does not know the name.
pub(super) fn differs(registry: &Registry, tensor: &CheckpointTensor, placement: &Placement) -> Option<Elsewhere> {
    let name = &tensor.name;
    match placement {
        Placement::Native => None,
        Placement::Ignore(reason) => {
            let place = exact(registry, name)?;
            let placed = format!("nowhere ({})", shown(reason));
            Some(Elsewhere { placed, host: of(registry, &place, false) })
        }
        Placement::Place { target, slot, expert, transposed } => {
            let expert = expert.map(|e| e as usize);
            let placed = || at(target, *slot, expert, *transposed);
            if let Some(place) = known(registry, name) {
                let param = registry.find(target);
                let same = param == Some(place.param) && (*slot, expert) == (place.slot, place.expert);
                let turned = *transposed && !may_be_turned(registry, tensor, &place);
                return (!same || turned)
                    .then(|| Elsewhere { placed: placed(), host: of(registry, &place, *transposed && !turned) });
            }
            // A name that is not ours; the number of its layer still says something.
            let (own, theirs) = (layer(name)?, layer(target)?);
            (own != theirs).then(|| Elsewhere { placed: placed(), host: format!("layer {own}, by its name") })
        }
    }
}

/// A place in words.
fn at(target: &str, slot: Slot, expert: Option<usize>, transposed: bool) -> String {
    let slot = format!("{slot:?}").to_lowercase();
    let expert = expert.map(|e| format!(", expert {e}")).unwrap_or_default();
    let transposed = if transposed { ", transposed" } else { "" };
    format!("`{}`, slot {slot}{expert}{transposed}", shown(target))
}

fn of(registry: &Registry, place: &NativePlace, transposed: bool) -> String {
    at(&registry.params()[place.param].name, place.slot, place.expert, transposed)
}

/// The host's place of exactly this name.
fn exact(registry: &Registry, name: &str) -> Option<NativePlace> {
    registry.native(name).or_else(|| registry.expert_names(name)).or_else(|| registry.stacked_experts(name))
}

/// The same for a name below the prefix of a wrapper (`module.`, `base_model.model.`).
fn known(registry: &Registry, name: &str) -> Option<NativePlace> {
    let tails = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
    std::iter::once(name).chain(tails.filter(|tail| tail.contains(".layers."))).find_map(|tail| exact(registry, tail))
}

/// Checkpoints store stacked experts either way, and the shape says which; single matrices lie as they are.
fn may_be_turned(registry: &Registry, tensor: &CheckpointTensor, place: &NativePlace) -> bool {
    registry.expert_names(&tensor.name).is_none()
        && (place.slot == Slot::W13 || place.expert.is_none())
        && registry.params()[place.param].experts.is_some()
}

/// The number after `layers`.
fn layer(name: &str) -> Option<u64> {
    let mut words = name.split('.');
    words.find(|word| *word == "layers")?;
    words.next()?.parse().ok()
}
