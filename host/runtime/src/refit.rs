//! A refit: checkpoint tensors into a new set of weights. Everything is staged apart from the live weights and published
//! by one pointer exchange; an error at any point leaves the live weights as they were.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use patchhost_kernels::cast::CastReport;
use patchhost_kernels::e4m3::contains_nan_code;
use rayon::prelude::*;

use crate::activation::{Activation, ActivationMode};
use crate::bytes::TensorBytes;
use crate::checkpoint::{Checkpoint, CheckpointTensor};
use crate::error::{Refusal, Result, RuntimeError};
use crate::fp8::BlockScale;
use crate::hooks::{
    BlockQuant, Consumer, Decision, Dtype, Layout, LoaderMap, ModelInfo, RefitObserver, Role, Scheme, TensorInfo,
};
use crate::plan::{Action, Dest, ExpertLoaders, Plan};
use crate::quantize::{Input, grid, quantize};
use crate::registry::Registry;
use crate::weights::{Matrix, Part, WeightSet};

/// The patches of one refit: one set for all of it.
#[derive(Clone, Default)]
pub struct RefitHooks {
    /// Where tensors go; none: only what the host itself can load.
    pub loader: Option<Arc<dyn LoaderMap>>,
    /// What becomes FP8; none: nothing.
    pub quant: Option<Arc<dyn BlockQuant>>,
    /// Treatment of activations before FP8 matrices.
    pub activation: ActivationMode,
    /// Which layout the published weights have; none: the plain one.
    pub layout: Option<Arc<dyn Layout>>,
    /// Who watches refits, in order; each may veto.
    pub observers: Vec<Arc<dyn RefitObserver>>,
}

/// What became of one checkpoint tensor.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TensorOutcome {
    /// Checkpoint name.
    pub name: String,
    /// Stored element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<u64>,
    /// Role in the registry.
    pub role: Role,
    /// Runtime tensor, where it is loaded.
    pub target: Option<String>,
    /// Kept, quantized or ignored.
    pub outcome: Outcome,
}

/// Kept, quantized or ignored, and why.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Outcome {
    /// Not loaded.
    Ignored {
        /// Why.
        reason: String,
    },
    /// FP8 in the checkpoint, its bytes and scales used as they are.
    AsStored {
        /// Why it is not quantized anew.
        reason: String,
        /// Name of its scale tensor.
        scale_name: String,
        /// How that is stored.
        scale_dtype: String,
        /// Dimensions of the scale tensor.
        scale_shape: Vec<usize>,
        /// Block rows and columns.
        block: [usize; 2],
    },
    /// Loaded as it is.
    Kept {
        /// Why it is not quantized.
        reason: String,
    },
    /// Quantized.
    Quantized {
        /// By which rule.
        rule: String,
        /// With which arithmetic.
        profile: String,
        /// Name of its scale tensor.
        scale_name: String,
        /// Dimensions of the scale tensor.
        scale_shape: Vec<usize>,
        /// Block rows and columns.
        block: [usize; 2],
    },
}

/// What a refit did.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct RefitReport {
    /// Number of this publish, from 1.
    pub version: u64,
    /// Tensors that became FP8.
    pub quantized: usize,
    /// Tensors loaded as they were.
    pub kept: usize,
    /// FP8 tensors of the checkpoint whose bytes are used as they are.
    pub as_stored: usize,
    /// Tensors that were deliberately not loaded.
    pub ignored: usize,
    /// Bytes of the loaded tensors in the checkpoint.
    pub bytes_before: u64,
    /// Bytes of the published weights.
    pub bytes_after: u64,
    /// Relative root mean square error of the quantized weights; `None` where nothing was quantized.
    pub relative_rmse: Option<f64>,
    /// Values that were clipped to ±448 times the scale.
    pub saturated: u64,
    /// Values other than zero that became zero.
    pub flushed: u64,
    /// Elements of the quantized tensors.
    pub quantized_elements: u64,
    /// Wall time.
    pub seconds: f64,
}

