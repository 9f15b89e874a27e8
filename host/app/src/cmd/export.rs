//! `patchhost export`: a model into block FP8, for another engine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::ValueEnum;
use indicatif::ProgressStyle;
use patchhost_runtime::activation::ActivationMode;
use patchhost_runtime::engine::EngineOptions;
use patchhost_runtime::hooks::{BlockQuant, ScaleFormat};

use super::Call;
use super::args::{Format, PatchArgs, ReadingArgs};
use super::failure::{Result, UsageError};
use super::output::{bytes, duration, json, plural};
use super::session::{Load, Model, Patches, progress_bar};
use crate::base::Hook;
use crate::checkpoint::export::tensor_parallel::{self, TpRow};
use crate::checkpoint::export::{
    Companions, Consumer, Fate, Job, Options, Plan, Report, Target, config_json, outputs, write,
};
use crate::patch::{Patch, resolve};

/// Write a model as block FP8 for transformers, vLLM, SGLang, DeepSeek's own code or compressed-tensors
#[derive(Debug, clap::Args)]
pub struct Args {
    /// [MODEL] OUT: the model folder [default: the bundled tiny MoE], and the folder to make
    #[arg(value_names = ["MODEL", "OUT"], num_args = 1..=2, required = true)]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    patches: PatchArgs,
    #[command(flatten)]
    reading: ReadingArgs,
    #[command(flatten)]
    reader: ReaderArgs,
    /// Tensor-parallel sizes at which vLLM must be able to load the export, for example 1,2,4,8
    #[arg(long, value_name = "N,N,…")]
    check_tp: Option<String>,
    /// Write the export even if no tensor becomes FP8
    #[arg(long)]
    allow_unquantized: bool,
    /// Most bytes of weights in one file
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    max_shard_size: u64,
    /// Replace the model in OUT
    #[arg(long)]
    force: bool,
}

/// The reader of an export, and what depends on it.
#[derive(Debug, clap::Args)]
pub struct ReaderArgs {
    /// Who will read it: transformers, vllm@0.10, vllm@0.11, sglang, compressed-tensors, deepseek
    #[arg(long = "for", value_name = "READER")]
    pub consumer: String,
    /// Scales: any f32, or powers of two (stored as F32 all the same, as DeepSeek-V3.1 does) [default: the patch's]
    #[arg(long, value_enum)]
    pub scale_format: Option<Scales>,
    /// Quantize matrices whose sizes are not multiples of the block, too; transformers cannot load them
    #[arg(long)]
    pub allow_partial_blocks: bool,
}

/// Which values scales may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scales {
    /// Any f32
    F32,
    /// Powers of two
    Ue8m0,
}

impl ReaderArgs {
    pub fn consumer(&self) -> Result<Consumer, UsageError> {
        self.consumer.parse().map_err(|why: String| {
            UsageError::new(format!("--for {}", self.consumer.escape_debug()), why, "write for example --for vllm@0.11")
        })
    }

    fn options(&self) -> Options {
        let scale_format = self.scale_format.map(|s| match s {
            Scales::F32 => ScaleFormat::F32,
            Scales::Ue8m0 => ScaleFormat::Ue8m0,
        });
        Options { allow_partial_blocks: self.allow_partial_blocks, scale_format }
    }

