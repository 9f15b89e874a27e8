//! `patchhost compare`: two quantizations of one model, bit by bit and in what they do to its predictions.

mod prompts;
mod sides;

use std::path::PathBuf;

use clap::ValueEnum;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::hooks::{Decision, ModelInfo};

use super::Call;
use super::args::{Format, Fp8Activation, ReadingArgs, TiedHead};
use super::failure::{Result, UsageError};
use super::output::json;
use super::session::{LedgerRow, Model, progress_bar};
use super::trust_args::TrustArgs;
use crate::checkpoint::write::write_file;
use crate::compare::{
    self, Paired, Report, RolloutCorr, Runs, TensorRow, Trainer, Unit, compare_unit, of_file, of_model, rollout_corr,
    rollout_rs, token_logprobs,
};
use sides::{Named, Other, Side};

/// Lines of tensors in the text, unless --all is given.
const SHOWN: usize = 20;

const LONG_HELP: &str = "\
A is a component. B is a component too, or --against says what takes its place. An argument is taken for a component if it \
is the name of a bundled patch or ends in .wasm, else for the model: a Hugging Face folder, or one safetensors file of \
matrices, which gives the comparison of tensors only. --set holds for both sides; --set-a and --set-b go before it.

  patchhost compare fp8_block.wasm fp8_block.wasm W.safetensors --set-a profile=verl-torch --set-b profile=verl-triton
  patchhost compare fp8_block.wasm --against bf16 MODEL --prompts prompts.txt --html report.html
  patchhost compare my_patch.wasm --against native MODEL --tensors-only

The verdict comes first: which side is better, by k3 KL against --trainer-logprobs if given, else by KL from the unquantized \
model, else by SNR. A KL decides if the difference, position by position, is more than two standard errors and above the noise \
floor.

Tensors: scales and weight bytes are compared bit by bit; ulp and steps are distances among floats and among e4m3 codes. \
SNR and RMSE are against the source weights; max |A-B| is of dequantized values.

Classes: the model is run with only one class of layers quantized, its activations included, and compared with the \
unquantized model: KL over the whole vocabulary at every token, and verl's kl and k3_kl over the log-probs of the given next \
tokens.

--trainer-logprobs FILE.safetensors: `input_ids` I64 [b,n], whole sequences; `logprobs` (or `old_log_probs`) F32 [b,n], or \
[b,t] for the last t tokens of each: the trainer's log-prob of each token given those before it; optionally `response_mask` \
of the shape of logprobs (1: the token counts) and `attention_mask` of the shape of input_ids (0: padding), both BOOL, U8, \
I64 or F32. One sequence may be [n]. The first token of a sequence never counts. The tokens are run with each side's weights \
and verl's rollout_corr metrics are printed, by verl's names and definitions, in f64.";