/// Called while a refit goes on: (tensors done, tensors in all, name of the last).
pub type Progress<'a> = &'a (dyn Fn(usize, usize, &str) + Sync);

/// A planned refit: placements and decisions are known, no weight has been touched.
pub struct Planned<'a> {
    registry: &'a Registry,
    checkpoint: &'a Checkpoint,
    plan: Plan,
    /// One per checkpoint tensor; `None` where it is not loaded.
    decisions: Vec<Option<Decision>>,
}

impl<'a> Planned<'a> {
    /// Asks the patches where tensors go and what becomes FP8, and checks the answers.
    pub fn new(
        registry: &'a Registry,
        model: &ModelInfo,
        checkpoint: &'a Checkpoint,
        hooks: &RefitHooks,
        experts: ExpertLoaders,
    ) -> Result<Self> {
        if let Some(layout) = &hooks.layout {
            return Err(RuntimeError::Refit(Refusal::new(
                format!("layout patch `{}`", layout.name()),
                "this version of the runtime applies no layout passes, and ignoring them would be silent",
                "leave the patch out",
            )));
        }
        let plan = Plan::new(registry, model, checkpoint, hooks.loader.as_deref(), experts)?;
        let mut decisions: Vec<Option<Decision>> = vec![None; plan.actions.len()];
        let loaded: Vec<(usize, TensorInfo)> = checkpoint
            .tensors()
            .zip(&plan.actions)
            .enumerate()
            .filter_map(|(i, (t, action))| match action {
                Action::Load { role, .. } => Some((i, info(t, *role))),
                Action::Ignore(_) => None,
            })
            .collect();
        match &hooks.quant {
            None => {
                for (i, _) in &loaded {
                    decisions[*i] = Some(Decision::Keep("no block-quant patch is loaded".to_string()));
                }
            }
            Some(quant) => {
                let reader = Consumer { engine: "patchhost".into(), version: env!("CARGO_PKG_VERSION").into() };
                let infos: Vec<TensorInfo> = loaded.iter().map(|(_, t)| t.clone()).collect();
                let answers = quant.decide(model, &reader, &infos)?;
                for ((i, tensor), decision) in loaded.iter().zip(answers) {
                    if let Decision::Quantize(_) = &decision {
                        quantizable(quant.name(), tensor)?;
                    }
                    decisions[*i] = Some(decision);
                }
            }
        }
        Ok(Self { registry, checkpoint, plan, decisions })
    }

    /// What becomes of each checkpoint tensor, in the checkpoint's order.
    pub fn outcomes(&self) -> Vec<TensorOutcome> {
        let all = self.checkpoint.tensors().zip(&self.plan.actions).zip(&self.decisions);
        all.map(|((tensor, action), decision)| {
            let (role, target) = match action {
                Action::Load { role, dests, .. } => {
                    (*role, dests.first().map(|d| self.registry.params()[d.param].name.clone()))
                }
                Action::Ignore(_) => (Role::Other, None),
            };
            let t = info(tensor, role);
            let outcome = match (action, decision) {
                (Action::Ignore(reason), _) => Outcome::Ignored { reason: reason.clone() },
                (Action::Load { dests, .. }, Some(Decision::Quantize(scheme))) => Outcome::Quantized {
                    rule: scheme.rule.clone(),
                    profile: scheme.profile.clone(),
                    scale_name: format!("{}{}", tensor.name, scheme.scale_suffix),
                    scale_shape: scale_shape(&tensor.shape, dests, scheme),
                    block: [scheme.block_rows, scheme.block_cols],
                },
                (_, Some(Decision::Keep(reason))) if let Some(scale) = &tensor.scale => Outcome::AsStored {
                    reason: reason.clone(),
                    scale_name: scale.name.clone(),
                    scale_dtype: format!("{:?}", scale.stored),
                    scale_shape: scale.shape.clone(),
                    block: scale.block,
                },
                (_, Some(Decision::Keep(reason))) => Outcome::Kept { reason: reason.clone() },
                (_, None) => Outcome::Kept { reason: String::new() },
            };
            TensorOutcome { name: t.name, dtype: t.dtype, shape: t.shape, role, target, outcome }
        })
        .collect()
    }

