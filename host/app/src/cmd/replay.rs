//! `patchhost replay`: recorded calls again, bit for bit.

mod cast;

use std::path::{Path, PathBuf};

use super::Call;
use super::args::Format;
use super::failure::{Failure, HostError, Result};
use super::output::{bytes, json, plural};
use super::session::progress_bar;
use super::trust_args::TrustArgs;
use crate::base::Code;
use crate::record::{Count, Difference, PatchReplay, Recording, Replay, ReplayReport};
use cast::{Cast, called};

/// Ask a patch what it was asked in a recording, and compare its answers bit for bit
///
/// Exit codes: 0 the same bits; 1 others; 3 the patch failed where the recorded one did not; 2 a file that cannot be read.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file that `--record` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The patch that answers: a path, or the name of a bundled one; another component than the recorded one is compared
    /// with it; can be repeated [default: the recorded component, where it is a bundled one]
    #[arg(long = "component", value_name = "X.wasm")]
    components: Vec<String>,
    /// A setting that is to be another one than recorded: KEY=VALUE, or NAME.KEY=VALUE where several patches were recorded;
    /// can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Run each patch in a child process of its own
    #[arg(long)]
    isolate: bool,
    #[command(flatten)]
    trust: TrustArgs,
}

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    let recording = Recording::open(&args.file)?;
    let mut cast = Cast::of(&args, &recording)?;
    let mut replay = Replay::new(&recording);
    for entry in called(&recording) {
        if let Some(patch) = cast.patch(entry)? {
            replay.answer_with(entry, &patch)?;
        }
    }
    cast.check_settings(&recording)?;
    let notes = std::mem::take(&mut cast.notes);
    notes.iter().for_each(|note| errln!("note: {note}"));
    let bar = progress_bar("replay");
    bar.set_length(recording.overview().calls);
    let report = replay.run(&|done| bar.set_position(done));
    bar.finish_and_clear();
    let report = report?;
    match format {
        Format::Json => print_json(&report, &args.file, &notes)?,
        Format::Text => print_text(&report, &args.file),
    }
    exit(&report).map_or(Ok(()), |code| Err(Failure::said(code)))
}

fn exit(report: &ReplayReport) -> Option<Code> {
    match report.total {
        Count { failed: 1.., .. } => Some(Code::Patch),
        Count { different: 1.., .. } => Some(Code::Refused),
        _ => None,
    }
}

fn print_json(report: &ReplayReport, file: &Path, notes: &[String]) -> Result {
    let mut object = serde_json::to_value(report).map_err(|e| HostError::bug("the answer as JSON", e))?;
    object["file"] = serde_json::json!(file);
    object["notes"] = serde_json::json!(notes);
    object["identical"] = exit(report).is_none().into();
    object["exit"] = exit(report).map_or(0, |code| code as u8).into();
    json(&object)
}

fn print_text(report: &ReplayReport, file: &Path) {
    let r = &report.recording;
    let clean = |text: &str| crate::base::text::clean(text, 200);
    outln!(
        "recording {}: patchhost {}, model {} (config sha256:{}), {} in {}",
        file.display(),
        clean(&r.host),
        clean(&r.model),
        r.config.short(),
        plural(r.calls as usize, "call"),
        bytes(r.bytes),
    );
    match (r.full, r.end) {
        (Some(limit), end) => {
            let missing = end.map_or(String::new(), |end| format!("; {} calls are missing", end.left_out));
            outln!("  it reached its bound of {}{missing}", bytes(limit));
        }
        (None, Some(end)) if end.left_out > 0 => outln!("  {} calls are missing", end.left_out),
        (None, None) => outln!("  it was not closed: the host that recorded was killed"),
        _ => {}
    }
    if r.torn > 0 {
        outln!("  its last frame is torn: {} are left out", bytes(r.torn));
    }
    for patch in &report.patches {
        print_patch(patch);
    }
    if report.skipped > 0 {
        outln!("{} not asked again", plural(report.skipped as usize, "call"));
    }
    for (what, found) in [("first difference", &report.first), ("first failure", &report.failed)] {
        match found {
            Some(found) if what == "first difference" || report.first != report.failed => print_difference(what, found),
            _ => {}
        }
    }
    let Count { calls, identical, different, failed, .. } = report.total;
    match exit(report) {
        None => outln!("identical: {}, bit for bit", plural(identical as usize, "call")),
        Some(_) => {
            outln!("NOT identical: of {} {different} differ and {failed} failed", plural(calls as usize, "call"))
        }
    }
}

fn print_patch(patch: &PatchReplay) {
    let by = match &patch.answered_by {
        None => "nobody answers for it".to_owned(),
        Some((_, digest)) if *digest == patch.recorded_sha256 => "the same component".to_owned(),
        Some((name, digest)) => format!("{name} sha256:{} answers for it", digest.short()),
    };
    let other = if patch.other_settings { ", other settings, limits or grants" } else { "" };
    outln!("{} {} sha256:{}: {by}{other}", patch.name, patch.version, patch.recorded_sha256.short());
    for (function, count) in &patch.functions {
        out!("  {:20} {:>8}", function.name(), plural(count.calls as usize, "call"));
        match *count {
            Count { different: 0, failed: 0, .. } => outln!("  identical"),
            Count { identical, different, failed, numbers, max_ulp, .. } => {
                out!("  {identical} identical, {different} different, {failed} failed");
                if numbers > 0 {
                    out!("; {numbers} numbers, at most {max_ulp} ulp apart");
                }
                outln!();
            }
        }
    }
}

fn print_difference(what: &str, found: &Difference) {
    let about = found.tensor.as_ref().map(|name| format!(" for `{name}`")).unwrap_or_default();
    let block = found.block.map(|block| format!(", block {block}")).unwrap_or_default();
    outln!("{what}: call {}, `{}` of {}{about}", found.call, found.function, found.patch);
    outln!("  {}{block}", found.part);
    if let Some(asked) = &found.asked {
        outln!("  asked     {asked}");
    }
    outln!("  recorded  {}", found.recorded);
    outln!("  got       {}", found.got);
    if let Some(ulp) = found.ulp {
        outln!("  {ulp} ulp apart");
    }
}
