//! Checks of patches that read the rows of a tensor, and not only the largest magnitude of each block.

use super::ask::differ;
use super::constants;
use super::matrix::{Cast, cast, cast_named, weights};
use super::run::{Found, ProbeOptions};
use super::synthetic;
use crate::native::Reference;
use crate::patch::Patch;
use half::bf16;
use patchhost_runtime::hooks::{BlockQuant, Elem, Scheme};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Shapes whose last blocks are cut, in one direction or both.
const SHAPES: [(usize, usize); 8] =
    [(1, 1), (1, 257), (257, 1), (129, 257), (128, 256), (127, 130), (5, 1030), (260, 40)];

/// Kinds of values, each made to mislead a search in its own way.
const KINDS: [&str; 14] = [
    "as weights are",
    "heavy tails",
    "one outlier in the last place",
    "mostly zero",
    "two values",
    "all equal",
    "powers of two",
    "just beside powers of two",
    "e4m3 ties",
    "whole numbers",
    "one sign",
    "subnormal",
    "around 2^-110, below which a block is zero",
    "as large as bf16",
];

fn values(kind: usize, (rows, cols): (usize, usize), seed: u64) -> Vec<bf16> {
    let mut rng = StdRng::seed_from_u64(seed ^ ((kind as u64) << 32));
    let last = rows * cols - 1;
    let one = |rng: &mut StdRng, i: usize| -> f32 {
        let x = rng.random_range(-1.0f32..1.0);
        let power = 2f32.powi(rng.random_range(-6..7));
        match kind {
            0 => x * 0.04,
            1 => x.powi(7) * 3.0,
            2 => {
                if i == last {
                    -50.0
                } else {
                    x * 0.1
                }
            }
            3 => {
                if rng.random_range(0..20) == 0 {
                    x
                } else {
                    0.0
                }
            }
            4 => {
                if rng.random() {
                    0.75
                } else {
                    -0.031
                }
            }
            5 => 0.3,
            6 => power.copysign(x),
            7 => power * if x > 0.0 { 1.0 + 1.0 / 128.0 } else { 1.0 - 1.0 / 256.0 },
            // Midway between two neighbors, at the largest scale.
            8 => power * (1.0 + f32::from(rng.random_range(0u8..8)) / 8.0 + 1.0 / 16.0),
            9 => f32::from(rng.random_range(-40i8..41)),
            10 => x.abs() + 0.01,
            11 => x * 1e-39,
            12 => x * 2f32.powi(-109),
            _ => x * 3.3e38,
        }
    };
    (0..rows * cols).map(|i| bf16::from_f32(one(&mut rng, i))).collect()
}

