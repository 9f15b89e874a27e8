//! A planned refit: every question to the patches is answered and checked; then the weights are staged.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use patchhost_kernels::cast::CastReport;
use rayon::prelude::*;

use super::cast::{Job, Staged};
use super::declared::{Declared, OfConfig, dtype};
use super::partial::Stayed;
use super::report::{Outcome, RefitReport, TensorOutcome};
use super::{MaskHook, RefitHooks, remarks};
use crate::activation::{Activation, ActivationMode};
use crate::checkpoint::{Checkpoint, CheckpointTensor};
use crate::copies::TiedHead;
use crate::error::{Refusal, Result, RuntimeError};
use crate::hooks::{Consumer, Decision, Dtype, Elem, LayoutPass, ModelInfo, Role, Scheme, TensorInfo};
use crate::layout;
use crate::plan::{Action, AllowUnknown, Dest, ExpertLoaders, Plan};
use crate::quantize::{edges_name, grid};
use crate::registry::{ParamDecl, Registry};
use crate::weights::{Ingredients, Matrix, Part, WeightSet};

/// Called while a refit goes on: (tensors done, tensors in all, name of the last).
pub type Progress<'a> = &'a (dyn Fn(usize, usize, &str) + Sync);
/// Why a tensor of an expert that another rank holds is not loaded.
const NOT_LOCAL: &str = "its expert is held by another rank of the expert-parallel group";

/// What an engine brings to each of its refits.
#[derive(Clone)]
pub struct Setup<'a> {
    /// The runtime tensors.
    pub registry: &'a Registry,
    /// What patches are told about the model.
    pub model: &'a ModelInfo,
    /// Who may load fused experts natively.
    pub experts: ExpertLoaders,
    /// The experts that are held, where it is not all of them.
    pub local_experts: Option<Range<usize>>,
    /// Names that a checkpoint may have although the model does not know them.
    pub allow_unknown: &'a AllowUnknown,
    /// What is done with a head that differs from the embedding to which config.json ties it.
    pub tied_head: TiedHead,
    /// The element types that the model is declared in, from its first load on.
    pub(crate) declared: Option<&'a Declared>,
    /// Rows of the output.
    pub vocab: u32,
}

/// A planned refit: placements, decisions and layout passes are known, no weight has been touched.
pub struct Planned<'a> {
    setup: Setup<'a>,
    checkpoint: &'a Checkpoint,
    plan: Plan,
    /// One per checkpoint tensor; `None` where it is not loaded.
    decisions: Vec<Option<Decision>>,
    /// One list per runtime tensor.
    passes: Vec<Vec<LayoutPass>>,
    /// What somebody should know of the answers.
    remarks: Vec<String>,
    /// What a partial update left as it was.
    stayed: Option<Arc<Stayed>>,
}

/// Who reads what the runtime publishes: it does, itself.
fn reader() -> Consumer {
    Consumer { engine: "patchhost".into(), version: env!("CARGO_PKG_VERSION").into() }
}

/// Answers about the model as a whole. `explain` throws them away, so that a candidate is probed by all that a refit asks.
pub(crate) struct OfModel {
    /// Token ids that are never sampled: ascending, disjoint.
    masked: Vec<Range<u32>>,
    /// What somebody should know of the answers.
    pub(crate) remarks: Vec<String>,
}

impl<'a> Planned<'a> {
    /// Asks the patches where tensors go, what becomes FP8 and which layout it gets, and checks the answers.
    pub fn new(setup: Setup<'a>, checkpoint: &'a Checkpoint, hooks: &RefitHooks) -> Result<Self> {
        let plan = Plan::new(&setup, checkpoint, hooks.loader.as_deref())?;
        let mut remarks: Vec<String> = remarks::placements(&plan, checkpoint, hooks)?.into_iter().collect();
        let decisions = decide(&setup, checkpoint, &plan, hooks)?;
        remarks.extend(remarks::edges(&decisions, checkpoint, hooks));
        let mut planned = Self { setup, checkpoint, plan, decisions, passes: Vec::new(), remarks, stayed: None };
        planned.passes = planned.layout(hooks)?;
        Ok(planned)
    }

    /// The same of a partial update, which left these tensors as they were.
    #[must_use]
    pub(super) fn keeping(mut self, stayed: Option<&Arc<Stayed>>) -> Self {
        self.stayed = stayed.cloned();
        self
    }

    fn came(&self, name: &str) -> bool {
        self.stayed.as_ref().is_none_or(|stayed| !stayed.has(name))
    }

    /// What somebody should know of the answers about the tensors, although they are followed.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// The passes of each runtime tensor, checked.
    fn layout(&self, hooks: &RefitHooks) -> Result<Vec<Vec<LayoutPass>>> {
        let params = self.setup.registry.params();
        let Some(layout) = &hooks.layout else { return Ok(vec![Vec::new(); params.len()]) };
        let dtypes = self.published();
        let infos: Vec<TensorInfo> =
            params.iter().zip(&dtypes).map(|(decl, dtype)| TensorInfo { dtype: *dtype, ..decl.info() }).collect();
        let passes = layout.passes(self.setup.model, &reader(), &infos)?;
        for ((decl, passes), dtype) in params.iter().zip(&passes).zip(&dtypes) {
            layout::check(layout.name(), decl, passes, *dtype == Dtype::F8E4m3)?;
        }
        Ok(passes)
    }