    /// Turns `--scale-format` into a setting of the patch that quantizes.
    pub fn settings(&self, args: &mut PatchArgs) -> Result {
        let Some(format) = self.scale_format else { return Ok(()) };
        let value = if format == Scales::Ue8m0 { "ue8m0" } else { "f32" };
        let key = |s: &String| s.split('=').next().is_some_and(|k| k == "scale_format" || k.ends_with(".scale_format"));
        if args.settings.iter().any(key) {
            return Err(
                UsageError::new("--scale-format", "--set scale_format is given too", "give one of the two").into()
            );
        }
        match &args.components[..] {
            [_] => args.settings.push(format!("scale_format={value}")),
            several => {
                for component in several {
                    let candidate = resolve(component)?;
                    // Only to see whose setting it is; what may not run is refused when it is loaded.
                    if crate::audit::inspect(candidate.bytes()).hooks.contains(&Hook::BlockQuant) {
                        let stem = std::path::Path::new(component).file_stem().unwrap_or_default().to_string_lossy();
                        args.settings.push(format!("{stem}.scale_format={value}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// The plan of an export.
    pub fn plan(&self, model: &Model, patches: &Patches, verb: &str) -> Result<(Plan, Arc<dyn BlockQuant>)> {
        let consumer = self.consumer()?;
        let (_, quant) = patches.require_quant(verb)?;
        let hooks = patches.hooks(ActivationMode::None);
        let info = model.engine.info();
        let tensors = outputs(&model.engine.setup(), &model.checkpoint, hooks.loader.as_deref())?;
        let plan = Plan::new(consumer, info, tensors, quant.as_ref(), self.options())?;
        Ok((plan, quant))
    }
}

#[derive(Debug, serde::Serialize)]
struct Summary<'a> {
    model: &'a str,
    architecture: &'a str,
    out: PathBuf,
    consumer: String,
    scale_format: &'static str,
    block: [usize; 2],
    #[serde(flatten)]
    report: &'a Report,
    tensor_parallel: Option<TpTable<'a>>,
    warnings: &'a [String],
    not_copied: &'a [String],
    removed_leftovers: usize,
    seconds: f64,
    peak_memory: Option<u64>,
    patches: Vec<super::session::LedgerRow>,
}

#[derive(Debug, serde::Serialize)]
struct TpTable<'a> {
    sizes: &'a [usize],
    modules: &'a [TpRow],
}

pub fn run(mut args: Args, call: &Call) -> Result {
    let format = call.format;
    let started = std::time::Instant::now();
    let (model_path, out) = match &args.paths[..] {
        [out] => (None, out.clone()),
        [model, out, ..] => (Some(model.clone()), out.clone()),
        [] => return Err(UsageError::new("export", "OUT is missing", "write patchhost export MODEL OUT …").into()),
    };
    // Everything that can be refused is refused before anything large is read.
    args.reader.consumer()?;
    let sizes = args.check_tp.as_deref().map(tensor_parallel::sizes).transpose()?;
    args.reader.settings(&mut args.patches)?;
    let model_args = super::args::ModelArgs { model: model_path, reading: args.reading.clone() };
    let mut model = Model::open(&model_args, EngineOptions::default())?;
    if model.engine.format().is_some() {
        if !args.reading.dequantize {
            return Err(UsageError::new(
                format!("export of `{}`", model.name),
                "the checkpoint is FP8 already; quantizing it anew would change its numbers silently",
                "give the unquantized checkpoint, or say --dequantize to quantize its bf16 form",
            )
            .into());
        }
        model.checkpoint = model.engine.with_scales(&model.checkpoint, true)?;
    }
    let target = Target::new(&out, model.folder(), args.force)?;
    let info = model.engine.info();
    let patches = Patches::load(Load::new(&args.patches, &info.architecture))?;
    let (plan, quant) = args.reader.plan(&model, &patches, "export")?;
    if !args.allow_unquantized {
        plan.require_quantized()?;
    }
    let table = match &sizes {
        Some(sizes) => {
            let rows = tensor_parallel::check(&plan, &info.config, sizes)?;
            if format == Format::Text {
                print_table(&rows, sizes);
            }
            tensor_parallel::require(&rows, sizes)?;
            Some(rows)
        }
        None => None,
    };
    for warning in &plan.warnings {
        errln!("warning: {}", patchhost_runtime::error::plain(warning.to_string()));
    }
    let config = config_json(&info.config, &plan)?;
    let companions = match model.folder() {
        Some(folder) => Companions::of(folder)?,
        None => Companions::bundled(),
    };

    let staging = target.stage()?;
    let removed_leftovers = staging.leftovers;
    if removed_leftovers > 0 {
        errln!("note: removed what {} left behind", plural(removed_leftovers, "interrupted export"));
    }
    let bar = progress_bar("export");
    if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:30}] {bytes}/{total_bytes} {wide_msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    let (patch, _) = patches.require_quant("export")?;
    let job = Job {
        plan: &plan,
        quant: quant.as_ref(),
        config: &config,
        companions: &companions,
        metadata: &metadata(&plan, &patch),
        max_shard: args.max_shard_size,
        digests: format == Format::Json,
    };
    let report = write(&job, staging.path(), &|done, total, now, all, name| {
        bar.set_length(all);
        bar.set_position(now);
        bar.set_message(format!("{done}/{total} {name}"));
    });
    bar.finish_and_clear();
    let report = report?;
    staging.publish()?;

    let seconds = started.elapsed().as_secs_f64();
    if format == Format::Json {
        return json(&Summary {
            model: &model.name,
            architecture: &info.architecture,
            out,
            consumer: plan.consumer.to_string(),
            scale_format: if plan.ue8m0 { "ue8m0" } else { "f32" },
            block: plan.block,
            report: &report,
            tensor_parallel: sizes.as_ref().zip(table.as_ref()).map(|(sizes, modules)| TpTable { sizes, modules }),
            warnings: &plan.warnings,
            not_copied: &companions.left,
            removed_leftovers,
            seconds,
            peak_memory: peak_memory(),
            patches: patches.ledger(),
        });
    }
    outln!("exported {} ({}) to {} for {}", model.name, info.architecture, out.display(), plan.consumer);
    print_report(&report, seconds);
    if !companions.left.is_empty() {
        outln!("not copied: {}", companions.left.join(", "));
    }
    patches.print_ledger();
    Ok(())
}

fn metadata(plan: &Plan, patch: &Patch) -> BTreeMap<String, String> {
    let mut profiles: Vec<&str> = plan
        .entries
        .iter()
        .filter_map(|e| if let Fate::Quantize { scheme, .. } = &e.fate { Some(scheme.profile.as_str()) } else { None })
        .collect();
    profiles.sort_unstable();
    profiles.dedup();
    let settings: Vec<String> = patch.settings().iter().map(|(k, v)| format!("{k}={v}")).collect();
    [
        // transformers refuses files that do not say so.
        ("format", "pt".to_string()),
        ("patchhost.consumer", plan.consumer.to_string()),
        ("patchhost.generation", patch.generation().to_string()),
        ("patchhost.patch", format!("{} {}", patch.info().name, patch.info().version)),
        ("patchhost.patch_digest", patch.digest().to_string()),
        ("patchhost.profile", profiles.join(",")),
        ("patchhost.settings", settings.join(",")),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_string(), v))
    .collect()
}

fn print_table(rows: &[TpRow], sizes: &[usize]) {
    let width = rows.iter().map(|r| r.module.len()).max().unwrap_or(0).max("tensor parallel".len());
    out!("{:width$}  {:>5}  {:7}", "tensor parallel", "count", "cut");
    for size in sizes {
        out!("  {size:>4}");
    }
    outln!();
    for row in rows {
        out!("{:width$}  {:>5}  {:7}", row.module, row.count, row.cut);
        for problem in &row.problems {
            out!("  {:>4}", if problem.is_none() { "ok" } else { "no" });
        }
        outln!();
    }
}

fn print_report(report: &Report, seconds: f64) {
    outln!(
        "{:14} {:>9} {:>6} {:>10} {:>10}  {:>9} {:>9} {:>9}",
        "",
        "quantized",
        "kept",
        "before",
        "after",
        "rel. RMSE",
        "saturated",
        "flushed"
    );
    for c in report.classes.iter().chain([&report.total]) {
        let rmse = c.relative_rmse.map_or_else(String::new, |r| format!("{:.3} %", r * 100.0));
        outln!(
            "{:14} {:>9} {:>6} {:>10} {:>10}  {rmse:>9} {:>9} {:>9}",
            c.class,
            c.quantized,
            c.kept,
            bytes(c.bytes_before),
            bytes(c.bytes_after),
            c.saturated,
            c.flushed,
        );
    }
    let shards = report.files.iter().filter(|f| f.name.ends_with(".safetensors")).count();
    out!(
        "{} of weights, {} in all, in {}",
        plural(shards, "file"),
        plural(report.files.len(), "file"),
        duration(seconds)
    );
    match peak_memory() {
        Some(peak) => outln!("; peak memory {}", bytes(peak)),
        None => outln!(),
    }
}

/// Largest resident size of this process so far, where the system says.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// "5GB", "500 MB", "1GiB", "4096".
pub(super) fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("KIB", 1 << 10),
        ("MIB", 1 << 20),
        ("GIB", 1 << 30),
        ("KB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("B", 1),
    ];
    let upper = text.trim().to_ascii_uppercase();
    let (digits, unit) = UNITS
        .iter()
        .find_map(|(suffix, unit)| upper.strip_suffix(suffix).map(|d| (d.trim(), *unit)))
        .unwrap_or((upper.as_str(), 1));
    let n: Option<u64> = digits.parse().ok().and_then(|n: u64| n.checked_mul(unit));
    n.filter(|n| *n > 0).ok_or_else(|| "give a size such as 5GB, 500MB or 1GiB".to_string())
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes() {
        assert_eq!(size("5GB"), Ok(5_000_000_000));
        assert_eq!(size("1gib"), Ok(1 << 30));
        assert_eq!(size("500 MB"), Ok(500_000_000));
        assert_eq!(size("4096"), Ok(4096));
        for bad in ["", "GB", "-1GB", "0", "1.5GB", "99999999999TB", "5XB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
