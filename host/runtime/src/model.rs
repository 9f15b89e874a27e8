//! The forward pass over candle tensors; the hot operators (linear, attention, experts) are our kernels as custom ops.
//!
//! A batch is a list of sequences of any lengths: their tokens are rows of one matrix. Every operator works on rows
//! alone and sums in a fixed order, so a row's result does not depend on the batch it is in, on how a prompt is split
//! into steps, or on the number of threads.

mod attention;
mod delta;
mod latent;
mod mlp;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use candle_nn::ops::rms_norm;
use candle_nn::rotary_emb::{rope_i, rope_thd};

use crate::error::{Refusal, Result, RuntimeError};
use crate::families::{Arch, Common};
use crate::kv::{KvCache, LayerShape};
use crate::lora::Adapter;
use crate::ops::{LinearOp, Pass, Span};
use crate::registry::{MixerParams, ModelParams, ParamId};
use crate::rope::RopeScaling;
use crate::weights::WeightSet;

/// One sequence of a batch: its new tokens, and what came before.
pub struct Sequence<'a> {
    /// New tokens, at least one.
    pub tokens: &'a [u32],
    /// Keys and values of the earlier ones; the new ones are added.
    pub cache: &'a mut KvCache,
}

/// Which rows of logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// One per sequence: its last token's.
    Last,
    /// Every token's.
    All,
}

/// A model: its shape. Weights come with each call.
pub struct Model {
    common: Common,
    params: ModelParams,
    /// What each layer of a sequence remembers.
    memory: Vec<LayerShape>,
    /// Dimensions of a head that are rotated.
    rotary_dim: usize,
    /// Inverse frequencies of a sequence within the model's own length.
    inv_freq: Vec<f32>,
}

/// cos and sin of the rows of a pass, [rows, rotary_dim / 2].
pub(crate) struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

/// What a layer works on.
pub(crate) struct Step<'a, 'b, 'c> {
    /// Weights of this pass.
    weights: &'a WeightSet,
    /// Its operators' context.
    pass: &'a Pass,
    /// The sequences, whose caches the layer extends.
    batch: &'a mut [Sequence<'c>],
    /// Their rows.
    spans: &'a [Span],
    /// Their positions.
    rotary: &'b Rotary,
    /// Index of the layer.
    layer: usize,
}

impl Step<'_, '_, '_> {
    /// x times a runtime tensor, transposed.
    fn linear(&self, param: ParamId, bias: Option<ParamId>, x: &Tensor) -> Result<Tensor> {
        linear(self.weights, param, bias, x, self.pass)
    }
}

impl Model {
    pub(crate) fn new(arch: &Arch, params: ModelParams) -> Result<Self> {
        let c = &arch.common;
        let rotary_dim = c.rope.rotary_dim(c.head_dim);
        let memory = params
            .layers
            .iter()
            .map(|l| match &l.mixer {
                MixerParams::Attention(_) => LayerShape::Attention { width: c.kv_heads * c.head_dim },
                MixerParams::Latent(p) => LayerShape::Attention { width: c.heads * latent::padded(&p.shape) },
                MixerParams::DeltaNet(p) => delta::memory(&p.shape),
            })
            .collect();
        let inv_freq = c.rope.inv_freq(rotary_dim, 0);
        Ok(Self { common: c.clone(), params, memory, rotary_dim, inv_freq })
    }

    /// Rows of the output: the size of the vocabulary as the model has it.
    pub fn vocab(&self) -> usize {
        self.common.vocab
    }

    /// Positions that a sequence may have: `max_position_embeddings`, or as many times more as dynamic rope scaling says.
    pub fn max_positions(&self) -> usize {
        match self.common.rope.scaling {
            RopeScaling::Dynamic { factor, original } => (original as f64 * factor.max(1.0)) as usize,
            _ => self.common.max_positions,
        }
    }

    /// Bytes of the cache of a sequence of so many positions.
    pub fn cache_bytes(&self, positions: usize) -> usize {
        let numbers = |shape: &LayerShape| match *shape {
            LayerShape::Attention { width } => 2 * width * positions,
            LayerShape::Recurrent { conv, state } => conv + state,
        };
        self.memory.iter().map(|s| numbers(s) * 4).sum()
    }

