//! `patchhost logits`: the logits of given tokens, for comparing with other engines.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;

use clap::ValueEnum;
use patchhost_runtime::activation::ActivationMode;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::EngineOptions;
use patchhost_runtime::model::{Rows, Sequence};
use safetensors::tensor::Dtype;

use super::Call;
use super::args::{Format, Fp8Activation, ModelArgs, PatchArgs};
use super::failure::{Result, UsageError};
use super::lora::LoraArgs;
use super::output::json;
use super::session::{Load, Model, Patches, advance, progress_bar};
use crate::checkpoint::write::{Out, safetensors};
use crate::patch::Phase;

/// Compute the logits of given token ids
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    patches: PatchArgs,
    #[command(flatten)]
    lora: LoraArgs,
    /// A safetensors file with `input_ids`: I64 [T], or [B,T] for a batch
    #[arg(long, value_name = "IDS.safetensors")]
    ids: PathBuf,
    /// The file to write: `logits` F32 [T,V], or [B,T,V]
    #[arg(long, value_name = "OUT.safetensors")]
    out: PathBuf,
    /// f32: unquantized weights, f32 arithmetic; fp8: through a block-quant component [default: fp8 with a component that quantizes, else f32]
    #[arg(long, value_enum)]
    dtype: Option<ComputeDtype>,
    /// Activations before FP8 matrices (with --dtype fp8)
    #[arg(long, value_enum, default_value = "dynamic-128")]
    fp8_activation: Fp8Activation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ComputeDtype {
    F32,
    Fp8,
}

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    let (batch, ids) = read_ids(&args.ids)?;
    args.lora.check()?;
    let model = Model::open(&args.model, EngineOptions::default())?;
    let load = Load {
        more: args.lora.patches(),
        phase: Phase::of(Some(&model.engine)),
        ..Load::new(&args.patches, &model.engine.info().architecture)
    };
    let patches = Patches::load(load)?;
    let quantizes = patches.hooks(ActivationMode::None).quant.is_some();
    let dtype = args.dtype.unwrap_or(if quantizes { ComputeDtype::Fp8 } else { ComputeDtype::F32 });
    let mut hooks = patches.hooks(args.fp8_activation.into());
    match dtype {
        ComputeDtype::Fp8 => {
            patches.require_quant("--dtype fp8")?;
        }
        ComputeDtype::F32 => hooks.quant = None,
    }
    let bar = progress_bar("refit");
    let refit = model.engine.refit(&model.checkpoint, &hooks, &advance(&bar));
    bar.finish_and_clear();
    let refit = refit?;

    let weights = model.engine.live()?;
    let adapter = args.lora.load(&model, &patches)?;
    let length = ids.len() / batch.unwrap_or(1);
    let mut caches: Vec<_> =
        (0..batch.unwrap_or(1)).map(|_| model.engine.model().new_cache_with(adapter.clone())).collect();
    let mut sequences: Vec<Sequence<'_>> =
        ids.chunks_exact(length).zip(&mut caches).map(|(tokens, cache)| Sequence { tokens, cache }).collect();
    let logits = model.engine.model().forward(&weights, &mut sequences, Rows::All)?;
    let values: Vec<f32> = logits.into_values();
    let mut shape = vec![length, model.engine.model().vocab()];
    if let Some(b) = batch {
        shape.insert(0, b);
    }
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let out = Out { name: "logits".into(), dtype: Dtype::F32, shape: shape.clone(), data: Cow::Owned(data) };
    let label = if dtype == ComputeDtype::Fp8 { "fp8" } else { "f32" };
    let metadata = HashMap::from([
        ("patchhost.dtype".to_string(), label.to_string()),
        ("patchhost.patch_set".to_string(), patches.set().digest().to_string()),
    ]);
    safetensors(&args.out, &[out], metadata)?;
    if format == Format::Json {
        return json(&serde_json::json!({
            "out": args.out, "shape": shape, "dtype": label, "refit": refit, "patches": patches.ledger(),
        }));
    }
    outln!("wrote logits {shape:?} ({label}) of {} to {}", model.name, args.out.display());
    patches.print_ledger();
    Ok(())
}

/// The batch size, if there is one, and the ids.
pub(super) fn read_ids(path: &std::path::Path) -> Result<(Option<usize>, Vec<u32>)> {
    let refuse = |why: String| {
        UsageError::new(format!("--ids {}", path.display()), why, "give `input_ids` as I64 [T] or [B,T], T at least 1")
    };
    let file = Checkpoint::open(path)?;
    let tensor = file.get("input_ids").ok_or_else(|| refuse("it has no tensor `input_ids`".to_string()))?;
    if tensor.stored != Dtype::I64 {
        return Err(refuse(format!("`input_ids` is {:?}", tensor.stored)).into());
    }
    let batch = match tensor.shape[..] {
        [t] if t > 0 => None,
        [b, t] if b > 0 && t > 0 => Some(b),
        _ => return Err(refuse(format!("`input_ids` has shape {:?}", tensor.shape)).into()),
    };
    let data = tensor.data.load()?;
    let ids = data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b));
    let ids: Result<Vec<u32>, i64> = ids.map(|id| u32::try_from(id).map_err(|_| id)).collect();
    Ok((batch, ids.map_err(|id| refuse(format!("`input_ids` holds {id}, which is no token id")))?))
}
