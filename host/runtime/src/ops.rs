//! The kernels as candle custom ops. They take contiguous f32 on the CPU and refuse anything else.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, bail};
use patchhost_kernels::attention::{AttentionShape, attend};
use patchhost_kernels::linear::linear;
use rayon::prelude::*;

use crate::hooks::HookError;
use crate::lora::Adapter;
use crate::registry::ParamId;
use crate::weights::{Part, WeightSet};

/// One forward pass, as its operators see it.
#[derive(Default)]
pub(crate) struct Pass {
    /// Where an op leaves the error of a patch: candle's own error type would lose its kind.
    failure: Mutex<Option<HookError>>,
    /// The adapter of each row; empty where no row has one.
    adapters: Vec<Option<Arc<Adapter>>>,
}

impl Pass {
    /// A pass whose rows have these adapters.
    pub(crate) fn new(adapters: Vec<Option<Arc<Adapter>>>) -> Self {
        let adapters = if adapters.iter().all(Option::is_none) { Vec::new() } else { adapters };
        Self { failure: Mutex::default(), adapters }
    }

    /// The adapter of a row.
    pub(crate) fn adapter(&self, row: usize) -> Option<&Adapter> {
        self.adapters.get(row)?.as_deref()
    }

    pub(crate) fn fail(&self, e: HookError) -> candle_core::Error {
        let message = e.to_string();
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
        candle_core::Error::Msg(message)
    }

    pub(crate) fn take_failure(&self) -> Option<HookError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The values of a contiguous f32 tensor [rows, cols].
pub(crate) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<(&'a [f32], usize, usize)> {
    let CpuStorage::F32(all) = storage else { bail!("this op takes f32, not {:?}", storage) };
    let (rows, cols) = layout.shape().dims2()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok((&all[start..end], rows, cols)),
        None => bail!("this op takes contiguous tensors"),
    }
}

/// x [m, k] times the stacked parts of a runtime tensor, transposed: out [m, sum of rows].
pub(crate) struct LinearOp<'a> {
    pub(crate) weights: &'a WeightSet,
    pub(crate) param: ParamId,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) pass: &'a Pass,
}

impl CustomOp1 for LinearOp<'_> {
    fn name(&self) -> &'static str {
        "patchhost-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, m, k) = contiguous(storage, layout)?;
        let parts = self.weights.parts(self.param);
        let n: usize = parts.iter().map(|p| p.rows).sum();
        let mut out = vec![0.0; m * n];
        apply_parts(self.weights, parts, self.bias, x, m, k, &mut out).map_err(|e| self.pass.fail(e))?;
        for (row, out) in out.chunks_exact_mut(n).enumerate() {
            let Some(adapter) = self.pass.adapter(row) else { continue };
            let mut first = 0;
            for (i, part) in parts.iter().enumerate() {
                adapter.add(self.param, i, &x[row * k..(row + 1) * k], &mut out[first..first + part.rows]);
                first += part.rows;
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((m, n))))
    }
}

/// The same over slices. FP8 parts see quantized activations where the weights' activation mode says so.
pub(crate) fn apply_parts(
    weights: &WeightSet,
    parts: &[Part],
    bias: Option<&[f32]>,
    x: &[f32],
    m: usize,
    k: usize,
    out: &mut [f32],
) -> std::result::Result<(), HookError> {
    let n: usize = parts.iter().map(|p| p.rows).sum();
    let quantized = match parts.iter().any(|p| p.matrix.is_fp8()) {
        true => weights.activation().quantized(x, m, k)?,
        false => None,
    };
    let mut first = 0;
    for part in parts {
        let x = if part.matrix.is_fp8() { quantized.as_deref().unwrap_or(x) } else { x };
        let bias = bias.map(|b| &b[first..first + part.rows]);
        linear(x, m, k, part.matrix.view(), part.rows, bias, &mut out[first..], n);
        first += part.rows;
    }
    Ok(())
}

/// The rows of one sequence within a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    /// First row.
    pub(crate) row: usize,
    /// Positions before the step.
    pub(crate) past: usize,
    /// Rows.
    pub(crate) tokens: usize,
}

/// Causal attention of q [tokens, heads × head_dim] over each sequence's cache.
pub(crate) struct AttentionOp<'a> {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Factor of q · k.
    pub(crate) scale: f32,
    pub(crate) window: Option<usize>,
    pub(crate) spans: &'a [Span],
    /// Keys and values of each sequence.
    pub(crate) caches: Vec<(&'a [f32], &'a [f32])>,
}

impl CustomOp1 for AttentionOp<'_> {
    fn name(&self) -> &'static str {
        "patchhost-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (q, rows, width) = contiguous(storage, layout)?;
        let shape = AttentionShape { heads: self.heads, kv_heads: self.kv_heads, head_dim: self.head_dim };
        let mut out = vec![0.0; q.len()];
        let owner: Vec<(usize, usize)> = self
            .spans
            .iter()
            .enumerate()
            .flat_map(|(s, span)| (0..span.tokens).map(move |i| (s, span.past + i + 1)))
            .collect();
        out.par_chunks_mut(width).zip(q.par_chunks(width)).zip(owner).for_each(|((out, q), (sequence, len))| {
            let (keys, values) = self.caches[sequence];
            let first = self.window.map_or(0, |w| len.saturating_sub(w));
            attend(&shape, q, keys, values, first, len, self.scale, out);
        });
        Ok((CpuStorage::F32(out), Shape::from((rows, width))))
    }
}
