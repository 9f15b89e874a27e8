//! `patchhost run`: load a model through its patches, generate text, and say what the patches did.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use patchhost_runtime::engine::EngineOptions;
use patchhost_runtime::generate::{Completion, Request, Timing, generate};
use patchhost_runtime::metrics::{Mismatch, mismatch};
use patchhost_runtime::model::{Rows, Sequence};
use patchhost_runtime::refit::{RefitHooks, RefitReport};
use patchhost_runtime::sampling::SamplingParams;
use patchhost_runtime::tokenizer::{Message, Tokenizer, fits};
use patchhost_runtime::weights::WeightSet;

use super::Call;
use super::args::{Format, Fp8Activation, ModelArgs, PatchArgs};
use super::failure::{HostError, Result, UsageError};
use super::lora::LoraArgs;
use super::output::{bytes, duration, json, plural};
use super::record::RecordArgs;
use super::session::{Load, Model, Patches, advance, progress_bar};
use super::startup::StartupReport;
use crate::checkpoint::bundled;
use crate::patch::Phase;

/// Bundled patches that are on by default where text is sampled: they change no logits.
const SAMPLING_PATCHES: &[&str] = &["vocab_mask"];

/// Load a model through its patches and generate text
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    patches: PatchArgs,
    #[command(flatten)]
    lora: LoraArgs,
    #[command(flatten)]
    record: RecordArgs,
    /// The text to continue, or the question to answer where the model has a chat template
    #[arg(long, conflicts_with = "prompts", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A file of prompts, one per line, generated as one batch
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Give the prompt to the model as it is, without its chat template
    #[arg(long)]
    raw: bool,
    /// Most tokens to generate per prompt
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    temperature: f32,
    /// Only the K most likely tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: usize,
    /// Only the most likely tokens whose probabilities sum to P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Only tokens at least P times as likely as the best
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// The same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// A text that ends the generation; can be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Activations before FP8 matrices
    #[arg(long, value_enum, default_value = "dynamic-128")]
    fp8_activation: Fp8Activation,
    /// Do not compare with the unquantized weights (saves loading them too)
    #[arg(long)]
    no_kl: bool,
    /// Say where the time to the first token went
    #[arg(long)]
    timings: bool,
    /// Play a fault of an engine, to see what a patch does about it
    #[arg(long, value_enum)]
    simulate: Option<Simulate>,
}

/// Faults that can be played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Simulate {
    /// vLLM 0.8.2: post-processing drops the weight loaders of fused experts, so the first refit fails
    LoaderLoss,
    /// verl: patches are imported before the engine exists, though a comment forbids it
    WrongPhase,
}

#[derive(Debug, serde::Serialize)]
struct Summary {
    model: String,
    architecture: String,
    patch_set: String,
    patches: Vec<super::session::LedgerRow>,
    refit: RefitReport,
    adapter: Option<AdapterRow>,
    masked_ids: usize,
    simulated_refits: usize,
    mismatch: Option<Mismatch>,
    completions: Vec<Completion>,
    timing: Timing,
    startup: StartupReport,
}

/// The adapter, as reports show it.
#[derive(Debug, serde::Serialize)]
struct AdapterRow {
    name: String,
    rank: usize,
    parts: usize,
}

