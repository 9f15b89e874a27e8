//! `patchhost quantize`: a safetensors file into block FP8.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use patchhost_kernels::cast::CastReport;
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::error::plain;
use patchhost_runtime::hooks::{BlockQuant, Consumer, Decision, ModelInfo, Role, Scheme, TensorInfo};
use patchhost_runtime::quantize::{Input, Measure, grid, quantize};
use patchhost_runtime::refit::info;
use safetensors::tensor::Dtype;

use super::Call;
use super::args::{Format, PatchArgs, RenameArgs};
use super::failure::{Result, UsageError};
use super::output::{bytes, json, plural};
use super::record::RecordArgs;
use super::session::{Load, Patches, progress_bar};
use crate::checkpoint::write::{Out, safetensors};

/// Quantize the matrices of a safetensors file to block FP8
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file (or folder of shards) to read
    #[arg(value_name = "IN.safetensors")]
    input: PathBuf,
    /// The file to write: X becomes X (F8_E4M3) and X_scale_inv (F32)
    #[arg(value_name = "OUT.safetensors")]
    output: PathBuf,
    #[command(flatten)]
    patches: PatchArgs,
    #[command(flatten)]
    record: RecordArgs,
    #[command(flatten)]
    renames: RenameArgs,
    /// Only tensors whose name matches; the others are copied
    #[arg(long, value_name = "GLOB")]
    tensors: Option<String>,
    /// Replace OUT if it exists
    #[arg(long)]
    force: bool,
}

