//! The engine: one model, its registry, and the live weights. State lives here and nowhere else, so that two models in
//! one process never share a decision.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;

use crate::checkpoint::Checkpoint;
use crate::config::RawConfig;
use crate::copies::{self, TiedHead};
use crate::error::{Refusal, Result, RuntimeError};
use crate::families::Arch;
use crate::files;
use crate::hooks::{Lora, ModelInfo};
use crate::lora::{Adapter, AdapterBuilder, Adapters};
use crate::model::Model;
use crate::pace::Pace;
use crate::plan::{AllowUnknown, ExpertLoaders};
use crate::quant_config::QuantFormat;
use crate::refit::declared::{Declared, OfConfig};
use crate::refit::{
    Arrivals, Begin, Planned, Progress, RefitHooks, RefitReport, Setup, Source, StagedRefit, TensorOutcome, Turn,
};
use crate::registry::Registry;
use crate::weights::WeightSet;

/// How an engine is made.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Play vLLM 0.8.2: the host can load fused experts once, then post-processing drops the loaders.
    pub simulate_loader_loss: bool,
    /// Widen FP8 weights of a checkpoint to bf16 when they are loaded, as transformers does on CPUs.
    pub dequantize: bool,
    /// Hold only the routed experts of one rank of an expert-parallel group; such an engine loads, and cannot run.
    pub expert_parallel: Option<ExpertParallel>,
    /// Names that a checkpoint may have although the model does not know them; all others are refused.
    pub allow_unknown: AllowUnknown,
    /// What is done with a head that differs from the embedding to which config.json ties it.
    pub tied_head: TiedHead,
    /// Take tensors that come less precise than the model is declared, from every sender.
    pub allow_narrowing: bool,
}

/// One rank of an expert-parallel group: rank r of n holds experts r·E/n .. (r+1)·E/n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertParallel {
    /// 0 to size - 1.
    pub rank: usize,
    /// Ranks of the group.
    pub size: usize,
}

/// One model.
pub struct Engine {
    info: ModelInfo,
    registry: Registry,
    model: Model,
    options: EngineOptions,
    /// How the checkpoint that config.json belongs to is quantized.
    format: Option<QuantFormat>,
    of_config: OfConfig,
    /// The element types that the model is declared in, once it was loaded.
    declared: OnceLock<Declared>,
    loaders_lost: AtomicBool,
    versions: AtomicU64,
    /// One refit at a time.
    turn: Turn,
    live: ArcSwapOption<WeightSet>,
    adapters: Adapters,
    pace: Pace,
}

impl Engine {
    /// From the text of a config.json. An environment that the kernels cannot follow (`PATCHHOST_THREADS=-1`) is refused.
    pub fn new(config: &str, options: EngineOptions) -> Result<Self> {
        patchhost_kernels::environment::check()?;
        let untied = match options.tied_head {
            TiedHead::File => Some(copies::untied(config)),
            TiedHead::Refuse | TiedHead::Embedding => None,
        };
        let raw = RawConfig::parse(untied.as_deref().unwrap_or(config))?;
        let format = QuantFormat::read(&raw)?;
        let of_config = OfConfig::read(&raw, format.is_some());
        let arch = Arch::from_config(&raw)?;
        let (registry, params) = Registry::new(&arch);
        let info = ModelInfo {
            architecture: arch.architecture.to_string(),
            model_type: arch.model_type.to_string(),
            layers: arch.common.layers as u32,
            experts: arch.experts() as u32,
            config: raw.text().to_string(),
        };
        let model = Model::new(&arch, params)?;
        if let Some(ExpertParallel { rank, size }) = options.expert_parallel
            && (rank >= size || size > arch.experts().max(1))
        {
            return Err(RuntimeError::Config(Refusal::new(
                format!("expert-parallel rank {rank} of {size}"),
                format!("the rank must be below the size, and the size at most the {} experts", arch.experts()),
                "give for example 0/2 for a model of 8 experts",
            )));
        }
        Ok(Self {
            info,
            registry,
            model,
            options,
            format,
            of_config,
            declared: OnceLock::new(),
            loaders_lost: AtomicBool::new(false),
            versions: AtomicU64::new(0),
            turn: Turn::default(),
            live: ArcSwapOption::empty(),
            adapters: Adapters::default(),
            pace: Pace::default(),
        })
    }