    /// Stages every tensor: reads, asks for scales, casts. Nothing live is touched.
    pub fn stage(
        &self,
        version: u64,
        model: &ModelInfo,
        hooks: &RefitHooks,
        progress: Progress<'_>,
    ) -> Result<(WeightSet, RefitReport)> {
        let started = std::time::Instant::now();
        let activation = self.activation(model, hooks)?;
        let total = self.decisions.iter().flatten().count();
        let done = AtomicUsize::new(0);
        // The first tensor that failed. Later ones are skipped, earlier ones are not: the error must not depend on timing.
        let failed = AtomicUsize::new(usize::MAX);
        let tensors: Vec<(usize, &CheckpointTensor)> = self.checkpoint.tensors().enumerate().collect();
        let staged: Vec<Option<Result<Staged>>> = tensors
            .par_iter()
            .map(|(i, tensor)| {
                let decision = self.decisions[*i].as_ref()?;
                if *i > failed.load(Ordering::Relaxed) {
                    return None;
                }
                let result = self.one_tensor(tensor, &self.plan.actions[*i], decision, hooks);
                if result.is_err() {
                    failed.fetch_min(*i, Ordering::Relaxed);
                }
                progress(done.fetch_add(1, Ordering::Relaxed) + 1, total, &tensor.name);
                Some(result)
            })
            .collect();

        let mut report = RefitReport { version, ..RefitReport::default() };
        let mut slots: Vec<Vec<Option<Part>>> =
            self.registry.params().iter().map(|p| vec![None; p.part_count()]).collect();
        let mut sums = CastReport::default();
        for (i, staged) in staged.into_iter().enumerate() {
            let Some(staged) = staged else { continue };
            let staged = staged?;
            report.bytes_before += tensors[i].1.data.len() as u64;
            match &self.decisions[i] {
                Some(Decision::Quantize(_)) => report.quantized += 1,
                _ if tensors[i].1.scale.is_some() => report.as_stored += 1,
                _ => report.kept += 1,
            }
            sums += staged.report;
            for (dest, part) in staged.parts {
                if part.matrix.is_fp8() && matches!(self.decisions[i], Some(Decision::Quantize(_))) {
                    report.quantized_elements += (part.rows * part.cols) as u64;
                }
                slots[dest.param][dest.part] = Some(part);
            }
        }
        report.ignored = self.plan.actions.len() - total;
        report.saturated = sums.saturated;
        report.flushed = sums.flushed;
        report.relative_rmse = (sums.squared_sum > 0.0).then(|| (sums.squared_error / sums.squared_sum).sqrt());
        let params = self.complete(slots)?;
        let set = WeightSet::new(self.registry, version, params, activation)?;
        report.bytes_after = set.bytes() as u64;
        report.seconds = started.elapsed().as_secs_f64();
        Ok((set, report))
    }

    fn activation(&self, model: &ModelInfo, hooks: &RefitHooks) -> Result<Activation> {
        match (&hooks.quant, hooks.activation) {
            (None, _) | (_, ActivationMode::None) => Ok(Activation::None),
            (Some(quant), ActivationMode::Dynamic128) => match quant.activation(model)? {
                Some(rule) => Activation::from_rule(quant.name(), rule),
                None => Ok(Activation::Call(quant.clone())),
            },
        }
    }

    /// The plan already proved that each part has exactly one writer; this proves that each writer wrote.
    fn complete(&self, slots: Vec<Vec<Option<Part>>>) -> Result<Vec<Vec<Part>>> {
        let mut params = Vec::with_capacity(slots.len());
        for (decl, parts) in self.registry.params().iter().zip(slots) {
            let mut complete = Vec::with_capacity(parts.len());
            for (i, part) in parts.into_iter().enumerate() {
                complete.push(part.ok_or_else(|| {
                    RuntimeError::Refit(Refusal::new(
                        format!("{} of `{}`", decl.part_label(i), decl.name),
                        "it was planned but never written",
                        "please report this; the old weights keep serving",
                    ))
                })?);
            }
            params.push(complete);
        }
        Ok(params)
    }

