//! `patchhost explain`: what becomes of each tensor, and by which rule.

use patchhost_runtime::activation::ActivationMode;
use patchhost_runtime::engine::EngineOptions;
use patchhost_runtime::error::plain;
use patchhost_runtime::refit::{Outcome, Placed, TensorOutcome};

use super::Call;
use super::args::{Format, ModelArgs, PatchArgs};
use super::export::ReaderArgs;
use super::failure::Result;
use super::output::json;
use super::session::{Load, Model, Patches};
use crate::base::fold::fold;
use crate::checkpoint::export::Entry;

/// Show what becomes of each tensor, and by which rule
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    patches: PatchArgs,
    /// As an export for this reader would decide: transformers, vllm@0.10, vllm@0.11, sglang, compressed-tensors, deepseek
    #[arg(long = "for", value_name = "READER")]
    reader: Option<String>,
    /// With --for: quantize matrices whose sizes are not multiples of the block, too
    #[arg(long, requires = "reader")]
    allow_partial_blocks: bool,
    /// Show every tensor on a line of its own. Without it, tensors that differ only in the numbers of their layers and
    /// experts share a line, with how many they are: {0..47} is all numbers from 0 to 47
    #[arg(long)]
    all: bool,
}

/// Without a `--component` it explains the bundled `fp8_block`.
pub fn run(mut args: Args, call: &Call) -> Result {
    let format = call.format;
    if args.patches.components.is_empty() {
        args.patches.components.push("fp8_block".to_string());
    }
    let model = Model::open(&args.model, EngineOptions::default())?;
    let patches = Patches::load(Load::new(&args.patches, &model.engine.info().architecture))?;
    let (outcomes, remarks) = match args.reader {
        None => model.engine.explain_with_remarks(&model.checkpoint, &patches.hooks(ActivationMode::None))?,
        Some(consumer) => {
            let reader = ReaderArgs { consumer, scale_format: None, allow_partial_blocks: args.allow_partial_blocks };
            let (plan, _) = reader.plan(&model, &patches, "explain --for")?;
            plan.warnings.iter().for_each(|w| errln!("warning: {w}"));
            (plan.entries.iter().map(Entry::outcome).collect(), Vec::new())
        }
    };
    if format == Format::Json {
        return json(&serde_json::json!({
            "model": model.name,
            "architecture": model.engine.info().architecture,
            "patch_set": patches.set().digest().to_string(),
            "patches": patches.ledger(),
            "tensors": outcomes,
            "remarks": remarks,
        }));
    }
    outln!("model {} ({})", model.name, model.engine.info().architecture);
    print_rows(&outcomes.iter().map(|o| Row::of(o, args.all)).collect::<Vec<_>>(), args.all);
    let count = |verdict: fn(&Outcome) -> bool| outcomes.iter().filter(|o| verdict(&o.outcome)).count();
    let stored = match count(|o| matches!(o, Outcome::AsStored { .. })) {
        0 => String::new(),
        n => format!(", {n} FP8 as stored"),
    };
    outln!(
        "{} quantized, {} kept, {} ignored{stored}",
        count(|o| matches!(o, Outcome::Quantized { .. })),
        count(|o| matches!(o, Outcome::Kept { .. })),
        count(|o| matches!(o, Outcome::Ignored { .. })),
    );
    remarks.iter().for_each(|remark| outln!("remark: {remark}"));
    patches.print_ledger();
    Ok(())
}

/// What is shown of a tensor.
struct Row {
    name: String,
    /// Role, dtype, shape and verdict, in columns.
    rest: String,
}

impl Row {
    /// Where a loader map put it is shown of all, or where the host's own map has another place.
    fn of(o: &TensorOutcome, all: bool) -> Self {
        let (role, dtype) = (word(&o.role), word(&o.dtype));
        let place = match (&o.placed, &o.host_map) {
            (None, None) => String::new(),
            (Some(_), None) if !all => String::new(),
            (placed, host) => format!("; {}", place(o, placed.as_ref(), host.as_deref())),
        };
        let rest = format!("{role:13} {dtype:5} {:16} {}{place}", format!("{:?}", o.shape), verdict(o));
        Self { name: plain(o.name.clone()), rest }
    }
}

/// Where a loader map put a tensor, and where the host's own map would.
fn place(o: &TensorOutcome, placed: Option<&Placed>, host: Option<&str>) -> String {
    let mut text = match (placed, &o.target) {
        (Some(Placed { slot, expert, transposed }), Some(target)) => {
            let expert = expert.map(|e| format!(", expert {e}")).unwrap_or_default();
            let transposed = if *transposed { ", transposed" } else { "" };
            format!("placed in {}, slot {}{expert}{transposed}", plain(target.clone()), word(slot))
        }
        _ => "placed nowhere".to_string(),
    };
    if let Some(host) = host {
        text.push_str(&format!("; the host's own map: {host}"));
    }
    text
}

/// A role or a dtype as JSON spells it.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Prints a line for each tensor (`all`), or for tensors that are alike in all that is shown, with their number.
fn print_rows(rows: &[Row], all: bool) {
    let lines: Vec<(String, usize, &str)> = match all {
        true => rows.iter().map(|row| (row.name.clone(), 1, row.rest.as_str())).collect(),
        false => fold(rows.iter().map(|row| (row.name.as_str(), row.rest.as_str())))
            .into_iter()
            .filter_map(|f| Some((f.name, f.rows.len(), rows.get(*f.rows.first()?)?.rest.as_str())))
            .collect(),
    };
    let width = lines.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    let digits = lines.iter().map(|(_, count, _)| count.to_string().len()).max().unwrap_or(0);
    for (name, count, rest) in lines {
        match all {
            true => outln!("{name:width$}  {rest}"),
            false => outln!("{name:width$}  {count:>digits$}x  {rest}"),
        }
    }
}

fn verdict(o: &TensorOutcome) -> String {
    match &o.outcome {
        Outcome::Quantized { rule, profile, scale_name, scale_shape, block, edges } => {
            let short = scale_name.strip_prefix(&o.name).unwrap_or(scale_name);
            let edges = if *edges == "strict" { String::new() } else { format!(", edges {edges}") };
            format!("quantized {profile} {}x{}, scale {short} {scale_shape:?}{edges}: {rule}", block[0], block[1])
        }
        Outcome::AsStored { scale_name, scale_shape, scale_dtype, block, .. } => {
            let short = scale_name.strip_prefix(&o.name).unwrap_or(scale_name);
            format!("FP8 as stored {}x{}, scale {short} {scale_dtype} {scale_shape:?}", block[0], block[1])
        }
        Outcome::Kept { reason } => format!("kept: {reason}"),
        Outcome::Ignored { reason } => format!("ignored: {reason}"),
    }
}
