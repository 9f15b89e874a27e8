//! What the verb prints.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::super::failure::Result;
use super::Args;
use crate::cmd::args::Format;
use crate::cmd::live::Started;
use crate::cmd::output::{count, duration, json, plural};
use crate::cmd::session::LedgerRow;
use crate::patch::{Applicability, Patch};
use crate::train::metrics::{Point, Record, Swap};
use crate::train::plot::{short, verdict};
use crate::train::rollout::Sample;
use crate::train::{Task, Trainer};

#[derive(Debug, Serialize)]
struct Summary {
    verdict: String,
    model: String,
    architecture: String,
    parameters: usize,
    task: Task,
    seed: u64,
    steps: u64,
    resumed_at: Option<u64>,
    /// Mean reward of the first and of the last quarter of the steps.
    reward: Option<(f64, f64)>,
    k3_kl: Option<f64>,
    swaps: Vec<(u64, Swap)>,
    patch_set: Option<String>,
    patches: Vec<LedgerRow>,
    master_sha256: String,
    checkpoint: Option<PathBuf>,
    seconds: f64,
}

pub(super) fn k3(record: &Record) -> f64 {
    record.mismatch.get("rollout_corr/k3_kl").unwrap_or(f64::NAN)
}

pub(super) fn title(started: &Started, trainer: &Trainer) -> String {
    let s = trainer.settings();
    format!("patchhost train: {}, task {}, seed {}", started.name, s.task.name(), s.seed)
}

pub(super) fn header(args: &Args, started: &Started, trainer: &Trainer, resumed_at: Option<u64>) {
    let (s, info) = (trainer.settings(), started.live.engine().info());
    let parameters = trainer.masters().parameters() as u64;
    outln!("model {} ({}, {} parameters)", started.name, info.architecture, count(parameters));
    outln!(
        "task {}: {} x {} completions of at most {} per step; AdamW, lr {}; seed {}",
        s.task.name(),
        plural(s.prompts_per_step, "prompt"),
        s.samples,
        plural(s.max_tokens, "token"),
        s.optimizer.lr,
        s.seed
    );
    match resumed_at {
        Some(step) => outln!("resumed after step {step} of {}", args.steps),
        None if args.resume => outln!("no checkpoint yet: from the start"),
        None => {}
    }
}

pub(super) fn report_step(r: &Record, samples: &[Sample], steps: u64) {
    if let Some(swap) = &r.swap {
        outln!("  step {}: patch set {} takes the place of {}", r.step, short(&swap.to), short(&swap.from));
    }
    if let Some(note) = &r.note {
        outln!("  step {}: {}", r.step, note.replace('\n', "\n  "));
    }
    let sample = samples.first().map(|s| crate::base::text::clean(s.text.trim(), 44)).unwrap_or_default();
    outln!(
        "  {:>width$}/{steps}  reward {:.3}  k3 {:.2e}  |g| {:.2}  {:.1} tokens  patches {}  {}  {sample}",
        r.step,
        r.reward.mean,
        k3(r),
        r.grad_norm,
        r.response_length.mean,
        short(&r.patch_set),
        duration(r.timing.step),
        width = steps.to_string().len(),
    );
}

/// What the summary says besides what trainer and history know.
pub(super) struct Rest {
    pub(super) resumed_at: Option<u64>,
    pub(super) checkpoint: Option<PathBuf>,
    pub(super) begun: std::time::Instant,
}

pub(super) fn summary(
    started: &Started,
    trainer: &Trainer,
    history: &[Point],
    used: &[Arc<Patch>],
    format: Format,
    rest: Rest,
) -> Result {
    let mean = |points: &[Point], of: fn(&Point) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
    let quarter = history.len().div_ceil(4);
    let (first, last) = (&history[..quarter], &history[history.len() - quarter..]);
    let reward = (quarter > 0).then(|| (mean(first, |p| p.reward), mean(last, |p| p.reward)));
    let not_applicable = started.live.board().status().not_applicable;
    let patches = used.iter().map(|p| LedgerRow::of(p, &Applicability::Applies)).collect();
    let made = Summary {
        verdict: verdict(history),
        model: started.name.clone(),
        architecture: started.live.engine().info().architecture.clone(),
        parameters: trainer.masters().parameters(),
        task: trainer.settings().task,
        seed: trainer.settings().seed,
        steps: trainer.steps_done(),
        resumed_at: rest.resumed_at,
        reward,
        k3_kl: (!history.is_empty()).then(|| mean(history, |p| p.k3_kl)),
        swaps: history.iter().filter_map(|p| Some((p.step, p.swap.clone()?))).collect(),
        patch_set: trainer.patch_set().map(str::to_string),
        patches,
        master_sha256: trainer.masters().digest()?,
        checkpoint: rest.checkpoint,
        seconds: rest.begun.elapsed().as_secs_f64(),
    };
    if format == Format::Json {
        return json(&made);
    }
    outln!("{}", made.verdict);
    outln!("{} in {}", plural(made.steps as usize, "step"), duration(made.seconds));
    if let Some(k3) = made.k3_kl {
        outln!("mean k3 KL {k3:.2e} nats per token");
    }
    outln!("{}; master weights sha256:{}", plural(made.swaps.len(), "swap"), &made.master_sha256[..12]);
    if let Some(path) = &made.checkpoint {
        outln!("checkpoint {}", path.display());
    }
    LedgerRow::print(&made.patches);
    for (name, why) in not_applicable {
        outln!("  {name}  not applicable: {why}");
    }
    Ok(())
}
