//! The runtime tensors that the forward pass reads, by index into the registry, next to what it must know about them.

use std::ops::Range;

use super::ParamId;
use crate::families::{Attention, DeltaNet, Latent, Moe};

/// One layer.
#[derive(Debug, Clone)]
pub struct LayerParams {
    pub(crate) input_norm: ParamId,
    pub(crate) mixer: MixerParams,
    pub(crate) post_norm: ParamId,
    pub(crate) mlp: MlpParams,
}

/// How a layer mixes positions.
#[derive(Debug, Clone)]
pub(crate) enum MixerParams {
    Attention(AttentionParams),
    Latent(LatentParams),
    DeltaNet(DeltaNetParams),
}

/// Grouped-query attention.
#[derive(Debug, Clone)]
pub(crate) struct AttentionParams {
    pub(crate) shape: Attention,
    pub(crate) qkv: ParamId,
    pub(crate) qkv_bias: Option<ParamId>,
    pub(crate) q_norm: Option<ParamId>,
    pub(crate) k_norm: Option<ParamId>,
    pub(crate) o: ParamId,
    pub(crate) o_bias: Option<ParamId>,
}

/// Where the queries of latent attention come from.
#[derive(Debug, Clone)]
pub(crate) enum QueryParams {
    /// `q_proj`.
    Direct(ParamId),
    /// `q_a_proj` (and bias), `q_a_layernorm`, `q_b_proj`.
    LowRank { a: ParamId, a_bias: Option<ParamId>, norm: ParamId, b: ParamId },
}

/// Latent attention.
#[derive(Debug, Clone)]
pub(crate) struct LatentParams {
    pub(crate) shape: Latent,
    pub(crate) expansion: Expansion,
    pub(crate) query: QueryParams,
    pub(crate) kv_a: ParamId,
    pub(crate) kv_a_bias: Option<ParamId>,
    pub(crate) kv_a_norm: ParamId,
    pub(crate) kv_b: ParamId,
    pub(crate) o: ParamId,
    pub(crate) o_bias: Option<ParamId>,
}

/// How the rows of a `kv_b_proj` are shared out: per head those of the key, then those of the value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expansion {
    pub(crate) heads: usize,
    /// Rows of a head's key.
    pub(crate) nope: usize,
    /// Rows of its value.
    pub(crate) value: usize,
}

impl Expansion {
    /// The rows of a head.
    pub(crate) fn rows(&self, head: usize) -> Range<usize> {
        let each = self.nope + self.value;
        head * each..(head + 1) * each
    }
}

/// Gated DeltaNet.
#[derive(Debug, Clone)]
pub(crate) struct DeltaNetParams {
    pub(crate) shape: DeltaNet,
    pub(crate) qkvz: ParamId,
    pub(crate) ba: ParamId,
    pub(crate) conv: ParamId,
    pub(crate) a_log: ParamId,
    pub(crate) dt_bias: ParamId,
    pub(crate) norm: ParamId,
    pub(crate) out: ParamId,
}

/// Feed-forward part of a layer.
#[derive(Debug, Clone)]
pub(crate) enum MlpParams {
    Dense { gate_up: ParamId, gate_up_bias: Option<ParamId>, down: ParamId, down_bias: Option<ParamId> },
    Moe { router: ParamId, bias: Option<ParamId>, w13: ParamId, w2: ParamId, shared: Option<SharedParams>, moe: Moe },
}

/// The expert that every token goes through.
#[derive(Debug, Clone)]
pub(crate) struct SharedParams {
    pub(crate) gate_up: ParamId,
    pub(crate) down: ParamId,
    /// The sigmoid gate that weighs it.
    pub(crate) gate: Option<ParamId>,
}

/// All layers, and the tensors outside of them.
#[derive(Debug, Clone)]
pub struct ModelParams {
    pub(crate) embed: ParamId,
    pub(crate) layers: Vec<LayerParams>,
    pub(crate) norm: ParamId,
    /// The embedding where they are tied.
    pub(crate) head: ParamId,
}
