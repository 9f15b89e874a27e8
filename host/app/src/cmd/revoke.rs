//! `patchhost revoke`: bytes or a key are not trusted any more.

use super::Call;
use super::args::Format;
use super::failure::Result;
use super::output::json;
use super::trust_args::TrustFiles;
use crate::base::text::clean;
use crate::trust::{Revoked, TrustError};

/// Revoke a component (by digest, name or file) or a key: it is refused everywhere, and its entries leave the lock
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A digest (sha256:…), a key (ed25519:…), the name of a lock entry, or a component file
    #[arg(value_name = "DIGEST|KEY|NAME|FILE")]
    what: String,
    /// Why; it is shown wherever the patch is refused
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    files: TrustFiles,
}

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    let gate = args.files.for_writing()?;
    let shown = clean(&args.what, 100);
    if args.reason.trim().is_empty() {
        let next = "say why with --reason: it is what people read when the patch is refused";
        return Err(TrustError::usage(format!("revoke {shown}"), "the reason is empty", next).into());
    }
    let what = gate.revocable(&args.what)?;
    let done = gate.revoke(&what, &args.reason)?;
    if format == Format::Json {
        return json(&serde_json::json!({
            "revoked": what.iter().map(Revoked::to_string).collect::<Vec<_>>(),
            "reason": args.reason, "file": done.file, "fresh": done.fresh, "removed": done.removed,
        }));
    }
    for one in &what {
        outln!("revoked {one}: {}", clean(&args.reason, 300));
    }
    if !done.fresh {
        outln!("it was revoked before; nothing was added");
    }
    for name in &done.removed {
        outln!("removed `{}` and its grants from the lock", clean(name, 120));
    }
    outln!("written to {}", clean(&done.file, 200));
    Ok(())
}
