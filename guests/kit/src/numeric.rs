//! The formulas of the named profiles, all in IEEE f32, as in `reference/numerics.md`.

use crate::types::{Cast, Floor};

/// Largest finite e4m3fn value.
pub const F8_MAX: f32 = 448.0;

/// Largest amax for which `448 / amax` is not finite, and `(1 / amax) * 448` neither: exactly 448 * 2^-128.
const MULTIPLIER_OVERFLOWS_UP_TO: f32 = f32::from_bits(0x03E0_0000);
/// Largest amax whose power-of-two scale would lie below 2^-126, the smallest of the format: exactly 448 * 2^-127.
const POW2_UNDERFLOWS_UP_TO: f32 = f32::from_bits(0x0460_0000);

/// A named numeric contract: which arithmetic leads from amax to the scale, and from the scale to the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// A: verl's PyTorch path, `g = 448 / amax`, `x * g`, `s = 1 / g`.
    VerlTorch,
    /// B: verl's Triton path, `s = max(amax, 1e-10) / 448`, `x * (1 / s)`.
    VerlTriton,
    /// C: DeepSeek-V3's act_quant, `s = max(amax, 1e-4) / 448`, `x / s`.
    DeepSeek,
    /// D: vLLM's per_token_group_quant, `s = max(amax, 1e-10) * (1 / 448)`, `x / s`.
    VllmGroup,
    /// F: slime's checkpoint converter, `s = max(amax, 1e-12) / 448`, `x / s`.
    Slime,
    /// G: transformers and NeMo, `g = (1 / amax) * 448`, `x * g`, `s = 1 / g`.
    Hf,
    /// H: DeepGEMM's per_block_cast_to_fp8, `s = max(amax, 1e-4) / 448`, `x * (1 / s)`.
    DeepGemm,
}

impl Profile {
    /// Every profile with the name that settings use.
    pub const ALL: [(&'static str, Profile); 7] = [
        ("verl-torch", Profile::VerlTorch),
        ("verl-triton", Profile::VerlTriton),
        ("deepseek", Profile::DeepSeek),
        ("vllm-group", Profile::VllmGroup),
        ("hf", Profile::Hf),
        ("deepgemm", Profile::DeepGemm),
        ("slime", Profile::Slime),
    ];

    /// Its name, as in the settings.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, p)| *p == self).map_or("", |(name, _)| name)
    }

    /// What the cast does with the numbers of this profile.
    pub const fn cast(self) -> Cast {
        match self {
            Profile::VerlTorch | Profile::Hf => Cast::Multiply,
            Profile::VerlTriton | Profile::DeepGemm => Cast::Reciprocal,
            Profile::DeepSeek | Profile::VllmGroup | Profile::Slime => Cast::Divide,
        }
    }

    /// The smallest amax, 0 where the profile has none.
    pub const fn eps(self) -> f32 {
        match self {
            Profile::VerlTorch | Profile::Hf => 0.0,
            Profile::VerlTriton | Profile::VllmGroup => 1e-10,
            Profile::DeepSeek | Profile::DeepGemm => 1e-4,
            Profile::Slime => 1e-12,
        }
    }

    /// The smallest amax of a group of activations: the profile's own, or vLLM's where it has none, because a group of
    /// zeros needs a scale above 0.
    pub const fn activation_eps(self) -> f32 {
        match self {
            Profile::VerlTorch | Profile::Hf => 1e-10,
            _ => self.eps(),
        }
    }

    /// The number `g` for one amax by the profile's formula alone, without any rule for zero blocks.
    /// Never called with NaN where `eps` is above 0: `f32::max` would turn it into `eps`.
    fn formula(self, amax: f32) -> f32 {
        let floored = amax.max(self.eps());
        match self {
            Profile::VerlTorch => F8_MAX / amax,
            Profile::Hf => (1.0 / amax) * F8_MAX,
            Profile::VllmGroup => floored * (1.0 / F8_MAX),
            Profile::VerlTriton | Profile::DeepSeek | Profile::Slime | Profile::DeepGemm => floored / F8_MAX,
        }
    }
}

