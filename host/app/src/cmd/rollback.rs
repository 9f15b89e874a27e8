//! `patchhost rollback`: the set before, in a running server.

use serde_json::json;

use super::Call;
use super::admin_client::{Sent, ServerArgs};
use super::args::Format;
use super::failure::Result;
use super::output::json as print_json;
use crate::patch::When;

/// Go back to the patch set before, in a running server; a candidate that has not landed is taken back first
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    server: ServerArgs,
    /// When: refit (the next one), now (the weights are loaded again) or step:N
    #[arg(long, value_name = "WHEN", default_value = "refit")]
    when: When,
    /// Why, for the ledger
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    let body = json!({ "when": args.when, "reason": args.reason });
    let answer = args.server.ask("POST", "/admin/v1/rollback", Sent::Json(body))?;
    if format == Format::Json {
        return print_json(&answer);
    }
    super::swap::print(&answer);
    Ok(())
}
