//! From a family's declaration to the registry: every runtime tensor, and which checkpoint name writes which part.

use std::collections::{BTreeSet, HashMap};

use super::params::SharedParams;
use super::{
    AttentionParams, DeltaNetParams, Expansion, LatentParams, LayerParams, MixerParams, MlpParams, ModelParams,
    NativePlace, ParamDecl, ParamId, PartDecl, QueryParams, Registry,
};
use crate::families::{Arch, Attention, Common, DeltaNet, Latent, Mixer, Mlp, Moe, QkNorm, Scoring};
use crate::hooks::{Role, Slot};
use crate::rope::{RopeConfig, RopeScaling};

/// Declares every runtime tensor of `arch`.
pub(super) fn build(arch: &Arch) -> (Registry, ModelParams) {
    let c = &arch.common;
    let unscaled = RopeConfig { scaling: RopeScaling::None, ..c.rope.clone() };
    let frequencies = [&unscaled, &c.rope].map(|rope| rope.inv_freq(rope.rotary_dim(c.head_dim), 0));
    let mut b = Builder {
        registry: Registry {
            params: Vec::new(),
            by_name: HashMap::new(),
            native: HashMap::new(),
            expert_names: HashMap::new(),
            ignored: arch.ignored.clone(),
            tied_head: None,
            frequencies,
            assumed: arch.assumed.clone(),
            by_rows: BTreeSet::new(),
            expansions: Vec::new(),
        },
        plus_one: arch.common.norm_plus_one,
    };
    let decoder = arch.names.decoder;
    let whole = [(Slot::Whole, c.vocab, "")];
    let embed = b.matrix(&format!("{decoder}.embed_tokens"), Role::Embedding, c.hidden, &whole);
    let layers: Vec<LayerParams> = (0..c.layers).map(|i| b.layer(arch, i)).collect();
    let norm = b.norm(&format!("{decoder}.norm.weight"), c.hidden);
    let head = if c.tied { embed } else { b.matrix(arch.names.head, Role::LmHead, c.hidden, &whole) };
    let mixers = layers.iter().filter_map(|l| match &l.mixer {
        MixerParams::DeltaNet(d) => Some(d.conv),
        // What products read is derived from it.
        MixerParams::Latent(l) => Some(l.kv_b),
        MixerParams::Attention(_) => None,
    });
    b.registry.by_rows = mixers.chain((!c.tied).then_some(embed)).collect();
    b.registry.tied_head = c.tied.then(|| (format!("{}.weight", arch.names.head), embed));
    (b.registry, ModelParams { embed, layers, norm, head })
}

struct Builder {
    registry: Registry,
    /// RMSNorms use 1 + w.
    plus_one: bool,
}

impl Builder {
    fn add(&mut self, decl: ParamDecl) -> ParamId {
        let id = self.registry.params.len();
        self.registry.by_name.insert(decl.name.clone(), id);
        self.registry.params.push(decl);
        id
    }

    fn native(&mut self, name: String, param: ParamId, slot: Slot) {
        self.registry.native.insert(name, NativePlace { param, slot, expert: None });
    }

    fn vector(&mut self, name: &str, role: Role, len: usize) -> ParamId {
        let parts = vec![PartDecl { slot: Slot::Whole, rows: len }];
        let (name, stored) = (name.to_string(), None);
        let decl = ParamDecl { name: name.clone(), role, experts: None, cols: None, parts, stored, plus_one: false };
        let id = self.add(decl);
        self.native(name, id, Slot::Whole);
        id
    }

    /// An RMSNorm of the residual stream or of heads.
    fn norm(&mut self, name: &str, len: usize) -> ParamId {
        let id = self.vector(name, Role::Norm, len);
        self.registry.params[id].plus_one = self.plus_one;
        id
    }

    /// A matrix `module.weight` of stacked parts. Each part comes from the checkpoint tensor `<source>.weight`, where
    /// `source` replaces the module's last path component (empty: the module itself).
    fn matrix(&mut self, module: &str, role: Role, cols: usize, parts: &[(Slot, usize, &str)]) -> ParamId {
        self.stacked(module, "weight", role, Some(cols), parts)
    }

