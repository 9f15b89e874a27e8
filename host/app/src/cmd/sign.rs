//! `patchhost sign`: a detached signature of a whole component.

use super::Call;
use super::args::Format;
use super::failure::Result;
use super::output::json;
use crate::audit::{Severity, inspect};
use crate::base::Day;
use crate::base::text::clean;
use crate::patch::{Candidate, StageError};
use crate::trust::{SecretKey, Signature, Signatures, TrustError};
use std::path::PathBuf;
use std::time::SystemTime;

/// Sign a component: the signature goes to X.wasm.sig, beside those of others
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The component to sign
    #[arg(value_name = "X.wasm")]
    component: PathBuf,
    /// The secret key that `patchhost keygen` wrote
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The signature counts until this day ends: 2026-12-31
    #[arg(long, value_name = "DAY", value_parser = day)]
    not_after: Option<Day>,
    /// What you want to say about it; it is signed too
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
}

fn day(text: &str) -> Result<Day, String> {
    text.parse()
}

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    let key = SecretKey::read(&args.key)?;
    let candidate = Candidate::from_file(&args.component)?;
    // Nobody should sign by mistake what could never run. Imports may be granted, so those are no reason.
    let report = inspect(candidate.bytes());
    let name = || clean(&args.component.display().to_string(), 200);
    if report.findings.iter().any(|f| f.severity == Severity::Error && !f.id.starts_with("PH1")) {
        return Err(StageError::Audit { name: name(), report: Box::new(report) }.into());
    }
    let now = SystemTime::now();
    if let Some(day) = args.not_after.filter(|day| day.is_over(now)) {
        let what = format!("signature of `{}`", name());
        return Err(
            TrustError::usage(what, format!("{day} is over"), "give a --not-after that is still to come").into()
        );
    }
    let signature = Signature::make(candidate.bytes(), &key, args.not_after, args.comment.as_deref(), now);
    let path = Signatures::path_of(&args.component);
    let count = Signatures::update(&path, signature)?;
    if format == Format::Json {
        return json(&serde_json::json!({
            "digest": candidate.digest(), "key": key.public(), "not_after": args.not_after,
            "file": path, "signatures": count,
        }));
    }
    let until = args.not_after.map(|day| format!(", until {day}")).unwrap_or_default();
    outln!("signed {} with {}{until}", candidate.digest(), key.public());
    outln!(
        "written to {}, which has {}",
        clean(&path.display().to_string(), 200),
        super::output::plural(count, "signature")
    );
    Ok(())
}
