//! `patchhost train`: reinforcement learning in this process, whose rollouts come from an engine that every step refits
//! through the patches.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::config::RawConfig;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::families::Arch;
use patchhost_runtime::refit::{Begin, Progress};
use serde::Serialize;

use super::args::{Format, ModelArgs, PatchArgs};
use super::failure::UsageError;
use super::live::{LiveArgs, Needs, Started};
use super::output::{count, duration, json, plural};
use super::session::{LedgerRow, Model};
use crate::checkpoint::write::write_file;
use crate::compare::rollout_corr::Threshold;
use crate::live::CanaryUnit;
use crate::patch::{Actor, Applicability, Digest, Patch};
use crate::train::metrics::{PatchId, Point, Record, Swap};
use crate::train::optimizer::AdamWSettings;
use crate::train::rollout::Sample;
use crate::train::{
    Checkpoints, Lines, MasterDtype, Masters, ModelId, PROMPTS, Refitted, Rollout, RolloutIs, Settings, Task, Trainer,
    plot,
};

const LONG_HELP: &str = "\
Each step: the master weights are sent to the rollout engine in the checkpoint's own dtypes and pass through the patches \
(--component); the engine samples completions at temperature 1 with their log-probs; a rule rewards them (--task), advantages \
are normalized within the completions of a prompt (GRPO); the trainer computes the log-probs of the same tokens in f32 with \
its master weights, weighs each token by truncated importance sampling (--rollout-is), and AdamW makes one update. One batch \
makes one update, so PPO's ratio is 1 and its clipping would never act.

  patchhost train --component fp8_block.wasm --metrics-out run.jsonl --plot run.html
  patchhost train --component fp8_block.wasm --watch fp8_block.wasm        # replace the file while it runs
  patchhost train --checkpoint-dir ckpt --save-every 5 --resume            # goes on where it was, bit for bit

Families: Llama, Mixtral, OLMoE, Qwen2, Qwen2-MoE, Qwen3, Qwen3-MoE.

--metrics-out: a line of JSON per step: reward, loss, grad_norm, response_length, verl's rollout_corr/* and \
training/rollout_probs_diff_* (definitions: see `patchhost compare`), patch_set and patches (digests), refit_version, swap, \
weights_sha256 (published at the start of the step), master_sha256 (after its update), timing. But for `timing`, the same \
settings, patches and swaps give the same bytes on the same machine, with any --threads.";

/// Train a model by reinforcement learning, with rollouts through the patches
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    patches: PatchArgs,
    #[command(flatten)]
    live: LiveArgs,
    /// Steps of the whole run, those before --resume included
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// What is rewarded
    #[arg(long, value_enum, default_value = "lipogram")]
    task: Task,
    /// A file of texts to continue, one per line (\n stands for a line break) [default: heads of Shakespeare's speeches]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Prompts of a step
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    prompts_per_step: usize,
    /// Completions of each prompt
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    samples: usize,
    /// Most tokens of a completion
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = positive)]
    max_tokens: usize,
    /// Seed of everything that is drawn
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Learning rate of AdamW (betas 0.9 and 0.999, eps 1e-8)
    #[arg(long, value_name = "F", default_value_t = 3e-4)]
    lr: f64,
    /// Decoupled weight decay
    #[arg(long, value_name = "F", default_value_t = 0.01)]
    weight_decay: f64,
    /// Gradients are scaled down to this norm
    #[arg(long, value_name = "F", default_value_t = 1.0)]
    max_grad_norm: f64,
    /// Importance weights that correct for the rollout engine's arithmetic
    #[arg(long, value_enum, default_value = "token")]
    rollout_is: RolloutIs,
    /// Where they are cut: "2.0" truncates, "0.5_5.0" is a band
    #[arg(long, value_name = "C", default_value = "2.0")]
    rollout_is_threshold: Threshold,
    /// How master weights are kept between steps
    #[arg(long, value_enum, default_value = "f32")]
    master: MasterDtype,
    /// Sequences of one forward and backward pass: less takes less memory
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    micro_batch: usize,
    /// Metrics, a line of JSON per step
    #[arg(long, value_name = "FILE")]
    metrics_out: Option<PathBuf>,
    /// Reward and mismatch over the steps, with a mark for each swap
    #[arg(long, value_name = "FILE.svg|FILE.html")]
    plot: Option<PathBuf>,
    /// Where checkpoints are written, one more at the end
    #[arg(long, value_name = "DIR")]
    checkpoint_dir: Option<PathBuf>,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 10, requires = "checkpoint_dir", value_parser = clap::value_parser!(u64).range(1..))]
    save_every: u64,
    /// Checkpoints that stay
    #[arg(long, value_name = "N", default_value_t = 2, requires = "checkpoint_dir", value_parser = positive)]
    keep_checkpoints: usize,
    /// Go on from the newest checkpoint; from the start where there is none
    #[arg(long, requires = "checkpoint_dir")]
    resume: bool,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=1 << 20).contains(&n) => Ok(n),
        _ => Err("give a whole number of at least 1".to_string()),
    }
}

