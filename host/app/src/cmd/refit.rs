//! `patchhost refit`: load a model, then bring new weights in as one transaction, from a folder, a file or a delta.

use std::path::{Path, PathBuf};

use patchhost_runtime::assembly::ChunkHeader;
use patchhost_runtime::checkpoint::CheckpointTensor;
use patchhost_runtime::engine::{EngineOptions, ExpertParallel};
use patchhost_runtime::layout;
use patchhost_runtime::refit::{Arrivals, Begin, Manifest, RefitReport};
use patchhost_runtime::rename::Renames;

use super::Call;
use super::args::{Format, Fp8Activation, ModelArgs, PatchArgs};
use super::failure::{Result, UsageError};
use super::output::{bytes, duration, json, plural};
use super::record::RecordArgs;
use super::run::print_refit;
use super::session::{Load, Model, Patches, advance, progress_bar};
use crate::checkpoint::export::Companions;
use crate::checkpoint::versions::{
    Base, Beside, Checksum, Encoding, Loaded, Source, Step, Version, WriteOptions, Written, applied_version,
    write_delta, write_full,
};

/// Load a model, then refit it in one transaction from a folder, a file, a version or a delta
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    patches: PatchArgs,
    #[command(flatten)]
    record: RecordArgs,
    /// The new weights: a model folder, a safetensors file, a version (weight_v000012, full or delta), or a folder of versions
    #[arg(long, value_name = "PATH")]
    from: PathBuf,
    /// Which version MODEL is, where it does not say so itself [default: 0]
    #[arg(long, value_name = "N")]
    base_version: Option<u64>,
    /// Which version of a folder of versions [default: the newest complete one]
    #[arg(long, value_name = "N")]
    target_version: Option<u64>,
    /// What to call the new weights [default: their version, else the number of the refit]
    #[arg(long, value_name = "TEXT")]
    version: Option<String>,
    /// The trainer's own step of these weights, for reports
    #[arg(long, value_name = "N")]
    step: Option<u64>,
    /// A JSON file of what must come: {"tensors": {NAME: {"dtype": "BF16", "shape": […], "sha256": "…"}}}
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Tensors that --from does not have stay as they are in MODEL (a manifest says what has to come)
    #[arg(long)]
    partial: bool,
    /// Also load the new weights into a fresh engine, and compare every bit before they are published
    #[arg(long)]
    verify: bool,
    /// Send tensors in chunks of at most so many bytes
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = super::export::size)]
    chunk_size: u64,
    /// Take tensors that come less precise than the model is declared (an f32 router in bf16)
    #[arg(long)]
    allow_narrowing: bool,
    /// Hold only the experts of rank R of N, as one rank of an expert-parallel group does; others are counted
    #[arg(long, value_name = "R/N", value_parser = expert_parallel)]
    expert_parallel: Option<ExpertParallel>,
    /// After the refit, write the new weights to DIR/weight_v…, complete
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// After the refit, write their difference to MODEL to DIR/weight_v…
    #[arg(long, value_name = "DIR")]
    save_delta: Option<PathBuf>,
    /// How a delta is encoded
    #[arg(long, value_name = "xor|overwrite", default_value = "xor", value_parser = encoding)]
    encoding: Encoding,
    /// How what is written can be checked: sha256, xxh3-128 (slime's default; SGLang knows no sha256) or adler32
    #[arg(long, value_name = "NAME", default_value = "sha256", value_parser = checksum)]
    checksum: Checksum,
    /// The number under which --save and --save-delta write [default: one more than MODEL's]
    #[arg(long, value_name = "N")]
    save_version: Option<u64>,
}

