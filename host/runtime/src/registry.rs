//! The tensor registry: every runtime tensor of a model, named and fused as in vLLM (`qkv_proj.weight`,
//! `experts.w13_weight`), with its role and the parts that checkpoint tensors write. It also holds the host's own
//! loader map, which knows the dense names; fused experts have no loader here (that is the patch `moe_loader`'s job).

use std::collections::HashMap;

use crate::families::{Arch, Mlp, Moe};
use crate::hooks::{Dtype, Role, Slot, TensorInfo};

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

/// All runtime tensors of one model.
pub struct Registry {
    params: Vec<ParamDecl>,
    by_name: HashMap<String, ParamId>,
    native: HashMap<String, NativePlace>,
    expert_names: HashMap<String, NativePlace>,
    tied_head: bool,
}

/// The layer parts, by index into the registry, that the forward pass reads.
#[derive(Debug, Clone)]
pub struct LayerParams {
    pub(crate) input_norm: ParamId,
    pub(crate) qkv: ParamId,
    pub(crate) qkv_bias: Option<ParamId>,
    pub(crate) q_norm: Option<ParamId>,
    pub(crate) k_norm: Option<ParamId>,
    pub(crate) o: ParamId,
    pub(crate) o_bias: Option<ParamId>,
    pub(crate) post_norm: ParamId,
    pub(crate) mlp: MlpParams,
}

/// Feed-forward part of a layer.
#[derive(Debug, Clone)]
pub(crate) enum MlpParams {
    Dense { gate_up: ParamId, gate_up_bias: Option<ParamId>, down: ParamId, down_bias: Option<ParamId> },
    Moe { router: ParamId, w13: ParamId, w2: ParamId, shared: Option<SharedParams>, moe: Moe },
}

/// The shared expert of Qwen2-MoE.
#[derive(Debug, Clone)]
pub(crate) struct SharedParams {
    pub(crate) gate_up: ParamId,
    pub(crate) down: ParamId,
    pub(crate) gate: ParamId,
}

/// The tensors outside of the layers.
#[derive(Debug, Clone)]
pub struct ModelParams {
    pub(crate) embed: ParamId,
    pub(crate) layers: Vec<LayerParams>,
    pub(crate) norm: ParamId,
    /// The embedding where they are tied.
    pub(crate) head: ParamId,
}

impl Registry {
    /// Declares every runtime tensor of `arch`.
    pub fn new(arch: &Arch) -> (Self, ModelParams) {
        let mut b = Builder {
            registry: Registry {
                params: Vec::new(),
                by_name: HashMap::new(),
                native: HashMap::new(),
                expert_names: HashMap::new(),
                tied_head: arch.common.tied,
            },
        };
        let c = &arch.common;
        let embed = b.matrix("model.embed_tokens", Role::Embedding, c.hidden, &[(Slot::Whole, c.vocab, "")]);
        let layers = (0..c.layers).map(|i| b.layer(arch, i)).collect();
        let norm = b.vector("model.norm.weight", Role::Norm, c.hidden);
        let head =
            if c.tied { embed } else { b.matrix("lm_head", Role::LmHead, c.hidden, &[(Slot::Whole, c.vocab, "")]) };
        (b.registry, ModelParams { embed, layers, norm, head })
    }

    /// Every tensor, in the order of the forward pass.
    pub fn params(&self) -> &[ParamDecl] {
        &self.params
    }

    /// By name.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.by_name.get(name).copied()
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

    /// Names that checkpoints carry without need: recomputed buffers, and the head where it is tied.
    pub fn harmless(&self, name: &str) -> Option<&'static str> {
        if name.ends_with(".rotary_emb.inv_freq") {
            return Some("recomputed from config.json");
        }
        (self.tied_head && name == "lm_head.weight").then_some("tied to model.embed_tokens.weight")
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

struct Builder {
    registry: Registry,
}

impl Builder {
    fn add(&mut self, decl: ParamDecl) -> ParamId {
        let id = self.registry.params.len();
        self.registry.by_name.insert(decl.name.clone(), id);
        self.registry.params.push(decl);
        id
    }

    fn vector(&mut self, name: &str, role: Role, len: usize) -> ParamId {
        let parts = vec![PartDecl { slot: Slot::Whole, rows: len }];
        let id = self.add(ParamDecl { name: name.to_string(), role, experts: None, cols: None, parts });
        self.registry.native.insert(name.to_string(), NativePlace { param: id, slot: Slot::Whole, expert: None });
        id
    }

    /// A matrix `module.weight` of stacked parts. Each part comes from the checkpoint tensor `<source>.weight`, where
    /// `source` replaces the module's last path component (empty: the module itself).
    fn matrix(&mut self, module: &str, role: Role, cols: usize, parts: &[(Slot, usize, &str)]) -> ParamId {
        self.stacked(module, "weight", role, Some(cols), parts)
    }

    fn bias(&mut self, module: &str, role: Role, parts: &[(Slot, usize, &str)]) -> ParamId {
        self.stacked(module, "bias", role, None, parts)
    }