#[derive(Debug, Serialize)]
struct Summary {
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

/// Runs the verb.
pub fn run(args: Args, format: Format) -> anyhow::Result<()> {
    let begun = std::time::Instant::now();
    let renders = args.plot.as_deref().map(renderer).transpose()?;
    let text = format == Format::Text;
    let model = Model::open(&args.model, EngineOptions::default())?;
    let base = match args.model.reading.dequantize {
        true => model.checkpoint.with_scales(model.engine.format().as_ref(), true)?,
        false => model.checkpoint.clone(),
    };
    let config = model.engine.info().config.clone();
    let arch = Arch::from_config(&RawConfig::parse(&config)?)?;
    let masters = Masters::read(&base, model.engine.registry())?;
    drop(base);
    let settings = settings(&args, &config, &masters)?;
    // Refused before anything is compiled: a folder that holds another run, a file that cannot be written.
    let checkpoints =
        args.checkpoint_dir.as_deref().map(|d| Checkpoints::open(d, args.keep_checkpoints)).transpose()?;
    let tokenizer = model.tokenizer()?;
    let mut trainer = Trainer::new(settings, masters, &arch, &model.engine, &tokenizer)?;
    let state = match &checkpoints {
        Some(checkpoints) if args.resume => {
            checkpoints.resume(&mut trainer, &|skipped| eprintln!("note: {skipped}"))?
        }
        Some(checkpoints) => checkpoints.require_empty().map(|()| None)?,
        None => None,
    };
    let mut lines = metrics_file(&args, state.as_ref().and_then(|s| s.metrics.as_ref()), trainer.steps_done())?;
    let mut history = state.as_ref().map(|s| s.history.clone()).unwrap_or_default();
    let resumed_at = state.as_ref().map(|s| s.step);

    let needs = Needs { patches: &["vocab_mask"], canary: CanaryUnit::default(), hash_weights: false };
    let started = args.live.start(model, &args.patches, needs)?;
    if text {
        header(&args, &started, &trainer, resumed_at);
    }
    let bar = steps_bar(args.steps);
    bar.set_position(trainer.steps_done());
    let mut rollout = LiveRollout { started: &started, bar: bar.clone(), used: RefCell::default() };
    let mut checkpoint = None;
    while trainer.steps_done() < args.steps {
        let quiet = |_: usize, _: usize, _: &str| {};
        let phase = |name: &str| bar.set_prefix(name.to_string());
        let (record, samples) = trainer.step(&mut rollout, &tokenizer, &quiet, &phase)?;
        if let Some(lines) = &mut lines {
            lines.add(&record)?;
        }
        history.push(Point::from(&record));
        bar.set_position(record.step);
        bar.set_message(format!("reward {:.3}, k3 {:.1e}", record.reward.mean, k3(&record)));
        if text {
            bar.suspend(|| report_step(&record, &samples, args.steps));
        }
        let last = record.step == args.steps;
        if let Some(checkpoints) = checkpoints.as_ref().filter(|_| last || record.step.is_multiple_of(args.save_every))
        {
            let mark = lines.as_ref().map(Lines::mark).transpose()?;
            checkpoint = Some(checkpoints.save(&trainer, mark, &history)?);
        }
        if last && let (Some(path), Some(render)) = (&args.plot, &renders) {
            write_file(path, render(&title(&started, &trainer), &history).as_bytes())?;
        }
    }
    bar.finish_and_clear();
    let used = rollout.used.take();
    summary(&started, &trainer, &history, &used, format, Rest { resumed_at, checkpoint, begun })
}

/// What `--plot` makes, by the end of its name.
fn renderer(path: &Path) -> Result<fn(&str, &[Point]) -> String, UsageError> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("svg") => Ok(plot::svg),
        Some("html" | "htm") => Ok(plot::html),
        _ => Err(UsageError::new(
            format!("--plot {}", path.display()),
            "the end of the name says the format, and it is neither .svg nor .html",
            "name for example run.svg or run.html",
        )),
    }
}

