//! The proof about each block's scale: what a patch returned is believed only after this.

use crate::e8m0::is_pow2;
use crate::profile::TINY;
use crate::spec::{CastRule, CastSpec, Contract, Edges, ScaleFormat};

/// Units in the last place that honest roundings may add up to: `448 + 8 * 2^-15`.
const ULPS: f64 = 8.0;
const ULP_448: f64 = 1.0 / 32768.0;
const ULP_224: f64 = ULP_448 / 2.0;

/// Bits of 448 + 8 ulp: magnitudes above saturate.
pub(crate) const SATURATED_BITS: u32 = 0x43e0_0000 + 8;

/// A scale that does not keep its contract. Nothing of the tensor may be used.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("block column {block_col}: {what} (amax {amax:e}, returned {given:e}, stored scale {scale:e})")]
pub struct ContractViolation {
    /// The block, counted from the left edge of the panel.
    pub block_col: usize,
    /// The host's own `max |x|` of the block.
    pub amax: f32,
    /// What the patch returned.
    pub given: f32,
    /// The scale that would have been stored.
    pub scale: f32,
    /// What is wrong with it.
    pub what: Violation,
}

/// What is wrong with a scale.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Violation {
    /// The block, the returned number, the scale or its reciprocal is NaN or infinite.
    #[error("a number is not finite")]
    NotFinite,
    /// The returned number, the scale or its reciprocal is zero or negative.
    #[error("a number is not greater than zero")]
    NotPositive,
    /// A block at or below `zero_below` has another scale than `zero_scale`.
    #[error("blocks this small have the scale {expected:e}")]
    WrongZeroScale {
        /// The scale that `floor` demands.
        expected: f32,
    },
    /// `Contract::Amax` is broken.
    #[error("max(amax, eps) / scale is {ratio}, not 448 within 8 ulp")]
    AmaxRatio {
        /// `max(amax, eps) / scale`
        ratio: f64,
    },
    /// `Contract::Pow2` is broken.
    #[error("max(amax, eps) / scale is {ratio}, not in (224, 448]")]
    Pow2Ratio {
        /// `max(amax, eps) / scale`
        ratio: f64,
    },
    /// The format or the contract demands a power of two.
    #[error("the scale is not a power of two from 2^-126 to 2^127")]
    NotPowerOfTwo,
    /// `Contract::Clip` has a lower bound too: a larger scale would waste bits.
    #[error("max(amax, eps) / scale is {ratio}, not above 224")]
    ClipRatio {
        /// `max(amax, eps) / scale`
        ratio: f64,
    },
    /// More values saturate than `Contract::Clip` allows.
    #[error("a share of {share} of the values saturates, allowed is {limit}")]
    ClipShare {
        /// Saturated values / values of the block.
        share: f64,
        /// What the contract allows.
        limit: f32,
    },
}

/// A block whose scale has been proved (but for the share of a clip contract, which only the cast can count).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checked {
    /// The scale to store.
    pub scale: f32,
    /// What x is multiplied with, or divided by under [`CastRule::Divide`].
    pub factor: f32,
    /// Whether some |x| may lie beyond 448 by more than 8 ulp, so that the cast must count.
    pub may_saturate: bool,
    /// Not finite or without a usable scale, tolerated by the edge policy.
    pub exempt: bool,
}

/// Proves the scale of one block from the host's own amax.
pub(crate) fn check(spec: &CastSpec, amax: f32, given: f32) -> Result<Checked, (f32, Violation)> {
    let (scale, factor) = match spec.cast {
        CastRule::Multiply => (1.0 / given, given),
        CastRule::Reciprocal => (given, 1.0 / given),
        CastRule::Divide => (given, given),
    };
    let usable = |x: f32| x.is_finite() && x > 0.0;
    let exempt =
        spec.edges != Edges::Strict && (!amax.is_finite() || (amax <= TINY && !(usable(scale) && usable(factor))));
    if !exempt {
        prove(spec, amax, given, scale, factor).map_err(|what| (scale, what))?;
    }
    let product = if spec.cast == CastRule::Divide { amax / factor } else { amax * factor };
    // Rounding is monotonic: if the largest magnitude stays within 8 ulp, all others do. NaN compares false.
    let bound = product <= f32::from_bits(SATURATED_BITS);
    Ok(Checked { scale, factor, may_saturate: !bound, exempt })
}

fn prove(spec: &CastSpec, amax: f32, given: f32, scale: f32, factor: f32) -> Result<(), Violation> {
    if !(amax.is_finite() && given.is_finite() && scale.is_finite() && factor.is_finite()) {
        // 1/0 is infinite, but what is wrong is the zero.
        return Err(if amax.is_finite() && given <= 0.0 { Violation::NotPositive } else { Violation::NotFinite });
    }
    if !(given > 0.0 && scale > 0.0 && factor > 0.0) {
        return Err(Violation::NotPositive);
    }
    if spec.format == ScaleFormat::Ue8m0 && !is_pow2(scale) {
        return Err(Violation::NotPowerOfTwo);
    }
    let floor = spec.floor;
    if amax <= floor.zero_below {
        return if scale == floor.zero_scale {
            Ok(())
        } else {
            Err(Violation::WrongZeroScale { expected: floor.zero_scale })
        };
    }
    // In f64 the quotient of two f32 is good to 2^-53, far below the tolerance.
    let ratio = f64::from(amax.max(floor.eps)) / f64::from(scale);
    match spec.contract {
        Contract::Amax if (ratio - 448.0).abs() > ULPS * ULP_448 => Err(Violation::AmaxRatio { ratio }),
        Contract::Pow2 if !is_pow2(scale) => Err(Violation::NotPowerOfTwo),
        Contract::Pow2 if !(ratio > 224.0 - ULPS * ULP_224 && ratio <= 448.0 + ULPS * ULP_448) => {
            Err(Violation::Pow2Ratio { ratio })
        }
        Contract::Clip(_) if ratio <= 224.0 => Err(Violation::ClipRatio { ratio }),
        _ => Ok(()),
    }
}
