//! The trainer's forward pass: the same models as the runtime's, of candle operations that have a backward pass.
//!
//! The runtime's own operators are faster and have no gradient, so nothing is shared but the declaration of the family and
//! the registry of names. That the two agree is tested on every oracle of a family that is supported here. Logits are f32.
//!
//! A batch is a list of sequences. Their tokens are the rows of one matrix without padding; only attention looks at
//! [sequences, longest] and the causal mask hides what is behind the end of a shorter one.

mod attention;
mod batch;
mod blocks;
mod mlp;
mod source;

use candle_core::{Tensor, Var};
use patchhost_runtime::families::{Arch, Common, Mixer};
use patchhost_runtime::registry::Registry;

use super::error::{Result, usage};
use super::masters::Masters;
use attention::Attention;
pub use batch::Batch;
use blocks::{Norm, linear};
use mlp::Mlp;
use source::Source;

/// A model over master weights.
pub struct Model {
    common: Common,
    embed: Var,
    layers: Vec<Layer>,
    norm: Norm,
    /// The embedding where they are tied.
    head: Var,
}

struct Layer {
    input_norm: Norm,
    attention: Attention,
    post_norm: Norm,
    mlp: Mlp,
}

impl Model {
    /// The model that `arch` declares. Refused by name: families with another mixer than grouped-query attention, and
    /// routers that are no plain softmax.
    pub fn new(arch: &Arch, registry: &Registry, masters: &Masters) -> Result<Self> {
        let source = Source::new(registry, masters);
        let c = &arch.common;
        if c.norm_plus_one {
            return Err(unsupported(arch, "its norms multiply by 1 + w"));
        }
        let decoder = arch.names.decoder;
        let norm = |name: String| -> Result<Norm> { Ok(Norm { weight: source.whole(&name)?, eps: c.eps }) };
        let mut layers = Vec::with_capacity(c.layers);
        for (i, (mixer, mlp)) in arch.mixers.iter().zip(&arch.mlps).enumerate() {
            let prefix = format!("{decoder}.layers.{i}");
            let Mixer::Attention(a) = mixer else {
                return Err(unsupported(arch, "it has latent or linear attention"));
            };
            if a.output_gate {
                return Err(unsupported(arch, "its attention has an output gate"));
            }
            layers.push(Layer {
                input_norm: norm(format!("{prefix}.input_layernorm.weight"))?,
                attention: Attention::new(&source, &format!("{prefix}.self_attn"), c, *a)?,
                post_norm: norm(format!("{prefix}.post_attention_layernorm.weight"))?,
                mlp: Mlp::new(&source, &prefix, arch, mlp)?,
            });
        }
        let embed = source.whole(&format!("{decoder}.embed_tokens.weight"))?;
        let head = match c.tied {
            true => embed.clone(),
            false => source.whole(&format!("{}.weight", arch.names.head))?,
        };
        Ok(Self { common: c.clone(), embed, layers, norm: norm(format!("{decoder}.norm.weight"))?, head })
    }

    /// Logits [rows, vocab] of some rows of the batch (indices over all tokens of all sequences, in order).
    pub fn logits(&self, batch: &Batch, rows: &[u32]) -> Result<Tensor> {
        let mut x = self.embed.index_select(batch.tokens(), 0)?;
        for layer in &self.layers {
            let normed = layer.input_norm.apply(&x)?;
            x = (x + layer.attention.apply(&normed, batch)?)?;
            let normed = layer.post_norm.apply(&x)?;
            x = (x + layer.mlp.apply(&normed)?)?;
        }
        let rows = Tensor::new(rows, x.device())?;
        linear(&self.norm.apply(&x.index_select(&rows, 0)?)?, &self.head, None)
    }

    /// Lays out sequences for a forward pass.
    pub fn batch(&self, sequences: &[&[u32]]) -> Result<Batch> {
        Batch::new(&self.common, sequences)
    }
}

/// The log-prob of each row's token: [rows], from logits [rows, vocab]. Ids in `masked` have no share.
pub fn log_probs(logits: &Tensor, tokens: &[u32], masked: &[std::ops::Range<u32>]) -> Result<Tensor> {
    let (rows, vocab) = logits.dims2()?;
    let logits = match masked.is_empty() {
        true => logits.clone(),
        false => {
            let mut shut = vec![0f32; vocab];
            for range in masked {
                let end = vocab.min(range.end as usize);
                shut.get_mut(range.start as usize..end).unwrap_or_default().fill(f32::NEG_INFINITY);
            }
            logits.broadcast_add(&Tensor::new(shut, logits.device())?)?
        }
    };
    let most = logits.max_keepdim(1)?.detach();
    let normalizer = (logits.broadcast_sub(&most)?.exp()?.sum_keepdim(1)?.log()? + most)?;
    let ids = Tensor::new(tokens, logits.device())?.reshape((rows, 1))?;
    Ok((logits.gather(&ids, 1)? - normalizer)?.squeeze(1)?)
}

fn unsupported(arch: &Arch, why: &str) -> super::error::TrainError {
    usage(
        format!("training {}", arch.architecture),
        why,
        "train a model of Llama, Mixtral, OLMoE, Qwen2, Qwen2-MoE, Qwen3 or Qwen3-MoE",
    )
}
