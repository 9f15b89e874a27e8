//! The tensor registry: every runtime tensor of a model, named and fused as in vLLM (`qkv_proj.weight`,
//! `experts.w13_weight`), with its role and the parts that checkpoint tensors write. It also holds the host's own
//! loader map, which knows the dense names; fused experts have no loader here (that is the patch `moe_loader`'s job).

mod build;
mod params;
mod scales;

use std::collections::{BTreeSet, HashMap};

use crate::families::{Arch, Ignored};
use crate::hooks::{Dtype, Role, Slot, TensorInfo};
pub(crate) use params::{
    AttentionParams, DeltaNetParams, Expansion, LatentParams, MixerParams, MlpParams, QueryParams,
};
pub use params::{LayerParams, ModelParams};

/// One part of a runtime tensor: what one checkpoint tensor (or one expert of it) writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartDecl {
    /// Which part.
    pub slot: Slot,
    /// Its rows; the columns are those of the tensor.
    pub rows: usize,
}

/// A runtime tensor.
#[derive(Debug, Clone)]
pub struct ParamDecl {
    /// Name as in vLLM.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Experts, for the fused expert tensors.
    pub experts: Option<usize>,
    /// Columns; `None` for vectors (norms, biases), whose parts count elements as rows.
    pub cols: Option<usize>,
    /// Parts of each expert, or of the tensor.
    pub parts: Vec<PartDecl>,
    /// Dimensions in the checkpoint, where they are not simply those of the part (`conv1d`: [channels, 1, kernel]).
    pub stored: Option<Vec<usize>>,
    /// A vector whose values are used as 1 + w (the RMSNorm of Qwen3-Next).
    pub plus_one: bool,
}

impl ParamDecl {
    /// Dimensions: `[rows]`, `[rows, cols]` or `[experts, rows, cols]`.
    pub fn shape(&self) -> Vec<usize> {
        let rows = self.parts.iter().map(|p| p.rows).sum();
        self.experts.into_iter().chain([rows]).chain(self.cols).collect()
    }

    /// Parts over all experts.
    pub fn part_count(&self) -> usize {
        self.parts.len() * self.experts.unwrap_or(1)
    }

    /// Index of a part.
    pub fn part_index(&self, expert: usize, slot: Slot) -> Option<usize> {
        let within = self.parts.iter().position(|p| p.slot == slot)?;
        (expert < self.experts.unwrap_or(1)).then_some(expert * self.parts.len() + within)
    }

    /// The declaration of a part by its index.
    pub fn part(&self, index: usize) -> PartDecl {
        self.parts[index % self.parts.len()]
    }

    /// How a part is called in messages: "expert 3 of w3".
    pub fn part_label(&self, index: usize) -> String {
        let slot = format!("{:?}", self.part(index).slot).to_lowercase();
        match self.experts {
            Some(_) => format!("expert {}, {slot}", index / self.parts.len()),
            None if self.parts.len() > 1 => slot,
            None => "the whole tensor".to_string(),
        }
    }

    /// As a patch sees it. The dtype is the model's; what is stored keeps the checkpoint's.
    pub fn info(&self) -> TensorInfo {
        TensorInfo {
            name: self.name.clone(),
            dtype: Dtype::Bf16,
            shape: self.shape().iter().map(|d| *d as u64).collect(),
            role: self.role,
        }
    }
}

/// Index of a runtime tensor.
pub type ParamId = usize;

/// Where the host's own loader puts a checkpoint tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NativePlace {
    /// Runtime tensor.
    pub param: ParamId,
    /// Part of it.
    pub slot: Slot,
    /// Expert; only while the host has expert loaders (see [`Registry::expert_names`]).
    pub expert: Option<usize>,
}