/// What happens to blocks at the edges of f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EdgeRule {
    /// NaN and infinity are errors; blocks too small for a finite multiplier have scale 1.
    Strict,
    /// verl's PyTorch path, bit for bit: amax 0 or infinite gives 1, NaN stays NaN, tiny gives an infinite multiplier.
    SeedTorch,
    /// verl's Triton path: an infinite amax runs through the formula. NaN never arrives: the host's amax skips it.
    SeedTriton,
}

/// Everything that leads from amax to a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// The formula.
    pub profile: Profile,
    /// Round the scale up to a power of two.
    pub pow2: bool,
    /// The edges.
    pub edges: EdgeRule,
}

impl Recipe {
    /// What the cast does with the numbers: a power of two has an exact reciprocal, so there the number is the scale.
    pub const fn cast(&self) -> Cast {
        if self.pow2 { Cast::Reciprocal } else { self.profile.cast() }
    }

    /// Which scales are right for small blocks. A profile with an eps has no rule of its own for zero blocks: their
    /// scale is the one of eps, and both readings of the record name the same number.
    pub fn floor(&self) -> Floor {
        let eps = self.profile.eps();
        if eps > 0.0 {
            let scale = self.profile.formula(0.0);
            return Floor { eps, zero_below: 0.0, zero_scale: if self.pow2 { pow2_up(scale) } else { scale } };
        }
        Floor { eps, zero_below: self.zero_below(), zero_scale: 1.0 }
    }

    /// Blocks with at most this amax have scale 1, in the profiles without an eps.
    fn zero_below(&self) -> f32 {
        match (self.pow2, self.edges) {
            (true, _) => POW2_UNDERFLOWS_UP_TO,
            (false, EdgeRule::Strict) => MULTIPLIER_OVERFLOWS_UP_TO,
            (false, EdgeRule::SeedTorch | EdgeRule::SeedTriton) => 0.0,
        }
    }

    /// The number for one block. `None`: the block is not finite and `Strict` refuses it.
    pub fn scale(&self, amax: f32) -> Option<f32> {
        if !amax.is_finite() {
            match self.edges {
                EdgeRule::Strict => return None,
                EdgeRule::SeedTorch => return Some(if amax.is_nan() { amax } else { 1.0 }),
                EdgeRule::SeedTriton if amax.is_nan() => return Some(amax),
                EdgeRule::SeedTriton => {}
            }
        }
        if self.profile.eps() == 0.0 && amax <= self.zero_below() {
            return Some(1.0);
        }
        let number = self.profile.formula(amax);
        if !self.pow2 {
            return Some(number);
        }
        let scale = if self.profile.cast() == Cast::Multiply { 1.0 / number } else { number };
        Some(pow2_up(scale))
    }

    /// The numbers of a run of blocks; an error names the first block that is not finite.
    pub fn scales(&self, tensor: &str, first_block: u32, amax: &[f32]) -> Result<Vec<f32>, String> {
        let mut out = Vec::with_capacity(amax.len());
        for (i, &a) in amax.iter().enumerate() {
            match self.scale(a) {
                Some(s) => out.push(s),
                None => return Err(not_finite(tensor, u64::from(first_block) + i as u64, a)),
            }
        }
        Ok(out)
    }
}

/// The error for a block that holds NaN or infinity.
pub fn not_finite(tensor: &str, block: u64, amax: f32) -> String {
    let what = if amax.is_nan() { "NaN" } else { "infinity" };
    format!(
        "tensor `{tensor}`, block {block}: the largest magnitude is {what}, and edges=strict refuses such blocks; \
         find out why the trainer sent it, or choose edges=seed-torch or edges=seed-triton"
    )
}

/// `x` rounded up to a power of two 2^(b-127), 1 <= b <= 254, by the exact bit trick: exponent, plus one if any mantissa
/// bit is set. `x` is positive; infinity gives 2^127.
pub fn pow2_up(x: f32) -> f32 {
    let bits = x.to_bits();
    let exponent = (bits >> 23) & 0xFF;
    let up = exponent + u32::from(bits & 0x007F_FFFF != 0);
    f32::from_bits(up.clamp(1, 254) << 23)
}
