//! `patchhost rebuild --check`: do the declared sources and tools give these bytes?

use super::Call;
use super::args::Format;
use super::failure::{Failure, Result};
use super::output::json;
use crate::base::text::clean;
use crate::base::{Code, Digest};
use crate::patch::{StageError, resolve};
use crate::trust::TrustError;
use crate::trust::provenance::{Provenance, not_reproducible};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Build a component again from its sources and compare the bytes. Runs `cargo xtask guests` in the folder of the sources
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The component: a path with its statement X.wasm.intoto.json beside it, or the name of a bundled one
    #[arg(value_name = "X.wasm")]
    component: String,
    /// Compare, and write nothing: the only thing that it does
    #[arg(long, required = true)]
    check: bool,
    /// The checked-out sources; their build scripts are run [default: the repository around this folder]
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
}

/// What `cargo xtask guests --describe` prints.
#[derive(Debug, Deserialize)]
struct Here {
    toolchain: String,
    source: Digest,
}

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    let candidate = resolve(&args.component)?;
    let (digest, name) = (*candidate.digest(), candidate.name().to_owned());
    let what = || format!("rebuild of `{name}`");
    let Some(statement) = Provenance::find(candidate.path(), &digest)? else {
        let why = format!("no statement says what {digest} was made from");
        let next = "bring X.wasm.intoto.json from whoever built it";
        return Err(TrustError::usage(what(), why, next).into());
    };
    let Some(file) = statement.subject(&digest) else {
        let why = format!("its statement is about other bytes than {digest}");
        return Err(TrustError::refused(what(), why, "take the component that the statement is about").into());
    };
    let source = sources(args.source.as_deref())?;
    let here: Here = describe(&source)?;
    if here.source != statement.source {
        let why = format!("the sources here are {}, the statement says {}", here.source, statement.source);
        return Err(TrustError::usage(what(), why, "check out the commit that it was built from").into());
    }
    // Other tools may give other bytes and be right: that would say nothing.
    if here.toolchain != statement.toolchain {
        let why = format!(
            "not compared: the tools here are {}, the statement says {}",
            clean(&here.toolchain, 200),
            clean(&statement.toolchain, 200)
        );
        return Err(TrustError::usage(what(), why, "install those versions, then try again").into());
    }
    let rebuilt = build(&source, file)?;
    let same = rebuilt == Some(digest);
    if format == Format::Json {
        json(&serde_json::json!({
            "name": name, "digest": digest, "rebuilt": rebuilt, "same": same, "source": here.source,
            "toolchain": here.toolchain, "finding": (!same).then(|| not_reproducible(file, &digest, rebuilt.as_ref())),
        }))?;
        return if same { Ok(()) } else { Err(Failure::said(Code::Refused)) };
    }
    if same {
        outln!("{name} {digest}\n  rebuilt: identical\n  source  {}\n  tools   {}", here.source, here.toolchain);
        return Ok(());
    }
    let finding = not_reproducible(file, &digest, rebuilt.as_ref());
    Err(StageError::Trust { name, why: finding.line(), next: finding.fix }.into())
}

fn sources(given: Option<&Path>) -> Result<PathBuf, TrustError> {
    let is_it = |folder: &Path| folder.join("guests/Cargo.toml").is_file() && folder.join("tools/xtask").is_dir();
    let missing = |what: String| {
        let next = "name the checked-out repository with --source";
        TrustError::usage(what, "it holds no guests/Cargo.toml and tools/xtask", next)
    };
    if let Some(folder) = given {
        let shown = clean(&folder.display().to_string(), 200);
        return is_it(folder).then(|| folder.to_path_buf()).ok_or_else(|| missing(format!("source folder `{shown}`")));
    }
    let here = std::env::current_dir().unwrap_or_default();
    here.ancestors()
        .find(|folder| is_it(folder))
        .map(Path::to_path_buf)
        .ok_or_else(|| missing("source folder".to_owned()))
}

fn describe(source: &Path) -> Result<Here, TrustError> {
    let text = xtask(source, &["guests", "--describe"])?;
    toml::from_str(&text).map_err(|e| failed(&clean(e.message(), 300)))
}

/// The digest of one file of a build from nothing.
fn build(source: &Path, file: &str) -> Result<Option<Digest>, TrustError> {
    let folder = tempfile::tempdir().map_err(|e| failed(&e.to_string()))?;
    let into = folder.path().display().to_string();
    xtask(source, &["guests", "--into", &into])?;
    // A statement may name a file anywhere; only those that were built count.
    let built = Path::new(file).file_name().map(|name| folder.path().join(name));
    Ok(built.and_then(|path| std::fs::read(path).ok()).map(|bytes| Digest::of(&bytes)))
}

fn xtask(source: &Path, args: &[&str]) -> Result<String, TrustError> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let command = Command::new(cargo).current_dir(source).arg("xtask").args(args).output();
    let out = command.map_err(|e| failed(&format!("cargo cannot be started: {e}")))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        let last = said.trim().rsplit('\n').take(4).collect::<Vec<_>>();
        return Err(failed(&clean(&last.into_iter().rev().collect::<Vec<_>>().join(" / "), 600)));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn failed(why: &str) -> TrustError {
    let next = "install what it says is missing; `cargo xtask guests --check` in the sources shows the whole build";
    TrustError::usage("rebuild: not compared", why, next)
}
