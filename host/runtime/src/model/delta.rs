//! Gated DeltaNet (Qwen3-Next's linear attention), one token after the other: the result does not depend on how a prompt
//! is split into steps, as it would with the chunked form that GPU kernels use. Formulas: `torch_recurrent_gated_delta_rule`
//! of transformers.

use rayon::prelude::*;

use super::linear::linear;
use super::work::Work;
use super::{Model, Op, Pass};
use crate::families::DeltaNet;
use crate::hooks::HookError;
use crate::kv::{LayerShape, RecurrentState};
use crate::registry::DeltaNetParams;

/// Epsilon of the L2 norm of queries and keys.
const L2_EPS: f64 = 1e-6;

/// What a sequence remembers in such a layer.
pub(super) fn memory(d: &DeltaNet) -> LayerShape {
    LayerShape::Recurrent { conv: (d.kernel - 1) * channels(d), state: d.value_heads * d.key_dim * d.value_dim }
}

/// Channels of the convolution: all queries, all keys, all values.
fn channels(d: &DeltaNet) -> usize {
    2 * d.key_heads * d.key_dim + d.value_heads * d.value_dim
}

/// The small weights of a layer, in f32.
struct Small<'a> {
    /// [channels, kernel].
    conv: Vec<f32>,
    /// exp(A_log) per value head.
    a: Vec<f32>,
    dt_bias: &'a [f32],
    /// [value_dim].
    norm: &'a [f32],
    eps: f32,
}

/// One token, taken apart: z and the decay factors per value head.
struct Token<'a> {
    /// Convolved queries, keys and values.
    mixed: Vec<f32>,
    /// Row of `in_proj_qkvz`.
    qkvz: &'a [f32],
    /// Row of `in_proj_ba`.
    ba: &'a [f32],
}

impl Model {
    pub(super) fn delta_net(
        &self,
        pass: &mut Pass<'_, '_>,
        p: &DeltaNetParams,
        work: &mut Work,
    ) -> Result<(), HookError> {
        let (d, w) = (&p.shape, pass.weights);
        let Work { spans, owners, normed, mixed, quantized, wide, gate, inner, .. } = work;
        let mut conv = vec![0.0; channels(d) * d.kernel];
        for (row, out) in conv.chunks_exact_mut(d.kernel).enumerate() {
            w.parts(p.conv)[0].matrix.row(row, d.kernel, out);
        }
        let small = Small {
            conv,
            a: w.vector(p.a_log).iter().copied().map(f32::exp).collect(),
            dt_bias: w.vector(p.dt_bias),
            norm: w.vector(p.norm),
            eps: self.common.eps as f32,
        };
        linear(pass, Op::Project, owners, p.qkvz, None, normed, quantized, wide)?;
        linear(pass, Op::Project, owners, p.ba, None, normed, quantized, gate)?;
        let rows = owners.len().max(1);
        let (per_token, per_gate) = (wide.len() / rows, gate.len() / rows);
        inner.clear();
        for (s, span) in pass.batch.iter_mut().zip(spans.iter()) {
            let qkvz = &wide[span.row * per_token..][..span.tokens * per_token];
            let ba = &gate[span.row * per_gate..][..span.tokens * per_gate];
            if let Some(state) = s.cache.advance(pass.layer) {
                inner.extend(sequence(d, &small, qkvz, ba, state));
            }
        }
        pass.clock.lap(Op::Attend);
        linear(pass, Op::Project, owners, p.out, None, inner, quantized, mixed)
    }
}

/// All new tokens of one sequence: [tokens, value_heads x value_dim].
fn sequence(d: &DeltaNet, small: &Small<'_>, qkvz: &[f32], ba: &[f32], memory: &mut RecurrentState) -> Vec<f32> {
    let (per_token, per_gate) = (2 * d.key_heads * d.key_dim + 2 * d.value_heads * d.value_dim, 2 * d.value_heads);
    let tokens: Vec<Token<'_>> = qkvz
        .chunks_exact(per_token)
        .zip(ba.chunks_exact(per_gate))
        .map(|(qkvz, ba)| Token { mixed: convolve(d, small, qkvz, &mut memory.conv), qkvz, ba })
        .collect();
    let width = d.value_heads * d.value_dim;
    let mut out = vec![0.0; tokens.len() * width];
    // Heads are independent; each goes through the tokens in order.
    let by_head: Vec<Vec<f32>> = memory
        .state
        .par_chunks_exact_mut(d.key_dim * d.value_dim)
        .enumerate()
        .map(|(head, state)| tokens.iter().flat_map(|t| one_head(d, small, t, head, state)).collect())
        .collect();
    for (head, values) in by_head.iter().enumerate() {
        for (row, value) in out.chunks_exact_mut(width).zip(values.chunks_exact(d.value_dim)) {
            row[head * d.value_dim..(head + 1) * d.value_dim].copy_from_slice(value);
        }
    }
    out
}

