//! The plan of a refit: which part of which runtime tensor each checkpoint tensor writes. Every placement that a patch
//! gives is checked here: the target exists, the shape fits, nothing is written twice, everything is written.

use std::collections::BTreeMap;

use regex::Regex;

use crate::checkpoint::{Checkpoint, CheckpointTensor};
use crate::copies;
use crate::error::{Refusal, Result, RuntimeError};
use crate::hooks::{LoaderMap, Placement, Role, Slot, TensorInfo};
use crate::refit::{Placed, Setup};
use crate::registry::{ParamId, Registry, Spare};
use crate::words::nearest;
use hints::{below_wrappers, with_assumed};
pub use host_map::Elsewhere;

mod hints;
mod host_map;

/// One part that a checkpoint tensor writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dest {
    /// Runtime tensor.
    pub param: ParamId,
    /// Index of the part.
    pub part: usize,
    /// First element within the checkpoint tensor (after transposing, where it is transposed).
    pub offset: usize,
    /// Rows of the part.
    pub rows: usize,
    /// Columns of the part; 1 for vectors.
    pub cols: usize,
}

/// What happens to one checkpoint tensor.
#[derive(Debug, Clone)]
pub enum Action {
    /// Not loaded, with the reason.
    Ignore(String),
    /// Not loaded: its expert is held by another rank.
    Elsewhere(Role),
    /// Written.
    Load {
        /// Role of the runtime tensor it goes to.
        role: Role,
        /// Parts, in the order of the data.
        dests: Vec<Dest>,
        /// Dimensions of one transposed matrix in the checkpoint: (matrices, rows, cols as stored).
        transposed: Option<(usize, usize, usize)>,
    },
}

/// One entry per checkpoint tensor, in the checkpoint's order.
pub struct Plan {
    /// The actions.
    pub actions: Vec<Action>,
    /// The parts that a loader map named; none where it left the tensor to the host.
    pub placed: Vec<Option<Placed>>,
    /// What the loader map has elsewhere than the host's own map, by index of the tensor.
    pub elsewhere: BTreeMap<usize, Elsewhere>,
    /// Tensors of experts that another rank holds.
    pub not_local: usize,
    /// What whoever loads this should know, though nothing is wrong.
    pub notes: Vec<String>,
}

/// Who may load fused experts natively: only `--simulate loader-loss`, before the loaders are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertLoaders {
    /// The normal case: a patch must map them.
    Absent,
    /// Simulation, first load.
    Native,
    /// Simulation, after post-processing dropped them.
    Lost,
}

/// Names that a checkpoint may have although the model does not know them, as globs: `*` is any run of characters, `?` one.
#[derive(Debug, Clone, Default)]
pub struct AllowUnknown(Vec<(String, Regex)>);

impl AllowUnknown {
    /// From globs, each of which must match a whole name.
    pub fn new<S: AsRef<str>>(globs: &[S]) -> Result<Self> {
        let one = |glob: &S| {
            let glob = glob.as_ref();
            let pattern: String = glob
                .chars()
                .map(|c| match c {
                    '*' => ".*".to_string(),
                    '?' => ".".to_string(),
                    c => regex::escape(&c.to_string()),
                })
                .collect();
            let compiled = Regex::new(&format!("^(?s:{pattern})$")).map_err(|e| {
                let why = e.to_string().lines().last().unwrap_or_default().to_string();
                RuntimeError::Request(Refusal::new(format!("--allow-unknown {glob}"), why, "give a shorter glob"))
            })?;
            Ok((glob.to_string(), compiled))
        };
        globs.iter().map(one).collect::<Result<_>>().map(Self)
    }

    /// The glob that allows a name.
    pub(crate) fn allows(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(_, pattern)| pattern.is_match(name)).map(|(glob, _)| glob.as_str())
    }
}

impl Plan {
    /// Asks the loader map, fills in the host's own, checks coverage, and compares what is not loaded with what it says again.
    pub fn new(setup: &Setup<'_>, checkpoint: &Checkpoint, loader: Option<&dyn LoaderMap>) -> Result<Self> {
        Self::placed(setup, checkpoint, loader).map_err(|e| with_assumed(setup.registry.assumed(), e))
    }