    /// The dtype that each runtime tensor is published in: FP8 where all its parts are, else that of the first other.
    fn published(&self) -> Vec<Dtype> {
        let mut dtypes: Vec<Option<Dtype>> = vec![None; self.setup.registry.params().len()];
        for ((tensor, action), decision) in self.checkpoint.tensors().zip(&self.plan.actions).zip(&self.decisions) {
            let Action::Load { dests, .. } = action else { continue };
            let dtype = match decision {
                Some(Decision::Quantize(_)) => Dtype::F8E4m3,
                _ => self.setup.loaded_as(tensor, dests),
            };
            for d in dests {
                let of_param = &mut dtypes[d.param];
                if of_param.is_none_or(|before| before == Dtype::F8E4m3) {
                    *of_param = Some(dtype);
                }
            }
        }
        dtypes.into_iter().map(|d| d.unwrap_or(Dtype::Other)).collect()
    }

    /// A tensor that comes less precise than it is declared has lost bits: a trainer that casts everything to bf16 would turn
    /// an f32 router into another one, silently.
    pub(super) fn refuse_narrowed(&self) -> Result<()> {
        let Setup { registry, declared, .. } = self.setup;
        let came = |name: &str| self.came(name);
        declared.map_or(Ok(()), |d| d.refuse_narrowed(registry, self.checkpoint, &self.plan.actions, &came))
    }

    /// The types that the model is declared in if this is its first load.
    pub(super) fn declares(&self, config: OfConfig) -> Declared {
        Declared::new(self.setup.registry, config, self.checkpoint, &self.plan.actions)
    }

    /// What becomes of each checkpoint tensor, in the checkpoint's order.
    pub fn outcomes(&self) -> Vec<TensorOutcome> {
        let all = self.checkpoint.tensors().zip(&self.plan.actions).zip(&self.decisions).enumerate();
        all.map(|(i, ((tensor, action), decision))| {
            let (role, target) = match action {
                Action::Load { role, dests, .. } => {
                    (*role, dests.first().map(|d| self.setup.registry.params()[d.param].name.clone()))
                }
                Action::Ignore(_) => (Role::Other, None),
                Action::Elsewhere(role) => (*role, None),
            };
            let t = info(tensor, role);
            let outcome = match (action, decision) {
                (Action::Ignore(reason), _) => Outcome::Ignored { reason: reason.clone() },
                (Action::Elsewhere(_), _) => Outcome::Ignored { reason: NOT_LOCAL.to_string() },
                (Action::Load { dests, .. }, Some(Decision::Quantize(scheme))) => Outcome::Quantized {
                    rule: scheme.rule.clone(),
                    profile: scheme.profile.clone(),
                    scale_name: format!("{}{}", tensor.name, scheme.scale_suffix),
                    scale_shape: scale_shape(&tensor.shape, dests, scheme),
                    block: [scheme.block_rows, scheme.block_cols],
                    edges: edges_name(scheme.cast.edges),
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
            let placed = self.plan.placed[i];
            let host_map = self.plan.elsewhere.get(&i).map(|elsewhere| elsewhere.host.clone());
            TensorOutcome { name: t.name, dtype: t.dtype, shape: t.shape, role, target, placed, host_map, outcome }
        })
        .collect()
    }

    /// Stages every tensor: reads, asks for scales, casts, and brings it into its layout. Nothing live is touched.
    pub fn stage(
        &self,
        version: u64,
        label: &str,
        hooks: &RefitHooks,
        progress: Progress<'_>,
    ) -> Result<(WeightSet, RefitReport)> {
        let started = std::time::Instant::now();
        let activation = self.activation(hooks)?;
        let OfModel { masked, remarks } = self.of_model(hooks)?;
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
                let (action, passes, setup) = (&self.plan.actions[*i], &self.passes, &self.setup);
                let job = Job { tensor, action, decision, hooks, passes, setup };
                let result = job.run();
                if result.is_err() {
                    failed.fetch_min(*i, Ordering::Relaxed);
                }
                progress(done.fetch_add(1, Ordering::Relaxed) + 1, total, &tensor.name);
                Some(result)
            })
            .collect();

        let registry = self.setup.registry;
        let mut report = RefitReport { version, label: label.to_string(), ..RefitReport::default() };
        let mut slots: Vec<Vec<Option<Part>>> = registry.params().iter().map(|p| vec![None; p.part_count()]).collect();
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
        report.notes.clone_from(&self.plan.notes);
        let notes = |d: &Declared| d.notes(self.checkpoint, &self.plan.actions, &|name| self.came(name));
        report.notes.extend(self.setup.declared.map(notes).unwrap_or_default());
        report.stayed = self.stayed.as_deref().cloned().map(Box::new);
        report.ignored = self.plan.actions.len() - total - self.plan.not_local;
        report.not_local = self.plan.not_local;
        for pass in self.passes.iter().flatten() {
            *report.layout.entry(*pass).or_default() += 1;
        }
        report.blocks_proved = sums.proved;
        report.saturated = sums.saturated;
        report.flushed = sums.flushed;
        report.non_finite = sums.non_finite;
        report.placed_elsewhere = self.plan.elsewhere.len();
        report.remarks = self.remarks.iter().cloned().chain(remarks).collect();
        report.relative_rmse = (sums.squared_sum > 0.0).then(|| (sums.squared_error / sums.squared_sum).sqrt());
        let made = Ingredients {
            version,
            label: label.to_string(),
            params: self.complete(slots)?,
            passes: self.passes.clone(),
            activation,
            local_experts: self.setup.local_experts.clone(),
            masked,
            origin: hooks.origin.clone(),
        };
        let set = WeightSet::new(registry, made);
        report.bytes_after = set.bytes() as u64;
        report.seconds = started.elapsed().as_secs_f64();
        Ok((set, report))
    }

