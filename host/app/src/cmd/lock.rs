//! `patchhost lock`: bind a decision to bytes, settings, limits and grants.

use super::Call;
use super::args::Format;
use super::failure::{Result, UsageError};
use super::output::json;
use super::session::{parse_setting, sandbox};
use super::trust_args::{GrantArgs, TrustFiles};
use crate::audit::Severity;
use crate::base::text::clean;
use crate::patch::resolve;
use crate::trust::{Decision, Entry, LockFile, Recorded, TrustError};

mod check;

/// Audit a patch and write it to the lock: from then on only what is locked is loaded. Or list, check, remove entries
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The patch: a path, or the name of a bundled one
    #[arg(value_name = "X.wasm", required_unless_present_any = ["check", "list", "remove", "accept_revocations"])]
    component: Option<String>,
    /// A setting that it will run with: KEY=VALUE, in the order of the run; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    #[command(flatten)]
    grants: GrantArgs,
    /// Name of the entry: for the same component with several settings [default: the name of the file]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Write down that these bytes were reviewed, and what about it
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Who reviewed them [default: $USER]
    #[arg(long, value_name = "NAME", requires = "note")]
    by: Option<String>,
    /// A lower version than the locked one is meant
    #[arg(long)]
    allow_downgrade: bool,
    /// Compare every entry with its file
    #[arg(long, conflicts_with_all = ["component", "list", "remove"])]
    check: bool,
    /// Show the entries
    #[arg(long, conflicts_with_all = ["component", "remove"])]
    list: bool,
    /// Take an entry out
    #[arg(long, value_name = "NAME", conflicts_with = "component")]
    remove: Option<String>,
    /// The file of revocations was changed on purpose: from now on the lock knows it as it stands
    #[arg(long, conflicts_with_all = ["component", "check", "list", "remove"])]
    accept_revocations: bool,
    #[command(flatten)]
    files: TrustFiles,
}

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    if args.check {
        return check::run(&args.files, format);
    }
    if args.list {
        return list(&args.files, format);
    }
    if args.accept_revocations {
        return accept_revocations(&args.files, format);
    }
    if let Some(name) = &args.remove {
        return remove(&args.files, name, format);
    }
    let Some(component) = &args.component else {
        return Err(UsageError::new("lock", "no patch is named", "name one: patchhost lock X.wasm").into());
    };
    let gate = args.files.for_writing()?;
    let settings = args.settings.iter().map(|s| parse_setting(s)).collect::<Result<Vec<_>, _>>()?;
    let review =
        args.note.as_ref().map(|note| Ok::<_, UsageError>((who(args.by.as_deref())?, note.clone()))).transpose()?;
    let mut decision = Decision {
        name: args.name.clone(),
        settings: (!settings.is_empty()).then_some(settings),
        limits: args.grants.limits.clone(),
        grants: args.grants.change()?,
        review,
        allow_downgrade: args.allow_downgrade,
        same_bytes: false,
    };
    // A note alone changes nothing else; otherwise no --set means no settings.
    if !decision.only_review() {
        decision.settings.get_or_insert_default();
    }
    let recorded = gate.record(&|| resolve(component), &decision, &sandbox(1)?)?;
    show(&gate.lock_path().display().to_string(), &recorded, format)
}

/// What was written, for people and programs.
pub(super) fn show(lock: &str, recorded: &Recorded, format: Format) -> Result {
    let Recorded { entry, changes, began, judgement, findings } = recorded;
    if format == Format::Json {
        let object = serde_json::json!({
            "lock": lock, "entry": entry, "changes": changes, "began": began, "trust": judgement.summary,
            "findings": findings,
        });
        return json(&object);
    }
    outln!("{} {}  {}  {} bytes", clean(&entry.name, 120), entry.version, entry.digest, entry.size);
    outln!("  generation {}", entry.generation);
    match &changes[..] {
        [] => outln!("  nothing changed"),
        all => all.iter().for_each(|change| outln!("  {}", change.line())),
    }
    let shown = findings.iter().filter(|finding| finding.severity == Severity::Warn);
    shown.for_each(|finding| outln!("  warning {}", finding.line()));
    outln!(
        "  audit: {} warnings, {} notes; {}; {}",
        entry.audit.warnings,
        entry.audit.infos,
        judgement.summary.line().split("  ").next().unwrap_or_default(),
        match &entry.review {
            Some(review) => format!("reviewed by {} on {}", clean(&review.who, 120), review.date),
            None => "no review is written down (--note)".to_owned(),
        }
    );
    outln!("written to {}", clean(lock, 200));
    if *began {
        outln!("note: the lock is new; where it is found, only locked patches are loaded from now on");
    }
    Ok(())
}