    fn placed(setup: &Setup<'_>, checkpoint: &Checkpoint, loader: Option<&dyn LoaderMap>) -> Result<Self> {
        let Setup { registry, model, .. } = *setup;
        let infos: Vec<TensorInfo> = checkpoint.tensors().map(|t| checkpoint_info(registry, t)).collect();
        let placements = match loader {
            Some(loader) => {
                let targets: Vec<TensorInfo> = registry.params().iter().map(|p| p.info()).collect();
                let asked = loader.resolve(model, &targets, &infos);
                asked.map_err(|e| below_wrappers(setup, checkpoint, None, e.into()))?
            }
            None => vec![Placement::Native; infos.len()],
        };
        let mut written: Vec<Vec<Option<usize>>> =
            registry.params().iter().map(|p| vec![None; p.part_count()]).collect();
        let mut actions = Vec::with_capacity(infos.len());
        let (mut placed, mut elsewhere) = (vec![None; infos.len()], BTreeMap::new());
        let mut not_local = 0;
        for (i, (tensor, placement)) in checkpoint.tensors().zip(placements).enumerate() {
            if let Some(differs) = host_map::differs(registry, tensor, &placement) {
                elsewhere.insert(i, differs);
            }
            if let Placement::Place { slot, expert, transposed, .. } = &placement {
                let expert = expert.map(|e| e as usize);
                placed[i] = Some(Placed { slot: *slot, expert, transposed: *transposed });
            }
            let action = match placement {
                Placement::Ignore(reason) => Action::Ignore(reason),
                Placement::Native => native(setup, tensor, loader)
                    .map_err(|e| below_wrappers(setup, checkpoint, Some(&tensor.name), e))?,
                Placement::Place { target, slot, expert, transposed } => {
                    let who = loader.map_or("the host", |l| l.name());
                    let param = registry.find(&target).ok_or_else(|| {
                        let unknown = unknown_target(registry, tensor, who, &target);
                        below_wrappers(setup, checkpoint, Some(&tensor.name), unknown)
                    })?;
                    place(registry, tensor, who, param, slot, expert.map(|e| e as usize), transposed)?
                }
            };
            let action = locally(setup, action);
            not_local += usize::from(matches!(action, Action::Elsewhere(_)));
            if let Action::Load { dests, .. } = &action {
                for d in dests {
                    if let Some(first) = written[d.param][d.part].replace(i) {
                        return Err(written_twice(registry, &infos[first].name, &tensor.name, d));
                    }
                }
            }
            actions.push(action);
        }
        missing(setup, &written)?;
        let notes = copies::check(setup, checkpoint, &mut actions)?;
        Ok(Self { actions, placed, elsewhere, not_local, notes })
    }
}

/// A checkpoint tensor as patches see it: the role is the registry's where the name is known to it.
fn checkpoint_info(registry: &Registry, tensor: &CheckpointTensor) -> TensorInfo {
    let place = registry.native(&tensor.name).or_else(|| registry.expert_names(&tensor.name));
    let role = place.map_or(Role::Other, |p| registry.params()[p.param].role);
    TensorInfo {
        name: tensor.name.clone(),
        dtype: tensor.dtype(),
        shape: tensor.shape.iter().map(|d| *d as u64).collect(),
        role,
    }
}

