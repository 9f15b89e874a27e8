//! `patchhost keygen`: a key pair for signing patches.

use super::Call;
use super::args::Format;
use super::failure::Result;
use super::output::json;
use crate::base::text::clean;
use crate::trust::SecretKey;
use std::path::PathBuf;

/// Make an Ed25519 key pair for signing patches
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file of the secret key (mode 0600); its public key goes to FILE.pub. Neither may exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Who it belongs to
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    let key = SecretKey::generate(args.name.as_deref().map(|name| clean(name, 120)));
    let public_file = key.write(&args.out)?;
    let public = key.public().to_string();
    let shown = |path: &std::path::Path| clean(&path.display().to_string(), 200);
    if format == Format::Json {
        return json(&serde_json::json!({
            "public": public, "name": key.name(), "secret_file": args.out, "public_file": public_file,
        }));
    }
    outln!("{public}");
    outln!("secret key in {} (keep it to yourself), public key in {}", shown(&args.out), shown(&public_file));
    outln!("who trusts it writes into patchhost.toml:");
    outln!("  [[trust.signers]]\n  name = {:?}\n  key = \"{public}\"", key.name().unwrap_or("NAME"));
    Ok(())
}