fn settings(args: &Args, config: &str, masters: &Masters) -> anyhow::Result<Settings> {
    let prompts = match &args.prompts {
        None => PROMPTS.iter().map(|p| (*p).to_string()).collect(),
        Some(file) => prompts(file)?,
    };
    Ok(Settings {
        model: ModelId { config_sha256: Digest::of(config.as_bytes()).hex(), weights_sha256: masters.digest()? },
        task: args.task,
        prompts,
        prompts_per_step: args.prompts_per_step,
        samples: args.samples,
        max_tokens: args.max_tokens,
        seed: args.seed,
        optimizer: AdamWSettings { lr: args.lr, weight_decay: args.weight_decay, ..AdamWSettings::default() },
        max_grad_norm: args.max_grad_norm,
        rollout_is: args.rollout_is,
        threshold: args.rollout_is_threshold,
        master: args.master,
        micro_batch: args.micro_batch,
        fp8_activation: format!("{:?}", args.live.fp8_activation).to_lowercase(),
    })
}

fn prompts(file: &Path) -> Result<Vec<String>, UsageError> {
    let refuse = |why: String| {
        UsageError::new(format!("--prompts {}", file.display()), why, "give a text file with one prompt per line")
    };
    let text = std::fs::read_to_string(file).map_err(|e| refuse(e.to_string()))?;
    let lines: Vec<String> = text.lines().filter(|l| !l.trim().is_empty()).map(|l| l.replace("\\n", "\n")).collect();
    if lines.is_empty() { Err(refuse("it holds no prompt".to_string())) } else { Ok(lines) }
}

fn metrics_file(args: &Args, mark: Option<&crate::train::Mark>, done: u64) -> anyhow::Result<Option<Lines>> {
    let Some(path) = &args.metrics_out else { return Ok(None) };
    if !args.resume {
        return Ok(Some(Lines::create(path)?));
    }
    let (lines, kept) = Lines::resume(path, mark)?;
    if done > 0 && !kept {
        eprintln!("note: {} begins with step {}; the lines before are in no file", path.display(), done + 1);
    }
    Ok(Some(lines))
}

/// The live model as the trainer sees it.
struct LiveRollout<'a> {
    started: &'a Started,
    bar: ProgressBar,
    /// Every patch that made weights, in the order of their first use.
    used: RefCell<Vec<Arc<Patch>>>,
}

impl Rollout for LiveRollout<'_> {
    fn engine(&self) -> &Engine {
        self.started.live.engine()
    }

    fn refit(&mut self, weights: &Checkpoint, label: &str, progress: Progress<'_>) -> crate::train::Result<Refitted> {
        // Whatever changed on disk until now is staged now, so that it takes effect with this step and not a later one.
        for seen in self.started.watcher.iter().flat_map(|w| w.sync()) {
            if let Err(error) = &seen.outcome {
                self.bar.suspend(|| eprintln!("note: {} is not used\n{error}", seen.path.display()));
            }
        }
        let live = &self.started.live;
        let begin = Begin { version: Some(label.to_string()), ..Begin::default() };
        let done = live.refit(weights.clone(), begin, &Actor::new("train"), progress)?;
        let active = live.board().active();
        let mut used = self.used.borrow_mut();
        for patch in active.set().patches() {
            if !used.iter().any(|p| p.generation() == patch.generation()) {
                used.push(patch.clone());
            }
        }
        Ok(Refitted {
            weights: done.weights,
            report: done.report,
            patch_set: done.patch_set.to_string(),
            patches: active
                .members()
                .into_iter()
                .map(|m| PatchId { name: m.name, generation: m.generation.to_string() })
                .collect(),
            note: done.reversed.or(done.degraded),
        })
    }
}

