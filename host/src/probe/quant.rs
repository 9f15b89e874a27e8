//! The checks of block quantization.

use super::ask::{TENSOR, all, differ, scales, shown, stored};
use super::run::{Found, Probe};
use super::{synthetic, vectors};
use crate::abi::Hook;
use crate::patch::Patch;
use half::bf16;
use patchhost_kernels::profile::Profile;
use patchhost_runtime::activation::Activation;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::hooks::{
    ActivationRule, BlockQuant, Blocks, Consumer, Contract, Decision, Elem, HookError, ModelInfo, Needs, Role,
    RowPanel, Scheme, TensorInfo,
};
use patchhost_runtime::quantize::{Input, quantize};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::{Arc, Barrier};

const HOOK: Option<Hook> = Some(Hook::BlockQuant);
/// Different ways to quantize that are tried; a patch has one or two.
const SCHEMES: usize = 4;
/// Blocks of one question.
const BLOCKS: usize = 64;

/// All of them; the name of the profile whose vectors were asked.
pub(super) fn run(probe: &mut Probe<'_>, patch: &Arc<Patch>, quant: &dyn BlockQuant) -> Option<String> {
    let mut schemes = Vec::new();
    let about = "the same tensors get the same decisions, in any order; what is sensitive is kept";
    probe.check("decisions", HOOK, about, |_| decisions(patch, quant, &mut schemes));
    let about = "scales of activations are those of its rule, or finite, positive and in proportion";
    probe.check("activation", HOOK, about, |options| activation(patch, quant, options.random));
    let mut named = None;
    for scheme in schemes.iter().take(SCHEMES) {
        let profile = vectors::profile(scheme);
        named = named.or(profile.map(|p| p.name().to_owned()));
        of_scheme(probe, patch, quant, scheme, profile);
    }
    if schemes.is_empty() {
        probe.skip("scales", HOOK, "scales of blocks", "it quantizes none of the tensors of a Qwen3-MoE");
    }
    named
}

fn of_scheme(
    probe: &mut Probe<'_>,
    patch: &Arc<Patch>,
    quant: &dyn BlockQuant,
    scheme: &Scheme,
    profile: Option<Profile>,
) {
    let about = "the native cast proves every scale against the contract that the scheme declares";
    probe.check("contract", HOOK, about, |options| contract(quant, scheme, options));
    if scheme.needs == Needs::Rows {
        let about = "the same rows get the same scales when they are asked about again";
        probe.check("determinism", HOOK, about, |options| again(quant, scheme, options.matrix, options.seed));
        let why = "its scales depend on the rows: the cast's contract is what is proved about them";
        probe.skip("vectors", HOOK, "golden vectors", why);
        return;
    }
    match profile {
        Some(profile) => {
            let about = "bit for bit what the named profile gives, for every class of edges and for random values";
            probe.check("vectors", HOOK, about, |options| golden(quant, scheme, profile, options));
            let about = "a whole matrix, FP8 bytes and scales, against native code";
            probe.check("differential", HOOK, about, |options| {
                differential(quant, scheme, profile, options.matrix, options.seed)
            });
        }
        None => probe.skip("vectors", HOOK, "golden vectors", "it has a recipe of its own, without a named profile"),
    }
    let about = "scales are finite, positive, grow with amax, and double when it doubles";
    probe.check("properties", HOOK, about, |options| properties(quant, scheme, options.seed, options.random));
    let about = "a block's scale depends on that block: not on its neighbors, its place, or how calls are cut";
    probe.check("locality", HOOK, about, |options| locality(quant, scheme, options.seed));
    let about = "the same amax gets the same scale whatever the tensor is called";
    probe.check("names", HOOK, about, |options| names(quant, scheme, profile, options.seed));
    let about = "several instances at once give the same answers";
    probe.check("instances", HOOK, about, |options| instances(patch, scheme, options.seed));
    let about = "the answers after many calls are the first ones";
    probe.check("history", HOOK, about, |options| history(quant, scheme, options.calls, options.seed));
    let about = "fuel grows in proportion to the blocks, and stays below its limit";
    probe.check("fuel", HOOK, about, |_| fuel(patch, quant, scheme));
}