fn native(setup: &Setup<'_>, tensor: &CheckpointTensor, loader: Option<&dyn LoaderMap>) -> Result<Action> {
    let Setup { registry, experts, allow_unknown, .. } = *setup;
    let name = &tensor.name;
    if let Some(p) = registry.native(name) {
        return place(registry, tensor, "the host", p.param, p.slot, None, false);
    }
    if let Some(p) = registry.expert_names(name).filter(|_| experts == ExpertLoaders::Native) {
        return place(registry, tensor, "the host", p.param, p.slot, p.expert, false);
    }
    match registry.spare(name) {
        Some(Spare::Outside(reason)) => return Ok(Action::Ignore(reason.to_string())),
        Some(Spare::Frequencies(_)) => return Ok(Action::Ignore("recomputed from config.json".to_string())),
        Some(Spare::TiedHead(embed)) => {
            return Ok(Action::Ignore(format!("tied to `{}`", registry.params()[embed].name)));
        }
        Some(scale @ (Spare::CacheScale | Spare::ActivationScale)) => {
            return Ok(Action::Ignore(scale.of_scale().unwrap_or_default().to_string()));
        }
        None => {}
    }
    if name.split('.').any(|part| matches!(part, "lora_A" | "lora_B" | "lora_embedding_A" | "lora_embedding_B")) {
        return Err(refit(
            format!("tensor `{name}`"),
            "it belongs to an adapter (LoRA), which is no part of the model's own weights",
            "merge the adapter first (PEFT: merge_and_unload), or load it as one (--lora, /v1/load_lora_adapter)",
        ));
    }
    if name.split('.').any(|c| c == "experts") && registry.params().iter().any(|p| p.role == Role::Expert) {
        let why = match experts {
            ExpertLoaders::Lost => {
                "post-processing rebuilt the fused expert parameters and their weight_loader is lost (vLLM 0.8.2; simulated)"
            }
            _ => "fused expert tensors have no loader in the runtime; a loader-map patch must say where they go",
        };
        let next = match loader {
            Some(l) => format!("patch `{}` left this name to the host: use a patch that maps it", l.name()),
            None => "use the patch `moe_loader` (it is on unless --no-default-patches is given)".to_string(),
        };
        return Err(refit(format!("tensor `{name}` has no loader"), why, next));
    }
    if let Some(glob) = allow_unknown.allows(name) {
        return Ok(Action::Ignore(format!("no tensor of the model; allowed by `{glob}`")));
    }
    let hint = nearest(name, registry.checkpoint_names()).map(|k| format!("; did you mean `{k}`?")).unwrap_or_default();
    Err(refit(
        format!("tensor `{name}`"),
        format!("this model has no tensor of that name{hint}"),
        "use a checkpoint that belongs to the config.json, a loader-map patch that places or ignores the tensor, or --allow-unknown",
    ))
}

fn place(
    registry: &Registry,
    tensor: &CheckpointTensor,
    who: &str,
    param: ParamId,
    slot: Slot,
    expert: Option<usize>,
    transposed: bool,
) -> Result<Action> {
    let decl = &registry.params()[param];
    let slots: &[Slot] = if slot == Slot::W13 { &[Slot::W1, Slot::W3] } else { std::slice::from_ref(&slot) };
    let cols = decl.cols.unwrap_or(1);
    let rows_of = |s: &Slot| decl.parts.iter().find(|p| p.slot == *s).map(|p| p.rows);
    let Some(slot_rows) = slots.iter().map(rows_of).collect::<Option<Vec<usize>>>() else {
        let have: Vec<String> = decl.parts.iter().map(|p| format!("{:?}", p.slot).to_lowercase()).collect();
        return Err(refit(
            format!("tensor `{}`", tensor.name),
            format!("{who} places it in slot {slot:?} of `{}`, which has only {}", decl.name, have.join(", ")),
            "repair the loader map",
        ));
    };
    let rows: usize = slot_rows.iter().sum();
    let experts = match (decl.experts, expert) {
        (Some(n), Some(e)) if e >= n => {
            return Err(refit(
                format!("tensor `{}`", tensor.name),
                format!("{who} places it in expert {e} of `{}`, which has {n} experts", decl.name),
                "use a checkpoint that belongs to the config.json, or repair the loader map",
            ));
        }
        (Some(_), Some(e)) => e..e + 1,
        (Some(n), None) => 0..n,
        (None, None) => 0..1,
        (None, Some(e)) => {
            return Err(refit(
                format!("tensor `{}`", tensor.name),
                format!("{who} places it in expert {e} of `{}`, which has no experts", decl.name),
                "repair the loader map",
            ));
        }
    };
    let all_experts = decl.experts.is_some() && expert.is_none();
    let matrix = match (decl.cols, transposed) {
        (Some(c), false) => vec![rows, c],
        (Some(c), true) => vec![c, rows],
        (None, _) => vec![rows],
    };
    let expected: Vec<usize> = match &decl.stored {
        Some(stored) => stored.clone(),
        None => all_experts.then_some(experts.len()).into_iter().chain(matrix).collect(),
    };
    if tensor.shape != expected {
        return Err(refit(
            format!("tensor `{}`", tensor.name),
            format!("its shape is {:?}, but `{}` takes {:?} there", tensor.shape, decl.name, expected),
            "use a checkpoint that belongs to the config.json",
        ));
    }
    let fp8 = tensor.scale.is_some() && decl.cols.is_some() && decl.stored.is_none();
    if tensor.elem().is_none() && !fp8 {
        return Err(refit(
            format!("tensor `{}`", tensor.name),
            format!("its dtype is {:?}; weights are F32, F16, BF16, or block FP8 with scales", tensor.stored),
            "give the tensor in one of these types",
        ));
    }
    let mut dests = Vec::new();
    let mut offset = 0;
    for e in experts.clone() {
        for (s, part_rows) in slots.iter().zip(&slot_rows) {
            let part = decl.part_index(e, *s).ok_or_else(|| {
                refit(format!("tensor `{}`", tensor.name), "its part does not exist", "please report this")
            })?;
            dests.push(Dest { param, part, offset, rows: *part_rows, cols });
            offset += part_rows * cols;
        }
    }
    let transposed =
        (transposed && decl.cols.is_some() && decl.stored.is_none()).then_some((experts.len(), cols, rows));
    Ok(Action::Load { role: decl.role, dests, transposed })
}

