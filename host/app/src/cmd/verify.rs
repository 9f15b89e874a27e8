//! `patchhost verify`: who signed a component, and whether that is enough.

use super::Call;
use super::args::Format;
use super::failure::{Failure, Result};
use super::output::json;
use super::trust_args::TrustFiles;
use crate::audit::Severity;
use crate::base::Code;
use crate::base::text::clean;
use crate::certify::certificate::{self, Certificate};
use crate::patch::{Candidate, StageError};
use crate::trust::{Gate, PublicKey, Signer, TrustError, TrustPolicy};
use std::path::PathBuf;

/// So much of a file is read to tell a certificate from a component.
const FIRST_BYTES: u64 = 64 << 20;

/// Verify the signatures of a component against the policy's signers, or against keys given here; or the seal and the
/// signatures of a certificate of `verify-engine`. Exit 0 or 1
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The component, whose signatures are in X.wasm.sig, or the certificate, which has its own
    #[arg(value_name = "X.wasm|CERT.json")]
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
    if let Some(certificate) = certificate(&args)? {
        return certified(&args, &certificate, format);
    }
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

/// The certificate, where the file is one and no component.
fn certificate(args: &Args) -> Result<Option<Certificate>> {
    use std::io::Read;
    let file = &args.component;
    // A component may be larger than any certificate: its first bytes tell it.
    let mut first = Vec::new();
    if let Ok(open) = patchhost_runtime::files::open(file) {
        // What cannot be read is said below, by whoever reads all of it.
        let _ = open.take(FIRST_BYTES).read_to_end(&mut first);
    }
    if first.starts_with(b"\0asm") || !certificate::looks_like(file, &first) {
        return Ok(None);
    }
    Ok(Some(certificate::read(file)?))
}

/// What a certificate says, and who signed it.
fn certified(args: &Args, certificate: &Certificate, format: Format) -> Result {
    let signers = signers(&args.signers)?;
    let keys: Vec<PublicKey> = signers.iter().map(|signer| signer.key).collect();
    let needed = args.threshold.unwrap_or(usize::from(!keys.is_empty()));
    if needed > keys.len() {
        let why = format!("{needed} of {} are to have signed", super::output::plural(keys.len(), "key"));
        return Err(TrustError::usage("--threshold", why, "give as many --signer, or a smaller number").into());
    }
    let signed = certificate.signed_by(&keys);
    let good = signed >= needed;
    let content = &certificate.content;
    let (all, right) = (content.cases.len(), content.right());
    if format == Format::Json {
        let by: Vec<_> = certificate.signatures.iter().map(|s| s.key).collect();
        json(&serde_json::json!({
            "certificate": certificate.seal, "good": good, "engine": content.engine.name,
            "version": content.engine.version, "verdict": content.verdict(), "cases": all, "right": right,
            "signatures": by, "asked_for": keys.len(), "of_them_signed": signed, "threshold": needed,
        }))?;
        return if good { Ok(()) } else { Err(Failure::said(Code::Refused)) };
    }
    let shown = |text: &str| clean(text, 200);
    outln!("{}  sha256:{}", shown(&args.component.display().to_string()), certificate.seal);
    let backend = content.engine.backend.as_deref().map(|backend| format!(" ({})", shown(backend))).unwrap_or_default();
    outln!("  engine {} {}{backend}", shown(&content.engine.name), shown(&content.engine.version));
    for model in &content.models {
        outln!("  model {} ({})", shown(&model.family), shown(&model.architecture));
    }
    outln!("  {}: {right} of {all} cases right, seed {}", content.verdict(), content.seed);
    outln!("  tried by {} at {}", shown(&content.kit), shown(&content.date));
    for signature in &certificate.signatures {
        let name = signers.iter().find(|signer| signer.key == signature.key).map(|signer| shown(&signer.name));
        let name = name.map(|name| format!("{name}, ")).unwrap_or_default();
        outln!("  signed: {name}{} at {}", signature.key, shown(&signature.signed_at));
    }
    match (certificate.signatures.is_empty(), keys.is_empty()) {
        (true, true) => outln!("the seal is good; not signed: anybody could have made it"),
        (false, true) => outln!("seal and signatures are good; name the key that you trust with --signer"),
        (_, false) => outln!("the seal is good; {signed} of {needed} needed signed it"),
    }
    if good {
        return Ok(());
    }
    let what = format!("certificate `{}`", shown(&args.component.display().to_string()));
    let why = format!("{signed} of the keys that were named signed it, {needed} must have");
    Err(TrustError::refused(what, why, "ask whoever made it for a signature, or name another --signer").into())
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
