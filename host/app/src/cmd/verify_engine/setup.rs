//! Before the first update: which model, which checkpoints, what fresh loads answer, and how exactly that can be told.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::own::Own;
use super::run::RunArgs;
use crate::base::Digest;
use crate::certify::{
    Api, Changed, Distance, Engine, KitError, Known, Launched, Launcher, MAX_TOKENS, OwnModel, Reference, Subject,
    Tensor, Wanted, ask_twice, changes, computed, connect, draw, make, name_of, prompts,
};
use crate::cmd::failure::Result;

/// Mean difference of log probabilities, above which an engine holds other weights than the model's, or computes another
/// model: bf16 activations stay far below.
const MOST_NOISE: f64 = 0.2;

/// Everything that a trial needs.
pub struct Setup {
    pub subject: Subject,
    pub reference: Reference,
    pub engine: Box<dyn Engine>,
    /// The engine's process, where the kit started it.
    pub running: Option<Launched>,
    /// How the engine is started again, and on what.
    pub again: Option<Again>,
    /// What the certificate says of the model.
    pub model: Value,
    /// How the answers are judged, for the certificate.
    pub judged: Value,
}

/// How an engine is started again.
pub struct Again {
    launcher: Launcher,
    /// The folder of the first checkpoint.
    files: PathBuf,
    scratch: PathBuf,
    api: Option<Api>,
}

impl Again {
    /// Starts it on the first checkpoint, and gives its process with it.
    pub fn start(&self) -> Result<(Box<dyn Engine>, Launched), KitError> {
        let launched = self.launcher.start(&self.files)?;
        let engine = connect(&launched.url, None, self.api)?.engine(&self.files, &self.scratch);
        Ok((engine, launched))
    }
}

/// Weights to try an engine with, without the cases.
struct Weights {
    weights: Vec<Vec<Tensor>>,
    changed: Vec<Changed>,
    prompts: Vec<Vec<u32>>,
    /// The folder of the first checkpoint's other files.
    files: PathBuf,
    model: Value,
    config: String,
}

/// Of a model that lies on this machine, or is inside of this program.
fn of_model(args: &RunArgs, named: &str, scratch: &Path) -> Result<Weights> {
    let model = match &args.model {
        Some(folder) => OwnModel::open(folder)?,
        None => OwnModel::named(named)?,
    };
    let changed = changes(&model.tensors, args.seed);
    Ok(Weights {
        model: json!({
            "family": model.family, "architecture": model.architecture,
            "config_sha256": Digest::of(model.config.as_bytes()).hex(), "checkpoint_sha256": model.digest.hex(),
        }),
        prompts: prompts(args.seed, model.vocabulary),
        files: model.folder.unwrap_or_else(|| scratch.to_owned()),
        config: model.config,
        weights: std::iter::once(model.tensors).chain(changed.iter().map(|c| c.tensors.clone())).collect(),
        changed,
    })
}

/// A tiny model of a family, written to the scratch folder.
fn of_family(args: &RunArgs, wanted: Wanted, scratch: &Path) -> Result<Weights> {
    let made = make(wanted, &scratch.join("plan"))?;
    let files = made.folder.join("base");
    let config = wanted.family.config(wanted.padded);
    let config = format!("{config:#}\n");
    let changed = changes(made.weights.first().map(Vec::as_slice).unwrap_or_default(), args.seed);
    let sha256 = made.plan.checkpoints.first().map(|held| held.sha256.clone());
    Ok(Weights {
        model: json!({
            "family": made.plan.family, "architecture": made.plan.architecture, "padded": wanted.padded,
            "config_sha256": Digest::of(config.as_bytes()).hex(), "checkpoint_sha256": sha256,
        }),
        prompts: made.plan.prompts,
        weights: made.weights,
        changed,
        files,
        config,
    })
}

