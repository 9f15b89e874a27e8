//! Generation with a model that was loaded by a real refit through the patch.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use patchhost::patch::{HookOptions, PatchSet, Sandbox};
use patchhost_runtime::activation::ActivationMode;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::generate::{Request, generate};
use patchhost_runtime::sampling::SamplingParams;
use patchhost_runtime::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// The model.
pub struct Work {
    engine: Engine,
    tokenizer: Tokenizer,
    /// Weights ask their patches about activations: these must live as long.
    _patches: PatchSet,
}

impl Work {
    /// Loads a model folder through the patch.
    pub fn load(
        sandbox: &Sandbox,
        folder: &Path,
        component: Option<&str>,
        weight_only: bool,
    ) -> anyhow::Result<(Self, Value)> {
        let started = Instant::now();
        let names = component.into_iter().chain(["moe_loader"]);
        let patches = names.map(|name| super::ready(sandbox, name, &[])).collect::<anyhow::Result<Vec<_>>>()?;
        let patches = PatchSet::new(patches)?;
        let patches_s = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let engine = Engine::open(folder, EngineOptions::default())?;
        let checkpoint = Checkpoint::open(folder)?;
        let activation = if weight_only { ActivationMode::None } else { ActivationMode::Dynamic128 };
        let hooks = patches.hooks(HookOptions { activation, ..HookOptions::default() });
        let report = engine.refit(&checkpoint, &hooks, &|_, _, _| {})?;
        let tokenizer = Tokenizer::open(folder)?;
        let about = json!({
            "patches_s": patches_s,
            "load_s": started.elapsed().as_secs_f64(),
            "refit_s": report.seconds,
            "bytes": report.bytes_after,
            "quantized": report.quantized,
        });
        Ok((Self { engine, tokenizer, _patches: patches }, about))
    }

    /// Generates, greedily, and says how long the prompts and the rest took.
    pub fn run(&self, job: &Value) -> anyhow::Result<Value> {
        let prompts: Vec<Vec<u32>> = serde_json::from_value(job["prompts"].clone()).context("`prompts`: token ids")?;
        let max_tokens = super::number(job, "new")?;
        let requests: Vec<Request> = prompts
            .into_iter()
            .map(|prompt| Request {
                prompt,
                max_tokens,
                sampling: SamplingParams::default(),
                stop: Vec::new(),
                adapter: None,
            })
            .collect();
        let live = self.engine.live()?;
        let (done, timing) = generate(self.engine.model(), &live, &self.tokenizer, &requests, &mut |_, _| {})?;
        Ok(json!({
            "prefill_s": timing.prefill_seconds,
            "decode_s": timing.decode_seconds,
            "tokens": done.iter().map(|c| &c.token_ids).collect::<Vec<_>>(),
        }))
    }
}
