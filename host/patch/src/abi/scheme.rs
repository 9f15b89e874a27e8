//! Decisions and rules out of a guest: every bound that `block-quant.wit` states.

use super::bindings::block_quant as wit;
use super::model::REASON_BYTES;
use crate::base::text;
use patchhost_runtime::hooks::{
    ActivationRule, CastRule, CastSpec, Contract, Decision, Edges, Floor, Needs, ScaleFormat, Scheme, TensorInfo,
};

const BLOCK_SIZE: std::ops::RangeInclusive<usize> = 1..=4096;
const SUFFIX_BYTES: usize = 32;
const PROFILE_BYTES: usize = 64;
/// The largest eps of a published profile is 1e-4. A larger floor could flush every weight and still keep its contract.
const MOST_EPS: f32 = 1e-3;
const MOST_ZERO_BELOW: f32 = 1e-12;
const MOST_CLIPPED: f32 = 0.05;

/// A block has at least so many values, or a scale of 4 bytes would take more than a quarter of what its codes take: with
/// blocks of 1x1 a quantized model would be larger than its bf16.
const LEAST_VALUES: usize = 16;

/// Texts of one decision at most.
pub(super) const TEXT_BYTES: usize = REASON_BYTES + SUFFIX_BYTES + PROFILE_BYTES;

/// One decision, checked.
pub(super) fn decision(decision: wit::Decision) -> Result<Decision, String> {
    match decision {
        wit::Decision::Keep(reason) => Ok(Decision::Keep(text::clean(&reason, 2 * REASON_BYTES))),
        wit::Decision::Quantize(scheme) => convert(scheme).map(Decision::Quantize),
    }
}

/// The activation rule. Its bounds are the runtime's to check (`Activation::from_rule`), for native rules as well.
pub(super) fn activation(rule: wit::ActivationRule) -> ActivationRule {
    let pow2_up = match rule.rounding {
        wit::Rounding::None => false,
        wit::Rounding::Pow2Up => true,
    };
    ActivationRule { eps: rule.eps, divisor: rule.divisor, pow2_up }
}

fn convert(scheme: wit::Scheme) -> Result<Scheme, String> {
    let scheme = raise(scheme);
    check(&scheme)?;
    Ok(Scheme { rule: text::clean(&scheme.rule, 4 * REASON_BYTES), ..scheme })
}

/// What the interface says of a scheme, wherever it comes from.
pub(crate) fn check(scheme: &Scheme) -> Result<(), String> {
    for (what, size) in [("block-rows", scheme.block_rows), ("block-cols", scheme.block_cols)] {
        if !BLOCK_SIZE.contains(&size) {
            return Err(format!("`{what}` is {size}; the interface allows 1 to 4096"));
        }
    }
    let suffix = &scheme.scale_suffix;
    if suffix.is_empty() || suffix.len() > SUFFIX_BYTES || !suffix.bytes().all(|b| b.is_ascii_graphic()) {
        let shown = text::clean(suffix, 64);
        return Err(format!("`scale-suffix` is `{shown}`; it is 1 to {SUFFIX_BYTES} bytes of printable ASCII"));
    }
    let profile = &scheme.profile;
    if profile.is_empty() || profile.len() > PROFILE_BYTES || !profile.bytes().all(|b| b.is_ascii_graphic()) {
        let shown = text::clean(profile, 64);
        return Err(format!("`profile` is `{shown}`; it is 1 to {PROFILE_BYTES} bytes of printable ASCII"));
    }
    if scheme.rule.len() > REASON_BYTES {
        return Err(format!("`rule` has {} bytes; the interface allows {REASON_BYTES}", scheme.rule.len()));
    }
    floor(scheme.cast.floor)?;
    contract(scheme.cast.contract)
}

/// Whether the scales of a tensor stay small beside its codes. A matrix of a single block may have any size.
pub(crate) fn check_burden(scheme: &Scheme, tensor: &TensorInfo) -> Result<(), String> {
    let [.., rows, cols] = tensor.shape[..] else { return Ok(()) };
    let (rows, cols) = (usize::try_from(rows).unwrap_or(usize::MAX), usize::try_from(cols).unwrap_or(usize::MAX));
    let (down, across) = (scheme.block_rows.min(rows), scheme.block_cols.min(cols));
    let single = down == rows && across == cols;
    if single || down.saturating_mul(across) >= LEAST_VALUES {
        return Ok(());
    }
    let (block_rows, block_cols) = (scheme.block_rows, scheme.block_cols);
    Err(format!(
        "blocks of {block_rows}x{block_cols} have {} values of a {rows}x{cols} matrix, each with a scale of 4 bytes; a block \
         has at least {LEAST_VALUES}, so that scales take at most a quarter of the codes",
        down.saturating_mul(across)
    ))
}

