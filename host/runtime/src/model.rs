//! The forward pass over candle tensors; the hot operators (linear, attention, experts) are our kernels as custom ops.
//!
//! A batch is a list of sequences of any lengths: their tokens are rows of one matrix. Every operator works on rows
//! alone and sums in a fixed order, so a row's result does not depend on the batch it is in, on how a prompt is split
//! into steps, or on the number of threads.

use candle_core::{Device, Tensor};
use candle_nn::ops::{rms_norm, silu};
use candle_nn::rotary_emb::rope_thd;

use crate::error::{Refusal, Result, RuntimeError};
use crate::families::{Arch, Attention, Common};
use crate::kv::KvCache;
use crate::moe::MoeOp;
use crate::ops::{AttentionOp, LinearOp, Pass, Span};
use crate::registry::{LayerParams, MlpParams, ModelParams, ParamId};
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

/// A model: its shape and its rotary frequencies. Weights come with each call.
pub struct Model {
    common: Common,
    attention: Attention,
    params: ModelParams,
    inv_freq: Vec<f32>,
}

impl Model {
    pub(crate) fn new(arch: &Arch, params: ModelParams) -> Result<Self> {
        let inv_freq = arch.common.rope.inv_freq(arch.common.head_dim);
        Ok(Self { common: arch.common.clone(), attention: arch.attention, params, inv_freq })
    }

    /// Rows of the output: the size of the vocabulary as the model has it.
    pub fn vocab(&self) -> usize {
        self.common.vocab
    }

    /// Positions the model was made for.
    pub fn max_positions(&self) -> usize {
        self.common.max_positions
    }