fn steps_bar(steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("train [{bar:30}] {pos}/{len} {prefix:9} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    ProgressBar::new(steps).with_style(style)
}

fn k3(record: &Record) -> f64 {
    record.mismatch.get("rollout_corr/k3_kl").unwrap_or(f64::NAN)
}

fn title(started: &Started, trainer: &Trainer) -> String {
    let s = trainer.settings();
    format!("patchhost train: {}, task {}, seed {}", started.name, s.task.name(), s.seed)
}

fn header(args: &Args, started: &Started, trainer: &Trainer, resumed_at: Option<u64>) {
    let (s, info) = (trainer.settings(), started.live.engine().info());
    let parameters = trainer.masters().parameters() as u64;
    println!("model {} ({}, {} parameters)", started.name, info.architecture, count(parameters));
    println!(
        "task {}: {} x {} completions of at most {} per step; AdamW, lr {}; seed {}",
        s.task.name(),
        plural(s.prompts_per_step, "prompt"),
        s.samples,
        plural(s.max_tokens, "token"),
        s.optimizer.lr,
        s.seed
    );
    match resumed_at {
        Some(step) => println!("resumed after step {step} of {}", args.steps),
        None if args.resume => println!("no checkpoint yet: from the start"),
        None => {}
    }
}

fn report_step(r: &Record, samples: &[Sample], steps: u64) {
    if let Some(swap) = &r.swap {
        println!("  step {}: patch set {} takes the place of {}", r.step, short(&swap.to), short(&swap.from));
    }
    if let Some(note) = &r.note {
        println!("  step {}: {}", r.step, note.replace('\n', "\n  "));
    }
    let sample = samples.first().map(|s| crate::abi::text::clean(s.text.trim(), 44)).unwrap_or_default();
    println!(
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

/// The first digits of a digest.
fn short(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

struct Rest {
    resumed_at: Option<u64>,
    checkpoint: Option<PathBuf>,
    begun: std::time::Instant,
}

fn summary(
    started: &Started,
    trainer: &Trainer,
    history: &[Point],
    used: &[Arc<Patch>],
    format: Format,
    rest: Rest,
) -> anyhow::Result<()> {
    let mean = |points: &[Point], of: fn(&Point) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
    let quarter = history.len().div_ceil(4);
    let (first, last) = (&history[..quarter], &history[history.len() - quarter..]);
    let reward = (quarter > 0).then(|| (mean(first, |p| p.reward), mean(last, |p| p.reward)));
    let not_applicable = started.live.board().status().not_applicable;
    let patches = used.iter().map(|p| LedgerRow::of(p, &Applicability::Applies)).collect();
    let made = Summary {
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
    println!("{} in {}", plural(made.steps as usize, "step"), duration(made.seconds));
    if let (Some((first, last)), Some(k3)) = (made.reward, made.k3_kl) {
        let steps = plural(quarter, "step");
        println!(
            "mean reward {first:.3} in the first {steps}, {last:.3} in the last; mean k3 KL {k3:.2e} nats per token"
        );
    }
    println!("{}; master weights sha256:{}", plural(made.swaps.len(), "swap"), &made.master_sha256[..12]);
    if let Some(path) = &made.checkpoint {
        println!("checkpoint {}", path.display());
    }
    LedgerRow::print(&made.patches);
    for (name, why) in not_applicable {
        println!("  {name}  not applicable: {why}");
    }
    Ok(())
}