fn raise(scheme: wit::Scheme) -> Scheme {
    Scheme {
        block_rows: scheme.block_rows as usize,
        block_cols: scheme.block_cols as usize,
        needs: match scheme.needs {
            wit::Needs::Amax => Needs::Amax,
            wit::Needs::Moments => Needs::Moments,
            wit::Needs::Rows => Needs::Rows,
        },
        cast: CastSpec {
            format: match scheme.format {
                wit::ScaleFormat::F32 => ScaleFormat::F32,
                wit::ScaleFormat::Ue8m0 => ScaleFormat::Ue8m0,
            },
            cast: match scheme.cast {
                wit::Cast::Divide => CastRule::Divide,
                wit::Cast::Reciprocal => CastRule::Reciprocal,
                wit::Cast::Multiply => CastRule::Multiply,
            },
            edges: match scheme.edges {
                wit::Edges::Strict => Edges::Strict,
                wit::Edges::PropagateNan => Edges::PropagateNan,
                wit::Edges::IgnoreNan => Edges::IgnoreNan,
            },
            floor: {
                let wit::Floor { eps, zero_below, zero_scale } = scheme.floor;
                Floor { eps, zero_below, zero_scale }
            },
            contract: match scheme.contract {
                wit::Contract::Amax => Contract::Amax,
                wit::Contract::Pow2 => Contract::Pow2,
                wit::Contract::Clip(share) => Contract::Clip(share),
            },
            round_bf16: scheme.round_bf16,
        },
        rule: scheme.rule,
        scale_suffix: scheme.scale_suffix,
        profile: scheme.profile,
    }
}

fn floor(floor: Floor) -> Result<(), String> {
    let Floor { eps, zero_below, zero_scale } = floor;
    for (what, value) in [("eps", eps), ("zero-below", zero_below), ("zero-scale", zero_scale)] {
        if !(value.is_finite() && value >= 0.0) {
            return Err(format!("`floor.{what}` is {value}; it must be finite and at least 0"));
        }
    }
    for (what, value, most) in [("eps", eps, MOST_EPS), ("zero-below", zero_below, MOST_ZERO_BELOW)] {
        if value > most {
            return Err(format!("`floor.{what}` is {value}; the interface allows at most {most}"));
        }
    }
    if zero_scale == 0.0 {
        return Err("`floor.zero-scale` is 0; it must be greater".into());
    }
    Ok(())
}

fn contract(contract: Contract) -> Result<(), String> {
    match contract {
        Contract::Clip(share) if !(0.0..=MOST_CLIPPED).contains(&share) => {
            Err(format!("`contract` is clip({share}); the interface allows 0 to {MOST_CLIPPED}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheme() -> wit::Scheme {
        wit::Scheme {
            block_rows: 128,
            block_cols: 128,
            format: wit::ScaleFormat::F32,
            scale_suffix: "_scale_inv".into(),
            needs: wit::Needs::Amax,
            cast: wit::Cast::Divide,
            edges: wit::Edges::Strict,
            floor: wit::Floor { eps: 1e-10, zero_below: 0.0, zero_scale: 1.0 },
            contract: wit::Contract::Amax,
            round_bf16: true,
            profile: "amax".into(),
            rule: "mlp".into(),
        }
    }

    #[test]
    fn scales_stay_small_beside_the_codes() {
        use patchhost_runtime::hooks::{Dtype, Role};
        let with = |block: [usize; 2], shape: &[u64]| {
            let scheme = Scheme { block_rows: block[0], block_cols: block[1], ..raise(scheme()) };
            let tensor = TensorInfo { name: "t".into(), dtype: Dtype::Bf16, shape: shape.into(), role: Role::Mlp };
            check_burden(&scheme, &tensor).is_ok()
        };
        for (block, shape) in
            [([128, 128], &[64, 64][..]), ([1, 16], &[64, 64]), ([4, 4], &[8, 64, 64]), ([128, 128], &[1, 2])]
        {
            assert!(with(block, shape), "{block:?} {shape:?}");
        }
        for (block, shape) in
            [([1, 1], &[64, 64][..]), ([1, 15], &[64, 64]), ([2, 4], &[64, 64]), ([1, 4096], &[64, 8])]
        {
            assert!(!with(block, shape), "{block:?} {shape:?}");
        }
    }

    #[test]
    fn every_bound_of_a_scheme_is_checked() {
        assert!(convert(scheme()).is_ok());
        let bad: [fn(&mut wit::Scheme); 13] = [
            |s| s.block_rows = 0,
            |s| s.block_cols = 4097,
            |s| s.scale_suffix = "x".repeat(33),
            |s| s.scale_suffix = "\n".into(),
            |s| s.rule = "x".repeat(257),
            |s| s.profile = String::new(),
            |s| s.profile = "a b".into(),
            |s| s.floor.eps = f32::NAN,
            |s| s.floor.eps = 0.1,
            |s| s.floor.zero_below = 1e-6,
            |s| s.floor.zero_scale = 0.0,
            |s| s.floor.zero_below = -1.0,
            |s| s.contract = wit::Contract::Clip(f32::NAN),
        ];
        for (index, spoil) in bad.iter().enumerate() {
            let mut scheme = scheme();
            spoil(&mut scheme);
            assert!(convert(scheme).is_err(), "case {index}");
        }
    }
}