    fn stacked(
        &mut self,
        module: &str,
        leaf: &str,
        role: Role,
        cols: Option<usize>,
        parts: &[(Slot, usize, &str)],
    ) -> ParamId {
        let id = self.add(ParamDecl {
            name: format!("{module}.{leaf}"),
            role,
            experts: None,
            cols,
            parts: parts.iter().map(|(slot, rows, _)| PartDecl { slot: *slot, rows: *rows }).collect(),
        });
        for (slot, _, source) in parts {
            let name = match (source.is_empty(), module.rsplit_once('.')) {
                (false, Some((parent, _))) => format!("{parent}.{source}.{leaf}"),
                _ => format!("{module}.{leaf}"),
            };
            self.registry.native.insert(name, NativePlace { param: id, slot: *slot, expert: None });
        }
        id
    }

    fn layer(&mut self, arch: &Arch, i: usize) -> LayerParams {
        let c = &arch.common;
        let a = &arch.attention;
        let prefix = format!("model.layers.{i}");
        let attn = format!("{prefix}.self_attn");
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let qkv = [(Slot::Q, q, "q_proj"), (Slot::K, kv, "k_proj"), (Slot::V, kv, "v_proj")];
        LayerParams {
            input_norm: self.vector(&format!("{prefix}.input_layernorm.weight"), Role::Norm, c.hidden),
            qkv: self.matrix(&format!("{attn}.qkv_proj"), Role::Attention, c.hidden, &qkv),
            qkv_bias: a.qkv_bias.then(|| self.bias(&format!("{attn}.qkv_proj"), Role::Attention, &qkv)),
            q_norm: a.qk_norm.then(|| self.vector(&format!("{attn}.q_norm.weight"), Role::Norm, c.head_dim)),
            k_norm: a.qk_norm.then(|| self.vector(&format!("{attn}.k_norm.weight"), Role::Norm, c.head_dim)),
            o: self.matrix(&format!("{attn}.o_proj"), Role::Attention, q, &[(Slot::Whole, c.hidden, "")]),
            o_bias: a.o_bias.then(|| self.vector(&format!("{attn}.o_proj.bias"), Role::Attention, c.hidden)),
            post_norm: self.vector(&format!("{prefix}.post_attention_layernorm.weight"), Role::Norm, c.hidden),
            mlp: match arch.mlps[i] {
                Mlp::Dense { intermediate, bias } => {
                    let mlp = format!("{prefix}.mlp");
                    let gate_up = [(Slot::Gate, intermediate, "gate_proj"), (Slot::Up, intermediate, "up_proj")];
                    MlpParams::Dense {
                        gate_up: self.matrix(&format!("{mlp}.gate_up_proj"), Role::Mlp, c.hidden, &gate_up),
                        gate_up_bias: bias.then(|| self.bias(&format!("{mlp}.gate_up_proj"), Role::Mlp, &gate_up)),
                        down: self.matrix(
                            &format!("{mlp}.down_proj"),
                            Role::Mlp,
                            intermediate,
                            &[(Slot::Whole, c.hidden, "")],
                        ),
                        down_bias: bias.then(|| self.vector(&format!("{mlp}.down_proj.bias"), Role::Mlp, c.hidden)),
                    }
                }
                Mlp::Moe(moe) => self.moe(&format!("{prefix}.{}", moe.block), c.hidden, moe),
            },
        }
    }

    fn moe(&mut self, block: &str, hidden: usize, moe: Moe) -> MlpParams {
        let width = moe.intermediate;
        let router = self.matrix(&format!("{block}.gate"), Role::Router, hidden, &[(Slot::Whole, moe.experts, "")]);
        let experts = |name: &str, cols: usize, parts: &[(Slot, usize)]| ParamDecl {
            name: format!("{block}.experts.{name}"),
            role: Role::Expert,
            experts: Some(moe.experts),
            cols: Some(cols),
            parts: parts.iter().map(|(slot, rows)| PartDecl { slot: *slot, rows: *rows }).collect(),
        };
        let w13 = self.add(experts("w13_weight", hidden, &[(Slot::W1, width), (Slot::W3, width)]));
        let w2 = self.add(experts("w2_weight", width, &[(Slot::W2, hidden)]));
        let names =
            if moe.block == "block_sparse_moe" { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] };
        for e in 0..moe.experts {
            for (name, (param, slot)) in names.iter().zip([(w13, Slot::W1), (w13, Slot::W3), (w2, Slot::W2)]) {
                let place = NativePlace { param, slot, expert: Some(e) };
                self.registry.expert_names.insert(format!("{block}.experts.{e}.{name}.weight"), place);
            }
        }
        let shared = moe.shared.map(|width| {
            let module = format!("{block}.shared_expert");
            let gate_up = [(Slot::Gate, width, "gate_proj"), (Slot::Up, width, "up_proj")];
            SharedParams {
                gate_up: self.matrix(&format!("{module}.gate_up_proj"), Role::SharedExpert, hidden, &gate_up),
                down: self.matrix(
                    &format!("{module}.down_proj"),
                    Role::SharedExpert,
                    width,
                    &[(Slot::Whole, hidden, "")],
                ),
                gate: self.matrix(
                    &format!("{block}.shared_expert_gate"),
                    Role::Router,
                    hidden,
                    &[(Slot::Whole, 1, "")],
                ),
            }
        });
        MlpParams::Moe { router, w13, w2, shared, moe }
    }
}