#[derive(Debug, serde::Serialize)]
struct Summary {
    model: String,
    architecture: String,
    from: PathBuf,
    steps: Vec<Step>,
    skipped: Vec<crate::checkpoint::versions::Skipped>,
    first: RefitReport,
    sha256_before: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<u64>,
    refit: RefitReport,
    sha256: String,
    verified: bool,
    saved: Vec<Written>,
    patches: Vec<super::session::LedgerRow>,
}

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    let options = EngineOptions { expert_parallel: args.expert_parallel, ..EngineOptions::default() };
    let manifest = args.manifest.as_deref().map(read_manifest).transpose()?;
    let model = Model::open(&args.model, options)?;
    let info = model.engine.info();
    let recorded = args.record.start(&model.name, &info.config)?;
    let patches = Patches::load(Load { recorded, ..Load::new(&args.patches, &info.architecture) })?;
    let hooks = patches.hooks(Fp8Activation::Dynamic128.into());
    let text = format == Format::Text;
    let held = match (args.base_version, model.folder()) {
        (Some(n), _) => Some(Version(n)),
        (None, Some(folder)) => applied_version(folder)?,
        (None, None) => None,
    };
    let base = Base { checkpoint: &model.checkpoint, version: held };
    let loaded = Source::open(&args.from)?.renamed(&model.renames)?;
    let mut loaded = loaded.load(Some(base), args.target_version.map(Version))?;
    for s in &loaded.skipped {
        errln!("note: `{}` is passed over: {}", s.name, s.why);
    }
    if loaded.steps.is_empty() {
        errln!("note: `{}` holds nothing newer than the weights of MODEL", args.from.display());
    }
    if text {
        print_source(&args.from, &loaded);
    }

    // What serves meanwhile: the model as it is. Observers watch the refit, not this first load.
    let first_hooks = patchhost_runtime::refit::RefitHooks { observers: Vec::new(), ..hooks.clone() };
    let bar = progress_bar("load");
    let first = model.engine.refit(&model.checkpoint, &first_hooks, &advance(&bar));
    bar.finish_and_clear();
    let first = first?;
    let before = model.engine.live()?.digest(model.engine.registry());
    if text {
        outln!("live: version {} sha256:{}", first.label, &before[..16]);
    }

    let version = args.version.clone().or_else(|| loaded.version.map(|v| v.to_string()));
    let begin = Begin { version, step: args.step, manifest, allow_narrowing: args.allow_narrowing, ..Begin::default() };
    // Its tensors have the model's names already, those of a manifest come to them now.
    let begin = Begin { renames: Renames::default(), ..begin.renaming(model.renames.clone())? };
    let staged = (|| -> Result<_> {
        let mut arrivals = model.engine.arrivals(begin);
        send(&mut arrivals, loaded.checkpoint.tensors(), args.chunk_size as usize)?;
        let mut source = arrivals.finish()?;
        if args.partial {
            source = model.engine.over(&model.checkpoint, &source)?;
            loaded.checkpoint = source.checkpoint().clone();
        }
        let bar = progress_bar("refit");
        let staged = model.engine.prepare(&source, &hooks, &advance(&bar));
        bar.finish_and_clear();
        let staged = staged?;
        if args.verify {
            let fresh = model.fresh_engine()?;
            fresh.declared_as(&model.engine);
            fresh.refit(&loaded.checkpoint, &first_hooks, &|_, _, _| {})?;
            same(&model, staged.weights().first_difference(&*fresh.live()?))?;
            staged.verify()?;
        }
        Ok(staged)
    })();
    let report = match staged {
        Ok(staged) => staged.publish(),
        Err(e) => {
            let live = model.engine.live()?;
            let digest = live.digest(model.engine.registry());
            errln!("note: nothing was published; version {} serves, sha256:{}", live.label(), &digest[..16]);
            return Err(e);
        }
    };
    let live = model.engine.live()?;
    let digest = live.digest(model.engine.registry());
    if text {
        print_refit(&report);
        print_layout(&report);
        if args.verify {
            outln!("verified: equal to a fresh load of the same tensors, bit for bit");
        }
        outln!(
            "live: version {}{} sha256:{}{}",
            report.label,
            args.step.map(|step| format!(", step {step},")).unwrap_or_default(),
            &digest[..16],
            if digest == before { " (no bit changed)" } else { "" }
        );
    }
    let saved = save(&args, &model, held, &loaded)?;
    if text {
        for w in &saved {
            let what = if w.unchanged > 0 { format!(", {} unchanged", w.unchanged) } else { String::new() };
            outln!("wrote {}: {}{what}, {}", w.path.display(), plural(w.tensors, "tensor"), bytes(w.bytes));
        }
        patches.print_ledger();
        return Ok(());
    }
    json(&Summary {
        model: model.name.clone(),
        architecture: model.engine.info().architecture.clone(),
        from: args.from.clone(),
        steps: loaded.steps,
        skipped: loaded.skipped,
        first,
        sha256_before: before,
        step: args.step,
        refit: report,
        sha256: digest,
        verified: args.verify,
        saved,
        patches: patches.ledger(),
    })
}

/// Sends every tensor: whole where it fits a chunk, else in pieces.
fn send<'a>(refit: &mut Arrivals, tensors: impl Iterator<Item = &'a CheckpointTensor>, most: usize) -> Result {
    for t in tensors {
        if t.data.len() <= most {
            refit.tensor(t)?;
            continue;
        }
        for part in t.data.parts(most) {
            let (offset, bytes) = part?;
            refit.chunk(&ChunkHeader { name: &t.name, dtype: t.stored, shape: &t.shape, offset }, &bytes)?;
        }
    }
    Ok(())
}