/// Why a checkpoint may have a tensor that is not loaded.
#[derive(Debug, Clone, Copy)]
pub enum Spare<'r> {
    /// It is no part of the text model, as the family declares.
    Outside(&'static str),
    /// The rotary frequencies, which are computed from config.json: before and after they are stretched.
    Frequencies(&'r [Vec<f32>; 2]),
    /// The head of a model whose config.json says that it is this embedding.
    TiedHead(ParamId),
    /// A scale of a quantized KV cache, which is not quantized here.
    CacheScale,
    /// A scale of activations, which are scaled by what they are when they come.
    ActivationScale,
}

/// All runtime tensors of one model.
pub struct Registry {
    params: Vec<ParamDecl>,
    by_name: HashMap<String, ParamId>,
    native: HashMap<String, NativePlace>,
    expert_names: HashMap<String, NativePlace>,
    ignored: Vec<Ignored>,
    /// Name of the head that config.json ties to the embedding, and the embedding.
    tied_head: Option<(String, ParamId)>,
    /// Rotary frequencies as config.json gives them: before and after they are stretched.
    frequencies: [Vec<f32>; 2],
    /// Sizes that config.json leaves out (see [`Arch::assumed`]).
    assumed: Vec<String>,
    /// Matrices that are read by rows and never multiplied.
    by_rows: BTreeSet<ParamId>,
    /// The `kv_b_proj` of latent layers, from which published weights derive what is multiplied.
    expansions: Vec<(ParamId, Expansion)>,
}

impl Registry {
    /// Declares every runtime tensor of `arch`.
    pub fn new(arch: &Arch) -> (Self, ModelParams) {
        build::build(arch)
    }

    /// Every tensor, in the order of the forward pass.
    pub fn params(&self) -> &[ParamDecl] {
        &self.params
    }

    /// By name.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.by_name.get(name).copied()
    }

    /// Whether products read a tensor: published weights have it in the order of the kernels.
    pub fn is_packed(&self, param: ParamId) -> bool {
        self.params[param].cols.is_some() && !self.by_rows.contains(&param)
    }

    /// The `kv_b_proj` of latent layers.
    pub(crate) fn expansions(&self) -> &[(ParamId, Expansion)] {
        &self.expansions
    }

    /// Sizes that config.json leaves out, with the defaults that stand for them.
    pub(crate) fn assumed(&self) -> &[String] {
        &self.assumed
    }

    /// Where the host's own loader puts a checkpoint tensor.
    pub fn native(&self, name: &str) -> Option<NativePlace> {
        self.native.get(name).copied()
    }

    /// The per-expert names of the family. The host loads them itself only under `--simulate loader-loss`, which plays
    /// vLLM 0.8.2: expert loaders exist for the first load and are lost by post-processing.
    pub fn expert_names(&self, name: &str) -> Option<NativePlace> {
        self.expert_names.get(name).copied()
    }

    /// Experts in one tensor (`….experts.gate_up_proj`, `….experts.3.gate_up_proj.weight`, `….experts.down_proj`): the host
    /// loads none of them, and can say where a loader map should put them.
    pub(crate) fn stacked_experts(&self, name: &str) -> Option<NativePlace> {
        let (block, rest) = name.split_once(".experts.")?;
        let rest = rest.strip_suffix(".weight").unwrap_or(rest);
        let (expert, leaf) = match rest.split_once('.') {
            Some((expert, leaf)) => (Some(expert.parse().ok()?), leaf),
            None => (None, rest),
        };
        let (fused, slot) = match leaf {
            "gate_up_proj" | "w13_weight" => ("w13_weight", Slot::W13),
            "down_proj" | "w2_weight" => ("w2_weight", Slot::W2),
            "gate_proj" => ("w13_weight", Slot::W1),
            "up_proj" => ("w13_weight", Slot::W3),
            _ => return None,
        };
        let param = self.find(&format!("{block}.experts.{fused}"))?;
        Some(NativePlace { param, slot, expert })
    }

    /// Why a checkpoint carries a name without need, where it does.
    pub fn spare(&self, name: &str) -> Option<Spare<'_>> {
        if let Some(ignored) = self.ignored.iter().find(|i| name.starts_with(&i.prefix)) {
            return Some(Spare::Outside(ignored.reason));
        }
        if name.ends_with(".rotary_emb.inv_freq") {
            return Some(Spare::Frequencies(&self.frequencies));
        }
        if let Some(scale) = scales::unused(name).filter(|_| self.has_module_of(name)) {
            return Some(scale);
        }
        self.tied_head.as_ref().filter(|(head, _)| head == name).map(|(_, embed)| Spare::TiedHead(*embed))
    }

    /// Whether a name is beyond the text model, or a scale that is not used: nothing of it is ever loaded.
    pub(crate) fn is_beyond(&self, name: &str) -> bool {
        matches!(self.spare(name), Some(Spare::Outside(_) | Spare::CacheScale | Spare::ActivationScale))
    }

    /// Whether a name stands below a layer of this model, or beside one of its weights.
    fn has_module_of(&self, name: &str) -> bool {
        let Some((module, _)) = name.rsplit_once('.') else { return false };
        let weight = format!("{module}.weight");
        if self.native.contains_key(&weight) || self.expert_names.contains_key(&weight) {
            return true;
        }
        let Some((decoder, rest)) = name.split_once(".layers.") else { return false };
        let layer = rest.split('.').next().unwrap_or_default();
        self.native.contains_key(&format!("{decoder}.layers.{layer}.input_layernorm.weight"))
    }

    /// The name of a head that is the embedding, and the embedding.
    pub(crate) fn tied_head(&self) -> Option<(&str, ParamId)> {
        self.tied_head.as_ref().map(|(head, embed)| (head.as_str(), *embed))
    }

    /// Where the host's own map puts a name, experts included.
    pub(crate) fn place(&self, name: &str) -> Option<NativePlace> {
        self.native(name).or_else(|| self.expert_names(name)).or_else(|| self.stacked_experts(name))
    }

    /// Whether a checkpoint of this model may have a name: it is loaded, or known to be spare.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.place(name).is_some() || self.spare(name).is_some()
    }

    /// Whether a tensor is the embedding that is the head too.
    pub fn is_tied_head(&self, param: ParamId) -> bool {
        self.tied_head.as_ref().is_some_and(|(_, embed)| *embed == param)
    }

    /// Every checkpoint name the model can take, for "did you mean".
    pub fn checkpoint_names(&self) -> impl Iterator<Item = &str> {
        self.native.keys().chain(self.expert_names.keys()).map(String::as_str)
    }

    /// The checkpoint name that would write a part.
    pub fn checkpoint_name_of(&self, param: ParamId, part: usize) -> Option<&str> {
        let decl = &self.params[param];
        let wanted = |p: &NativePlace| p.param == param && decl.part_index(p.expert.unwrap_or(0), p.slot) == Some(part);
        self.native.iter().chain(&self.expert_names).find(|(_, p)| wanted(p)).map(|(name, _)| name.as_str())
    }
}