pub fn run(args: Args, call: &Call) -> Result {
    let Call { format, startup, .. } = call;
    let format = *format;
    let sampling = SamplingParams {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        seed: args.seed,
    };
    sampling.check()?;
    args.lora.check()?;
    let options =
        EngineOptions { simulate_loader_loss: args.simulate == Some(Simulate::LoaderLoss), ..EngineOptions::default() };
    let model = startup.step("model", || Model::open(&args.model, options))?;
    let more = [SAMPLING_PATCHES, args.lora.patches()].concat();
    let phase = match args.simulate {
        Some(Simulate::WrongPhase) => Phase::of(None),
        _ => Phase::of(Some(&model.engine)),
    };
    // The tokenizer and the patches do not need each other.
    let asked = || -> Result<_> {
        let tokenizer = startup.within("tokenizer", None, || model.tokenizer())?;
        let texts = prompts(&args)?;
        let requests = requests(&args, &texts, &model, &tokenizer, &sampling)?;
        Ok((tokenizer, texts, requests))
    };
    let load = || {
        let recorded = args.record.start(&model.name, &model.engine.info().config)?;
        let architecture = &model.engine.info().architecture;
        let load =
            Load { more: &more, phase, recorded, startup: Some(startup), ..Load::new(&args.patches, architecture) };
        Patches::load(load)
    };
    let (patches, asked) = startup.step("patches and tokenizer", || rayon::join(load, asked));
    let (tokenizer, texts, mut requests) = asked?;
    let patches = patches?;
    let hooks = patches.sampling_hooks(args.fp8_activation.into(), &tokenizer);
    let text = format == Format::Text;
    if text {
        let info = model.engine.info();
        let kind = if info.experts > 0 { format!(", {} experts", info.experts) } else { String::new() };
        outln!("model {} ({}, {} layers{kind})", model.name, info.architecture, info.layers);
    }

    let bar = progress_bar("refit");
    let report = startup.step("refit", || model.engine.refit(&model.checkpoint, &hooks, &advance(&bar)));
    bar.finish_and_clear();
    let report = report?;
    if text {
        print_refit(&report);
    }
    let simulated_refits = match args.simulate {
        Some(Simulate::LoaderLoss) => refits_after_loader_loss(&model, &hooks, text)?,
        _ => 0,
    };
    let live = model.engine.live()?;
    let adapter = args.lora.load(&model, &patches)?;
    requests.iter_mut().for_each(|r| r.adapter = adapter.clone());
    if let Some(a) = adapter.as_ref().filter(|_| text) {
        outln!("adapter {}: rank {}, {} adapted", a.name(), a.rank(), plural(a.adapted(), "module"));
    }
    let many = requests.len() > 1;
    if text {
        outln!();
        if !many && !tokenizer.has_template() {
            out!("{}", tokenizer.decode(&requests[0].prompt)?);
        }
    }
    let mut stream = |_: usize, piece: &str| {
        startup.first_token();
        if text && !many {
            out!("{piece}");
            let _ = std::io::stdout().flush();
        }
    };
    let begun = Instant::now();
    let (completions, timing) = generate(model.engine.model(), &live, &tokenizer, &requests, &mut stream)?;
    startup.prefilled(begun);
    let startup = startup.report();
    // After the text: it loads the model once more, and nobody should wait for that.
    let distance = match hooks.quant.is_some() && !args.no_kl && report.quantized > 0 {
        true => Some(compare(&model, &hooks, &live, &requests)?),
        false => None,
    };
    if format == Format::Json {
        return json(&Summary {
            model: model.name,
            architecture: model.engine.info().architecture.clone(),
            patch_set: patches.set().digest().to_string(),
            patches: patches.ledger(),
            refit: report,
            adapter: adapter.map(|a| AdapterRow { name: a.name().to_string(), rank: a.rank(), parts: a.adapted() }),
            masked_ids: masked(&live),
            simulated_refits,
            mismatch: distance,
            completions,
            timing,
            startup,
        });
    }
    if many {
        for (i, (text, c)) in texts.iter().zip(&completions).enumerate() {
            outln!("--- prompt {}: {}", i + 1, text.trim());
            outln!("{}", c.text);
        }
    }
    outln!("\n");
    if masked(&live) > 0 {
        outln!("{} never sampled", plural(masked(&live), "token id"));
    }
    if let Some(m) = distance {
        print_mismatch(&m);
    }
    print_speed(&timing);
    if args.timings {
        startup.print();
    }
    patches.print_ledger();
    Ok(())
}

/// How many token ids are never sampled.
fn masked(weights: &WeightSet) -> usize {
    weights.masked().iter().map(|ids| ids.len()).sum()
}

fn print_mismatch(m: &Mismatch) {
    outln!(
        "mismatch on the prompt: KL(unquantized || FP8) {:.2e} nats per token (max {:.2e}), top-1 agreement {:.1} % of {}",
        m.kl,
        m.kl_max,
        m.top1_agreement * 100.0,
        plural(m.positions, "position"),
    );
}

/// The prompts as the user gave them.
fn prompts(args: &Args) -> Result<Vec<String>, UsageError> {
    Ok(match (&args.prompts, &args.prompt) {
        (Some(file), _) => {
            let unreadable = |why: String| {
                UsageError::new(
                    format!("--prompts {}", file.display()),
                    why,
                    "give a text file with one prompt per line",
                )
            };
            let text = patchhost_runtime::files::read_text(file, patchhost_runtime::files::LIST)
                .map_err(|e| unreadable(e.to_string()))?;
            let lines: Vec<String> = text.lines().filter(|l| !l.trim().is_empty()).map(str::to_string).collect();
            if lines.is_empty() {
                return Err(unreadable("it holds no prompt".to_string()));
            }
            lines
        }
        (None, Some(prompt)) => vec![prompt.clone()],
        (None, None) if args.model.model.is_none() => vec![bundled::PROMPT.to_string()],
        (None, None) => vec!["The capital of France is".to_string()],
    })
}

