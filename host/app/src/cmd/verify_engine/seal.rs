//! `patchhost verify-engine seal`: a certificate out of what another kit found.

use std::path::PathBuf;
use std::time::SystemTime;

use crate::certify::certificate;
use crate::checkpoint::write::write_file;
use crate::cmd::Call;
use crate::cmd::args::Format;
use crate::cmd::failure::Result;
use crate::cmd::output::{json, plural};
use crate::trust::SecretKey;

/// Make a certificate of the results that another kit wrote: checked, sealed and, with --key, signed
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The results: a certificate without `seal` and `signatures`
    #[arg(value_name = "RESULTS.json")]
    results: PathBuf,
    /// Sign it with this key (`patchhost keygen`); can be repeated
    #[arg(long = "key", value_name = "FILE")]
    keys: Vec<PathBuf>,
    /// The certificate to write
    #[arg(long, short = 'o', value_name = "CERT.json")]
    out: PathBuf,
}

pub fn run(args: &Args, call: &Call) -> Result {
    let keys = args.keys.iter().map(|key| SecretKey::read(key)).collect::<Result<Vec<_>, _>>()?;
    let text = certificate::seal(&certificate::results(&args.results)?, &keys, SystemTime::now())?;
    write_file(&args.out, text.as_bytes())?;
    let sealed = certificate::read(&args.out)?;
    let (all, right) = (sealed.content.cases.len(), sealed.content.right());
    if call.format == Format::Json {
        return json(&serde_json::json!({
            "out": args.out, "seal": sealed.seal, "verdict": sealed.content.verdict(), "cases": all, "right": right,
            "signatures": sealed.signatures.len(),
        }));
    }
    outln!("sealed {} as sha256:{}", args.out.display(), sealed.seal);
    let signed = plural(sealed.signatures.len(), "signature");
    outln!("{}: {right} of {}, {signed}", sealed.content.verdict(), plural(all, "case"));
    Ok(())
}