    /// From a model folder; its config.json is read.
    pub fn open(folder: &Path, options: EngineOptions) -> Result<Self> {
        let path = folder.join("config.json");
        let text = files::read_text(&path, files::CONFIG).map_err(|e| {
            RuntimeError::Config(Refusal::new(
                format!("`{}`", path.display()),
                e.to_string(),
                files::next_of(&e, "give a Hugging Face model folder: config.json, tokenizer.json and *.safetensors"),
            ))
        })?;
        Self::new(&text, options).map_err(|e| e.of_config(&path))
    }

    /// What patches are told about the model.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The tensor registry.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The forward pass.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Who is at work on this engine: decoding, and what goes on beside it.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// The adapters that are loaded now.
    pub fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    /// Checks an assembled adapter and publishes it under its name; sequences that run with an earlier version keep it.
    pub fn load_adapter(&self, builder: AdapterBuilder, patch: &dyn Lora) -> Result<Arc<Adapter>> {
        builder.finish(&self.registry, &self.info, patch, &self.adapters)
    }

    /// The weights that serve now.
    pub fn live(&self) -> Result<Arc<WeightSet>> {
        self.live.load_full().ok_or_else(|| {
            RuntimeError::Request(Refusal::new("a forward pass", "no weights have been published yet", "refit first"))
        })
    }

    /// The checkpoint as a refit takes it: FP8 weights paired with their scales, or widened. A trainer may send a model
    /// whose own files are FP8 in bf16: then there is nothing to pair.
    pub fn readable(&self, checkpoint: &Checkpoint) -> Result<Checkpoint> {
        self.with_scales(checkpoint, self.options.dequantize)
    }

    /// The same, widened or not as somebody says.
    pub fn with_scales(&self, checkpoint: &Checkpoint, dequantize: bool) -> Result<Checkpoint> {
        let spare = |name: &str| self.registry.is_beyond(name) || self.options.allow_unknown.allows(name).is_some();
        checkpoint.with_scales(self.format.as_ref(), dequantize, &spare)
    }

    /// All tensors after a partial update: those that came, and from `held` those that stay.
    pub fn over(&self, held: &Checkpoint, part: &Source) -> Result<Source> {
        part.over(held, Some(&self.registry))
    }

    /// How the model's own checkpoint is quantized.
    pub fn format(&self) -> Option<QuantFormat> {
        self.format
    }

    fn expert_loaders(&self) -> ExpertLoaders {
        match (self.options.simulate_loader_loss, self.loaders_lost.load(Ordering::Acquire)) {
            (false, _) => ExpertLoaders::Absent,
            (true, false) => ExpertLoaders::Native,
            (true, true) => ExpertLoaders::Lost,
        }
    }