fn bytes(values: &[bf16]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn ask(quant: &dyn BlockQuant, scheme: &Scheme, values: &[bf16], (rows, cols): (usize, usize)) -> Cast {
    cast(quant, scheme, bytes(values), Elem::Bf16, rows, cols)
}

/// Every kind of values and every shape, bit for bit.
pub(super) fn vectors(
    quant: &dyn BlockQuant,
    scheme: &Scheme,
    reference: &Reference,
    options: &ProbeOptions,
) -> Result<Found, String> {
    let mut asked = 0;
    let rounds = options.random.div_ceil(250) as u64;
    for (kind, round) in (0..KINDS.len()).flat_map(|kind| (0..rounds).map(move |round| (kind, round))) {
        // All shapes in the first round of the first kind; afterwards one each in turn.
        let some = |i: usize| (kind == 0 && round == 0) || i == (kind + round as usize * 5 + 3) % SHAPES.len();
        for (_, shape) in SHAPES.iter().enumerate().filter(|(i, _)| some(*i)) {
            let values = values(kind, *shape, options.seed.wrapping_add(round));
            let got = ask(quant, scheme, &values, *shape)?;
            let expected = ask(reference, scheme, &values, *shape)?;
            let what = format!("values `{}`, {}x{}, native code and the patch", KINDS[kind], shape.0, shape.1);
            differ(&what, &[], &expected.1, &got.1)?;
            asked += got.1.len();
        }
    }
    if let Some(known) = &options.constants {
        let numbers: Vec<bf16> = constants::values(&known.code)
            .into_iter()
            .map(bf16::from_f32)
            .filter(|x| x.is_finite() && x.to_f32().abs() < 1e30)
            .collect();
        for row in numbers.chunks(256) {
            for values in [row.to_vec(), row.iter().rev().copied().collect()] {
                let shape = (1, values.len());
                let (got, expected) = (ask(quant, scheme, &values, shape)?, ask(reference, scheme, &values, shape)?);
                differ("numbers of the component, native code and the patch", &[], &expected.1, &got.1)?;
                asked += got.1.len();
            }
        }
    }
    Ok(Found {
        worst: Some(format!("0 ulp, {} kinds of values, {} shapes", KINDS.len(), SHAPES.len())),
        ..Found::asked(asked)
    })
}

/// Whether a scale depends on magnitudes only, grows in proportion, and depends on its own block only. A recipe that
/// the host does not know may do otherwise: then it is a remark.
pub(super) fn properties(
    quant: &dyn BlockQuant,
    scheme: &Scheme,
    named: bool,
    options: &ProbeOptions,
) -> Result<Found, String> {
    let shape = (scheme.block_rows.min(192), scheme.block_cols.saturating_mul(3).min(1024));
    let mut asked = 0;
    let mut odd = None;
    for kind in [0, 1, 3, 8] {
        let values = values(kind, shape, options.seed ^ 0x0dd);
        let (_, whole) = ask(quant, scheme, &values, shape)?;
        let negated: Vec<bf16> = values.iter().map(|x| -*x).collect();
        let (_, other) = ask(quant, scheme, &negated, shape)?;
        let signs = differ("with all signs turned", &[], &whole, &other);
        let doubled: Vec<bf16> = values.iter().map(|x| *x * bf16::from_f32(4.0)).collect();
        let (_, four) = ask(quant, scheme, &doubled, shape)?;
        let expected: Vec<f32> =
            whole.iter().zip(&four).map(|(s, f)| if is_zero(scheme, *s) { *f } else { s * 4.0 }).collect();
        let powers = differ("four times as large", &[], &expected, &four);
        let mut beside = values.clone();
        for row in beside.chunks_mut(shape.1) {
            let from = scheme.block_cols.min(row.len());
            row[from..].iter_mut().for_each(|x| *x = bf16::from_f32(0.5));
        }
        let (_, first) = ask(quant, scheme, &beside, shape)?;
        let local = differ("with other blocks beside it", &[], &whole[..1], &first[..1]);
        asked += 4 * whole.len();
        for result in [signs, powers, local] {
            match result {
                Err(why) if named => return Err(why),
                Err(why) => odd = odd.or(Some(why)),
                Ok(()) => {}
            }
        }
    }
    Ok(Found { note: odd, ..Found::asked(asked) })
}

fn is_zero(scheme: &Scheme, scale: f32) -> bool {
    scale == scheme.cast.floor.zero_scale
}

/// Names, and what was asked before, do not matter.
pub(super) fn history(
    quant: &dyn BlockQuant,
    scheme: &Scheme,
    named: bool,
    options: &ProbeOptions,
) -> Result<Found, String> {
    let shape = (8, 96);
    let values = weights(shape.0, shape.1, options.seed ^ 0x4157);
    let again = |name: &str| cast_named(name, quant, scheme, values.clone(), Elem::Bf16, shape.0, shape.1);
    let first = again(super::ask::TENSOR)?;
    let calls = (options.calls / 20).max(50);
    let tensors = synthetic::tensors_of(24);
    let mut odd = None;
    for call in 0..calls {
        let tensor = &tensors[call % tensors.len()].name;
        let got = again(tensor)?;
        if let Err(why) = differ(&format!("for `{tensor}`, after {call} calls"), &[], &first.1, &got.1) {
            if named {
                return Err(why);
            }
            odd = odd.or(Some(why));
        }
    }
    // A recipe may treat tensors apart; that one tensor gets one answer it may not change.
    differ(&format!("after {calls} calls"), &[], &first.1, &again(super::ask::TENSOR)?.1)?;
    Ok(Found { worst: Some(format!("{calls} calls")), note: odd, ..Found::asked(calls * first.1.len()) })
}

/// What a panel costs against its limit.
pub(super) fn fuel(patch: &Patch, quant: &dyn BlockQuant, scheme: &Scheme) -> Result<Found, String> {
    let used = || patch.stats().functions.get("panel-scales").map_or(0, |f| f.fuel_total);
    let limits = patch.limits();
    let (mut worst, mut per_element, mut asked) = (0f64, 0.0, 0);
    for shape in [(8usize, 64usize), (64, 256), (scheme.block_rows.min(128), 1024)] {
        let before = used();
        let got = cast(quant, scheme, weights(shape.0, shape.1, 3), Elem::Bf16, shape.0, shape.1)?;
        let fuel = (used() - before) as f64;
        let elements = (shape.0 * shape.1) as f64;
        let limit = limits.fuel_scales_base as f64
            + limits.fuel_per_block as f64 * got.1.len() as f64
            + limits.fuel_per_element as f64 * elements;
        worst = worst.max(fuel / limit.min(limits.fuel_max as f64).max(1.0));
        per_element = fuel / elements;
        asked += got.1.len();
    }
    let worst = format!("{per_element:.0} for a value; at most {:.1} % of the limit", 100.0 * worst);
    Ok(Found { worst: Some(worst), ..Found::asked(asked) })
}