/// Also gives the different schemes that were decided.
fn decisions(patch: &Patch, quant: &dyn BlockQuant, schemes: &mut Vec<Scheme>) -> Result<Found, String> {
    let (model, reader, mut tensors) = (synthetic::model(patch), synthetic::reader(), synthetic::tensors());
    let decide = |tensors: &[TensorInfo]| quant.decide(&model, &reader, tensors).map_err(|e| e.to_string());
    let first = decide(&tensors)?;
    let mut asked = first.len();
    let same = |what: &str, name: &str, a: &Decision, b: &Decision| match a == b {
        true => Ok(()),
        false => Err(format!("{what}: about `{name}` it decided {a:?}, and then {b:?}")),
    };
    for (tensor, (a, b)) in tensors.iter().zip(first.iter().zip(&decide(&tensors)?)) {
        same("asked again", &tensor.name, a, b)?;
    }
    tensors.reverse();
    for (tensor, (a, b)) in tensors.iter().zip(first.iter().rev().zip(&decide(&tensors)?)) {
        same("asked in another order", &tensor.name, a, b)?;
    }
    asked *= 3;
    tensors.reverse();
    let mut sensitive = Vec::new();
    for (tensor, decision) in tensors.iter().zip(&first) {
        let Decision::Quantize(scheme) = decision else { continue };
        let same = |known: &Scheme| Scheme { rule: String::new(), ..known.clone() };
        if !schemes.iter().any(|known| same(known) == same(scheme)) {
            schemes.push(scheme.clone());
        }
        if matches!(tensor.role, Role::Router | Role::Norm | Role::Embedding | Role::LmHead) {
            sensitive.push(tensor.name.as_str());
        }
    }
    let note = (!sensitive.is_empty())
        .then(|| format!("it quantizes {}: routers, norms, embeddings and the head lose most", list(&sensitive)));
    Ok(Found { note, ..Found::asked(asked) })
}

fn list(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(3).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(shown.len());
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}

fn golden(
    quant: &dyn BlockQuant,
    scheme: &Scheme,
    profile: Profile,
    options: &super::ProbeOptions,
) -> Result<Found, String> {
    let mut classes = vectors::edges(scheme);
    let count = classes.len();
    classes.push(("random", vectors::random(options.seed, options.random)));
    let mut asked = 0;
    for (class, amax) in &classes {
        let expected = vectors::expected(profile, scheme, amax);
        let got = all(quant, scheme, amax)?;
        if let Some(at) = got.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits()) {
            return Err(format!(
                "class `{class}`: for amax {} profile `{}` gives {}, it answered {}",
                shown(amax[at]),
                profile.name(),
                shown(expected[at]),
                shown(got[at])
            ));
        }
        asked += amax.len();
    }
    Ok(Found { worst: Some(format!("0 ulp, {count} classes of edges")), ..Found::asked(asked) })
}

/// f32 rows whose blocks have these largest magnitudes.
fn matrix_of(scheme: &Scheme, amax: &[f32], seed: u64) -> (Vec<u8>, usize, usize) {
    let (rows, block_cols) = (scheme.block_rows, scheme.block_cols);
    let cols = block_cols * amax.len();
    let mut rng = StdRng::seed_from_u64(seed);
    // One pattern for all blocks: what a patch sees of a block is its amax.
    let pattern: Vec<f32> = (0..rows * block_cols).map(|_| rng.random_range(-0.9f32..0.9)).collect();
    let mut values = vec![0f32; rows * cols];
    for (block, amax) in amax.iter().enumerate() {
        for (row, pattern) in pattern.chunks(block_cols).enumerate() {
            let at = row * cols + block * block_cols;
            let row = values[at..at + block_cols].iter_mut();
            row.zip(pattern).for_each(|(value, factor)| *value = amax * factor);
        }
        let largest = rng.random_range(0..rows * block_cols);
        let at = largest / block_cols * cols + block * block_cols + largest % block_cols;
        values[at] = if rng.random() { *amax } else { -amax };
    }
    (values.iter().flat_map(|x| x.to_le_bytes()).collect(), rows, cols)
}

fn cast(quant: &dyn BlockQuant, scheme: &Scheme, bytes: Vec<u8>, elem: Elem, rows: usize, cols: usize) -> Cast {
    let length = bytes.len();
    let data = TensorBytes::new(Arc::new(bytes), 0..length).ok_or("no bytes")?;
    let input = Input { name: TENSOR, data, elem, rows, cols };
    let done = quantize(&input, scheme, quant, false).map_err(|e| e.to_string())?;
    Ok((done.q, done.scales))
}

type Cast = Result<(Vec<u8>, Vec<f32>), String>;