fn requests(
    args: &Args,
    texts: &[String],
    model: &Model,
    tokenizer: &Tokenizer,
    sampling: &SamplingParams,
) -> Result<Vec<Request>> {
    let limit = model.engine.model().max_positions();
    let mut requests = Vec::new();
    for text in texts {
        let too_long = |has: String| {
            let why = format!("the model has {limit} positions");
            UsageError::new(format!("a prompt of {has}"), why, "shorten the prompt")
        };
        let rendered = match tokenizer.has_template() && !args.raw {
            true => Some(tokenizer.render(&[Message::new("user", text)])?),
            false => None,
        };
        let text = rendered.as_ref().unwrap_or(text);
        if !fits(text.len(), limit) {
            return Err(too_long(format!("{} bytes", text.len())).into());
        }
        // A template writes the special tokens itself.
        let prompt = tokenizer.encode_with(text, rendered.is_none())?;
        if prompt.is_empty() {
            return Err(UsageError::new(
                "an empty prompt",
                "it has no tokens",
                "give a prompt of at least one character",
            )
            .into());
        }
        if prompt.len() >= limit {
            return Err(too_long(format!("{} tokens", prompt.len())).into());
        }
        requests.push(Request {
            prompt,
            max_tokens: args.max_tokens,
            sampling: sampling.clone(),
            stop: args.stop.clone(),
            adapter: None,
        });
    }
    Ok(requests)
}

/// Three refits after the loaders are lost, each compared bit by bit with a fresh load.
fn refits_after_loader_loss(model: &Model, hooks: &RefitHooks, text: bool) -> Result<usize> {
    let quiet = |_: usize, _: usize, _: &str| {};
    let fresh = model.fresh_engine()?;
    fresh.refit(&model.checkpoint, hooks, &quiet)?;
    let fresh = fresh.live()?;
    for round in 1..=3 {
        model.engine.refit(&model.checkpoint, hooks, &quiet)?;
        if let Some((param, part)) = model.engine.live()?.first_difference(&fresh) {
            let decl = &model.engine.registry().params()[param];
            let why = format!("it differs from a fresh load in {} of `{}`", decl.part_label(part), decl.name);
            return Err(HostError::bug(format!("refit {round} after the loss of the loaders"), why).into());
        }
        if text {
            outln!("refit {round} after the loss of the loaders: equal to a fresh load, bit for bit");
        }
    }
    Ok(3)
}

fn compare(model: &Model, hooks: &RefitHooks, live: &WeightSet, requests: &[Request]) -> Result<Mismatch> {
    let plain = RefitHooks { loader: hooks.loader.clone(), rules: hooks.rules, ..RefitHooks::default() };
    let (reference, _) = model.engine.stage(&model.checkpoint, &plain, &|_, _, _| {})?;
    let logits = |weights: &WeightSet| -> Result<Vec<f32>> {
        let mut caches: Vec<_> =
            requests.iter().map(|r| model.engine.model().new_cache_with(r.adapter.clone())).collect();
        let mut batch: Vec<Sequence<'_>> =
            requests.iter().zip(&mut caches).map(|(r, cache)| Sequence { tokens: &r.prompt, cache }).collect();
        let out = model.engine.model().forward(weights, &mut batch, Rows::All)?;
        Ok(out.into_values())
    };
    Ok(mismatch(&logits(&reference)?, &logits(live)?, model.engine.model().vocab()))
}

/// What a refit did, for people.
pub(super) fn print_refit(r: &RefitReport) {
    outln!(
        "refit {}{}: {} quantized, {} kept{}{} in {}; {} -> {}",
        r.version,
        if r.label == r.version.to_string() { String::new() } else { format!(" ({})", r.label) },
        plural(r.quantized, "tensor"),
        r.kept,
        if r.as_stored > 0 { format!(", {} FP8 as stored", r.as_stored) } else { String::new() },
        if r.ignored > 0 { format!(", {} ignored", r.ignored) } else { String::new() },
        duration(r.seconds),
        bytes(r.bytes_before),
        bytes(r.bytes_after),
    );
    if let Some(rmse) = r.relative_rmse {
        outln!(
            "  relative RMSE {:.3} %; of {} quantized values {} saturated, {} flushed to zero",
            rmse * 100.0,
            r.quantized_elements,
            r.saturated,
            r.flushed
        );
    }
    if let Some(stayed) = &r.stayed {
        let more = if stayed.tensors > stayed.names.len() { ", …" } else { "" };
        let names = patchhost_runtime::error::plain(stayed.names.join(", "));
        outln!("  {} came, {} stayed as they were: {names}{more}", plural(stayed.came, "tensor"), stayed.tensors);
    }
    for note in &r.notes {
        outln!("  note: {}", patchhost_runtime::error::plain(note.clone()));
    }
    if r.non_finite > 0 {
        outln!("  {} are NaN or infinite; the policy allows it", plural(r.non_finite as usize, "weight"));
    }
    r.remarks.iter().for_each(|remark| outln!("  remark: {remark}"));
}

fn print_speed(t: &Timing) {
    out!("prefill {} tokens in {}", t.prompt_tokens, duration(t.prefill_seconds));
    if t.decode_tokens > 0 {
        out!("; decode {:.1} tokens/s", t.decode_tokens as f64 / t.decode_seconds);
    }
    outln!("; {} generated", plural(t.generated_tokens, "token"));
}
