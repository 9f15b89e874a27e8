//! The engine: one model, its registry, and the live weights. State lives here and nowhere else, so that two models in
//! one process never share a decision.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;

use crate::checkpoint::Checkpoint;
use crate::config::RawConfig;
use crate::error::{Refusal, Result, RuntimeError};
use crate::families::Arch;
use crate::hooks::{Lora, ModelInfo};
use crate::lora::{Adapter, AdapterBuilder, Adapters};
use crate::model::Model;
use crate::plan::ExpertLoaders;
use crate::quant_config::QuantFormat;
use crate::refit::{Planned, Progress, RefitHooks, RefitReport, TensorOutcome};
use crate::registry::Registry;
use crate::weights::WeightSet;

/// How an engine is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineOptions {
    /// Play vLLM 0.8.2: the host can load fused experts once, then post-processing drops the loaders.
    pub simulate_loader_loss: bool,
    /// Widen FP8 weights of a checkpoint to bf16 when they are loaded, as transformers does on CPUs.
    pub dequantize: bool,
}

/// One model.
pub struct Engine {
    info: ModelInfo,
    registry: Registry,
    model: Model,
    options: EngineOptions,
    /// How the checkpoint that config.json belongs to is quantized.
    format: Option<QuantFormat>,
    loaders_lost: AtomicBool,
    versions: AtomicU64,
    /// One refit at a time.
    refitting: Mutex<()>,
    live: ArcSwapOption<WeightSet>,
    adapters: Adapters,
}

impl Engine {
    /// From the text of a config.json.
    pub fn new(config: &str, options: EngineOptions) -> Result<Self> {
        let raw = RawConfig::parse(config)?;
        let format = QuantFormat::read(&raw)?;
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
        Ok(Self {
            info,
            registry,
            model,
            options,
            format,
            loaders_lost: AtomicBool::new(false),
            versions: AtomicU64::new(0),
            refitting: Mutex::new(()),
            live: ArcSwapOption::empty(),
            adapters: Adapters::default(),
        })
    }

    /// From a model folder; its config.json is read.
    pub fn open(folder: &Path, options: EngineOptions) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| {
            RuntimeError::Config(Refusal::new(
                format!("`{}`", path.display()),
                e.to_string(),
                "give a Hugging Face model folder: config.json, tokenizer.json and *.safetensors",
            ))
        })?;
        Self::new(&text, options)
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
    fn readable(&self, checkpoint: &Checkpoint) -> Result<Checkpoint> {
        checkpoint.with_scales(self.format.as_ref(), self.options.dequantize)
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

    /// What a refit would do with each tensor.
    pub fn explain(&self, checkpoint: &Checkpoint, hooks: &RefitHooks) -> Result<Vec<TensorOutcome>> {
        let checkpoint = self.readable(checkpoint)?;
        Ok(Planned::new(&self.registry, &self.info, &checkpoint, hooks, self.expert_loaders())?.outcomes())
    }

    /// Stages weights without publishing them: for comparisons.
    pub fn stage(
        &self,
        checkpoint: &Checkpoint,
        hooks: &RefitHooks,
        progress: Progress<'_>,
    ) -> Result<(WeightSet, RefitReport)> {
        let checkpoint = self.readable(checkpoint)?;
        let planned = Planned::new(&self.registry, &self.info, &checkpoint, hooks, self.expert_loaders())?;
        planned.stage(self.versions.load(Ordering::Acquire) + 1, &self.info, hooks, progress)
    }

    /// Loads all weights and publishes them, or leaves the live ones untouched.
    pub fn refit(&self, checkpoint: &Checkpoint, hooks: &RefitHooks, progress: Progress<'_>) -> Result<RefitReport> {
        let _one = self.refitting.lock().unwrap_or_else(PoisonError::into_inner);
        let (set, report) = self.stage(checkpoint, hooks, progress)?;
        self.versions.store(report.version, Ordering::Release);
        self.live.store(Some(Arc::new(set)));
        // vLLM 0.8.2 loses the loaders here: post-processing makes new Parameter objects without them.
        self.loaders_lost.store(true, Ordering::Release);
        tracing::info!(
            version = report.version,
            quantized = report.quantized,
            seconds = report.seconds,
            "weights published"
        );
        Ok(report)
    }
}