    /// What this engine brings to a refit.
    pub fn setup(&self) -> Setup<'_> {
        Setup {
            registry: &self.registry,
            model: &self.info,
            experts: self.expert_loaders(),
            local_experts: self.local_experts(),
            allow_unknown: &self.options.allow_unknown,
            tied_head: self.options.tied_head,
            declared: self.declared.get(),
            vocab: u32::try_from(self.model.vocab()).unwrap_or(u32::MAX),
        }
    }

    fn local_experts(&self) -> Option<Range<usize>> {
        let group = self.options.expert_parallel?;
        let experts = self.info.experts as usize;
        Some(group.rank * experts / group.size..(group.rank + 1) * experts / group.size)
    }

    /// How many times weights were published.
    pub fn version(&self) -> u64 {
        self.versions.load(Ordering::Acquire)
    }

    /// Whether a refit is under way.
    pub fn is_refitting(&self) -> bool {
        self.turn.is_taken()
    }

    /// What a refit would do with each tensor. Every hook is asked that a refit asks about the model and its tensors, and each
    /// answer is checked; nothing is made of it.
    pub fn explain(&self, checkpoint: &Checkpoint, hooks: &RefitHooks) -> Result<Vec<TensorOutcome>> {
        self.explain_with_remarks(checkpoint, hooks).map(|(outcomes, _)| outcomes)
    }

    /// The same, with what a refit would remark.
    pub fn explain_with_remarks(
        &self,
        checkpoint: &Checkpoint,
        hooks: &RefitHooks,
    ) -> Result<(Vec<TensorOutcome>, Vec<String>)> {
        let checkpoint = self.readable(checkpoint)?;
        let planned = Planned::new(self.setup(), &checkpoint, hooks)?;
        let of_model = planned.of_model(hooks)?;
        Ok((planned.outcomes(), [planned.remarks(), &of_model.remarks].concat()))
    }

    /// Stages weights without publishing them: for comparisons.
    pub fn stage(
        &self,
        checkpoint: &Checkpoint,
        hooks: &RefitHooks,
        progress: Progress<'_>,
    ) -> Result<(WeightSet, RefitReport)> {
        let checkpoint = self.readable(checkpoint)?;
        let version = self.version() + 1;
        Planned::new(self.setup(), &checkpoint, hooks)?.stage(version, &version.to_string(), hooks, progress)
    }

    /// A place for the tensors of a refit. Nothing of the engine is taken until it is prepared.
    pub fn arrivals(&self, begin: Begin) -> Arrivals {
        Arrivals::new(begin, self.most_bytes())
    }

    /// Stages what arrived, unless another refit is under way. As often as somebody wants to try: nothing live is touched
    /// before it is published, and no other refit comes between.
    pub fn prepare(&self, source: &Source, hooks: &RefitHooks, progress: Progress<'_>) -> Result<StagedRefit<'_>> {
        let turn = self.turn.take().ok_or_else(|| {
            RuntimeError::Request(Refusal::new(
                format!("refit `{}`", source.begin().version.as_deref().unwrap_or("(unnamed)")),
                "another refit is under way; one at a time",
                "finish or abort it first",
            ))
        })?;
        StagedRefit::new(self, turn, source, hooks, progress)
    }

    /// Loads all weights and publishes them, or leaves the live ones untouched. Waits while another refit is under way.
    pub fn refit(&self, checkpoint: &Checkpoint, hooks: &RefitHooks, progress: Progress<'_>) -> Result<RefitReport> {
        let turn = self.turn.wait();
        let source = Arrivals::new(Begin::default(), usize::MAX).whole(checkpoint.clone())?;
        Ok(StagedRefit::new(self, turn, &source, hooks, progress)?.publish())
    }

    /// What a refit's tensors may take in memory: twice the model in f32 (a sender may widen, and send scales), and
    /// something for what is beyond the text model.
    pub fn most_bytes(&self) -> usize {
        let elements = self.registry.params().iter().map(|p| p.shape().iter().product::<usize>());
        elements.sum::<usize>().saturating_mul(8).saturating_add(4 << 30)
    }

    /// Declares the model in the types of another engine of it, in place of those of its own first load: what was pushed to
    /// that one then makes the same weights here.
    pub fn declared_as(&self, other: &Self) {
        if let Some(declared) = other.declared.get() {
            self.declared.get_or_init(|| declared.clone());
        }
    }

    pub(crate) fn of_config(&self) -> OfConfig {
        self.of_config
    }

    /// Whether tensors of a refit may come less precise than the model is declared.
    pub(crate) fn allows_narrowing(&self, begin: &Begin) -> bool {
        begin.allow_narrowing || self.options.allow_narrowing
    }

    pub(crate) fn publish(&self, set: WeightSet, report: &RefitReport, declares: Declared) {
        self.declared.get_or_init(|| declares);
        self.versions.store(report.version, Ordering::Release);
        self.live.store(Some(Arc::new(set)));
        for note in &report.notes {
            tracing::warn!(label = %report.label, "{note}");
        }
        // vLLM 0.8.2 loses the loaders here: post-processing makes new Parameter objects without them.
        self.loaders_lost.store(true, Ordering::Release);
        tracing::info!(
            version = report.version,
            label = %report.label,
            quantized = report.quantized,
            seconds = report.seconds,
            "weights published"
        );
        report.remarks.iter().for_each(|remark| tracing::warn!(version = report.version, "{remark}"));
    }
}