/// Compare two quantizations of a model, bit by bit, and say which layers cause the mismatch
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub struct Args {
    /// A.wasm [B.wasm] [MODEL]: a component (a path that ends in .wasm, or a bundled name), perhaps another, and the model: a folder, or a safetensors file of matrices [default: the bundled tiny MoE]
    #[arg(value_names = ["A.wasm", "B.wasm", "MODEL"], num_args = 1..=3, required = true)]
    names: Vec<String>,
    /// In the place of B: A's profile computed by the host itself, or the unquantized weights
    #[arg(long, value_enum)]
    against: Option<Against>,
    /// A setting of both sides: KEY=VALUE; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// A setting of A; can be repeated
    #[arg(long = "set-a", value_name = "KEY=VALUE")]
    set_a: Vec<String>,
    /// A setting of B; can be repeated
    #[arg(long = "set-b", value_name = "KEY=VALUE", conflicts_with = "against")]
    set_b: Vec<String>,
    /// The digest that a component's bytes must have; the n-th belongs to the n-th component
    #[arg(long = "sha256", value_name = "HEX")]
    sha256: Vec<String>,
    /// Do not load the bundled patches that are on by default (moe_loader)
    #[arg(long)]
    no_default_patches: bool,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    reading: ReadingArgs,
    /// A file of texts, one per line, taken as they are [default: the trainer's tokens, else a text of the host's]
    #[arg(long, value_name = "FILE", conflicts_with = "ids")]
    prompts: Option<PathBuf>,
    /// Token ids in the place of texts: a safetensors file with `input_ids`, I64 [T] or [B,T]
    #[arg(long, value_name = "IDS.safetensors")]
    ids: Option<PathBuf>,
    /// Activations before FP8 matrices
    #[arg(long, value_enum, default_value = "dynamic-128")]
    fp8_activation: Fp8Activation,
    /// Also quantize each layer alone
    #[arg(long)]
    per_layer: bool,
    /// Only compare tensors; run nothing
    #[arg(long, conflicts_with_all = ["prompts", "ids", "per_layer", "trainer_logprobs"])]
    tensors_only: bool,
    /// Show every tensor on a line of its own. Without it, experts of a layer that differ only in their numbers share a line
    /// with the sums of them all ({0..127} is all numbers from 0 to 127), and the text shows only the 20 worst lines
    #[arg(long)]
    all: bool,
    /// Write a report with charts: one HTML file that needs nothing else. Experts that are alike share a line unless --all is
    /// given
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The trainer's log-probs; gives verl's rollout_corr metrics (the file is described in the long --help)
    #[arg(long, value_name = "FILE")]
    trainer_logprobs: Option<PathBuf>,
    /// What an importance weight belongs to
    #[arg(long, value_enum, default_value = "token", requires = "trainer_logprobs")]
    rollout_is: rollout_corr::Level,
    /// Bound of importance weights, or a band LOWER_UPPER outside of which they are 0
    #[arg(long, value_name = "C", default_value = "2.0", requires = "trainer_logprobs")]
    rollout_is_threshold: rollout_corr::Threshold,
    /// Rejection rules, for example token_k1,seq_mean_k3: gives rollout_rs_*
    #[arg(long, value_name = "RULE,…", requires = "rollout_rs_threshold")]
    rollout_rs: Option<String>,
    /// Their thresholds: one for all, or one for each
    #[arg(long, value_name = "C,…", requires_all = ["rollout_rs", "trainer_logprobs"])]
    rollout_rs_threshold: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Against {
    /// A's decisions and profile, computed without the sandbox: what differs is a bug of the patch, or of the host
    Native,
    /// The unquantized weights in their own dtype
    Bf16,
}

/// What is compared.
enum Input {
    Model(Box<Model>),
    /// A plain file: a registry and a forward pass it has not.
    File(PathBuf, Checkpoint),
}

impl Input {
    fn open(model: Option<PathBuf>, args: &Args) -> Result<Self> {
        if let Some(file) = model.as_ref().filter(|path| path.is_file()) {
            let needs = [
                ("--prompts", args.prompts.is_some()),
                ("--ids", args.ids.is_some()),
                ("--per-layer", args.per_layer),
                ("--trainer-logprobs", args.trainer_logprobs.is_some()),
                ("--dequantize", args.reading.dequantize),
                ("--tied-head", args.reading.tied_head != TiedHead::Refuse),
            ];
            if let Some((option, _)) = needs.iter().find(|(_, given)| *given) {
                return Err(UsageError::new(
                    format!("{option} with `{}`", file.display()),
                    "it is one file of tensors, not a model: there is no config.json that says what it computes",
                    format!("give the model's folder, or leave {option} away"),
                )
                .into());
            }
            return Ok(Input::File(file.clone(), args.reading.renames.apply(Checkpoint::open(file)?)?));
        }
        let args = super::args::ModelArgs { model, reading: args.reading.clone() };
        Ok(Input::Model(Box::new(Model::open(&args, Default::default())?)))
    }

    fn name(&self) -> String {
        match self {
            Input::Model(model) => model.name.clone(),
            Input::File(path, _) => path.display().to_string(),
        }
    }

    fn info(&self) -> ModelInfo {
        match self {
            Input::Model(model) => model.engine.info().clone(),
            Input::File(..) => ModelInfo {
                architecture: String::new(),
                model_type: String::new(),
                layers: 0,
                experts: 0,
                config: "{}".to_string(),
            },
        }
    }

    /// Its tensors as they are quantized.
    fn units(&self, a: &Side, dequantize: bool) -> Result<Vec<Unit>> {
        match self {
            Input::File(_, checkpoint) => Ok(of_file(checkpoint)),
            Input::Model(model) => {
                let readable = model.engine.with_scales(&model.checkpoint, dequantize)?;
                let loader = a.hooks.loader.as_deref();
                Ok(of_model(&model.engine.setup(), &readable, loader)?)
            }
        }
    }

    /// What a side decides; a model's refit must accept it too.
    fn decide(&self, units: &[Unit], side: &Side) -> Result<Option<Vec<Decision>>> {
        let Some(quant) = &side.hooks.quant else { return Ok(None) };
        if let Input::Model(model) = self {
            model.engine.explain(&model.checkpoint, &side.hooks)?;
        }
        Ok(Some(compare::decide(units, &self.info(), quant.as_ref())?))
    }
}

#[derive(serde::Serialize)]
struct Printed<'a> {
    verdict: compare::Verdict,
    #[serde(flatten)]
    report: &'a Report,
    patches: [Vec<LedgerRow>; 2],
}

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    let named = Named::parse(&args.names, args.against)?;
    let settings = rollout_settings(&args)?;
    let input = Input::open(named.model.clone(), &args)?;
    let trainer = args.trainer_logprobs.as_deref().map(read_trainer).transpose()?;
    let sequences = match &input {
        Input::Model(model) if !args.tensors_only => Some(prompts::sequences(&args, model, trainer.as_ref())?),
        _ => None,
    };
    let architecture = input.info().architecture;
    let plain = matches!(input, Input::File(..));
    let a = Side::load(&args, &named, 0, &architecture, plain)?;
    let component_b = match named.other {
        Other::Component(_) => Some(Side::load(&args, &named, 1, &architecture, plain)?),
        Other::Native | Other::Bf16 => None,
    };
    let units = input.units(&a, args.reading.dequantize)?;
    let da = input.decide(&units, &a)?;
    let b = match component_b {
        Some(b) => b,
        None if named.other == Other::Native => a.native(&units, da.as_deref().unwrap_or_default())?,
        None => a.unquantized(),
    };
    let db = input.decide(&units, &b)?;

    let rows = compare_tensors(&units, (&a, da.as_deref()), (&b, db.as_deref()))?;
    let kept = units.len() - rows.len();
    let names = (input.name(), (!plain).then_some(architecture));
    let activation = match args.fp8_activation {
        Fp8Activation::Dynamic128 => "dynamic-128",
        Fp8Activation::None => "none",
    };
    let mut report = Report::new(names, activation, [a.info.clone(), b.info.clone()], kept, rows);
    if let (Input::Model(model), Some(sequences)) = (&input, &sequences) {
        let job = Predictions { args: &args, model, sequences, units: &units, a: (&a, da), b: (&b, db) };
        job.run(trainer.as_ref(), settings, &mut report)?;
    }

    if let Some(path) = &args.html {
        write_file(path, compare::html(&report, args.all).as_bytes())?;
    }
    match format {
        Format::Json => json(&Printed {
            verdict: compare::Verdict::of(&report),
            report: &report,
            patches: [a.ledger(), b.ledger()],
        }),
        Format::Text => {
            out!("{}", compare::text(&report, (!args.all).then_some(SHOWN)));
            args.html.iter().for_each(|path| outln!("\nwrote {}", path.display()));
            for (label, side) in [("A", &a), ("B", &b)] {
                side.print_ledger(label);
            }
            Ok(())
        }
    }
}