/// Against a server that runs: its first answers are what it must give again, and patchhost's own runtime judges the
/// changed checkpoints.
pub fn running(args: &RunArgs, url: &str, token: Option<String>, scratch: &Path) -> Result<Setup> {
    let found = connect(url, token, args.api())?;
    let named = found.root.clone().unwrap_or_default();
    let weights = match args.wanted() {
        Some(wanted) if args.model.is_none() => of_family(args, wanted, scratch)?,
        _ => of_model(args, &named, scratch)?,
    };
    let Weights { weights, mut changed, prompts, files, mut model, config } = weights;
    let engine = found.engine(&files, scratch);
    let (recorded, apart) = ask_twice(engine.as_ref(), &prompts, MAX_TOKENS)?;
    let first = recorded.first().cloned().unwrap_or_default();
    let mut own = Own::new(&config, weights.clone())?;
    let recorded_within = apart.tolerated();
    let noise = computed(&mut own, 0, &prompts, &first)?;
    let own_within = noise.tolerated();
    // A change that cannot be told from rounding would prove nothing.
    let mut kept = vec![0];
    for number in 1..weights.len() {
        let seen = computed(&mut own, number, &prompts, &first)?;
        if seen.within(own_within.visible()) {
            errln!(
                "note: {} is left out: {} cannot be told from rounding",
                name_of(number),
                changed[number - 1].change
            );
        } else {
            kept.push(number);
        }
    }
    if kept.len() == 1 || noise.mean > MOST_NOISE {
        return Err(KitError::refused(
            format!("the server at {url}"),
            format!(
                "its log probabilities are {:.3} (mean) from those of patchhost's runtime on the same model, and at most \
                 {MOST_NOISE} can be rounding",
                noise.mean
            ),
            "give the folder of the model that it really serves with --model, or let the kit start the engine (--launch)",
        )
        .into());
    }
    own.keep(&kept);
    let weights: Vec<Vec<Tensor>> = kept.iter().filter_map(|n| weights.get(*n).cloned()).collect();
    let mut number = 0;
    changed.retain(|_| {
        number += 1;
        kept.contains(&number)
    });
    let reference =
        Reference { recorded: vec![recorded], recorded_within, own: Some(Box::new(own)), own_within, prompts };
    let judged = json!({
        "base": "the engine's own answers before the first update",
        "others": "log probabilities that patchhost's runtime computes for the engine's tokens",
        "tolerance_base": recorded_within, "tolerance_others": own_within, "measured_on_base": noise,
    });
    checkpoints(&mut model, &changed);
    Ok(Setup {
        subject: subject(args, weights, &changed),
        reference,
        engine,
        running: None,
        again: None,
        model,
        judged,
    })
}

/// The kit starts the engine: once on each checkpoint, and then on the first one.
pub fn launched(args: &RunArgs, command: &str, scratch: &Path) -> Result<Setup> {
    let launcher = Launcher::new(command, scratch.join("engine.log"))?;
    let Weights { weights, changed, prompts, files, mut model, .. } = match args.wanted() {
        Some(wanted) if args.model.is_none() => of_family(args, wanted, scratch)?,
        _ => of_model(args, "", scratch)?,
    };
    let mut recorded = vec![Vec::new(); weights.len()];
    let mut apart = Distance::NONE;
    let mut last = None;
    // The first checkpoint last: the engine stays up with it.
    for number in (1..weights.len()).chain([0]) {
        let folder = match number {
            0 => files.clone(),
            _ => folder_of(&files, &scratch.join("fresh").join(name_of(number)), &weights[number])?,
        };
        errln!("a fresh load of {}", name_of(number));
        let running = launcher.start(&folder)?;
        let found = connect(&running.url, None, args.api())?;
        let engine = found.engine(&files, scratch);
        let (answers, noise) = ask_twice(engine.as_ref(), &prompts, MAX_TOKENS)?;
        recorded[number] = answers;
        apart = apart.or_more(noise);
        last = (number == 0).then_some((engine, running));
    }
    let Some((engine, running)) = last else {
        return Err(KitError::host("the plan", "it has no checkpoint", "please report this").into());
    };
    let recorded_within = apart.tolerated();
    let mut reference = Reference { recorded, recorded_within, own: None, own_within: Distance::NONE, prompts };
    for (number, changed) in changed.iter().enumerate() {
        let answers = reference.recorded[number + 1].first().cloned().unwrap_or_default();
        if reference.fits(0, &answers)? {
            errln!("note: {} ({}) answers as base does", name_of(number + 1), changed.change);
        }
    }
    let judged = json!({
        "base": "a fresh load by the same engine", "others": "a fresh load of each by the same engine",
        "tolerance_base": recorded_within, "tolerance_others": recorded_within,
    });
    checkpoints(&mut model, &changed);
    let subject = subject(args, weights, &changed);
    let again = Some(Again { launcher, files, scratch: scratch.to_owned(), api: args.api() });
    Ok(Setup { subject, reference, engine, running: Some(running), again, model, judged })
}

/// The cases for these checkpoints.
fn subject(args: &RunArgs, weights: Vec<Vec<Tensor>>, changed: &[Changed]) -> Subject {
    let base = weights.first().cloned().unwrap_or_default();
    let cases = draw(&Known::new(&base, changed), args.seed, usize::from(args.cases));
    Subject { weights, cases, max_tokens: MAX_TOKENS }
}

/// What the certificate says of the checkpoints.
fn checkpoints(model: &mut Value, changed: &[Changed]) {
    let words = std::iter::once("as it is").chain(changed.iter().map(|c| c.change.as_str())).enumerate();
    model["checkpoints"] = words.map(|(n, change)| json!({ "name": name_of(n), "change": change })).collect();
}

/// A model folder with other weights.
fn folder_of(files: &Path, folder: &Path, tensors: &[Tensor]) -> Result<PathBuf> {
    let io = |e: std::io::Error| {
        let next = "make room, or name another folder with TMPDIR";
        KitError::host(format!("folder `{}`", folder.display()), e.to_string(), next)
    };
    std::fs::create_dir_all(folder).map_err(io)?;
    crate::certify::copy_beside(files, folder)?;
    crate::certify::write_tensors(&folder.join("model.safetensors"), tensors)?;
    Ok(folder.to_owned())
}