fn contract(quant: &dyn BlockQuant, scheme: &Scheme, options: &super::ProbeOptions) -> Result<Found, String> {
    let (seed, random) = (options.seed, options.random);
    // What is not finite is refused before any patch is asked; rounding up to bf16 must not make it so.
    let most = f32::from_bits(0x7f7f_0000);
    let finite = |amax: &f32| amax.is_finite() && *amax <= most;
    let some = |amax: Vec<f32>| {
        let step = amax.len().div_ceil(options.edges.max(1)).max(1);
        amax.into_iter().step_by(step)
    };
    let mut amax: Vec<f32> =
        vectors::edges(scheme).into_iter().flat_map(|(_, amax)| some(amax)).filter(finite).collect();
    amax.extend(vectors::random(seed ^ 0xc0de, random.min(256)).into_iter().filter(finite));
    let per_matrix = (1usize << 20) / (scheme.block_rows * scheme.block_cols).max(1);
    for (i, amax) in amax.chunks(per_matrix.clamp(1, 64)).enumerate() {
        let (bytes, rows, cols) = matrix_of(scheme, amax, seed.wrapping_add(i as u64));
        cast(quant, scheme, bytes, Elem::F32, rows, cols)?;
    }
    Ok(Found::asked(amax.len()))
}

/// bf16 as weights have them.
fn weights(rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut normal = || (0..4).map(|_| rng.random_range(-1.0f32..1.0)).sum::<f32>() * 0.02;
    (0..rows * cols).flat_map(|_| bf16::from_f32(normal()).to_le_bytes()).collect()
}

fn again(quant: &dyn BlockQuant, scheme: &Scheme, (rows, cols): (usize, usize), seed: u64) -> Result<Found, String> {
    let make = || cast(quant, scheme, weights(rows, cols, seed), Elem::Bf16, rows, cols);
    let (first, second) = (make()?, make()?);
    differ("asked again", &[], &first.1, &second.1)?;
    Ok(Found::asked(2 * first.1.len()))
}

/// The profile's own numbers, natively.
struct Golden<'a>(Profile, &'a Scheme);

impl BlockQuant for Golden<'_> {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn decide(&self, _: &ModelInfo, _: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Decision>, HookError> {
        Ok(tensors.iter().map(|_| Decision::Quantize(self.1.clone())).collect())
    }
    fn activation(&self, _: &ModelInfo) -> Result<Option<ActivationRule>, HookError> {
        Ok(Some(self.0.activation_rule()))
    }
    fn scales(&self, _: &Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        Ok(vectors::expected(self.0, self.1, amax))
    }
    fn scales_with_moments(&self, b: &Blocks<'_>, amax: &[f32], _: &[f32]) -> Result<Vec<f32>, HookError> {
        self.scales(b, amax)
    }
    fn panel_scales(&self, b: &Blocks<'_>, _: &RowPanel, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.scales(b, amax)
    }
    fn activation_scales(&self, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        Ok(amax.iter().map(|a| a.max(1e-10) / 448.0).collect())
    }
}

fn differential(
    quant: &dyn BlockQuant,
    scheme: &Scheme,
    profile: Profile,
    (rows, cols): (usize, usize),
    seed: u64,
) -> Result<Found, String> {
    // Not whole blocks, so that the last ones of each row and column are cut.
    let (rows, cols) = (rows + 1, cols + 3);
    let bytes = weights(rows, cols, seed);
    let patch = cast(quant, scheme, bytes.clone(), Elem::Bf16, rows, cols)?;
    let native = cast(&Golden(profile, scheme), scheme, bytes, Elem::Bf16, rows, cols)?;
    differ("against native code", &[], &native.1, &patch.1)?;
    match native.0.iter().zip(&patch.0).position(|(a, b)| a != b) {
        Some(at) => Err(format!("FP8 byte {at}: native code has {:#04x}, it has {:#04x}", native.0[at], patch.0[at])),
        None => Ok(Found { worst: Some(format!("{} FP8 bytes equal", patch.0.len())), ..Found::asked(patch.1.len()) }),
    }
}

