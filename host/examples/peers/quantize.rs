//! One bf16 matrix into block FP8, through the function that a refit calls.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use patchhost::native::Formulas;
use patchhost::patch::{Patch, Sandbox};
use patchhost_kernels::cast::Measure;
use patchhost_kernels::pages::prefer_large;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::hooks::{
    ActivationRule, BlockQuant, Blocks, Consumer, Decision, Dtype, Elem, HookError, ModelInfo, Role, RowPanel, Scheme,
    TensorInfo,
};
use patchhost_runtime::quantize::{Input, On, Quantized, Strides, grid, quantize, quantize_into};
use patchhost_runtime::refit::NonFinite;
use serde_json::{Value, json};

const NAME: &str = "model.layers.0.mlp.down_proj.weight";

/// The patches, and the matrix of the last job.
pub struct Work {
    amax: (Arc<Patch>, Arc<dyn BlockQuant>),
    mse: (Arc<Patch>, Arc<dyn BlockQuant>),
    matrix: Option<(String, TensorBytes)>,
}

impl Work {
    /// Compiles both patches.
    pub fn new(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let load = |name: &str| -> anyhow::Result<_> {
            let patch = super::ready(sandbox, name, &[])?;
            let quant = patch.block_quant().with_context(|| format!("`{name}` is no block quantizer"))?;
            Ok((patch, quant))
        };
        Ok(Self { amax: load("fp8_block")?, mse: load("fp8_block_mse")?, matrix: None })
    }

    /// `what`: `native`, `guest` (scales from amax), `mse`, `mse-native`, or `copy` (a memcpy that moves as many bytes). With
    /// `keep` the outputs are those of the run before; without it they are allocated each time.
    pub fn run(&mut self, job: &Value) -> anyhow::Result<Value> {
        let (rows, cols) = (super::number(job, "rows")?, super::number(job, "cols")?);
        let data = self.matrix(job["input"].as_str().context("`input` is a path")?)?;
        let scheme = |quant: &dyn BlockQuant| scheme(quant, rows, cols);
        let repeats = super::number(job, "repeats")?;
        let what = job["what"].as_str().unwrap_or_default();
        let keep = job["keep"] == true;
        if what == "copy" {
            return copy(rows * cols * 3 / 2, repeats, keep);
        }
        let guest: Arc<dyn BlockQuant> = match what {
            "native" | "guest" => Arc::clone(&self.amax.1),
            "mse" | "mse-native" => Arc::clone(&self.mse.1),
            other => bail!("`what` is `{other}`"),
        };
        let scheme = scheme(&*guest)?;
        let asked: Arc<dyn BlockQuant> = match what {
            "native" => Arc::new(Formulas::new(guest, [(NAME, &scheme)])?),
            "mse-native" => {
                Arc::new(NativeMse { search: kit::mse::Search::new(&kit::settings::MseSettings::default()) })
            }
            _ => guest,
        };
        let run = || -> anyhow::Result<Quantized> {
            let input = Input { name: NAME, data: data.clone(), elem: Elem::Bf16, rows, cols };
            Ok(quantize(&input, &scheme, &*asked, Measure::Nothing)?)
        };
        if let Some(path) = job["dump"].as_str() {
            dump(Path::new(path), &run()?)?;
            return Ok(json!({ "profile": scheme.profile }));
        }
        if !keep {
            return super::timed(repeats, || {
                black_box(run()?);
                Ok(())
            });
        }
        let (grid_rows, grid_cols) = grid(rows, cols, &scheme);
        let (mut q, mut scales) = (vec![0u8; rows * cols], vec![0f32; grid_rows * grid_cols]);
        let strides = Strides { row: cols, col: 1 };
        super::timed(repeats, || {
            let input = Input { name: NAME, data: data.clone(), elem: Elem::Bf16, rows, cols };
            let (rule, on) = (NonFinite::Allow, On::Pool);
            let nothing = Measure::Nothing;
            black_box(quantize_into(rule, &input, strides, &scheme, &*asked, nothing, on, &mut q, &mut scales)?);
            black_box((&q, &scales));
            Ok(())
        })
    }

