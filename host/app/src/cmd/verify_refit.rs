//! `patchhost verify-refit`: proof that a refit equals a fresh load, for every combination of layout passes.

use std::sync::Arc;

use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::error::{Refusal, RuntimeError, plain};
use patchhost_runtime::hooks::{Consumer, Dtype, HookError, Layout, LayoutPass, ModelInfo, Role, TensorInfo};
use patchhost_runtime::layout;
use patchhost_runtime::refit::RefitHooks;
use patchhost_runtime::weights::{ParamDigest, WeightSet};

use super::Call;
use super::args::{Format, Fp8Activation, ModelArgs, PatchArgs};
use super::failure::{HostError, Result};
use super::output::{duration, json, plural};
use super::session::{Load, Model, Patches, progress_bar};

/// Prove that a refit equals a fresh load, for every combination of layout passes, and show each tensor's digests
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    patches: PatchArgs,
    /// Show the digests of every tensor for every combination, not only for the plain layout
    #[arg(long)]
    all: bool,
}

/// The passes that are combined in every way.
const ALL: [LayoutPass; 3] = [LayoutPass::SwapW13, LayoutPass::Ue8m0, LayoutPass::ColMajorAlign];

/// A fixed list of passes, on every tensor that can have them.
struct Fixed(Vec<LayoutPass>);

impl Layout for Fixed {
    fn name(&self) -> &str {
        "verify-refit"
    }

    fn passes(&self, _: &ModelInfo, _: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Vec<LayoutPass>>, HookError> {
        let fits = |t: &TensorInfo, pass: LayoutPass| match pass {
            LayoutPass::SwapW13 => t.role == Role::Expert && t.name.ends_with(".w13_weight"),
            LayoutPass::Ue8m0 | LayoutPass::ColMajorAlign => t.dtype == Dtype::F8E4m3,
        };
        Ok(tensors.iter().map(|t| self.0.iter().copied().filter(|p| fits(t, *p)).collect()).collect())
    }
}

/// What was found under one combination of layout passes.
#[derive(Debug, serde::Serialize)]
struct Combination {
    passes: Vec<&'static str>,
    /// Runtime tensors that went through any of them.
    tensors: usize,
    /// Digest of all weights as they lie in memory.
    sha256: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    params: Vec<ParamDigest>,
}

/// Runs the verb. Without a `--component` the bundled `fp8_block` quantizes.
pub fn run(mut args: Args, call: &Call) -> Result {
    let format = call.format;
    let started = std::time::Instant::now();
    if args.patches.components.is_empty() {
        args.patches.components.push("fp8_block".to_string());
    }
    let model = Model::open(&args.model, EngineOptions::default())?;
    let patches = Patches::load(Load::new(&args.patches, &model.engine.info().architecture))?;
    let base = patches.hooks(Fp8Activation::Dynamic128.into());
    let other = other_weights(&model.checkpoint)?;
    let bar = progress_bar("verify-refit");
    bar.set_length(8);
    let mut shown = Vec::new();
    for bits in 0..8u8 {
        let passes: Vec<LayoutPass> =
            ALL.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, p)| *p).collect();
        bar.set_message(label(&passes));
        let hooks = RefitHooks { layout: Some(Arc::new(Fixed(passes.clone()))), ..base.clone() };
        shown.push(prove(&model, &hooks, &passes, &other, args.all || bits == 0)?);
        bar.inc(1);
    }
    if base.layout.is_some() {
        bar.set_message("the layout patch");
        prove(&model, &base, &[], &other, false)?;
    }
    bar.finish_and_clear();
    if format == Format::Json {
        return json(&serde_json::json!({
            "model": model.name, "architecture": model.engine.info().architecture, "equal": true,
            "combinations": shown, "seconds": started.elapsed().as_secs_f64(), "patches": patches.ledger(),
        }));
    }
    outln!("model {} ({})", model.name, model.engine.info().architecture);
    for c in &shown {
        for d in &c.params {
            out!("  {:60} {:8?} {:?}  checkpoint {}", plain(d.name.clone()), d.dtype, d.shape, d.sha256_checkpoint);
            match d.sha256_checkpoint == d.sha256_runtime {
                true => outln!("  runtime the same"),
                false => outln!("  runtime {}", d.sha256_runtime),
            }
        }
        outln!(
            "{:32} on {:11}  refit == fresh load, bit for bit; undone == checkpoint layout  sha256:{}",
            if c.passes.is_empty() { "plain".to_string() } else { c.passes.join("+") },
            plural(c.tensors, "tensor"),
            &c.sha256[..16],
        );
    }
    if base.layout.is_some() {
        outln!("the passes of the loaded layout patch: refit == fresh load, bit for bit");
    }
    outln!("8 combinations of layout passes in {}", duration(started.elapsed().as_secs_f64()));
    patches.print_ledger();
    Ok(())
}