fn properties(quant: &dyn BlockQuant, scheme: &Scheme, seed: u64, random: usize) -> Result<Found, String> {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
    // Where no floor and no overflow has a say.
    let mut amax: Vec<f32> =
        (0..random).map(|_| rng.random_range(1.0f32..2.0) * 2f32.powi(rng.random_range(-9..10))).collect();
    amax.sort_by(f32::total_cmp);
    let given = all(quant, scheme, &amax)?;
    let kept: Vec<f32> = given.iter().map(|g| stored(scheme, *g)).collect();
    for (i, s) in kept.iter().enumerate() {
        if !(s.is_finite() && *s > 0.0) {
            return Err(format!("for amax {} the scale is {}", shown(amax[i]), shown(*s)));
        }
        if i > 0 && *s < kept[i - 1] && scheme.cast.contract != Contract::Amax {
            return Err(falls(amax[i - 1], amax[i], kept[i - 1], *s));
        }
        // A formula of two roundings may fall by an ulp where amax barely grows.
        if i > 0 && f64::from(*s) < f64::from(kept[i - 1]) * (1.0 - 2f64.powi(-20)) {
            return Err(falls(amax[i - 1], amax[i], kept[i - 1], *s));
        }
    }
    let power = 2f32.powi(rng.random_range(1..5));
    let scaled: Vec<f32> = amax.iter().map(|a| a * power).collect();
    let doubled: Vec<f32> = all(quant, scheme, &scaled)?.iter().map(|g| stored(scheme, *g)).collect();
    if let Some(at) =
        (0..kept.len()).find(|i| (f64::from(doubled[*i]) / f64::from(kept[*i] * power) - 1.0).abs() > 1e-5)
    {
        return Err(format!(
            "amax {} has the scale {}, and {power} times as much has {}",
            shown(amax[at]),
            shown(kept[at]),
            shown(doubled[at])
        ));
    }
    Ok(Found::asked(2 * amax.len()))
}

fn falls(a: f32, b: f32, before: f32, after: f32) -> String {
    format!(
        "amax grows from {} to {}, and the scale falls from {} to {}",
        shown(a),
        shown(b),
        shown(before),
        shown(after)
    )
}

fn locality(quant: &dyn BlockQuant, scheme: &Scheme, seed: u64) -> Result<Found, String> {
    let amax = vectors::random(seed ^ 0x10ca1, BLOCKS);
    let whole = all(quant, scheme, &amax)?;
    let reversed: Vec<f32> = amax.iter().rev().copied().collect();
    let mut back = all(quant, scheme, &reversed)?;
    back.reverse();
    differ("in another order", &amax, &whole, &back)?;
    let mut cut = Vec::new();
    let mut first = 0;
    for size in [1, 2, 5, 8, 16, BLOCKS].into_iter().cycle() {
        let end = (first + size).min(BLOCKS);
        cut.extend(scales(quant, scheme, TENSOR, first, BLOCKS, &amax[first..end])?);
        first = end;
        if first == BLOCKS {
            break;
        }
    }
    differ("in several calls", &amax, &whole, &cut)?;
    let mut other = amax.clone();
    other[BLOCKS / 2] = amax[BLOCKS / 2] * 2.0;
    let mut changed = all(quant, scheme, &other)?;
    changed[BLOCKS / 2] = whole[BLOCKS / 2];
    differ("with another block beside it", &amax, &whole, &changed)?;
    Ok(Found::asked(4 * BLOCKS))
}

fn names(quant: &dyn BlockQuant, scheme: &Scheme, profile: Option<Profile>, seed: u64) -> Result<Found, String> {
    let amax = vectors::random(seed ^ 0xa3e5, BLOCKS);
    let first = all(quant, scheme, &amax)?;
    let mut asked = 0;
    for tensor in synthetic::tensors().iter().filter(|t| t.shape.len() == 2) {
        let got = scales(quant, scheme, &tensor.name, 0, BLOCKS, &amax)?;
        asked += got.len();
        if let Err(why) = differ(&format!("for `{}`", tensor.name), &amax, &first, &got) {
            // Its own recipe may treat tensors apart; the contract holds all the same.
            return if profile.is_some() { Err(why) } else { Ok(Found { note: Some(why), ..Found::asked(asked) }) };
        }
    }
    Ok(Found::asked(asked))
}

