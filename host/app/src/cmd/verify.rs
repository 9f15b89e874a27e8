//! `patchhost verify`: who signed a component, and whether that is enough.

use super::Call;
use super::args::Format;
use super::failure::{Failure, Result};
use super::output::json;
use super::trust_args::TrustFiles;
use crate::audit::Severity;
use crate::base::Code;
use crate::base::text::clean;
use crate::patch::{Candidate, StageError};
use crate::trust::{Gate, PublicKey, Signer, TrustError, TrustPolicy};
use std::path::PathBuf;

/// Verify the signatures of a component against the policy's signers, or against keys given here. Exit 0 or 1
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The component; its signatures are in X.wasm.sig
    #[arg(value_name = "X.wasm")]
    component: PathBuf,
    /// A public key, or the file that holds it, in the place of the policy's signers; can be repeated
    #[arg(long = "signer", value_name = "ed25519:KEY|FILE")]
    signers: Vec<String>,
    /// So many different signers must have signed [default: the policy's threshold, or 1]
    #[arg(long, value_name = "K")]
    threshold: Option<usize>,
    #[command(flatten)]
    files: TrustFiles,
}

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    let (mut policy, places) = args.files.read()?;
    if !args.signers.is_empty() {
        policy.trust.signers = signers(&args.signers)?;
        policy.trust.threshold = 1;
    }
    policy.trust.threshold = args.threshold.unwrap_or(policy.trust.threshold);
    policy.trust.require_signature = true;
    if policy.trust.signers.is_empty() {
        let next = "name keys with --signer ed25519:…, or a policy with [[trust.signers]]";
        return Err(TrustError::usage("verify", "nobody says whose signatures count", next).into());
    }
    policy
        .trust
        .check()
        .map_err(|why| TrustError::usage("verify", why, "change --threshold, --signer or the policy"))?;
    let TrustPolicy { threshold, signers, .. } = policy.trust.clone();
    let gate = Gate::for_writing(&policy, places);
    let candidate = Candidate::from_file(&args.component)?;
    let judged = gate.signatures_of(&candidate)?;
    let errors: Vec<_> = judged.findings.iter().filter(|f| f.severity == Severity::Error).collect();
    let good = errors.is_empty();
    if format == Format::Json {
        json(&serde_json::json!({
            "digest": candidate.digest(), "good": good, "signed": judged.good, "threshold": threshold,
            "signers": signers.len(), "findings": judged.findings,
        }))?;
        return if good { Ok(()) } else { Err(Failure::said(Code::Refused)) };
    }
    outln!("{}  {}", clean(&args.component.display().to_string(), 200), candidate.digest());
    for signed in &judged.good {
        let until = signed.not_after.map(|day| format!(", until {day}")).unwrap_or_default();
        outln!("  good: {} at {}{until}  {}", clean(&signed.name, 120), signed.signed_at, signed.key);
    }
    for finding in judged.findings.iter().filter(|f| f.severity != Severity::Error) {
        outln!("  note: {}", finding.line());
    }
    outln!("{} of {threshold} needed, {} trusted", judged.good.len(), super::output::plural(signers.len(), "signer"));
    let Some(first) = errors.first() else { return Ok(()) };
    let why = errors.iter().map(|finding| finding.line()).collect::<Vec<_>>().join("\n       ");
    let name = clean(&args.component.display().to_string(), 200);
    Err(StageError::Trust { name, why, next: first.fix.clone() }.into())
}

/// Keys given on the command line, called by what was given.
fn signers(given: &[String]) -> Result<Vec<Signer>, TrustError> {
    given.iter().map(|word| signer(word)).collect()
}

fn signer(word: &str) -> Result<Signer, TrustError> {
    let bad = |why: String| {
        let next = "give ed25519:…, or the .pub file that `patchhost keygen` wrote";
        TrustError::usage(format!("--signer {}", clean(word, 100)), why, next)
    };
    let named = |name: &str, key: PublicKey| Signer {
        name: name.to_owned(),
        key,
        hooks: vec!["*".to_owned()],
        not_after: None,
    };
    if word.starts_with("ed25519:") {
        return word.parse().map(|key: PublicKey| named(&key.short(), key)).map_err(bad);
    }
    let text = crate::base::file::read_small(std::path::Path::new(word), "public key")?
        .ok_or_else(|| bad("it is neither a key nor a file".to_owned()))?;
    let (key, name) = text.trim().split_once(' ').unwrap_or((text.trim(), word));
    key.parse().map(|key| named(&clean(name, 80), key)).map_err(bad)
}