/// Load, refit with other weights, refit back twice; compare with an engine that only ever loaded these.
fn prove(
    model: &Model,
    hooks: &RefitHooks,
    passes: &[LayoutPass],
    other: &Checkpoint,
    digests: bool,
) -> Result<Combination> {
    let quiet = |_: usize, _: usize, _: &str| {};
    let fresh = model.fresh_engine()?;
    fresh.refit(&model.checkpoint, hooks, &quiet)?;
    let expected = fresh.live()?;
    let engine = model.fresh_engine()?;
    engine.refit(&model.checkpoint, hooks, &quiet)?;
    // Without weights in between that differ everywhere, a refit that does nothing would pass.
    engine.refit(other, hooks, &quiet)?;
    if engine.live()?.digest(engine.registry()) == expected.digest(engine.registry()) {
        let why = "the live weights have the same digest";
        return Err(HostError::bug("a refit with other weights changed nothing", why).into());
    }
    for round in 1..=2 {
        engine.refit(&model.checkpoint, hooks, &quiet)?;
        same(&engine, &*engine.live()?, &expected, &format!("refit {round} under {}", label(passes)))?;
    }
    undone(model, hooks, &expected, &fresh)?;
    let params = expected.digests(fresh.registry());
    Ok(Combination {
        passes: passes.iter().map(|p| layout::name(*p)).collect(),
        tensors: params.iter().filter(|d| !d.passes.is_empty()).count(),
        sha256: expected.digest(fresh.registry()),
        params: if digests { params } else { Vec::new() },
    })
}

/// The passes undone give the parts of a load without those that only move bytes.
fn undone(model: &Model, hooks: &RefitHooks, set: &WeightSet, engine: &Engine) -> Result {
    struct OnlyNumbers(Arc<dyn Layout>);
    impl Layout for OnlyNumbers {
        fn name(&self) -> &str {
            self.0.name()
        }
        fn passes(&self, m: &ModelInfo, c: &Consumer, t: &[TensorInfo]) -> Result<Vec<Vec<LayoutPass>>, HookError> {
            let mut all = self.0.passes(m, c, t)?;
            all.iter_mut().for_each(|list| list.retain(|p| *p == LayoutPass::Ue8m0));
            Ok(all)
        }
    }
    let Some(layout) = &hooks.layout else { return Ok(()) };
    let plain = RefitHooks { layout: Some(Arc::new(OnlyNumbers(layout.clone()))), ..hooks.clone() };
    let (numbers, _) = model.engine.stage(&model.checkpoint, &plain, &|_, _, _| {})?;
    for (param, decl) in engine.registry().params().iter().enumerate() {
        let back = set.checkpoint_parts(param);
        let equal = back.iter().zip(numbers.parts(param)).all(|(a, b)| a.matrix.bit_equal(&b.matrix));
        if !equal {
            let why = "it does not give the checkpoint's layout back";
            return Err(HostError::bug(format!("the layout of `{}` undone", decl.name), why).into());
        }
    }
    Ok(())
}

fn same(engine: &Engine, found: &WeightSet, expected: &WeightSet, what: &str) -> Result {
    let Some((param, part)) = found.first_difference(expected) else { return Ok(()) };
    let decl = &engine.registry().params()[param];
    Err(RuntimeError::Refit(Refusal::new(
        what,
        format!("{} of `{}` differs from a fresh load", decl.part_label(part), decl.name),
        "a patch that does not answer the same twice is wrong: do not use it; with the bundled ones, please report this",
    ))
    .into())
}

/// The same tensors with every sign turned: other weights of the same size everywhere.
fn other_weights(checkpoint: &Checkpoint) -> Result<Checkpoint> {
    use safetensors::tensor::Dtype as Stored;
    let turned = checkpoint.tensors().map(|t| -> Result<CheckpointTensor> {
        let width = match t.stored {
            Stored::F32 => 4,
            Stored::F16 | Stored::BF16 => 2,
            Stored::F8_E4M3 => 1,
            _ => return Ok(t.clone()),
        };
        // The scales of FP8 weights must stay above 0.
        if t.name.contains("scale") {
            return Ok(t.clone());
        }
        let mut bytes = t.data.load()?.to_vec();
        bytes.iter_mut().skip(width - 1).step_by(width).for_each(|high| *high ^= 0x80);
        let len = bytes.len();
        Ok(match patchhost_runtime::bytes::TensorBytes::new(Arc::new(bytes), 0..len) {
            Some(data) => CheckpointTensor { data: data.into(), ..t.clone() },
            None => t.clone(),
        })
    });
    let turned: Result<Vec<CheckpointTensor>> = turned.collect();
    Ok(Checkpoint::from_tensors(turned?)?)
}

fn label(passes: &[LayoutPass]) -> String {
    match passes {
        [] => "the plain layout".to_string(),
        some => some.iter().map(|p| layout::name(*p)).collect::<Vec<_>>().join("+"),
    }
}