    fn activation(&self, hooks: &RefitHooks) -> Result<Activation> {
        match (&hooks.quant, hooks.activation) {
            (None, _) | (_, ActivationMode::None) => Ok(Activation::None),
            (Some(quant), ActivationMode::Dynamic128) => match quant.activation(self.setup.model)? {
                Some(rule) => Activation::from_rule(quant.name(), rule),
                None => Ok(Activation::Call(quant.clone())),
            },
        }
    }

    /// Asks what a refit asks about the model as a whole, besides its tensors.
    pub(crate) fn of_model(&self, hooks: &RefitHooks) -> Result<OfModel> {
        let Some(MaskHook { patch, vocabulary }) = &hooks.mask else {
            return Ok(OfModel { masked: Vec::new(), remarks: Vec::new() });
        };
        let masked = patch.masked(self.setup.model, self.setup.vocab, *vocabulary)?;
        let remarks = remarks::mask(patch.name(), &masked, self.setup.vocab.min(*vocabulary))?;
        Ok(OfModel { masked, remarks })
    }

    /// The plan already proved that each part has exactly one writer; this proves that each writer wrote. Experts that
    /// are held elsewhere have empty parts.
    fn complete(&self, slots: Vec<Vec<Option<Part>>>) -> Result<Vec<Vec<Part>>> {
        let mut params = Vec::with_capacity(slots.len());
        for (decl, parts) in self.setup.registry.params().iter().zip(slots) {
            let mut complete = Vec::with_capacity(parts.len());
            for (i, part) in parts.into_iter().enumerate() {
                let elsewhere = || Part { rows: 0, cols: decl.cols.unwrap_or(1), matrix: Matrix::Bf16(Vec::new()) };
                let part = part.or_else(|| (!self.setup.is_local(decl, i)).then(elsewhere));
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
}

impl Setup<'_> {
    /// What the elements of a part are stored as that come as `elem`.
    pub fn stored(&self, dest: &Dest, elem: Elem) -> Elem {
        self.declared.map_or(elem, |declared| declared.stored(dest, elem))
    }

    /// The type in which a tensor is loaded: what it came in, or the type to which it is rounded.
    pub fn loaded_as(&self, tensor: &CheckpointTensor, dests: &[Dest]) -> Dtype {
        let (Some(elem), Some(dest)) = (tensor.elem(), dests.first()) else { return tensor.dtype() };
        dtype(self.stored(dest, elem))
    }

    /// Whether a part of a tensor is held here.
    pub(crate) fn is_local(&self, decl: &ParamDecl, part: usize) -> bool {
        match (&self.local_experts, decl.experts) {
            (Some(local), Some(_)) => local.contains(&(part / decl.parts.len())),
            _ => true,
        }
    }
}

/// What becomes FP8, as the patch says and the runtime can take it.
fn decide(
    setup: &Setup<'_>,
    checkpoint: &Checkpoint,
    plan: &Plan,
    hooks: &RefitHooks,
) -> Result<Vec<Option<Decision>>> {
    let mut decisions: Vec<Option<Decision>> = vec![None; plan.actions.len()];
    let loaded: Vec<(usize, TensorInfo)> = checkpoint
        .tensors()
        .zip(&plan.actions)
        .enumerate()
        .filter_map(|(i, (t, action))| match action {
            Action::Load { role, dests, .. } => {
                Some((i, TensorInfo { dtype: setup.loaded_as(t, dests), ..info(t, *role) }))
            }
            Action::Ignore(_) | Action::Elsewhere(_) => None,
        })
        .collect();
    let Some(quant) = &hooks.quant else {
        for (i, _) in &loaded {
            decisions[*i] = Some(Decision::Keep("no block-quant patch is loaded".to_string()));
        }
        return Ok(decisions);
    };
    let infos: Vec<TensorInfo> = loaded.iter().map(|(_, t)| t.clone()).collect();
    let answers = quant.decide(setup.model, &reader(), &infos)?;
    for ((i, tensor), decision) in loaded.iter().zip(answers) {
        if let Decision::Quantize(_) = &decision {
            quantizable(quant.name(), tensor)?;
        }
        decisions[*i] = Some(decision);
    }
    Ok(decisions)
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
