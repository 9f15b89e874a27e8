//! Tiny models of real families: their config.json, their tensors, and how large random values have to be so that greedy
//! tokens vary and a small change of one tensor can be seen.

use patchhost_runtime::hooks::Role;
use serde_json::{Value, json};

/// Width of the residual stream.
pub const HIDDEN: usize = 64;
/// Decoder layers.
pub const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
/// What vLLM's attention on CPUs takes.
const HEAD_DIM: usize = 32;
/// Rows of the embedding, and so token ids.
pub const VOCABULARY: usize = 320;
const INTERMEDIATE: usize = 128;
const EXPERTS: usize = 4;
const TOP_K: usize = 2;
const EXPERT_WIDTH: usize = 64;
/// Engines that want a multiple of 32 or 64 pad this width.
const PADDED_WIDTH: usize = 48;

/// A family that the kit can make a tiny model of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// As `--family` names it.
    pub name: &'static str,
    /// `architectures[0]` of config.json.
    pub architecture: &'static str,
    model_type: &'static str,
    /// The head is the embedding.
    pub tied: bool,
    qk_norm: bool,
    experts: Option<Experts>,
}

/// How a family names its experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Experts {
    Qwen,
    Mixtral,
}

const fn dense(name: &'static str, architecture: &'static str, model_type: &'static str) -> Family {
    Family { name, architecture, model_type, tied: false, qk_norm: false, experts: None }
}

const QWEN3: Family = Family { qk_norm: true, ..dense("qwen3", "Qwen3ForCausalLM", "qwen3") };
const QWEN3_MOE: Family =
    Family { qk_norm: true, experts: Some(Experts::Qwen), ..dense("qwen3_moe", "Qwen3MoeForCausalLM", "qwen3_moe") };

/// Every family that the kit can make.
pub const FAMILIES: &[Family] = &[
    QWEN3,
    Family { name: "qwen3-tied", tied: true, ..QWEN3 },
    dense("llama", "LlamaForCausalLM", "llama"),
    Family { name: "llama-tied", tied: true, ..dense("llama", "LlamaForCausalLM", "llama") },
    QWEN3_MOE,
    Family { name: "qwen3_moe-tied", tied: true, ..QWEN3_MOE },
    Family { experts: Some(Experts::Mixtral), ..dense("mixtral", "MixtralForCausalLM", "mixtral") },
];

/// How values of a tensor are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Draw {
    /// Around 0, with this standard deviation.
    Spread(f32),
    /// A norm: this gain, and a tenth of it up or down.
    Gain(f32),
}

/// A tensor of a tiny model.
#[derive(Debug, Clone, PartialEq)]
pub struct Declared {
    /// Its name in the checkpoint.
    pub name: String,
    /// What it is for.
    pub class: Role,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Its values.
    pub draw: Draw,
}