    /// The length beyond which it matters how a sequence is split into steps (dynamic rope scaling), if any.
    pub fn split_matters_beyond(&self) -> Option<usize> {
        match self.common.rope.scaling {
            RopeScaling::Dynamic { original, .. } => Some(original),
            _ => None,
        }
    }

    /// An empty cache for one sequence.
    pub fn new_cache(&self) -> KvCache {
        self.new_cache_with(None)
    }

    /// An empty cache for one sequence that runs with an adapter: its keys and values depend on it.
    pub fn new_cache_with(&self, adapter: Option<Arc<Adapter>>) -> KvCache {
        KvCache::new(&self.memory, adapter)
    }

    /// Logits [rows, vocab] in f32. On an error the caches are as before.
    pub fn forward(&self, weights: &WeightSet, batch: &mut [Sequence<'_>], rows: Rows) -> Result<Tensor> {
        self.check(weights, batch)?;
        let by_row = batch.iter().flat_map(|s| std::iter::repeat_n(s.cache.adapter().cloned(), s.tokens.len()));
        let pass = Pass::new(by_row.collect());
        // Once onto a worker thread, instead of once for every operator: sleeping and waking cost more than a small GEMV.
        let result = rayon::scope(|_| self.run(weights, batch, rows, &pass));
        match result {
            Ok(logits) => {
                for s in batch.iter_mut() {
                    s.cache.commit(s.tokens.len(), weights);
                }
                Ok(logits)
            }
            Err(e) => {
                for s in batch.iter_mut() {
                    s.cache.rollback();
                }
                Err(pass.take_failure().map_or(e, RuntimeError::Hook))
            }
        }
    }

    fn check(&self, weights: &WeightSet, batch: &[Sequence<'_>]) -> Result<()> {
        let refuse = |why: String, next: &str| Err(RuntimeError::Request(Refusal::new("a forward pass", why, next)));
        if let Some(local) = weights.local_experts() {
            let why =
                format!("these weights hold only the experts {}..{} (expert parallelism)", local.start, local.end);
            return refuse(why, "load the model without --expert-parallel");
        }
        for s in batch {
            if let Some(old) = s.cache.stale(weights) {
                let now = weights.version();
                let why = format!("the cache holds keys and values of weights version {old}, and {now} is published");
                return refuse(why, "compute the sequence anew with an empty cache, or keep the old keys by intent");
            }
            if s.tokens.is_empty() {
                return refuse("a sequence has no new token".to_string(), "give at least one token per sequence");
            }
            if let Some(t) = s.tokens.iter().find(|t| **t as usize >= self.common.vocab) {
                let why = format!("token id {t} is not below the vocabulary size {}", self.common.vocab);
                return refuse(why, "tokenize with the model's own tokenizer");
            }
            let end = s.cache.len() + s.tokens.len();
            if end > self.max_positions() {
                let why = format!("{end} positions are more than max_position_embeddings {}", self.max_positions());
                return refuse(why, "shorten the prompt or --max-tokens");
            }
        }
        Ok(())
    }

    fn run(&self, w: &WeightSet, batch: &mut [Sequence<'_>], rows: Rows, pass: &Pass) -> Result<Tensor> {
        let c = &self.common;
        let tokens: Vec<u32> = batch.iter().flat_map(|s| s.tokens.iter().copied()).collect();
        let mut spans = Vec::with_capacity(batch.len());
        let mut row = 0;
        for s in batch.iter() {
            spans.push(Span { row, past: s.cache.len(), tokens: s.tokens.len() });
            row += s.tokens.len();
        }
        let rotary = self.rotary(&spans)?;
        let mut x = self.embed(w, &tokens)?;
        for (layer, p) in self.params.layers.iter().enumerate() {
            let normed = rms_norm(&x, w.vector(p.input_norm)?, c.eps as f32)?;
            let mut step = Step { weights: w, pass, batch, spans: &spans, rotary: &rotary, layer };
            let mixed = match &p.mixer {
                MixerParams::Attention(a) => self.attend(&mut step, a, &normed)?,
                MixerParams::Latent(l) => self.attend_latent(&mut step, l, &normed)?,
                MixerParams::DeltaNet(d) => self.delta_net(&mut step, d, &normed)?,
            };
            x = (x + mixed)?;
            let normed = rms_norm(&x, w.vector(p.post_norm)?, c.eps as f32)?;
            x = (x + self.mlp(&step, &p.mlp, &normed)?)?;
        }
        if rows == Rows::Last {
            let last: Vec<u32> = spans.iter().map(|s| (s.row + s.tokens - 1) as u32).collect();
            let count = last.len();
            x = x.index_select(&Tensor::from_vec(last, count, &Device::Cpu)?, 0)?;
        }
        let normed = rms_norm(&x, w.vector(self.params.norm)?, c.eps as f32)?;
        match rows {
            Rows::All => linear(w, self.params.head, None, &normed, pass),
            Rows::Last => {
                let last = Pass::new(batch.iter().map(|s| s.cache.adapter().cloned()).collect());
                linear(w, self.params.head, None, &normed, &last)
                    .map_err(|e| last.take_failure().map_or(e, RuntimeError::Hook))
            }
        }
    }

    fn embed(&self, w: &WeightSet, tokens: &[u32]) -> Result<Tensor> {
        let hidden = self.common.hidden;
        let mut out = vec![0.0; tokens.len() * hidden];
        for (t, row) in tokens.iter().zip(out.chunks_exact_mut(hidden)) {
            w.parts(self.params.embed)[0].matrix.row(*t as usize, hidden, row);
        }
        Ok(Tensor::from_vec(out, (tokens.len(), hidden), &Device::Cpu)?)
    }

    /// cos and sin of each row's position. Under dynamic scaling a sequence longer than the model's own length has
    /// frequencies of its own, those of its length after this step (as transformers computes them); keys that earlier
    /// steps cached keep theirs, so beyond that length a prompt's split into steps matters.
    fn rotary(&self, spans: &[Span]) -> Result<Rotary> {
        let factor = self.common.rope.attention_factor();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        let mut n = 0;
        for span in spans {
            let end = span.past + span.tokens;
            let stretched;
            let frequencies = match self.common.rope.scaling {
                RopeScaling::Dynamic { original, .. } if end > original => {
                    stretched = self.common.rope.inv_freq(self.rotary_dim, end);
                    &stretched
                }
                _ => &self.inv_freq,
            };
            for p in span.past..end {
                n += 1;
                for f in frequencies {
                    let angle = p as f32 * f;
                    cos.push(angle.cos() * factor);
                    sin.push(angle.sin() * factor);
                }
            }
        }
        let shape = (n, self.rotary_dim / 2);
        Ok(Rotary {
            cos: Tensor::from_vec(cos, shape, &Device::Cpu)?,
            sin: Tensor::from_vec(sin, shape, &Device::Cpu)?,
        })
    }
}

impl Rotary {
    /// Rotates the first dimensions of every head of x [rows, heads, width]; pairs are halves of them.
    fn halves(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, width) = x.dims3()?;
        let rotated = 2 * self.cos.dim(1)?;
        if rotated == width {
            return Ok(rope_thd(&x.unsqueeze(0)?, &self.cos, &self.sin)?.squeeze(0)?);
        }
        let first = x.narrow(2, 0, rotated)?.contiguous()?.unsqueeze(0)?;
        let first = rope_thd(&first, &self.cos, &self.sin)?.squeeze(0)?;
        Ok(Tensor::cat(&[&first, &x.narrow(2, rotated, width - rotated)?], 2)?)
    }

    /// The same for x [rows, heads, rotary_dim] where pairs are neighbors.
    fn neighbors(&self, x: &Tensor) -> Result<Tensor> {
        let by_head = x.transpose(0, 1)?.contiguous()?.unsqueeze(0)?;
        let rotated = rope_i(&by_head, &self.cos, &self.sin)?;
        Ok(rotated.squeeze(0)?.transpose(0, 1)?.contiguous()?)
    }
}

fn linear(w: &WeightSet, param: ParamId, bias: Option<ParamId>, x: &Tensor, pass: &Pass) -> Result<Tensor> {
    let bias = bias.map(|b| w.vector(b)).transpose()?.map(Tensor::to_vec1::<f32>).transpose()?;
    Ok(x.apply_op1_no_bwd(&LinearOp { weights: w, param, bias: bias.as_deref(), pass })?)
}

/// The values of rows of x [rows, width].
fn values(x: &Tensor, span: &Span) -> Result<Vec<f32>> {
    Ok(x.narrow(0, span.row, span.tokens)?.flatten_all()?.to_vec1()?)
}
