//! `patchhost verify-engine URL` and `--launch`: the run itself, its table and its certificate.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::SystemTime;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::setup::{Setup, launched, running};
use crate::base::text::clean;
use crate::base::{Code, stamp};
use crate::certify::certificate::{self, TYPE};
use crate::certify::{Api, Engine, Expect, Family, Judged, KitError, Relaunch, Trial, Wanted, kit};
use crate::checkpoint::write::write_file;
use crate::cmd::Call;
use crate::cmd::args::Format;
use crate::cmd::failure::{Failure, Result, UsageError};
use crate::cmd::output::{json, plural};
use crate::cmd::session::progress_bar;
use crate::trust::SecretKey;

/// So many wrong cases are listed below the table; the certificate has all.
const MOST_SHOWN: usize = 20;

/// A run against an engine.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Try a tiny model of this family (with a URL: the server must serve `base` of `verify-engine plan` with the same
    /// --seed and --padded)
    #[arg(long, value_name = "FAMILY", value_parser = super::plan::family, conflicts_with = "model")]
    pub family: Option<&'static Family>,
    /// The model folder that the server serves [default: the one that the server names]
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Experts of a width that engines pad (48), with --family
    #[arg(long, requires = "family")]
    pub padded: bool,
    /// The words that the server speaks
    #[arg(long, value_enum, default_value = "auto")]
    api: ApiWord,
    /// A file with the token that the server asks for
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The same seed gives the same cases
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// How many updates are tried; the first ones are always the same
    #[arg(long, value_name = "M", default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub cases: u16,
    /// What sets the exit code [default: full for patchhost and its plug-ins, reload for engines that trust their sender]
    #[arg(long, value_enum)]
    level: Option<Level>,
    /// Start the engine by this shell command, with {model} and {port} in it: once on each checkpoint, to know what a fresh
    /// load answers, and then for the run
    #[arg(long, value_name = "COMMAND")]
    pub launch: Option<String>,
    /// Sign the certificate with this key (`patchhost keygen`); can be repeated
    #[arg(long = "key", value_name = "FILE")]
    pub keys: Vec<PathBuf>,
    /// The file for the certificate
    #[arg(long, value_name = "CERT.json")]
    pub out: Option<PathBuf>,
}

/// [`Api`], as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ApiWord {
    /// Found out by asking
    Auto,
    /// vLLM's server
    Vllm,
    /// SGLang's server
    Sglang,
    /// `patchhost serve`
    Patchhost,
}

/// Which cases count. The certificate has the verdict of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    /// Right updates: the engine takes them and holds the new weights
    Reload,
    /// Faulty updates too: it refuses them and holds the old weights
    Full,
}

impl Level {
    fn of(word: Option<Self>, name: &str, backend: &str) -> Self {
        let promises = name == "patchhost" || backend.contains("patchhost");
        word.unwrap_or(if promises { Self::Full } else { Self::Reload })
    }

    fn word(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Full => "full",
        }
    }

    fn counts(self, case: &Judged) -> bool {
        self == Self::Full || case.expected == Expect::Accept
    }

    fn verdict(self, judged: &[Judged]) -> &'static str {
        if judged.iter().all(|case| case.right || !self.counts(case)) { "pass" } else { "fail" }
    }
}

impl RunArgs {
    /// What the user says that the server is.
    pub fn api(&self) -> Option<Api> {
        match self.api {
            ApiWord::Auto => None,
            ApiWord::Vllm => Some(Api::Vllm),
            ApiWord::Sglang => Some(Api::Sglang),
            ApiWord::Patchhost => Some(Api::Patchhost),
        }
    }

    /// The plan of a family, where one is named.
    pub fn wanted(&self) -> Option<Wanted> {
        let (seed, cases, padded) = (self.seed, usize::from(self.cases), self.padded);
        self.family.map(|family| Wanted { family, seed, cases, padded })
    }

