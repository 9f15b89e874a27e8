//! `patchhost grant`: what a patch may reach and use, bound to its bytes.

use super::Call;
use super::failure::{Result, UsageError};
use super::session::{parse_setting, sandbox};
use super::trust_args::{GrantArgs, TrustFiles};
use crate::patch::resolve;
use crate::trust::Decision;

/// Grant a patch WASI, folders, environment, clocks, random numbers, or limits of its own. New bytes start from nothing
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The patch: a path, or the name of a bundled one
    #[arg(value_name = "X.wasm")]
    component: String,
    #[command(flatten)]
    grants: GrantArgs,
    /// A setting that it will run with, if it is not in the lock yet: KEY=VALUE; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Name of the entry [default: the name of the file]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    files: TrustFiles,
}

pub fn run(args: Args, call: &Call) -> Result {
    if args.grants.is_empty() {
        let next = "say what, for example --wasi inert, --dir /srv/tables=/tables or --limit memory_bytes=32MiB";
        return Err(UsageError::new("grant", "nothing is granted", next).into());
    }
    let gate = args.files.for_writing()?;
    let settings = args.settings.iter().map(|s| parse_setting(s)).collect::<Result<Vec<_>, _>>()?;
    let decision = Decision {
        name: args.name.clone(),
        settings: (!settings.is_empty()).then_some(settings),
        limits: args.grants.limits.clone(),
        grants: args.grants.change()?,
        same_bytes: true,
        ..Decision::default()
    };
    let recorded = gate.record(&|| resolve(&args.component), &decision, &sandbox(1)?)?;
    super::lock::show(&gate.lock_path().display().to_string(), &recorded, call.format)
}