fn who(by: Option<&str>) -> Result<String, UsageError> {
    let user = || std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).ok();
    by.map(str::to_owned)
        .or_else(user)
        .filter(|who| !who.trim().is_empty())
        .ok_or_else(|| UsageError::new("--note without --by", "$USER does not say who reviewed it", "add --by NAME"))
}

fn read(files: &TrustFiles) -> Result<(String, LockFile)> {
    let gate = files.for_writing()?;
    let path = gate.lock_path();
    let shown = clean(&path.display().to_string(), 200);
    let Some((lock, _)) = LockFile::read(path)? else {
        let why = "there is no such file";
        let next = "lock a patch with `patchhost lock X.wasm`, or name the lock with --lock";
        return Err(TrustError::usage(format!("lock file `{shown}`"), why, next).into());
    };
    Ok((shown, lock))
}

fn list(files: &TrustFiles, format: Format) -> Result {
    let (path, lock) = read(files)?;
    if format == Format::Json {
        return json(&serde_json::json!({ "lock": path, "patches": lock.patches }));
    }
    for entry in &lock.patches {
        print_entry(entry);
    }
    outln!("{} in {path}", super::output::plural(lock.patches.len(), "entry").replace("entrys", "entries"));
    Ok(())
}

fn print_entry(entry: &Entry) {
    let list = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { clean(&items.join(", "), 400) };
    outln!(
        "{} {}  sha256:{}  {}",
        clean(&entry.name, 120),
        entry.version,
        entry.digest.short(),
        list(entry.hooks.clone())
    );
    outln!("  settings {}", list(entry.settings.iter().map(ToString::to_string).collect()));
    outln!(
        "  limits   {}",
        if entry.limits_set.is_empty() {
            "the policy's".to_owned()
        } else {
            list(entry.limits_set.clone()) + " of its own"
        }
    );
    outln!("  grants   {}", list(entry.grants.lines()));
    outln!("  signed   {}", list(entry.signatures.iter().map(|s| s.key.short()).collect()));
    if let Some(review) = &entry.review {
        outln!("  reviewed by {} on {}: {}", clean(&review.who, 120), review.date, clean(&review.note, 300));
    }
}

fn accept_revocations(files: &TrustFiles, format: Format) -> Result {
    let (path, _) = read(files)?;
    let count = files.for_writing()?.accept_revocations()?.unwrap_or_default();
    if format == Format::Json {
        return json(&serde_json::json!({ "lock": path, "revocations": count }));
    }
    outln!("{path} knows {} now", super::output::plural(count, "revocation"));
    Ok(())
}

fn remove(files: &TrustFiles, name: &str, format: Format) -> Result {
    let (path, _) = read(files)?;
    let gate = files.for_writing()?;
    gate.update_lock(|lock| {
        let before = lock.patches.len();
        lock.patches.retain(|entry| entry.name != name);
        match lock.patches.len() < before {
            true => Ok(()),
            false => {
                let names: Vec<_> = lock.patches.iter().map(|entry| clean(&entry.name, 80)).collect();
                let why = format!("the lock has no such entry; it has {}", names.join(", "));
                Err(TrustError::usage(format!("lock --remove {}", clean(name, 80)), why, "give one of these names"))
            }
        }
    })?;
    if format == Format::Json {
        return json(&serde_json::json!({ "lock": path, "removed": name }));
    }
    outln!("removed `{}` from {path}; its grants are gone with it", clean(name, 80));
    Ok(())
}
