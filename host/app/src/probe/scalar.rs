//! Scales from amax alone: bit for bit those of the named profile, and properties that every recipe has.

use super::ask::{TENSOR, all, differ, scales, shown, stored};
use super::hidden::alike;
use super::run::{Found, ProbeOptions};
use super::{synthetic, vectors};
use crate::native::{self, Reference};
use patchhost_kernels::profile::Profile;
use patchhost_runtime::hooks::{BlockQuant, Contract, Scheme};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// How many blocks one question has.
const BLOCKS: usize = 64;

/// Every class of edges, and random values, bit for bit.
pub(super) fn golden(
    quant: &dyn BlockQuant,
    scheme: &Scheme,
    profile: Profile,
    options: &ProbeOptions,
) -> Result<Found, String> {
    let mut classes = vectors::edges(scheme);
    let count = classes.len();
    classes.push(("random", vectors::random(options.seed, options.random)));
    let mut asked = 0;
    for (class, amax) in &classes {
        let expected = native::expected(profile, scheme, amax);
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

/// Whether scales are finite and positive, grow with amax, and double when it doubles: every recipe does that.
pub(super) fn properties(quant: &dyn BlockQuant, scheme: &Scheme, seed: u64, random: usize) -> Result<Found, String> {
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

/// Whether a block gets the same scale in another order, in smaller calls, and beside other blocks.
pub(super) fn locality(quant: &dyn BlockQuant, scheme: &Scheme, seed: u64) -> Result<Found, String> {
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

/// Whether the same amax gets the same scale for tensors of other names.
pub(super) fn names(
    quant: &dyn BlockQuant,
    scheme: &Scheme,
    reference: Option<&Reference>,
    seed: u64,
) -> Result<Found, String> {
    let amax = vectors::random(seed ^ 0xa3e5, BLOCKS);
    let first = all(quant, scheme, &amax)?;
    let (mut asked, mut note) = (0, None);
    for tensor in synthetic::tensors().iter().filter(|t| t.shape.len() == 2) {
        let got = scales(quant, scheme, &tensor.name, 0, BLOCKS, &amax)?;
        asked += got.len();
        alike(&format!("for `{}`", tensor.name), scheme, reference, &amax, (&first, &got), &mut note)?;
    }
    Ok(Found { note, ..Found::asked(asked) })
}