impl Family {
    /// The family of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.name == name)
    }

    /// Whether its feed-forward part is a mixture of experts.
    pub fn is_moe(&self) -> bool {
        self.experts.is_some()
    }

    fn expert_width(padded: bool) -> usize {
        if padded { PADDED_WIDTH } else { EXPERT_WIDTH }
    }

    /// config.json. `padded`: the experts have a width that engines pad.
    pub fn config(&self, padded: bool) -> Value {
        let mut config = json!({
            "architectures": [self.architecture], "model_type": self.model_type,
            "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
            "intermediate_size": INTERMEDIATE, "hidden_act": "silu", "rms_norm_eps": 1e-6,
            "attention_bias": false, "attention_dropout": 0.0, "max_position_embeddings": 256,
            "rope_theta": 10000.0, "rope_scaling": null,
            "rope_parameters": { "rope_type": "default", "rope_theta": 10000.0 },
            "tie_word_embeddings": self.tied, "initializer_range": 0.02, "use_cache": true,
            "bos_token_id": null, "eos_token_id": null, "pad_token_id": null,
            "torch_dtype": "bfloat16", "dtype": "bfloat16",
        });
        let more = match self.experts {
            None if self.model_type == "llama" => json!({ "mlp_bias": false, "pretraining_tp": 1 }),
            None => {
                json!({ "max_window_layers": LAYERS, "sliding_window": null, "use_sliding_window": false })
            }
            Some(Experts::Qwen) => json!({
                "moe_intermediate_size": Self::expert_width(padded), "num_experts": EXPERTS,
                "num_experts_per_tok": TOP_K, "norm_topk_prob": true, "decoder_sparse_step": 1,
                "mlp_only_layers": [], "router_aux_loss_coef": 0.001, "output_router_logits": false,
                "max_window_layers": LAYERS, "sliding_window": null, "use_sliding_window": false,
            }),
            Some(Experts::Mixtral) => json!({
                "intermediate_size": Self::expert_width(padded), "num_local_experts": EXPERTS,
                "num_experts_per_tok": TOP_K, "router_aux_loss_coef": 0.001, "output_router_logits": false,
                "router_jitter_noise": 0.0, "sliding_window": null,
            }),
        };
        if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
            config.extend(more);
        }
        config
    }

    /// Every tensor of its checkpoint.
    pub fn tensors(&self, padded: bool) -> Vec<Declared> {
        let (queries, keys) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        let mut all = vec![
            matrix("model.embed_tokens.weight", Role::Embedding, VOCABULARY, HIDDEN, 0.3 * (HIDDEN as f32).sqrt()),
            norm("model.norm.weight", 1.2),
        ];
        if !self.tied {
            all.push(matrix("lm_head.weight", Role::LmHead, VOCABULARY, HIDDEN, 2.4));
        }
        for layer in 0..LAYERS {
            let at = |leaf: &str| format!("model.layers.{layer}.{leaf}");
            all.push(norm(at("input_layernorm.weight"), 1.0));
            all.push(norm(at("post_attention_layernorm.weight"), 1.0));
            // Attention must choose, and not only take the mean: then what stands earlier in the text matters.
            all.push(matrix(at("self_attn.q_proj.weight"), Role::Attention, queries, HIDDEN, 1.5));
            all.push(matrix(at("self_attn.k_proj.weight"), Role::Attention, keys, HIDDEN, 1.5));
            all.push(matrix(at("self_attn.v_proj.weight"), Role::Attention, keys, HIDDEN, 1.2));
            all.push(matrix(at("self_attn.o_proj.weight"), Role::Attention, HIDDEN, queries, 1.2));
            if self.qk_norm {
                for leaf in ["self_attn.q_norm.weight", "self_attn.k_norm.weight"] {
                    all.push(Declared { shape: vec![HEAD_DIM], ..norm(at(leaf), 1.5) });
                }
            }
            self.feed_forward(&at, padded, &mut all);
        }
        // As they lie in the file.
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn feed_forward(&self, at: &dyn Fn(&str) -> String, padded: bool, all: &mut Vec<Declared>) {
        let mut gated = |class: Role, width: usize, names: [String; 3]| {
            let [gate, up, down] = names;
            all.push(matrix(gate, class, width, HIDDEN, 1.5));
            all.push(matrix(up, class, width, HIDDEN, 1.5));
            all.push(matrix(down, class, HIDDEN, width, 2.0));
        };
        let (block, leaves) = match self.experts {
            None => {
                let names = ["gate_proj", "up_proj", "down_proj"].map(|leaf| at(&format!("mlp.{leaf}.weight")));
                gated(Role::Mlp, INTERMEDIATE, names);
                return;
            }
            Some(Experts::Qwen) => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
            Some(Experts::Mixtral) => ("block_sparse_moe", ["w1", "w3", "w2"]),
        };
        for expert in 0..EXPERTS {
            let names = leaves.map(|leaf| at(&format!("{block}.experts.{expert}.{leaf}.weight")));
            gated(Role::Expert, Self::expert_width(padded), names);
        }
        all.push(matrix(at(&format!("{block}.gate.weight")), Role::Router, EXPERTS, HIDDEN, 2.0));
    }
}

/// A matrix whose products have about `gain` times the size of what they multiply.
fn matrix(name: impl Into<String>, class: Role, rows: usize, cols: usize, gain: f32) -> Declared {
    let draw = Draw::Spread(gain / (cols as f32).sqrt());
    Declared { name: name.into(), class, shape: vec![rows, cols], draw }
}

fn norm(name: impl Into<String>, gain: f32) -> Declared {
    Declared { name: name.into(), class: Role::Norm, shape: vec![HIDDEN], draw: Draw::Gain(gain) }
}
