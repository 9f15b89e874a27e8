//! `patchhost rebuild --check`.
use super::args::Format;
/// x
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The component
    #[arg(long)]
    check: bool,
}
/// Runs the verb.
pub fn run(_args: Args, _format: Format) -> anyhow::Result<()> {
    Ok(())
}
