//! What a family declares: the shared shape, how each layer mixes positions, and its feed-forward part.

use crate::rope::RopeConfig;

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
    /// Width of a head; of its rotated part where attention is latent.
    pub head_dim: usize,
    /// Epsilon of every RMSNorm (but those inside latent attention).
    pub eps: f64,
    /// RMSNorm multiplies by 1 + w instead of w.
    pub norm_plus_one: bool,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// `lm_head` shares the embedding.
    pub tied: bool,
    /// Positions the model was made for.
    pub max_positions: usize,
}

/// RMSNorm of queries and keys, before rope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QkNorm {
    /// None.
    #[default]
    None,
    /// Per head, weight [head_dim].
    Head,
    /// Over the whole projection.
    Full,
}

/// Grouped-query attention.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attention {
    /// q, k and v have a bias.
    pub qkv_bias: bool,
    /// o has a bias.
    pub o_bias: bool,
    /// RMSNorm of q and k.
    pub qk_norm: QkNorm,
    /// q, k and v are clamped to ± this (OLMoE's `clip_qkv`).
    pub clip: Option<f32>,
    /// q_proj has a second half per head, whose sigmoid multiplies the output (Qwen3-Next).
    pub output_gate: bool,
    /// Only the last this many positions are attended to.
    pub window: Option<usize>,
}

/// Multi-head latent attention (DeepSeek).
#[derive(Debug, Clone, Copy)]
pub struct Latent {
    /// Rank of the query's down-projection; `None`: queries are projected at once.
    pub q_rank: Option<usize>,
    /// Rank of the shared key and value.
    pub kv_rank: usize,
    /// Dimensions of a head without rope.
    pub nope: usize,
    /// Dimensions of a head with rope.
    pub rope: usize,
    /// Dimensions of a value head.
    pub value: usize,
    /// The down-projections and o have a bias.
    pub bias: bool,
    /// Rotated pairs are neighbors (2i, 2i + 1) instead of halves.
    pub interleaved: bool,
}

/// Gated DeltaNet (Qwen3-Next's linear attention).
#[derive(Debug, Clone, Copy)]
pub struct DeltaNet {
    /// Query and key heads.
    pub key_heads: usize,
    /// Value heads, a multiple of the key heads.
    pub value_heads: usize,
    /// Width of a query or key head.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Positions that the causal convolution sees.
    pub kernel: usize,
}

/// How a layer mixes positions.
#[derive(Debug, Clone, Copy)]
pub enum Mixer {
    /// Grouped-query attention.
    Attention(Attention),
    /// Latent attention.
    Latent(Latent),
    /// Gated DeltaNet.
    DeltaNet(DeltaNet),
}

/// What the router's logits become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid each; a bias (`e_score_correction_bias`) takes part in the choice, not in the weights.
    SigmoidWithBias,
}

/// How good a group of experts is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupScore {
    /// Its best expert (DeepSeek-V2).
    Max,
    /// The sum of its two best (DeepSeek-V3).
    TopTwo,
}

/// Experts are chosen from the best groups only.
#[derive(Debug, Clone, Copy)]
pub struct Groups {
    /// Groups of equal size.
    pub count: usize,
    /// How many of them take part.
    pub chosen: usize,
    /// What makes a group good.
    pub score: GroupScore,
}

/// The expert that every token goes through.
#[derive(Debug, Clone, Copy)]
pub struct Shared {
    /// Its width.
    pub intermediate: usize,
    /// Its module: `shared_expert` or `shared_experts`.
    pub module: &'static str,
    /// A sigmoid gate weighs it (`shared_expert_gate`).
    pub gated: bool,
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
    /// What the router's logits become.
    pub scoring: Scoring,
    /// Whether only some groups of experts take part.
    pub groups: Option<Groups>,
    /// Divide the chosen weights by their sum.
    pub renormalize: bool,
    /// Factor of the weights (`routed_scaling_factor`).
    pub scale: f32,
    /// The shared expert.
    pub shared: Option<Shared>,
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

/// Where the text model stands in the checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// Module of the decoder: `model`.
    pub decoder: &'static str,
    /// Module of the output head: `lm_head`.
    pub head: &'static str,
}

impl Default for Names {
    fn default() -> Self {
        Self { decoder: "model", head: "lm_head" }
    }
}

/// Tensors that belong to a checkpoint of the family and that this runtime does not load.
#[derive(Debug, Clone)]
pub struct Ignored {
    /// Names that begin with this.
    pub prefix: String,
    /// Why.
    pub reason: &'static str,
}

/// A model, declared.
#[derive(Debug, Clone)]
pub struct Arch {
    /// `architectures[0]`, completed from `model_type` where absent.
    pub architecture: &'static str,
    /// `model_type`.
    pub model_type: &'static str,
    /// Where the text model stands in the checkpoint.
    pub names: Names,
    /// What every family has.
    pub common: Common,
    /// How each layer mixes positions.
    pub mixers: Vec<Mixer>,
    /// Feed-forward part of each layer.
    pub mlps: Vec<Mlp>,
    /// What checkpoints carry beyond the text model.
    pub ignored: Vec<Ignored>,
    /// Sizes of tensors that config.json leaves out, with the family's defaults: "`head_dim` (128)".
    pub assumed: Vec<String>,
}

impl Arch {
    /// Routed experts of the first MoE layer; 0 for a dense model.
    pub fn experts(&self) -> usize {
        self.mlps.iter().find_map(|m| if let Mlp::Moe(moe) = m { Some(moe.experts) } else { None }).unwrap_or(0)
    }

    /// A model of these layers, with the usual names.
    pub(super) fn new(common: Common, mixers: Vec<Mixer>, mlps: Vec<Mlp>) -> Self {
        let (names, ignored, assumed) = (Names::default(), Vec::new(), Vec::new());
        Self { architecture: "", model_type: "", names, common, mixers, mlps, ignored, assumed }
    }

    /// The same with tensors of `prefix` ignored.
    pub(super) fn ignoring(mut self, prefix: impl Into<String>, reason: &'static str) -> Self {
        self.ignored.push(Ignored { prefix: prefix.into(), reason });
        self
    }

    /// A dense model whose layers have the same width.
    pub(super) fn dense(common: Common, mixers: Vec<Mixer>, intermediate: usize, bias: bool) -> Self {
        let mlps = vec![Mlp::Dense { intermediate, bias }; common.layers];
        Self::new(common, mixers, mlps)
    }
}