pub fn run(mut args: Args, call: &Call) -> Result {
    let format = call.format;
    // A plain file has no runtime tensors that a loader map could fill.
    args.patches.no_default_patches = true;
    let glob = args.tensors.as_deref().map(parse_glob).transpose()?;
    refuse_same_file(&args.input, &args.output)?;
    refuse_existing(&args.output, args.force)?;
    let checkpoint = args.renames.apply(Checkpoint::open(&args.input)?)?;
    let recorded = args.record.start(&args.input.display().to_string(), "{}")?;
    let patches = Patches::load(Load { recorded, ..Load::new(&args.patches, "") })?;
    let (patch, quant) = patches.require_quant("quantize")?;

    let chosen: Vec<&CheckpointTensor> =
        checkpoint.tensors().filter(|t| glob.as_ref().is_none_or(|g| g.is_match(&t.name))).collect();
    let infos: Vec<TensorInfo> = chosen.iter().map(|t| info(t, Role::Other)).collect();
    let model = ModelInfo {
        architecture: String::new(),
        model_type: String::new(),
        layers: 0,
        experts: 0,
        config: "{}".to_string(),
    };
    let reader = Consumer { engine: "patchhost".into(), version: env!("CARGO_PKG_VERSION").into() };
    let decisions: HashMap<&str, Decision> =
        chosen.iter().map(|t| t.name.as_str()).zip(quant.decide(&model, &reader, &infos)?).collect();

    let bar = progress_bar("quantize");
    bar.set_length(checkpoint.tensors().len() as u64);
    let mut out: Vec<Out<'_>> = Vec::new();
    let mut total = CastReport::default();
    let mut rows = Vec::new();
    let mut profiles = Vec::new();
    for tensor in checkpoint.tensors() {
        bar.set_message(tensor.name.clone());
        match decisions.get(tensor.name.as_str()) {
            Some(Decision::Quantize(scheme)) => {
                let (report, shape) = one(tensor, scheme, quant.as_ref(), &checkpoint, &mut out)?;
                total += report;
                if !profiles.contains(&scheme.profile) {
                    profiles.push(scheme.profile.clone());
                }
                rows.push(serde_json::json!({
                    "tensor": tensor.name, "shape": tensor.shape, "scale_shape": shape, "rule": scheme.rule,
                    "profile": scheme.profile, "block": [scheme.block_rows, scheme.block_cols],
                    "saturated": report.saturated, "flushed": report.flushed,
                    "relative_rmse": relative(&report),
                }));
            }
            other => {
                let reason = match other {
                    Some(Decision::Keep(reason)) => reason.as_str(),
                    _ => "not matched by --tensors",
                };
                rows.push(serde_json::json!({ "tensor": tensor.name, "shape": tensor.shape, "kept": reason }));
                out.push(Out {
                    name: tensor.name.clone(),
                    dtype: tensor.stored,
                    shape: tensor.shape.clone(),
                    data: Cow::Owned(tensor.data.load()?.to_vec()),
                });
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();

    let settings = patch.settings().iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
    let mut metadata: HashMap<String, String> = checkpoint.metadata().clone().into_iter().collect();
    metadata.entry("format".into()).or_insert_with(|| "pt".into());
    metadata.insert("patchhost.patch".into(), format!("{} {}", patch.info().name, patch.info().version));
    metadata.insert("patchhost.patch_digest".into(), patch.digest().to_string());
    metadata.insert("patchhost.generation".into(), patch.generation().to_string());
    metadata.insert("patchhost.settings".into(), settings);
    metadata.insert("patchhost.profile".into(), profiles.join(","));
    let written = safetensors(&args.output, &out, metadata)?;

    let quantized = rows.iter().filter(|r| r.get("kept").is_none()).count();
    if format == Format::Json {
        return json(&serde_json::json!({
            "input": args.input, "output": args.output, "tensors": rows, "quantized": quantized,
            "relative_rmse": relative(&total), "saturated": total.saturated, "flushed": total.flushed,
            "bytes_before": checkpoint.file_bytes(), "bytes_after": written, "patches": patches.ledger(),
        }));
    }
    for r in &rows {
        let verdict = match r["kept"].as_str() {
            Some(reason) => format!("kept: {reason}"),
            None => format!("quantized, scale {}: {}", r["scale_shape"], r["rule"].as_str().unwrap_or_default()),
        };
        let name = plain(r["tensor"].as_str().unwrap_or_default().to_owned());
        outln!("{name} {} {verdict}", r["shape"]);
    }
    let rmse = relative(&total).map(|r| format!(", relative RMSE {:.3} %", r * 100.0)).unwrap_or_default();
    outln!(
        "{} quantized, {} kept; {} -> {}{rmse}; {} saturated, {} flushed to zero",
        plural(quantized, "tensor"),
        rows.len() - quantized,
        bytes(checkpoint.file_bytes()),
        bytes(written),
        total.saturated,
        total.flushed,
    );
    patches.print_ledger();
    Ok(())
}

/// Quantizes one tensor (2-D, or a 3-D stack of matrices) and adds it and its scales to the output.
fn one<'a>(
    tensor: &CheckpointTensor,
    scheme: &Scheme,
    quant: &dyn BlockQuant,
    checkpoint: &Checkpoint,
    out: &mut Vec<Out<'a>>,
) -> Result<(CastReport, Vec<usize>)> {
    let refuse = |why: String, next: &str| UsageError::new(format!("tensor `{}`", tensor.name), why, next);
    let (count, rows, cols) = match tensor.shape[..] {
        [rows, cols] => (1, rows, cols),
        [count, rows, cols] => (count, rows, cols),
        _ => {
            return Err(
                refuse(format!("it has {} dimensions", tensor.shape.len()), "leave it out with --tensors").into()
            );
        }
    };
    let elem = tensor
        .elem()
        .ok_or_else(|| refuse(format!("its dtype is {:?}", tensor.stored), "leave it out with --tensors"))?;
    let scale_name = format!("{}{}", tensor.name, scheme.scale_suffix);
    if checkpoint.get(&scale_name).is_some() {
        let why = format!("the input already has a tensor `{scale_name}`");
        return Err(refuse(why, "the file seems to be quantized already; leave the tensor out with --tensors").into());
    }
    let (mut q, mut scales, mut report) = (Vec::new(), Vec::new(), CastReport::default());
    let each = rows * cols * elem.size();
    for i in 0..count {
        let data = tensor
            .data
            .slice(i * each..(i + 1) * each)
            .ok_or_else(|| refuse("its data is shorter than its shape".to_string(), "copy the file again"))?
            .load()?;
        let made = quantize(&Input { name: &tensor.name, data, elem, rows, cols }, scheme, quant, Measure::All)?;
        q.extend_from_slice(&made.q);
        scales.extend(made.scales.iter().flat_map(|s| s.to_le_bytes()));
        report += made.report;
    }
    let (grid_rows, grid_cols) = grid(rows, cols, scheme);
    let mut shape = vec![grid_rows, grid_cols];
    if tensor.shape.len() == 3 {
        shape.insert(0, count);
    }
    out.push(Out { name: tensor.name.clone(), dtype: Dtype::F8_E4M3, shape: tensor.shape.clone(), data: q.into() });
    out.push(Out { name: scale_name, dtype: Dtype::F32, shape: shape.clone(), data: scales.into() });
    Ok((report, shape))
}

fn relative(r: &CastReport) -> Option<f64> {
    (r.squared_sum > 0.0).then(|| (r.squared_error / r.squared_sum).sqrt())
}

fn parse_glob(text: &str) -> Result<GlobMatcher, UsageError> {
    let built = GlobBuilder::new(text).literal_separator(false).build();
    built.map(|g| g.compile_matcher()).map_err(|e| {
        UsageError::new(
            format!("--tensors {}", text.escape_debug()),
            e.to_string(),
            "write for example --tensors '*.q_proj.weight'",
        )
    })
}

/// The input is read while the output is made: writing over it would pull the data from under us.
fn refuse_same_file(input: &Path, output: &Path) -> Result<(), UsageError> {
    match (input.canonicalize(), output.canonicalize()) {
        (Ok(a), Ok(b)) if a == b => Err(UsageError::new(
            format!("output `{}`", output.display()),
            "it is the input file",
            "write to another file",
        )),
        _ => Ok(()),
    }
}

/// Nothing is replaced that somebody did not say. A device or a pipe is written to.
fn refuse_existing(output: &Path, force: bool) -> Result<(), UsageError> {
    let what = || format!("output `{}`", output.display());
    match output.metadata() {
        Ok(data) if data.is_dir() => Err(UsageError::new(what(), "it is a folder", "give the name of a file to make")),
        Ok(data) if data.is_file() && !force => {
            Err(UsageError::new(what(), "it exists", "give another file, or --force to replace this one"))
        }
        // A link to nowhere: somebody meant a file that is not there.
        Err(_) if output.is_symlink() => {
            Err(UsageError::new(what(), "it is a link to nowhere", "give another file, or remove the link"))
        }
        _ => Ok(()),
    }
}