    fn one_tensor(
        &self,
        tensor: &CheckpointTensor,
        action: &Action,
        decision: &Decision,
        hooks: &RefitHooks,
    ) -> Result<Staged> {
        let mut staged = Staged { parts: Vec::new(), report: CastReport::default() };
        let Action::Load { dests, transposed, .. } = action else { return Ok(staged) };
        let internal = |why: &str| {
            RuntimeError::Checkpoint(Refusal::new(format!("tensor `{}`", tensor.name), why, "check the checkpoint"))
        };
        if let Some(scale) = &tensor.scale {
            return stored_fp8(tensor, scale, dests, *transposed);
        }
        let elem = tensor.elem().ok_or_else(|| internal("not a float tensor"))?;
        let data = match *transposed {
            None => tensor.data.clone(),
            Some((n, rows, cols)) => {
                transpose(&tensor.data, n, rows, cols, elem.size()).ok_or_else(|| internal("short data"))?
            }
        };
        for dest in dests {
            let start = dest.offset * elem.size();
            let end = start + dest.rows * dest.cols * elem.size();
            let bytes = data.slice(start..end).ok_or_else(|| internal("its data is shorter than its shape"))?;
            let matrix = match (decision, &hooks.quant) {
                (Decision::Quantize(scheme), Some(quant)) => {
                    let input = Input { name: &tensor.name, data: bytes, elem, rows: dest.rows, cols: dest.cols };
                    let made = quantize(&input, scheme, quant.as_ref(), true)?;
                    if contains_nan_code(&made.q) {
                        return Err(RuntimeError::NonFinite(Refusal::new(
                            format!("tensor `{}`", tensor.name),
                            "its FP8 codes hold NaN under the chosen edge policy; a model with NaN weights cannot be served",
                            "repair the weight (edges=strict names it); `patchhost quantize` can still write such files",
                        )));
                    }
                    staged.report += made.report;
                    Matrix::Fp8 {
                        q: made.q,
                        scales: made.scales,
                        block_rows: scheme.block_rows,
                        block_cols: scheme.block_cols,
                    }
                }
                _ => {
                    let mut matrix = Matrix::staging(elem, dest.rows * dest.cols);
                    matrix.fill(&bytes);
                    matrix
                }
            };
            staged.parts.push((*dest, Part { rows: dest.rows, cols: dest.cols, matrix }));
        }
        Ok(staged)
    }
}

struct Staged {
    parts: Vec<(Dest, Part)>,
    report: CastReport,
}

/// A tensor as the block-quant patch sees it.
pub fn info(tensor: &CheckpointTensor, role: Role) -> TensorInfo {
    TensorInfo {
        name: tensor.name.clone(),
        dtype: tensor.dtype(),
        shape: tensor.shape.iter().map(|d| *d as u64).collect(),
        role,
    }
}

/// The runtime's own limits, whatever a patch decides: vectors and the embedding table are not matrices of a GEMM.
fn quantizable(patch: &str, tensor: &TensorInfo) -> Result<()> {
    let why = match (tensor.role, tensor.shape.len()) {
        _ if tensor.dtype == Dtype::F8E4m3 => {
            "it is FP8 already, and quantizing it anew would change it silently; load it with --dequantize for that"
        }
        (Role::Embedding, _) => "an embedding table is looked up, not multiplied; the runtime does not take it in FP8",
        (_, 0 | 1) => "only matrices can be quantized in blocks",
        _ => return Ok(()),
    };
    Err(RuntimeError::Refit(Refusal::new(
        format!("tensor `{}`", tensor.name),
        format!("patch `{patch}` wants it in FP8, but {why}"),
        "take it out of the patch's settings (quantize=…)",
    )))
}