    /// An empty cache for one sequence.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(self.common.layers, self.common.kv_heads * self.common.head_dim)
    }

    /// Logits [rows, vocab] in f32. On an error the caches are as before.
    pub fn forward(&self, weights: &WeightSet, batch: &mut [Sequence<'_>], rows: Rows) -> Result<Tensor> {
        self.check(batch)?;
        let pass = Pass::default();
        // Once onto a worker thread, instead of once for every operator: sleeping and waking cost more than a small GEMV.
        let result = rayon::scope(|_| self.run(weights, batch, rows, &pass));
        match result {
            Ok(logits) => {
                for s in batch.iter_mut() {
                    s.cache.commit(s.tokens.len());
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

    fn check(&self, batch: &[Sequence<'_>]) -> Result<()> {
        let refuse = |why: String, next: &str| Err(RuntimeError::Request(Refusal::new("a forward pass", why, next)));
        for s in batch {
            if s.tokens.is_empty() {
                return refuse("a sequence has no new token".to_string(), "give at least one token per sequence");
            }
            if let Some(t) = s.tokens.iter().find(|t| **t as usize >= self.common.vocab) {
                let why = format!("token id {t} is not below the vocabulary size {}", self.common.vocab);
                return refuse(why, "tokenize with the model's own tokenizer");
            }
            let end = s.cache.len() + s.tokens.len();
            if end > self.common.max_positions {
                let why =
                    format!("{end} positions are more than max_position_embeddings {}", self.common.max_positions);
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
        let (cos, sin) = self.rotary(&spans)?;
        let mut x = self.embed(w, &tokens)?;
        for (i, layer) in self.params.layers.iter().enumerate() {
            let normed = rms_norm(&x, w.vector(layer.input_norm)?, c.eps as f32)?;
            let attended = self.attend(w, layer, i, &normed, batch, &spans, (&cos, &sin), pass)?;
            x = (x + attended)?;
            let normed = rms_norm(&x, w.vector(layer.post_norm)?, c.eps as f32)?;
            x = (x + self.mlp(w, &layer.mlp, &normed, pass)?)?;
        }
        if rows == Rows::Last {
            let last: Vec<u32> = spans.iter().map(|s| (s.row + s.tokens - 1) as u32).collect();
            let count = last.len();
            x = x.index_select(&Tensor::from_vec(last, count, &Device::Cpu)?, 0)?;
        }
        let normed = rms_norm(&x, w.vector(self.params.norm)?, c.eps as f32)?;
        linear(w, self.params.head, None, &normed, pass)
    }

    fn embed(&self, w: &WeightSet, tokens: &[u32]) -> Result<Tensor> {
        let hidden = self.common.hidden;
        let mut out = vec![0.0; tokens.len() * hidden];
        for (t, row) in tokens.iter().zip(out.chunks_exact_mut(hidden)) {
            w.parts(self.params.embed)[0].matrix.row(*t as usize, hidden, row);
        }
        Ok(Tensor::from_vec(out, (tokens.len(), hidden), &Device::Cpu)?)
    }

    /// cos and sin [tokens, head_dim / 2] of each token's position.
    fn rotary(&self, spans: &[Span]) -> Result<(Tensor, Tensor)> {
        let positions = spans.iter().flat_map(|s| s.past..s.past + s.tokens);
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        let mut n = 0;
        for p in positions {
            n += 1;
            for f in &self.inv_freq {
                let angle = p as f32 * f;
                cos.push(angle.cos());
                sin.push(angle.sin());
            }
        }
        let shape = (n, self.inv_freq.len());
        Ok((Tensor::from_vec(cos, shape, &Device::Cpu)?, Tensor::from_vec(sin, shape, &Device::Cpu)?))
    }

    fn attend(
        &self,
        w: &WeightSet,
        p: &LayerParams,
        layer: usize,
        x: &Tensor,
        batch: &mut [Sequence<'_>],
        spans: &[Span],
        (cos, sin): (&Tensor, &Tensor),
        pass: &Pass,
    ) -> Result<Tensor> {
        let c = &self.common;
        let t = x.dim(0)?;
        let (q_width, kv_width) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let qkv = linear(w, p.qkv, p.qkv_bias, x, pass)?;
        let heads = |start: usize, n: usize, norm: Option<ParamId>| -> Result<Tensor> {
            let mut h = qkv.narrow(1, start, n * c.head_dim)?.contiguous()?;
            if let Some(norm) = norm {
                h = rms_norm(&h.reshape((t * n, c.head_dim))?, w.vector(norm)?, c.eps as f32)?;
            }
            let rotated = rope_thd(&h.reshape((1, t, n, c.head_dim))?, cos, sin)?;
            Ok(rotated.reshape((t, n * c.head_dim))?)
        };
        let q = heads(0, c.heads, p.q_norm)?;
        let k = heads(q_width, c.kv_heads, p.k_norm)?;
        let v = qkv.narrow(1, q_width + kv_width, kv_width)?.contiguous()?;
        for (s, span) in batch.iter_mut().zip(spans) {
            let rows =
                |x: &Tensor| -> Result<Vec<f32>> { Ok(x.narrow(0, span.row, span.tokens)?.flatten_all()?.to_vec1()?) };
            s.cache.append(layer, &rows(&k)?, &rows(&v)?);
        }
        let op = AttentionOp {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            window: self.attention.window,
            spans,
            caches: batch.iter().map(|s| s.cache.layer(layer)).collect(),
        };
        let attended = q.apply_op1_no_bwd(&op)?;
        linear(w, p.o, p.o_bias, &attended, pass)
    }

    fn mlp(&self, w: &WeightSet, p: &MlpParams, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        match p {
            MlpParams::Dense { gate_up, gate_up_bias, down, down_bias } => {
                let gated = swiglu(&linear(w, *gate_up, *gate_up_bias, x, pass)?)?;
                linear(w, *down, *down_bias, &gated, pass)
            }
            MlpParams::Moe { router, w13, w2, shared, moe } => {
                let router_logits = linear(w, *router, None, x, pass)?;
                let op = MoeOp { weights: w, w13: *w13, w2: *w2, moe, pass };
                let routed = x.apply_op2_no_bwd(&router_logits, &op)?;
                let Some(shared) = shared else { return Ok(routed) };
                let gated = swiglu(&linear(w, shared.gate_up, None, x, pass)?)?;
                let out = linear(w, shared.down, None, &gated, pass)?;
                let gate = candle_nn::ops::sigmoid(&linear(w, shared.gate, None, x, pass)?)?;
                Ok((routed + out.broadcast_mul(&gate)?)?)
            }
        }
    }
}

fn linear(w: &WeightSet, param: ParamId, bias: Option<ParamId>, x: &Tensor, pass: &Pass) -> Result<Tensor> {
    let bias = bias.map(|b| w.vector(b)).transpose()?.map(Tensor::to_vec1::<f32>).transpose()?;
    Ok(x.apply_op1_no_bwd(&LinearOp { weights: w, param, bias: bias.as_deref(), pass })?)
}

/// silu(gate) * up of [rows, 2 * width], gate first.
fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    let width = gate_up.dim(1)? / 2;
    let gate = gate_up.narrow(1, 0, width)?.contiguous()?;
    let up = gate_up.narrow(1, width, width)?;
    Ok((silu(&gate)? * up)?)
}