    /// The bytes of a file, kept for the next job.
    fn matrix(&mut self, path: &str) -> anyhow::Result<TensorBytes> {
        if self.matrix.as_ref().is_none_or(|(of, _)| of != path) {
            let bytes = std::fs::read(path).with_context(|| format!("`{path}`"))?;
            let length = bytes.len();
            let data = TensorBytes::new(Arc::new(bytes), 0..length).context("all of it")?;
            self.matrix = Some((path.to_owned(), data));
        }
        self.matrix.as_ref().map(|(_, data)| data.clone()).context("just read")
    }
}

/// Codes, then scales as little-endian f32.
fn dump(path: &Path, made: &Quantized) -> anyhow::Result<()> {
    let scales: Vec<u8> = made.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
    std::fs::write(path.with_extension("q"), &made.q[..])?;
    Ok(std::fs::write(path.with_extension("scales"), scales)?)
}

/// What a patch decides for the matrix.
fn scheme(quant: &dyn BlockQuant, rows: usize, cols: usize) -> anyhow::Result<Scheme> {
    let model = ModelInfo {
        architecture: "LlamaForCausalLM".into(),
        model_type: "llama".into(),
        layers: 1,
        experts: 0,
        config: "{}".into(),
    };
    let reader = Consumer { engine: "patchhost".into(), version: env!("CARGO_PKG_VERSION").into() };
    let shape = vec![rows as u64, cols as u64];
    let tensor = TensorInfo { name: NAME.into(), dtype: Dtype::Bf16, shape, role: Role::Mlp };
    match quant.decide(&model, &reader, &[tensor])?.pop().context("one decision")? {
        Decision::Quantize(scheme) => Ok(scheme),
        Decision::Keep(why) => bail!("kept: {why}"),
    }
}

/// Copies so many bytes: into memory that is kept, or into memory that is asked for each time, on large pages as the outputs of
/// a refit are.
fn copy(bytes: usize, repeats: usize, keep: bool) -> anyhow::Result<Value> {
    use rayon::prelude::*;
    const PIECE: usize = 1 << 20;
    let from = vec![1u8; bytes];
    let fresh = || {
        let mut to: Vec<u8> = Vec::with_capacity(bytes);
        prefer_large(to.spare_capacity_mut());
        to
    };
    let mut kept = fresh();
    super::timed(repeats, || {
        let mut anew = if keep { Vec::new() } else { fresh() };
        let room = if keep { kept.spare_capacity_mut() } else { anew.spare_capacity_mut() };
        room[..bytes].par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| {
            to.write_copy_of_slice(from);
        });
        black_box(&room);
        Ok(())
    })
}

/// The search of `fp8_block_mse` itself, compiled natively.
struct NativeMse {
    search: kit::mse::Search,
}

impl BlockQuant for NativeMse {
    fn name(&self) -> &str {
        "native"
    }

    fn decide(&self, _: &ModelInfo, _: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Decision>, HookError> {
        Ok(tensors.iter().map(|_| Decision::Keep("not asked".into())).collect())
    }

    fn activation(&self, _: &ModelInfo) -> Result<Option<ActivationRule>, HookError> {
        Ok(None)
    }

    fn scales(&self, _: &Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        Ok(amax.to_vec())
    }

    fn scales_with_moments(&self, _: &Blocks<'_>, amax: &[f32], _: &[f32]) -> Result<Vec<f32>, HookError> {
        Ok(amax.to_vec())
    }

    fn panel_scales(&self, blocks: &Blocks<'_>, panel: &RowPanel, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let lent = kit::mse::Panel {
            tensor: NAME,
            first_block: blocks.first_block as u32,
            rows: panel.rows as u32,
            cols: panel.cols as u32,
            block_cols: blocks.block_cols as u32,
            max_rows: 16,
        };
        let read = |first: u32, n: u32| -> Vec<u16> {
            let start = (panel.first_row + first as usize) * panel.cols * 2;
            let bytes = &panel.data[start..start + n as usize * panel.cols * 2];
            bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect()
        };
        kit::mse::panel_scales(&self.search, &lent, amax, read).map_err(|why| HookError {
            patch: "native".into(),
            call: "`panel-scales`".into(),
            cause: patchhost_runtime::hooks::HookCause::Refused,
            why: format!("{why:?}"),
            next: "use weights that can be quantized".into(),
        })
    }

    fn activation_scales(&self, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        Ok(amax.to_vec())
    }
}