/// Every tensor that a side quantizes, one after the other: memory holds one source and two results.
fn compare_tensors(
    units: &[Unit],
    (a, da): (&Side, Option<&[Decision]>),
    (b, db): (&Side, Option<&[Decision]>),
) -> Result<Vec<TensorRow>> {
    let bar = progress_bar("tensors");
    bar.set_length(units.len() as u64);
    let mut rows = Vec::new();
    for (i, unit) in units.iter().enumerate() {
        bar.set_message(unit.info.name.clone());
        let of = |decisions: Option<&'_ [Decision]>| decisions.and_then(|d| d.get(i)).cloned();
        let (da, db) = (of(da), of(db));
        let (da, db) = (da.as_ref().zip(a.hooks.quant.as_deref()), db.as_ref().zip(b.hooks.quant.as_deref()));
        rows.extend(compare_unit(unit, da, db)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(rows)
}

/// The part that runs the model.
struct Predictions<'a> {
    args: &'a Args,
    model: &'a Model,
    sequences: &'a [Vec<u32>],
    units: &'a [Unit],
    a: (&'a Side, Option<Vec<Decision>>),
    b: (&'a Side, Option<Vec<Decision>>),
}

impl Predictions<'_> {
    fn run(&self, trainer: Option<&Trainer>, settings: rollout_corr::Settings, report: &mut Report) -> Result {
        let (engine, per_layer) = (&self.model.engine, self.args.per_layer);
        let bar = progress_bar("models");
        let steps = |d: &Option<Vec<Decision>>| d.as_ref().map_or(0, |d| Runs::steps(self.units, d, per_layer));
        bar.set_length((1 + steps(&self.a.1) + steps(&self.b.1)) as u64);
        bar.set_message("unquantized");
        let loader = self.a.0.hooks.loader.clone();
        let runs = Runs::new(engine, &self.model.checkpoint, loader, self.sequences)?;
        bar.inc(1);
        let side = |(side, decisions): &(&Side, Option<Vec<Decision>>), label: &str| {
            let Some(decisions) = decisions else { return Ok(None) };
            let step = |what: &str| {
                bar.inc(1);
                bar.set_message(format!("{label}: {what}"));
            };
            runs.candidate(&side.hooks, self.units, decisions, per_layer, &step).map(Some)
        };
        let Some((a, weights_a)) = side(&self.a, "A")? else { return Ok(()) };
        let (b, weights_b) = side(&self.b, "B")?.unzip();
        let between = weights_b.as_ref().map(|b| runs.between(&weights_a, b)).transpose()?;
        report.ablation = Some(compare::Ablation::new(self.sequences.len(), a, b, between));
        if let Some(trainer) = trainer {
            bar.set_message("the trainer's tokens");
            let metrics = |weights| -> Result<(rollout_corr::Metrics, Vec<f64>)> {
                let rollout = trainer
                    .sequences()
                    .map(|ids| token_logprobs(engine.model(), weights, ids))
                    .collect::<compare::Result<Vec<_>>>()?;
                // `Trainer::read` has refused a file in which nothing counts.
                let batch = trainer.batch(&rollout);
                Ok((rollout_corr::metrics(&batch, &settings).unwrap_or_default(), rollout_corr::k3_of_each(&batch)))
            };
            let (a, each_a) = metrics(&weights_a)?;
            let (b, each_b) = metrics(weights_b.as_ref().unwrap_or(runs.reference()))?;
            report.rollout_corr = Some(RolloutCorr {
                sequences: trainer.sequences().count(),
                tokens: trainer.counted(),
                a,
                b,
                paired: Paired::of(&each_a, &each_b),
                settings: settings.clone(),
            });
        }
        bar.finish_and_clear();
        Ok(())
    }
}

fn read_trainer(path: &std::path::Path) -> Result<Trainer> {
    Ok(Trainer::read(&path.display().to_string(), &Checkpoint::open(path)?)?)
}

fn rollout_settings(args: &Args) -> Result<rollout_corr::Settings, UsageError> {
    let rules = match (&args.rollout_rs, &args.rollout_rs_threshold) {
        (Some(rules), Some(thresholds)) => rollout_rs::parse(rules, thresholds).map_err(|why| {
            UsageError::new(
                format!("--rollout-rs {} --rollout-rs-threshold {}", rules.escape_debug(), thresholds.escape_debug()),
                why,
                "write for example --rollout-rs token_k1,seq_mean_k3 --rollout-rs-threshold 0.5_2.0,0.01",
            )
        })?,
        _ => Vec::new(),
    };
    Ok(rollout_corr::Settings {
        rollout_is: args.rollout_is,
        rollout_is_threshold: args.rollout_is_threshold,
        rollout_rs: rules,
    })
}
