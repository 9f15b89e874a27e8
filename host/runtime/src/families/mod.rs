//! Model families. Each file is a short declaration over the shared blocks of [`crate::model`]: which parts a layer has
//! and what they are called. A new family is a new file and a line in [`FAMILIES`].

mod llama;
mod mixtral;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;

use crate::config::{RawConfig, RopeConfig, refuse};
use crate::error::Result;

/// Most tensors of a checkpoint: the bound that the interface promises patches (DeepSeek-V3 has 46,000).
const MAX_TENSORS: usize = 131_072;

/// A family: the names under which config.json may announce it, and its declaration.
pub struct Family {
    /// `architectures[0]`.
    pub architecture: &'static str,
    /// `model_type`.
    pub model_type: &'static str,
    declare: fn(&RawConfig, Common) -> Result<Arch>,
}

/// Every family this runtime knows.
pub const FAMILIES: &[Family] = &[
    Family { architecture: "LlamaForCausalLM", model_type: "llama", declare: llama::declare },
    Family { architecture: "MixtralForCausalLM", model_type: "mixtral", declare: mixtral::declare },
    Family { architecture: "Qwen2ForCausalLM", model_type: "qwen2", declare: qwen2::declare },
    Family { architecture: "Qwen2MoeForCausalLM", model_type: "qwen2_moe", declare: qwen2_moe::declare },
    Family { architecture: "Qwen3ForCausalLM", model_type: "qwen3", declare: qwen3::declare },
    Family { architecture: "Qwen3MoeForCausalLM", model_type: "qwen3_moe", declare: qwen3_moe::declare },
];

/// What every family has.
#[derive(Debug, Clone)]
pub struct Common {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Epsilon of every RMSNorm.
    pub eps: f64,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// `lm_head` shares the embedding.
    pub tied: bool,
    /// Positions the model was made for.
    pub max_positions: usize,
}

/// Attention of a family.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attention {
    /// q, k and v have a bias.
    pub qkv_bias: bool,
    /// o has a bias.
    pub o_bias: bool,
    /// RMSNorm of q and k per head, before rope.
    pub qk_norm: bool,
    /// Only the last this many positions are attended to.
    pub window: Option<usize>,
}

/// A routed mixture of experts.
#[derive(Debug, Clone, Copy)]
pub struct Moe {
    /// Name of the block within a layer: `mlp` or `block_sparse_moe`.
    pub block: &'static str,
    /// Routed experts.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Width of an expert.
    pub intermediate: usize,
    /// Divide the chosen probabilities by their sum.
    pub renormalize: bool,
    /// Width of the shared expert, which a sigmoid gate weighs.
    pub shared: Option<usize>,
}

/// Feed-forward part of one layer.
#[derive(Debug, Clone, Copy)]
pub enum Mlp {
    /// SwiGLU.
    Dense {
        /// Its width.
        intermediate: usize,
        /// gate, up and down have a bias.
        bias: bool,
    },
    /// Mixture of experts.
    Moe(Moe),
}

/// A model, declared.
#[derive(Debug, Clone)]
pub struct Arch {
    /// `architectures[0]`, completed from `model_type` where absent.
    pub architecture: &'static str,
    /// `model_type`.
    pub model_type: &'static str,
    /// What every family has.
    pub common: Common,
    /// Attention of every layer.
    pub attention: Attention,
    /// Feed-forward part of each layer.
    pub mlps: Vec<Mlp>,
}

impl Arch {
    /// Finds the family and declares the model.
    pub fn from_config(config: &RawConfig) -> Result<Self> {
        let family = FAMILIES
            .iter()
            .find(|f| f.architecture == config.architecture())
            .or_else(|| {
                FAMILIES.iter().find(|f| config.architecture().is_empty() && f.model_type == config.model_type())
            })
            .ok_or_else(|| {
                let known: Vec<&str> = FAMILIES.iter().map(|f| f.architecture).collect();
                let name = if config.architecture().is_empty() { config.model_type() } else { config.architecture() };
                refuse("config.json", format!("family `{name}` is not supported; supported are {}", known.join(", ")))
            })?;
        let common = Common::read(config)?;
        let mut arch = (family.declare)(config, common)?;
        arch.architecture = family.architecture;
        arch.model_type = family.model_type;
        let matrices: usize = arch.mlps.iter().map(|m| if let Mlp::Moe(moe) = m { 3 * moe.experts } else { 3 }).sum();
        if matrices > MAX_TENSORS {
            return Err(refuse(
                "config.json",
                format!(
                    "layers times experts make {matrices} feed-forward matrices, more than the limit of {MAX_TENSORS}"
                ),
            ));
        }
        Ok(arch)
    }

    /// Routed experts of the first MoE layer; 0 for a dense model.
    pub fn experts(&self) -> usize {
        self.mlps.iter().find_map(|m| if let Mlp::Moe(moe) = m { Some(moe.experts) } else { None }).unwrap_or(0)
    }

