//! `patchhost explain`: what becomes of each tensor, and by which rule.

use patchhost_runtime::activation::ActivationMode;
use patchhost_runtime::engine::EngineOptions;
use patchhost_runtime::error::plain;
use patchhost_runtime::refit::{Outcome, TensorOutcome};

use super::args::{Format, ModelArgs, PatchArgs};
use super::export::ReaderArgs;
use super::output::json;
use super::session::{Model, Patches};
use crate::checkpoint::export::Entry;

/// Show what becomes of each tensor, and by which rule
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    patches: PatchArgs,
    /// As an export for this reader would decide: transformers, vllm@0.10, vllm@0.11, sglang, compressed-tensors, deepseek
    #[arg(long = "for", value_name = "READER")]
    reader: Option<String>,
    /// With --for: quantize matrices whose sizes are not multiples of the block, too
    #[arg(long, requires = "reader")]
    allow_partial_blocks: bool,
}

/// Runs the verb. Without a `--component` it explains the bundled `fp8_block`.
pub fn run(mut args: Args, format: Format) -> anyhow::Result<()> {
    if args.patches.components.is_empty() {
        args.patches.components.push("fp8_block".to_string());
    }
    let model = Model::open(&args.model, EngineOptions::default())?;
    let patches = Patches::load(&args.patches, &model.engine.info().architecture)?;
    let outcomes = match args.reader {
        None => model.engine.explain(&model.checkpoint, &patches.hooks(ActivationMode::None))?,
        Some(consumer) => {
            let reader = ReaderArgs { consumer, scale_format: None, allow_partial_blocks: args.allow_partial_blocks };
            let (plan, _) = reader.plan(&model, &patches, "explain --for")?;
            plan.warnings.iter().for_each(|w| errln!("warning: {w}"));
            plan.entries.iter().map(Entry::outcome).collect()
        }
    };
    if format == Format::Json {
        return json(&serde_json::json!({
            "model": model.name,
            "architecture": model.engine.info().architecture,
            "patch_set": patches.set().digest().to_string(),
            "patches": patches.ledger(),
            "tensors": outcomes,
        }));
    }
    outln!("model {} ({})", model.name, model.engine.info().architecture);
    let width = outcomes.iter().map(|o| o.name.len()).max().unwrap_or(0);
    let mut counts = [0usize; 4];
    for o in &outcomes {
        let (i, verdict) = verdict(o);
        counts[i] += 1;
        let role = serde_json::to_value(o.role)?;
        let dtype = serde_json::to_value(o.dtype)?;
        outln!(
            "{:width$}  {:13} {:5} {:16} {verdict}",
            plain(o.name.clone()),
            role.as_str().unwrap_or_default(),
            dtype.as_str().unwrap_or_default(),
            format!("{:?}", o.shape),
        );
    }
    let stored = if counts[3] > 0 { format!(", {} FP8 as stored", counts[3]) } else { String::new() };
    outln!("{} quantized, {} kept, {} ignored{stored}", counts[0], counts[1], counts[2]);
    patches.print_ledger();
    Ok(())
}

fn verdict(o: &TensorOutcome) -> (usize, String) {
    match &o.outcome {
        Outcome::Quantized { rule, profile, scale_name, scale_shape, block } => {
            let short = scale_name.strip_prefix(&o.name).unwrap_or(scale_name);
            (0, format!("quantized {profile} {}x{}, scale {short} {scale_shape:?}: {rule}", block[0], block[1]))
        }
        Outcome::AsStored { scale_name, scale_shape, scale_dtype, block, .. } => {
            let short = scale_name.strip_prefix(&o.name).unwrap_or(scale_name);
            (3, format!("FP8 as stored {}x{}, scale {short} {scale_dtype} {scale_shape:?}", block[0], block[1]))
        }
        Outcome::Kept { reason } => (1, format!("kept: {reason}")),
        Outcome::Ignored { reason } => (2, format!("ignored: {reason}")),
    }
}