    fn token(&self) -> Result<Option<String>> {
        let Some(file) = &self.token_file else { return Ok(None) };
        let refuse = |why: String| {
            let what = format!("--token-file {}", file.display());
            UsageError::new(what, why, "give the file that the server was started with")
        };
        let text = patchhost_runtime::files::read_text(file, patchhost_runtime::files::CONFIG);
        let text = text.map_err(|e| refuse(e.to_string()))?;
        let token = text.trim_end_matches(['\r', '\n']);
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            return Err(refuse("a token is one line of printable ASCII characters".to_owned()).into());
        }
        Ok(Some(token.to_owned()))
    }
}

/// Runs the cases against a server, or against an engine that is started here.
pub fn run(args: &RunArgs, target: Option<&str>, call: &Call) -> Result {
    // Before anything is started: a key that cannot be read must not be found out at the end.
    let keys = args.keys.iter().map(|key| SecretKey::read(key)).collect::<Result<Vec<_>, _>>()?;
    let scratch = tempfile::tempdir().map_err(|e| {
        KitError::host("a folder for checkpoints", e.to_string(), "make room, or name another folder with TMPDIR")
    })?;
    let setup = match (target, &args.launch) {
        (Some(url), None) => running(args, url, args.token()?, scratch.path())?,
        (None, Some(command)) if args.family.is_some() || args.model.is_some() => {
            launched(args, command, scratch.path())?
        }
        (None, Some(_)) => {
            let why = "nobody says which model the engine is started with";
            return Err(UsageError::new("--launch", why, "give --family FAMILY or --model DIR").into());
        }
        (Some(_), Some(_)) => {
            let why = "a server that runs and one that is started here are two";
            return Err(UsageError::new("a URL and --launch", why, "give one of them").into());
        }
        (None, None) => {
            let why = "no engine is named";
            let next = "give the URL of a server, --launch COMMAND, or a word: plan, seal, vllm, transformers";
            return Err(UsageError::new("verify-engine", why, next).into());
        }
    };
    let identity = setup.engine.identity().clone();
    let (caches, holds) = (setup.engine.caches(), identity.holds.clone());
    errln!("{} {} at {} ({})", identity.name, clean(&identity.version, 60), identity.url, identity.backend);
    let dtypes: BTreeSet<String> = setup.subject.weights.iter().flatten().map(|t| format!("{:?}", t.dtype)).collect();
    let (model, judged_by) = (setup.model.clone(), setup.judged.clone());
    let level = Level::of(args.level, &identity.name, &identity.backend);
    let judged = trial(setup, level)?;
    let (all, right) = (judged.len(), judged.iter().filter(|case| case.right).count());
    let results = json!({
        "type": TYPE, "version": 1, "kit": kit(), "date": stamp(SystemTime::now()), "seed": args.seed,
        "engine": {
            "name": identity.name, "version": clean(&identity.version, 100), "backend": identity.backend,
            "url": identity.url, "started_by_the_kit": args.launch.is_some(),
        },
        "models": [model], "cases": judged, "judged_by": judged_by,
        "layers": { "sent": dtypes, "held": holds.unwrap_or_else(|| "the engine does not say".to_owned()) },
        "caches": caches,
        "totals": { "cases": all, "right": right, "wrong": all - right },
        "level": level.word(),
        "levels": { "reload": Level::Reload.verdict(&judged), "full": Level::Full.verdict(&judged) },
        "verdict": if right == all { "pass" } else { "fail" },
    });
    let text = certificate::seal(&results, &keys, SystemTime::now())?;
    if let Some(out) = &args.out {
        write_file(out, text.as_bytes())?;
    }
    report(&judged, level, &text, args, call)
}