    fn dense(common: Common, attention: Attention, intermediate: usize, bias: bool) -> Self {
        let mlps = vec![Mlp::Dense { intermediate, bias }; common.layers];
        Self { architecture: "", model_type: "", common, attention, mlps }
    }

    fn sparse(common: Common, attention: Attention, mlps: Vec<Mlp>) -> Self {
        Self { architecture: "", model_type: "", common, attention, mlps }
    }
}

impl Common {
    fn read(config: &RawConfig) -> Result<Self> {
        config.require_silu()?;
        let hidden = config.size(&["hidden_size"])?;
        let heads = config.size(&["num_attention_heads"])?;
        let kv_heads = config.size_opt(&["num_key_value_heads"])?.unwrap_or(heads);
        let head_dim = match config.size_opt(&["head_dim"])? {
            Some(d) => d,
            None if hidden % heads == 0 => hidden / heads,
            None => {
                return Err(refuse(
                    "config.json",
                    format!(
                        "`hidden_size` {hidden} is not a multiple of `num_attention_heads` {heads}, and `head_dim` is absent"
                    ),
                ));
            }
        };
        if heads % kv_heads != 0 {
            return Err(refuse(
                "config.json",
                format!("`num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {kv_heads}"),
            ));
        }
        if head_dim % 2 != 0 {
            return Err(refuse("config.json", format!("`head_dim` {head_dim} is odd; rotary embedding needs pairs")));
        }
        let layers = config.size(&["num_hidden_layers"])?;
        if layers > 1024 {
            return Err(refuse("config.json", format!("`num_hidden_layers` is {layers}, more than the limit of 1024")));
        }
        let eps = config.number("rms_norm_eps")?.unwrap_or(1e-6);
        if !(0.0..1.0).contains(&eps) {
            return Err(refuse("config.json", format!("`rms_norm_eps` is {eps}; it must be from 0 to 1")));
        }
        Ok(Self {
            hidden,
            layers,
            vocab: config.size(&["vocab_size"])?,
            heads,
            kv_heads,
            head_dim,
            eps,
            rope: config.rope()?,
            tied: config.flag("tie_word_embeddings", false)?,
            max_positions: config.size_opt(&["max_position_embeddings"])?.unwrap_or(4096),
        })
    }
}

/// The routed block that Qwen2-MoE, Qwen3-MoE and Mixtral share, and which layers have it.
fn routed(
    config: &RawConfig,
    block: &'static str,
    width: &[&str],
    renormalize: bool,
    shared: Option<usize>,
) -> Result<Moe> {
    let experts = config.size(&["num_experts", "num_local_experts", "n_routed_experts"])?;
    let top_k = config.size(&["num_experts_per_tok"])?;
    if top_k > experts {
        return Err(refuse("config.json", format!("`num_experts_per_tok` {top_k} is more than the {experts} experts")));
    }
    if experts > 4096 {
        return Err(refuse("config.json", format!("{experts} experts are more than the limit of 4096")));
    }
    Ok(Moe { block, experts, top_k, intermediate: config.size(width)?, renormalize, shared })
}

/// Qwen's choice of sparse layers: every `decoder_sparse_step`-th, except `mlp_only_layers`.
fn qwen_layers(config: &RawConfig, layers: usize, moe: Moe) -> Result<Vec<Mlp>> {
    let step = config.size_opt(&["decoder_sparse_step"])?.unwrap_or(1);
    let dense_only = config.indices("mlp_only_layers")?;
    let sparse = |i: usize| !dense_only.contains(&i) && (i + 1).is_multiple_of(step);
    let dense = if (0..layers).all(sparse) {
        None
    } else {
        Some(Mlp::Dense { intermediate: config.size(&["intermediate_size"])?, bias: false })
    };
    Ok((0..layers).map(|i| if sparse(i) { Mlp::Moe(moe) } else { dense.unwrap_or(Mlp::Moe(moe)) }).collect())
}

/// Qwen's sliding window: only where it is switched on; a window on some layers only is refused.
fn qwen_window(config: &RawConfig, layers: usize) -> Result<Option<usize>> {
    if !config.flag("use_sliding_window", false)? {
        return Ok(None);
    }
    // 28 is what transformers takes where it is absent.
    let from = config.number("max_window_layers")?.unwrap_or(28.0);
    let window = config.size_opt(&["sliding_window"])?;
    match window {
        Some(_) if from > 0.0 && (from as usize) < layers => Err(refuse(
            "config.json",
            format!(
                "`use_sliding_window` with `max_window_layers` {from}: a window on some layers only is not supported"
            ),
        )),
        Some(w) if from == 0.0 => Ok(Some(w)),
        _ => Ok(None),
    }
}