fn same(model: &Model, difference: Option<(usize, usize)>) -> Result {
    use patchhost_runtime::error::{Refusal, RuntimeError};
    let Some((param, part)) = difference else { return Ok(()) };
    let decl = &model.engine.registry().params()[param];
    Err(RuntimeError::Refit(Refusal::new(
        format!("{} of `{}`", decl.part_label(part), decl.name),
        "the refit and a fresh load of the same tensors differ in some bit",
        "a patch that does not answer the same twice is wrong: do not use it",
    ))
    .into())
}

fn save(args: &Args, model: &Model, held: Option<Version>, new: &Loaded) -> Result<Vec<Written>> {
    let held = held.unwrap_or(Version(0));
    let version = args.save_version.map(Version).or(new.version.filter(|v| *v > held)).unwrap_or(Version(held.0 + 1));
    let options = WriteOptions { checksum: args.checksum, ..WriteOptions::default() };
    let mut saved = Vec::new();
    if let Some(dir) = &args.save {
        let companions = match model.folder() {
            Some(folder) => Companions::of(folder)?,
            None => Companions::bundled(),
        };
        let beside = Beside { config: Some(&model.engine.info().config), companions: Some(&companions) };
        saved.push(write_full(&new.checkpoint, &beside, dir, version, &options)?);
    }
    if let Some(dir) = &args.save_delta {
        saved.push(write_delta(&model.checkpoint, &new.checkpoint, dir, version, held, args.encoding, &options)?);
    }
    Ok(saved)
}

fn print_source(from: &Path, loaded: &Loaded) {
    let version = loaded.version.map(|v| format!(", version {v}")).unwrap_or_default();
    outln!("from {}{version}: {}", from.display(), plural(loaded.checkpoint.tensors().len(), "tensor"));
    for s in &loaded.steps {
        if let (Some(version), Some(base), Some(encoding)) = (s.version, s.base_version, s.encoding) {
            let changed = plural(s.changed, "tensor");
            outln!("  {base} -> {version}: {changed} changed ({}), {}", encoding.name(), bytes(s.bytes));
        }
    }
}

fn print_layout(report: &RefitReport) {
    if !report.layout.is_empty() {
        let passes: Vec<String> = report
            .layout
            .iter()
            .map(|(pass, n)| format!("{} on {}", layout::name(*pass), plural(*n, "tensor")))
            .collect();
        outln!("  layout: {}", passes.join(", "));
    }
    if report.not_local > 0 {
        outln!("  {} of experts of other ranks skipped", plural(report.not_local, "tensor"));
    }
    if !report.observers.is_empty() {
        outln!("  accepted by {} in {}", report.observers.join(", "), duration(report.seconds));
    }
}

fn read_manifest(path: &Path) -> Result<Manifest, UsageError> {
    let bad = |why: String| {
        let next = "give {\"tensors\": {NAME: {\"dtype\": \"BF16\", \"shape\": [2, 3], \"sha256\": \"…\"}}}; each field may be absent";
        UsageError::new(format!("--manifest {}", path.display()), why, next)
    };
    let text =
        patchhost_runtime::files::read_text(path, patchhost_runtime::files::LIST).map_err(|e| bad(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| bad(format!("not a manifest: {e}")))
}

fn encoding(text: &str) -> Result<Encoding, String> {
    Encoding::named(text).ok_or_else(|| "give xor or overwrite".to_string())
}

fn checksum(text: &str) -> Result<Checksum, String> {
    Checksum::named(text).ok_or_else(|| format!("known are {}", Checksum::ALL.map(Checksum::name).join(", ")))
}

fn expert_parallel(text: &str) -> Result<ExpertParallel, String> {
    let parsed = text.split_once('/').and_then(|(r, n)| Some((r.parse().ok()?, n.parse().ok()?)));
    match parsed {
        Some((rank, size)) if rank < size => Ok(ExpertParallel { rank, size }),
        _ => Err("give the rank and the size of the group, for example 0/2".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks() {
        assert_eq!(expert_parallel("1/4"), Ok(ExpertParallel { rank: 1, size: 4 }));
        for bad in ["4/4", "1", "a/2", "-1/2", "0/0", ""] {
            assert!(expert_parallel(bad).is_err(), "{bad}");
        }
    }
}
