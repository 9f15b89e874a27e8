//! `patchhost log`: reads the ledger of events, and proves that nobody changed it.

use std::path::PathBuf;

use super::Call;
use super::args::Format;
use super::failure::{Failure, Result};
use super::output::{json, plural};
use crate::base::Digest;
use crate::base::text;
use crate::patch::ledger::{self, Entry};

/// Longest value in a line of text; `--format json` has it whole.
const VALUE_BYTES: usize = 120;

/// Read the ledger of what happened to patches, or verify its chain
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Verify(VerifyArgs),
    Show(ShowArgs),
}

/// Verify the chain through all its files; exit 1 names the first record that is wrong, or what could not be written
#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// The ledger file, one of its closed segments, or the folder that holds one ledger
    #[arg(value_name = "FILE|DIR")]
    path: PathBuf,
    /// The hash of a record that must be in the ledger, kept from before: shows whether its end was cut off
    #[arg(long, value_name = "DIGEST")]
    head: Option<Digest>,
    /// Exit 0 also where the ledger says that events are missing, because they could not be written (a full disk)
    #[arg(long)]
    allow_gaps: bool,
}

/// Show records, also those of a ledger that is torn or broken
#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The ledger file, one of its closed segments, or the folder that holds one ledger
    #[arg(value_name = "FILE|DIR")]
    path: PathBuf,
    /// Only events of this name, or of this family (`patch` shows `patch.staged`)
    #[arg(long, value_name = "NAME")]
    event: Option<String>,
    /// Only the newest N of them
    #[arg(long, value_name = "N")]
    last: Option<usize>,
}

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    match args.what {
        What::Verify(args) => verify(&args, format),
        What::Show(args) => show(&args, format),
    }
}

fn verify(args: &VerifyArgs, format: Format) -> Result {
    let verified = ledger::verify(&args.path, args.head.as_ref())?;
    let missing = plural(usize::try_from(verified.lost).unwrap_or(usize::MAX), "event");
    let outcome = match verified.lost == 0 || args.allow_gaps {
        true => Ok(()),
        false => Err(Failure::found(
            &format!("`{}`", text::clean(&args.path.to_string_lossy(), 500)),
            &format!("its chain is good, but {missing} could not be written to it and are missing"),
            "make room on its disk; what is lost cannot be had back; --allow-gaps takes it as it is",
        )),
    };
    if format == Format::Json {
        json(&serde_json::json!({ "good": outcome.is_ok(), "ledger": verified }))?;
        return outcome;
    }
    let (records, files) = (plural(verified.records as usize, "record"), plural(verified.files, "file"));
    let good = match verified.lost {
        0 => "good".to_owned(),
        _ => format!("good chain with gaps ({missing} missing)"),
    };
    match (verified.first_seq, verified.head) {
        (Some(first), Some(head)) => {
            outln!("{good}: {records}, seq {first} to {}, in {files}", head.seq);
            outln!("head: {}", head.hash);
        }
        _ => outln!("{good}: {records} in {files}"),
    }
    verified.notes.iter().for_each(|note| outln!("note: {note}"));
    outcome
}

fn show(args: &ShowArgs, format: Format) -> Result {
    let shown = ledger::show(&args.path, args.event.as_deref(), args.last)?;
    if format == Format::Json {
        return json(&shown);
    }
    shown.records.iter().for_each(|entry| outln!("{}", line(entry)));
    shown.notes.iter().for_each(|note| errln!("note: {note}"));
    Ok(())
}

fn line(entry: &Entry) -> String {
    // Nothing of a file is printed as it is: a forged line could hold what a terminal interprets.
    let (ts, event, actor) =
        (text::clean(&entry.ts, 40), text::clean(&entry.event, 64), text::clean(&entry.actor, 200));
    let mut out = format!("{:>6}  {ts}  {event:<24}  {actor}", entry.seq);
    for (name, value) in &entry.fields {
        let value = match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        out.push_str(&format!("  {}={}", text::clean(name, 64), text::clean(&value, VALUE_BYTES)));
    }
    out
}