fn instances(patch: &Arc<Patch>, scheme: &Scheme, seed: u64) -> Result<Found, String> {
    const THREADS: usize = 4;
    let amax = vectors::random(seed ^ 0x1457, 1024);
    let barrier = Barrier::new(THREADS);
    let answers: Vec<Result<Vec<f32>, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let quant = patch.block_quant().ok_or("it has no block-quant")?;
                    barrier.wait();
                    // Often enough that they meet: who comes when another is done gets the other's instance.
                    let first = all(&*quant, scheme, &amax)?;
                    for _ in 0..8 {
                        differ("asked again", &amax, &first, &all(&*quant, scheme, &amax)?)?;
                    }
                    Ok(first)
                })
            })
            .collect();
        let joined = threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())));
        joined.collect()
    });
    let mut first: Option<Vec<f32>> = None;
    for answer in answers {
        let answer = answer?;
        match &first {
            None => first = Some(answer),
            Some(first) => differ("another instance", &amax, first, &answer)?,
        }
    }
    let made = patch.stats().instances_made;
    Ok(Found { worst: Some(format!("{made} instances so far")), ..Found::asked(9 * THREADS * amax.len()) })
}

fn history(quant: &dyn BlockQuant, scheme: &Scheme, calls: usize, seed: u64) -> Result<Found, String> {
    const INPUTS: u64 = 8;
    const EACH: usize = 16;
    let inputs: Vec<Vec<f32>> = (0..INPUTS).map(|i| vectors::random(seed ^ (0xb0b0 + i), EACH)).collect();
    let first = inputs.iter().map(|amax| all(quant, scheme, amax)).collect::<Result<Vec<_>, _>>()?;
    for call in 0..calls {
        let i = call % inputs.len();
        let got = all(quant, scheme, &inputs[i])?;
        differ(&format!("after {call} calls"), &inputs[i], &first[i], &got)?;
    }
    Ok(Found { worst: Some(format!("{calls} calls")), ..Found::asked(calls * EACH) })
}

fn fuel(patch: &Patch, quant: &dyn BlockQuant, scheme: &Scheme) -> Result<Found, String> {
    let used = || patch.stats().functions.values().map(|f| f.fuel_total).sum::<u64>();
    let limits = patch.limits();
    let (mut worst, mut asked, mut each) = (0f64, 0, Vec::new());
    for blocks in [1usize, 16, 256, 4096, 16_384] {
        let amax = vectors::random(7, blocks);
        let before = used();
        all(quant, scheme, &amax)?;
        let fuel = used() - before;
        let limit = limits.fuel_scales_base.saturating_add(limits.fuel_per_block.saturating_mul(blocks as u64));
        worst = worst.max(fuel as f64 / limit.min(limits.fuel_max).max(1) as f64);
        each.push((blocks as f64, fuel as f64));
        asked += blocks;
    }
    let per_block = match each[..] {
        [.., (n, a), (m, b)] => (b - a) / (m - n),
        _ => 0.0,
    };
    // Three times as much for each further block as for those before: it is no longer in proportion.
    let before = match each[..] {
        [_, (n, a), (m, b), ..] => (b - a) / (m - n),
        _ => 0.0,
    };
    let note = (per_block > 3.0 * before.max(1.0))
        .then(|| format!("a block costs {before:.0} among few and {per_block:.0} among many: it is not in proportion"));
    let worst = format!("{per_block:.0} for a block; at most {:.1} % of the limit", 100.0 * worst);
    Ok(Found { worst: Some(worst), note, ..Found::asked(asked) })
}

fn activation(patch: &Arc<Patch>, quant: &dyn BlockQuant, random: usize) -> Result<Found, String> {
    let rule = quant.activation(&synthetic::model(patch)).map_err(|e| e.to_string())?;
    if let Some(rule) = rule {
        Activation::from_rule(quant.name(), rule).map_err(|e| e.to_string())?;
        return Ok(Found {
            worst: Some(format!("rule: max(amax, {:e}) / {}", rule.eps, rule.divisor)),
            ..Found::asked(1)
        });
    }
    let Some(shared) = patch.block_quant() else { return Ok(Found::default()) };
    let groups = random.clamp(4, 256);
    let amax = vectors::random(11, groups).into_iter().map(|a| a.clamp(1e-6, 1e6)).collect::<Vec<_>>();
    let x: Vec<f32> = amax.iter().flat_map(|a| (0..128).map(move |i| a * (i as f32 - 64.0) / 64.0)).collect();
    let call = Activation::Call(shared);
    call.quantized(&x, groups, 128).map_err(|e| e.to_string())?;
    call.quantized(&[0.0; 128], 1, 128).map_err(|e| e.to_string())?;
    let (first, second) = (quant.activation_scales(&amax), quant.activation_scales(&amax));
    let text = |e: HookError| e.to_string();
    differ("asked again", &amax, &first.map_err(text)?, &second.map_err(text)?)?;
    Ok(Found::asked(3 * groups))
}