/// Sends the cases; each is a line on standard error.
fn trial(mut setup: Setup, level: Level) -> Result<Vec<Judged>> {
    if level == Level::Reload && setup.again.is_none() {
        // A faulty update may be the end of an engine that nobody starts again: what counts comes first.
        setup.subject.cases.sort_by_key(|case| case.expect != Expect::Accept);
    }
    let bar = progress_bar("verify-engine");
    bar.set_length(setup.subject.cases.len() as u64);
    let mut tell = |case: &Judged| {
        bar.inc(1);
        bar.suspend(|| errln!("{}", line(case)));
    };
    let Setup { subject, mut reference, engine, mut running, again, .. } = setup;
    let mut relaunch = || -> Result<Box<dyn Engine>, KitError> {
        let Some(again) = &again else {
            return Err(KitError::host("the engine", "the kit did not start it", "start it again"));
        };
        // The old one first: two would need twice the memory.
        running = None;
        let (engine, launched) = again.start()?;
        running = Some(launched);
        Ok(engine)
    };
    let relaunch: Option<Relaunch<'_>> = if again.is_some() { Some(&mut relaunch) } else { None };
    let trial = Trial { engine, subject: &subject, reference: &mut reference, relaunch, tell: &mut tell };
    let judged = trial.run();
    bar.finish_and_clear();
    Ok(judged?)
}

/// One case: "0007 wrong lost norm: …".
fn line(case: &Judged) -> String {
    let word = if case.right { "right" } else { "WRONG" };
    let expected = if case.expected == Expect::Accept { "accept" } else { "refuse" };
    format!(
        "{} {word} {} {}: to {expected}, {}; holds {}. {}",
        case.id,
        case.kind,
        case.class,
        case.answered,
        case.held,
        clean(&case.detail, 600)
    )
}

fn report(judged: &[Judged], level: Level, text: &str, args: &RunArgs, call: &Call) -> Result {
    let wrong: Vec<&Judged> = judged.iter().filter(|case| !case.right).collect();
    if call.format == Format::Json {
        let value: Value = serde_json::from_str(text).map_err(|e| {
            KitError::host("the certificate as JSON", e.to_string(), "please report this: it is an error of patchhost")
        })?;
        json(&value)?;
        return if level.verdict(judged) == "pass" { Ok(()) } else { Err(Failure::said(Code::Refused)) };
    }
    let mut table: BTreeMap<(&str, &str), (usize, usize, usize)> = BTreeMap::new();
    for case in judged {
        let (right, silent, all) = table.entry((case.kind, case.class)).or_default();
        *right += usize::from(case.right);
        *silent += usize::from(case.answered == "not-asked");
        *all += 1;
    }
    outln!("{:14} {:13} right", "kind", "class");
    for ((kind, class), (right, silent, all)) in &table {
        let silent = if *silent == 0 { String::new() } else { format!(", {silent} not asked") };
        outln!("{kind:14} {class:13} {right} of {all}{silent}{}", if right == all { "" } else { "  <-" });
    }
    if !wrong.is_empty() {
        outln!("wrong:");
        wrong.iter().take(MOST_SHOWN).for_each(|case| outln!("  {}", line(case)));
        if let Some(more) = wrong.len().checked_sub(MOST_SHOWN).filter(|more| *more > 0) {
            outln!("  and {more} more: the certificate has all (--out, --format json)");
        }
    }
    outln!("{} of {} right", judged.len() - wrong.len(), plural(judged.len(), "case"));
    for (what, expected) in
        [("right updates are done right", Expect::Accept), ("faulty updates are refused", Expect::Refuse)]
    {
        let those: Vec<&Judged> = judged.iter().filter(|case| case.expected == expected).collect();
        outln!("{} of {} {what}", those.iter().filter(|case| case.right).count(), those.len());
    }
    outln!("verdict at level {}: {}", level.word(), level.verdict(judged));
    if level.verdict(judged) == "pass" && !wrong.is_empty() {
        outln!("This engine trusts its sender. What it takes wrongly does not count here; --level full counts it.");
    }
    match &args.out {
        Some(out) if args.keys.is_empty() => outln!("certificate {} (not signed: give --key)", out.display()),
        Some(out) => outln!("certificate {}, with {}", out.display(), plural(args.keys.len(), "signature")),
        None => {}
    }
    let counted = wrong.iter().filter(|case| level.counts(case)).count();
    if counted == 0 {
        return Ok(());
    }
    let why = format!("{} went wrong, listed above", plural(counted, "case"));
    Err(Failure::found("this engine", &why, "do not train against it in this way: see docs/verify-engine.md"))
}