/// The causal depthwise convolution and SiLU of one token; `last` are the inputs before it.
fn convolve(d: &DeltaNet, small: &Small<'_>, qkvz: &[f32], last: &mut [f32]) -> Vec<f32> {
    let count = channels(d);
    let input = reordered(d, qkvz);
    let out = (0..count)
        .map(|c| {
            let weights = &small.conv[c * d.kernel..(c + 1) * d.kernel];
            let past = (0..d.kernel - 1).map(|j| weights[j] * last[j * count + c]).sum::<f32>();
            silu(past + weights[d.kernel - 1] * input[c])
        })
        .collect();
    if d.kernel > 1 {
        last.copy_within(count.., 0);
        let start = last.len() - count;
        last[start..].copy_from_slice(&input);
    }
    out
}

/// `in_proj_qkvz` is laid out per key head as [q, k, v of its value heads, z of its value heads]; the convolution takes all
/// queries, then all keys, then all values.
fn reordered(d: &DeltaNet, qkvz: &[f32]) -> Vec<f32> {
    let per_head = 2 * d.key_dim + 2 * values_per_key(d);
    let part = |start: usize, len: usize| {
        qkvz.chunks_exact(per_head).flat_map(move |head| head[start..start + len].iter().copied())
    };
    part(0, d.key_dim).chain(part(d.key_dim, d.key_dim)).chain(part(2 * d.key_dim, values_per_key(d))).collect()
}

/// Width of the values that share a key head.
fn values_per_key(d: &DeltaNet) -> usize {
    d.value_heads / d.key_heads * d.value_dim
}

/// One token in one value head: decays the state, corrects it by the delta rule, reads it, norms and gates the result.
fn one_head(d: &DeltaNet, small: &Small<'_>, t: &Token<'_>, head: usize, state: &mut [f32]) -> Vec<f32> {
    let ratio = d.value_heads / d.key_heads;
    let (key_head, within) = (head / ratio, head % ratio);
    let keys = d.key_heads * d.key_dim;
    let q = normalized(&t.mixed[key_head * d.key_dim..(key_head + 1) * d.key_dim]);
    let k = normalized(&t.mixed[keys + key_head * d.key_dim..keys + (key_head + 1) * d.key_dim]);
    let v = &t.mixed[2 * keys + head * d.value_dim..2 * keys + (head + 1) * d.value_dim];
    // Per key head: b of its value heads, then a of them.
    let gates = &t.ba[key_head * 2 * ratio..(key_head + 1) * 2 * ratio];
    let beta = 1.0 / (1.0 + (-gates[within]).exp());
    let decay = (-small.a[head] * softplus(gates[ratio + within] + small.dt_bias[head])).exp();
    let scale = 1.0 / (d.key_dim as f32).sqrt();

    // The sums are f64: in f32, what their order is worth grows from token to token.
    let mut memory = vec![0.0f64; d.value_dim];
    for (row, k) in state.chunks_exact_mut(d.value_dim).zip(&k) {
        for (s, m) in row.iter_mut().zip(&mut memory) {
            *s *= decay;
            *m += f64::from(*s) * f64::from(*k);
        }
    }
    let correction: Vec<f32> = v.iter().zip(&memory).map(|(v, m)| (f64::from(*v) - m) as f32 * beta).collect();
    let mut out = vec![0.0f64; d.value_dim];
    for (row, (k, q)) in state.chunks_exact_mut(d.value_dim).zip(k.iter().zip(&q)) {
        let q = f64::from(q * scale);
        for ((s, c), o) in row.iter_mut().zip(&correction).zip(&mut out) {
            *s += k * c;
            *o += f64::from(*s) * q;
        }
    }
    let mean = out.iter().map(|o| o * o).sum::<f64>() / d.value_dim as f64;
    let inverse = 1.0 / (mean + f64::from(small.eps)).sqrt();
    let start = key_head * (2 * d.key_dim + 2 * values_per_key(d)) + 2 * d.key_dim + values_per_key(d);
    let z = &t.qkvz[start + within * d.value_dim..start + (within + 1) * d.value_dim];
    out.iter().zip(small.norm).zip(z).map(|((o, w), z)| w * (o * inverse) as f32 * silu(*z)).collect()
}

fn normalized(x: &[f32]) -> Vec<f32> {
    let squares: f64 = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    let inverse = 1.0 / (squares + L2_EPS).sqrt();
    x.iter().map(|v| (f64::from(*v) * inverse) as f32).collect()
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// ln(1 + e^x); linear beyond 20, as torch has it.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}
