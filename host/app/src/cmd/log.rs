//! `patchhost log`: reads the ledger of events, proves that nobody changed it, and compares receipts of refits.

use std::path::PathBuf;

use super::Call;
use super::args::Format;
use super::failure::{Failure, Result};
use super::output::{json, plural};
use crate::base::Digest;
use crate::base::text;
use crate::patch::Receipt;
use crate::patch::ledger::{self, Entry};

/// Longest value in a line of text; `--format json` has it whole.
const VALUE_BYTES: usize = 120;

/// Read the ledger of what happened to patches, verify its chain, or compare receipts of refits
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Verify(VerifyArgs),
    Show(ShowArgs),
    Receipts(ReceiptsArgs),
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

/// Compare the receipts of two refits (of two ranks, or two steps): exit 0 if they made the same weights, 1 names what differs
#[derive(Debug, clap::Args)]
struct ReceiptsArgs {
    /// A receipt, as `Receipt.save` of the Python package writes it
    #[arg(value_name = "FIRST")]
    first: PathBuf,
    /// Another one
    #[arg(value_name = "SECOND")]
    second: PathBuf,
}

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    match args.what {
        What::Verify(args) => verify(&args, format),
        What::Show(args) => show(&args, format),
        What::Receipts(args) => receipts(&args, format),
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

fn receipts(args: &ReceiptsArgs, format: Format) -> Result {
    let (first, second) = (Receipt::read(&args.first)?, Receipt::read(&args.second)?);
    let difference = first.difference(&second);
    let outcome = match difference.len() {
        0 => Ok(()),
        n => Err(Failure::found(
            "to take the two refits for the same",
            &format!("{} between their receipts", plural(n, "difference")),
            "look at what is named; `root_before` says whether the trainer or the patch made the difference",
        )),
    };
    if format == Format::Json {
        let summaries = (first.summary(), second.summary());
        json(&serde_json::json!({
            "equal": difference.is_empty(), "difference": difference, "first": summaries.0, "second": summaries.1,
        }))?;
        return outcome;
    }
    for (which, receipt) in [("first", &first), ("second", &second)] {
        outln!("{which}: refit {} ({}): {}", receipt.refit, text::clean(&receipt.version, 60), counted(receipt));
    }
    difference.iter().for_each(|line| outln!("{line}"));
    if difference.is_empty() {
        outln!("equal: the same weights were handed on");
    }
    outcome
}

/// What a receipt says, in one line.
fn counted(receipt: &Receipt) -> String {
    let counts = &receipt.counts;
    let (tensors, quantized, kept, blocks, saturated) =
        (counts.tensors, counts.quantized, counts.kept, counts.blocks_proved, counts.saturated);
    let root = |root: Option<Digest>| root.map_or_else(|| "not hashed".to_owned(), |root| root.short());
    format!(
        "{tensors} tensors ({quantized} quantized, {kept} kept), {blocks} blocks proved, {saturated} values clipped, before {}, \
         after {}",
        root(receipt.root_before),
        root(receipt.root_after)
    )
}

/// The receipt in a record, in words; as it stands there where it is of another version.
fn receipt_of(value: &serde_json::Value) -> String {
    match serde_json::from_value(value.clone()) {
        Ok(receipt) => counted(&receipt),
        Err(_) => text::clean(&value.to_string(), VALUE_BYTES),
    }
}

fn line(entry: &Entry) -> String {
    // Nothing of a file is printed as it is: a forged line could hold what a terminal interprets.
    let (ts, event, actor) =
        (text::clean(&entry.ts, 40), text::clean(&entry.event, 64), text::clean(&entry.actor, 200));
    let mut out = format!("{:>6}  {ts}  {event:<24}  {actor}", entry.seq);
    for (name, value) in &entry.fields {
        let value = match value {
            serde_json::Value::String(text) => text::clean(text, VALUE_BYTES),
            other if name == "receipt" => receipt_of(other),
            other => text::clean(&other.to_string(), VALUE_BYTES),
        };
        out.push_str(&format!("  {}={value}", text::clean(name, 64)));
    }
    out
}
