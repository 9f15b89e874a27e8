//! `patchhost train`: reinforcement learning in this process, whose rollouts come from an engine that every step refits
//! through the patches.

mod report;
mod rollout;
mod signals;

use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use patchhost_runtime::config::RawConfig;
use patchhost_runtime::engine::EngineOptions;
use patchhost_runtime::families::Arch;

use super::Call;
use super::args::{Format, ModelArgs, PatchArgs};
use super::failure::{HostError, Result, UsageError};
use super::live::{LiveArgs, Needs};
use super::session::Model;
use crate::base::Digest;
use crate::checkpoint::write::write_file;
use crate::compare::rollout_corr::Threshold;
use crate::live::CanaryUnit;
use crate::train::metrics::Point;
use crate::train::optimizer::AdamWSettings;
use crate::train::{
    Checkpoints, Lines, MasterDtype, Masters, ModelId, PROMPTS, RolloutIs, Settings, Task, Trainer, plot,
};
use report::{Rest, header, k3, report_step, summary, title};
use rollout::LiveRollout;
use signals::Signals;

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
    #[arg(long, value_name = "F", default_value_t = 1e-3)]
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
    /// Reward, mismatch, gradient norm, response length and refit time over the steps, with a mark for each swap of patches
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

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    let begun = std::time::Instant::now();
    let renders = args.plot.as_deref().map(renderer).transpose()?;
    let text = format == Format::Text;
    let model = Model::open(&args.model, EngineOptions::default())?;
    let base = match args.model.reading.dequantize {
        true => model.engine.with_scales(&model.checkpoint, true)?,
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
        Some(checkpoints) if args.resume => checkpoints.resume(&mut trainer, &|skipped| errln!("note: {skipped}"))?,
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
    let signals = Signals::listen().map_err(|e| HostError::system("listening for signals", e))?;
    let mut rollout = LiveRollout { started: &started, signals: &signals, bar: bar.clone(), used: Vec::new() };
    while trainer.steps_done() < args.steps && !signals.stop() {
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
        if record.step.is_multiple_of(args.save_every) {
            save(&checkpoints, &lines, &trainer, &history)?;
        }
    }
    // Where this step has a checkpoint already, nothing is written.
    let checkpoint = save(&checkpoints, &lines, &trainer, &history)?;
    bar.finish_and_clear();
    if let (Some(path), Some(render)) = (&args.plot, &renders) {
        write_file(path, render(&title(&started, &trainer), &history).as_bytes())?;
    }
    if trainer.steps_done() < args.steps {
        errln!("note: stopped by a signal after step {} of {}", trainer.steps_done(), args.steps);
    }
    let used = std::mem::take(&mut rollout.used);
    summary(&started, &trainer, &history, &used, format, Rest { resumed_at, checkpoint, begun })
}

fn save(
    checkpoints: &Option<Checkpoints>,
    lines: &Option<Lines>,
    trainer: &Trainer,
    history: &[Point],
) -> Result<Option<PathBuf>> {
    let Some(checkpoints) = checkpoints.as_ref().filter(|_| trainer.steps_done() > 0) else { return Ok(None) };
    let mark = lines.as_ref().map(Lines::mark).transpose()?;
    Ok(Some(checkpoints.save(trainer, mark, history)?))
}

/// Draws the points of a run under a title.
type Renderer = fn(&str, &[Point]) -> String;

/// Chooses by the end of the name that `--plot` gives.
fn renderer(path: &Path) -> Result<Renderer, UsageError> {
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

fn settings(args: &Args, config: &str, masters: &Masters) -> Result<Settings> {
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
    let text =
        patchhost_runtime::files::read_text(file, patchhost_runtime::files::LIST).map_err(|e| refuse(e.to_string()))?;
    let lines: Vec<String> = text.lines().filter(|l| !l.trim().is_empty()).map(|l| l.replace("\\n", "\n")).collect();
    if lines.is_empty() { Err(refuse("it holds no prompt".to_string())) } else { Ok(lines) }
}

fn metrics_file(args: &Args, mark: Option<&crate::train::Mark>, done: u64) -> Result<Option<Lines>> {
    let Some(path) = &args.metrics_out else { return Ok(None) };
    if !args.resume {
        return Ok(Some(Lines::create(path)?));
    }
    let (lines, kept) = Lines::resume(path, mark)?;
    if done > 0 && !kept {
        errln!("note: {} begins with step {}; the lines before are in no file", path.display(), done + 1);
    }
    Ok(Some(lines))
}

fn steps_bar(steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("train [{bar:30}] {pos}/{len} {prefix:9} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    ProgressBar::new(steps).with_style(style)
}