/// Dimensions of the scale tensor of a checkpoint tensor. A fused [2I, H] tensor has the grids of its halves, stacked.
fn scale_shape(shape: &[usize], dests: &[Dest], scheme: &Scheme) -> Vec<usize> {
    let cols = dests.first().map_or(0, |d| grid(d.rows, d.cols, scheme).1);
    let rows: usize = dests.iter().map(|d| grid(d.rows, d.cols, scheme).0).sum();
    match shape {
        [experts, _, _] if *experts > 0 => vec![*experts, rows / experts, cols],
        _ => vec![rows, cols],
    }
}

/// FP8 weights of the checkpoint: bytes and scales as they are, split into parts, transposed together.
fn stored_fp8(
    tensor: &CheckpointTensor,
    scale: &BlockScale,
    dests: &[Dest],
    transposed: Option<(usize, usize, usize)>,
) -> Result<Staged> {
    let refuse = |why: String| {
        RuntimeError::Refit(Refusal::new(format!("tensor `{}`", tensor.name), why, "load the model with --dequantize"))
    };
    let short = || refuse("its data is shorter than its shape".to_string());
    if contains_nan_code(&tensor.data) {
        return Err(RuntimeError::NonFinite(Refusal::new(
            format!("tensor `{}`", tensor.name),
            "its FP8 codes hold NaN; a model with NaN weights cannot be served",
            "repair the weight",
        )));
    }
    let [mut block_rows, mut block_cols] = scale.block;
    let (n, mut rows, mut cols) = match tensor.shape[..] {
        [n, rows, cols] => (n, rows, cols),
        [rows, cols] => (1, rows, cols),
        _ => return Err(short()),
    };
    let (mut data, mut scales) = (tensor.data.clone(), scale.values.clone());
    if transposed.is_some() {
        let (grid_rows, grid_cols) = (rows.div_ceil(block_rows), cols.div_ceil(block_cols));
        data = transpose(&data, n, rows, cols, 1).ok_or_else(short)?;
        let bytes: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let turned = transpose(&bytes, n, grid_rows, grid_cols, 4).ok_or_else(short)?;
        scales = turned.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        (rows, cols) = (cols, rows);
        (block_rows, block_cols) = (block_cols, block_rows);
    }
    let (grid_rows, grid_cols) = (rows.div_ceil(block_rows), cols.div_ceil(block_cols));
    let mut staged = Staged { parts: Vec::new(), report: CastReport::default() };
    for dest in dests {
        let (matrix, first) = (dest.offset / (rows * cols).max(1), dest.offset / cols.max(1) % rows.max(1));
        if !first.is_multiple_of(block_rows) {
            return Err(refuse(format!(
                "a part of it begins at row {first}, which is no multiple of the block's {block_rows} rows"
            )));
        }
        let from = matrix * grid_rows + first / block_rows;
        let count = dest.rows.div_ceil(block_rows);
        let part_scales = scales.get(from * grid_cols..(from + count) * grid_cols).ok_or_else(short)?.to_vec();
        let q = data.slice(dest.offset..dest.offset + dest.rows * dest.cols).ok_or_else(short)?.to_vec();
        let matrix = Matrix::Fp8 { q, scales: part_scales, block_rows, block_cols };
        staged.parts.push((*dest, Part { rows: dest.rows, cols: dest.cols, matrix }));
    }
    Ok(staged)
}

/// `n` matrices of `rows` × `cols` elements of `size` bytes, each transposed.
fn transpose(data: &[u8], n: usize, rows: usize, cols: usize, size: usize) -> Option<TensorBytes> {
    let each = rows * cols * size;
    if data.len() != n * each {
        return None;
    }
    let mut out = vec![0u8; data.len()];
    for (from, to) in data.chunks_exact(each.max(1)).zip(out.chunks_exact_mut(each.max(1))) {
        for r in 0..rows {
            for c in 0..cols {
                let (f, t) = ((r * cols + c) * size, (c * rows + r) * size);
                to[t..t + size].copy_from_slice(&from[f..f + size]);
            }
        }
    }
    let len = out.len();
    TensorBytes::new(Arc::new(out), 0..len)
}