    /// A matrix of one part.
    fn plain(&mut self, module: &str, role: Role, rows: usize, cols: usize) -> ParamId {
        self.matrix(module, role, cols, &[(Slot::Whole, rows, "")])
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
            stored: None,
            plus_one: false,
        });
        for (slot, _, source) in parts {
            let name = match (source.is_empty(), module.rsplit_once('.')) {
                (false, Some((parent, _))) => format!("{parent}.{source}.{leaf}"),
                _ => format!("{module}.{leaf}"),
            };
            self.native(name, id, *slot);
        }
        id
    }

    fn layer(&mut self, arch: &Arch, i: usize) -> LayerParams {
        let c = &arch.common;
        let prefix = format!("{}.layers.{i}", arch.names.decoder);
        LayerParams {
            input_norm: self.norm(&format!("{prefix}.input_layernorm.weight"), c.hidden),
            mixer: match arch.mixers[i] {
                Mixer::Attention(a) => MixerParams::Attention(self.attention(&format!("{prefix}.self_attn"), c, a)),
                Mixer::Latent(l) => MixerParams::Latent(self.latent(&format!("{prefix}.self_attn"), c, l)),
                Mixer::DeltaNet(d) => MixerParams::DeltaNet(self.delta(&format!("{prefix}.linear_attn"), c, d)),
            },
            post_norm: self.norm(&format!("{prefix}.post_attention_layernorm.weight"), c.hidden),
            mlp: match arch.mlps[i] {
                Mlp::Dense { intermediate, bias } => self.dense(&format!("{prefix}.mlp"), c.hidden, intermediate, bias),
                Mlp::Moe(moe) => self.moe(&format!("{prefix}.{}", moe.block), c.hidden, moe),
            },
        }
    }

    fn attention(&mut self, module: &str, c: &Common, a: Attention) -> AttentionParams {
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let gated = if a.output_gate { 2 * q } else { q };
        let qkv = [(Slot::Q, gated, "q_proj"), (Slot::K, kv, "k_proj"), (Slot::V, kv, "v_proj")];
        let (q_norm, k_norm) = match a.qk_norm {
            QkNorm::None => (None, None),
            QkNorm::Head => (Some(c.head_dim), Some(c.head_dim)),
            QkNorm::Full => (Some(q), Some(kv)),
        };
        AttentionParams {
            shape: a,
            qkv: self.matrix(&format!("{module}.qkv_proj"), Role::Attention, c.hidden, &qkv),
            qkv_bias: a.qkv_bias.then(|| self.bias(&format!("{module}.qkv_proj"), Role::Attention, &qkv)),
            q_norm: q_norm.map(|len| self.norm(&format!("{module}.q_norm.weight"), len)),
            k_norm: k_norm.map(|len| self.norm(&format!("{module}.k_norm.weight"), len)),
            o: self.plain(&format!("{module}.o_proj"), Role::Attention, c.hidden, q),
            o_bias: a.o_bias.then(|| self.vector(&format!("{module}.o_proj.bias"), Role::Attention, c.hidden)),
        }
    }

    fn latent(&mut self, module: &str, c: &Common, l: Latent) -> LatentParams {
        let name = |leaf: &str| format!("{module}.{leaf}");
        let query_rows = c.heads * (l.nope + l.rope);
        let bias = |b: &mut Self, leaf: &str, len: usize| {
            l.bias.then(|| b.vector(&format!("{module}.{leaf}.bias"), Role::Attention, len))
        };
        let expansion = Expansion { heads: c.heads, nope: l.nope, value: l.value };
        let params = LatentParams {
            shape: l,
            expansion,
            query: match l.q_rank {
                None => QueryParams::Direct(self.plain(&name("q_proj"), Role::Attention, query_rows, c.hidden)),
                Some(rank) => QueryParams::LowRank {
                    a: self.plain(&name("q_a_proj"), Role::Attention, rank, c.hidden),
                    a_bias: bias(self, "q_a_proj", rank),
                    norm: self.norm(&name("q_a_layernorm.weight"), rank),
                    b: self.plain(&name("q_b_proj"), Role::Attention, query_rows, rank),
                },
            },
            kv_a: self.plain(&name("kv_a_proj_with_mqa"), Role::Attention, l.kv_rank + l.rope, c.hidden),
            kv_a_bias: bias(self, "kv_a_proj_with_mqa", l.kv_rank + l.rope),
            kv_a_norm: self.norm(&name("kv_a_layernorm.weight"), l.kv_rank),
            kv_b: self.plain(&name("kv_b_proj"), Role::Attention, c.heads * (l.nope + l.value), l.kv_rank),
            o: self.plain(&name("o_proj"), Role::Attention, c.hidden, c.heads * l.value),
            o_bias: bias(self, "o_proj", c.hidden),
        };
        self.registry.expansions.push((params.kv_b, expansion));
        params
    }

    fn delta(&mut self, module: &str, c: &Common, d: DeltaNet) -> DeltaNetParams {
        let name = |leaf: &str| format!("{module}.{leaf}");
        let (keys, values) = (d.key_heads * d.key_dim, d.value_heads * d.value_dim);
        let channels = 2 * keys + values;
        let conv = self.plain(&name("conv1d"), Role::Other, channels, d.kernel);
        self.registry.params[conv].stored = Some(vec![channels, 1, d.kernel]);
        DeltaNetParams {
            shape: d,
            qkvz: self.plain(&name("in_proj_qkvz"), Role::Attention, 2 * keys + 2 * values, c.hidden),
            ba: self.plain(&name("in_proj_ba"), Role::Attention, 2 * d.value_heads, c.hidden),
            conv,
            a_log: self.vector(&name("A_log"), Role::Other, d.value_heads),
            dt_bias: self.vector(&name("dt_bias"), Role::Other, d.value_heads),
            // The gated norm multiplies by w itself.
            norm: self.vector(&name("norm.weight"), Role::Norm, d.value_dim),
            out: self.plain(&name("out_proj"), Role::Attention, c.hidden, values),
        }
    }

    fn dense(&mut self, module: &str, hidden: usize, width: usize, bias: bool) -> MlpParams {
        let gate_up = [(Slot::Gate, width, "gate_proj"), (Slot::Up, width, "up_proj")];
        MlpParams::Dense {
            gate_up: self.matrix(&format!("{module}.gate_up_proj"), Role::Mlp, hidden, &gate_up),
            gate_up_bias: bias.then(|| self.bias(&format!("{module}.gate_up_proj"), Role::Mlp, &gate_up)),
            down: self.plain(&format!("{module}.down_proj"), Role::Mlp, hidden, width),
            down_bias: bias.then(|| self.vector(&format!("{module}.down_proj.bias"), Role::Mlp, hidden)),
        }
    }

    fn moe(&mut self, block: &str, hidden: usize, moe: Moe) -> MlpParams {
        let width = moe.intermediate;
        let router = self.plain(&format!("{block}.gate"), Role::Router, moe.experts, hidden);
        let bias = (moe.scoring == Scoring::SigmoidWithBias)
            .then(|| self.vector(&format!("{block}.gate.e_score_correction_bias"), Role::Buffer, moe.experts));
        let experts = |name: &str, cols: usize, parts: &[(Slot, usize)]| ParamDecl {
            name: format!("{block}.experts.{name}"),
            role: Role::Expert,
            experts: Some(moe.experts),
            cols: Some(cols),
            parts: parts.iter().map(|(slot, rows)| PartDecl { slot: *slot, rows: *rows }).collect(),
            stored: None,
            plus_one: false,
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
        let shared = moe.shared.map(|s| {
            let module = format!("{block}.{}", s.module);
            let gate_up = [(Slot::Gate, s.intermediate, "gate_proj"), (Slot::Up, s.intermediate, "up_proj")];
            SharedParams {
                gate_up: self.matrix(&format!("{module}.gate_up_proj"), Role::SharedExpert, hidden, &gate_up),
                down: self.plain(&format!("{module}.down_proj"), Role::SharedExpert, hidden, s.intermediate),
                gate: s.gated.then(|| self.plain(&format!("{module}_gate"), Role::Router, 1, hidden)),
            }
        });
        MlpParams::Moe { router, bias, w13, w2, shared, moe }
    }
}