fn unknown_target(registry: &Registry, tensor: &CheckpointTensor, who: &str, target: &str) -> RuntimeError {
    let near = nearest(target, registry.params().iter().map(|p| p.name.as_str()));
    let hint = near.map(|k| format!("; did you mean `{k}`?")).unwrap_or_default();
    let shown = crate::words::shown(target);
    refit(
        format!("tensor `{}`", tensor.name),
        format!("{who} places it in `{shown}`, which the runtime does not have{hint}"),
        "repair the loader map",
    )
}

fn written_twice(registry: &Registry, first: &str, second: &str, d: &Dest) -> RuntimeError {
    let decl = &registry.params()[d.param];
    refit(
        format!("tensor `{second}`"),
        format!("`{first}` already writes {} of `{}`", decl.part_label(d.part), decl.name),
        "remove one of them, or repair the loader map",
    )
}

/// Without the parts of experts that another rank holds.
fn locally(setup: &Setup<'_>, action: Action) -> Action {
    let Action::Load { role, mut dests, transposed } = action else { return action };
    let given = dests.len();
    dests.retain(|d| setup.is_local(&setup.registry.params()[d.param], d.part));
    match dests.is_empty() && given > 0 {
        true => Action::Elsewhere(role),
        false => Action::Load { role, dests, transposed },
    }
}

/// Every part that is held here must be written.
fn missing(setup: &Setup<'_>, written: &[Vec<Option<usize>>]) -> Result<()> {
    let registry = setup.registry;
    let mut absent = Vec::new();
    for (param, parts) in written.iter().enumerate() {
        let decl = &registry.params()[param];
        let unwritten = parts.iter().enumerate().filter(|(part, w)| w.is_none() && setup.is_local(decl, *part));
        for part in unwritten.map(|(part, _)| part) {
            absent.push(match registry.checkpoint_name_of(param, part) {
                Some(name) => format!("`{name}`"),
                None => format!("{} of `{}`", decl.part_label(part), decl.name),
            });
        }
    }
    if absent.is_empty() {
        return Ok(());
    }
    let shown = absent.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    let more = if absent.len() > 5 { format!(" and {} more", absent.len() - 5) } else { String::new() };
    let what = if absent.len() == 1 {
        format!("a checkpoint without {shown}")
    } else {
        format!("a checkpoint that lacks {} tensors", absent.len())
    };
    let next = match setup.declared {
        None => "give the complete checkpoint (all shards), or a loader map that covers it",
        // There are weights that could stay.
        Some(_) => {
            "give the complete checkpoint (all shards), or a loader map that covers it; a partial update says \
             `\"complete\": false` (patchhost refit: --partial), and the rest stays as it is"
        }
    };
    Err(refit(what, format!("nothing writes {shown}{more}; the old weights, if any, keep serving"), next))
}

fn refit(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> RuntimeError {
    RuntimeError::Refit(Refusal::new(what, why, next))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::AllowUnknown;

    #[test]
    fn globs_match_whole_names() {
        let allow = AllowUnknown::new(&["vision.*", "a?c", "x.[0]"]).unwrap();
        assert_eq!(allow.allows("vision.blocks.0.weight"), Some("vision.*"));
        assert_eq!(allow.allows("abc"), Some("a?c"));
        assert_eq!(allow.allows("x.[0]"), Some("x.[0]"));
        for name in ["model.vision.x", "visions", "abbc", "x.0", "xabc"] {
            assert_eq!(allow.allows(name), None, "{name}");
        }
        assert!(AllowUnknown::new(&["a".repeat(20 << 20)]).is_err());
    }
}
