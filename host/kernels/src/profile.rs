//! The numeric profiles: how published code computes block scales, natively.
//!
//! In the product the scales come from sandboxed patches. These functions are the reference that the patches are
//! compared with, and the baseline of the benches. Sources, with F = 448:
//!
//! | profile | of | number returned | cast |
//! |---|---|---|---|
//! | `verl-torch` | verl `fp8_kernel.py`, PyTorch path | g = F / amax; 1 if amax is 0 or inf | x * g, s = 1 / g |
//! | `verl-triton` | verl `fp8_kernel.py`, Triton path, in IEEE | s = max(amax, 1e-10) / F | x * (1 / s) |
//! | `deepseek` | DeepSeek-V3 `kernel.py` act_quant | s = max(amax, 1e-4) / F | x / s |
//! | `vllm-group` | vLLM per_token_group_quant (Triton) | s = max(amax, 1e-10) * (1 / F) | x / s |
//! | `hf` | transformers Fp8Quantize, NeMo | g = (1 / amax) * F; 1 if amax is 0 | x * g, s = 1 / g |
//! | `deepgemm` | DeepGEMM per_block_cast_to_fp8 | s = max(amax, 1e-4) / F | x * (1 / s) |
//! | `slime` | slime checkpoint converter | s = max(amax, 1e-12) / F | x / s |
//!
//! With UE8M0 every profile returns `ceil_pow2` of its f32 scale s, and the cast is `x * (1 / s)`.

use crate::e8m0::ceil_pow2;
use crate::error::KernelError;
use crate::spec::{ActivationRule, CastRule, CastSpec, Contract, Edges, Floor, ScaleFormat};
use std::fmt;
use std::str::FromStr;

/// 448 * 2^-128 = 448 / FLT_MAX in f32: the largest amax for which `448 / amax` (and `(1 / amax) * 448`) overflows.
/// Just above it, `1 / g` is about 2^-128: subnormal, but finite and positive.
pub(crate) const TINY: f32 = f32::from_bits(0x03e0_0000);

/// 224 * 2^-126: the largest amax that a power of two >= 2^-126 cannot bring above 224.
const TINY_POW2: f32 = f32::from_bits(0x0460_0000);

const F: f32 = 448.0;

/// A numeric profile; see the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Profile {
    /// `verl-torch`
    VerlTorch,
    /// `verl-triton`
    VerlTriton,
    /// `deepseek`
    Deepseek,
    /// `vllm-group`
    VllmGroup,
    /// `hf`
    Hf,
    /// `deepgemm`
    Deepgemm,
    /// `slime`
    Slime,
}

impl Profile {
    /// All profiles.
    pub const ALL: [Profile; 7] = [
        Profile::VerlTorch,
        Profile::VerlTriton,
        Profile::Deepseek,
        Profile::VllmGroup,
        Profile::Hf,
        Profile::Deepgemm,
        Profile::Slime,
    ];

    /// The name on the command line and in checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            Profile::VerlTorch => "verl-torch",
            Profile::VerlTriton => "verl-triton",
            Profile::Deepseek => "deepseek",
            Profile::VllmGroup => "vllm-group",
            Profile::Hf => "hf",
            Profile::Deepgemm => "deepgemm",
            Profile::Slime => "slime",
        }
    }

    /// The number that a patch of this profile returns for a block: see [`CastRule`] of [`Profile::cast_spec`] for
    /// what it is. NaN gives NaN. Under [`Edges::Strict`], blocks at or below `floor.zero_below` give `zero_scale`;
    /// under the other edges the formula of the source runs as it is (for `verl-torch` a tiny amax gives g = inf).
    pub fn given(self, format: ScaleFormat, edges: Edges, amax: f32) -> f32 {
        if amax.is_nan() {
            return f32::NAN;
        }
        let floor = self.floor(format, edges);
        if amax <= floor.zero_below {
            // zero_scale of the multipliers is 1, which is its own reciprocal.
            return floor.zero_scale;
        }
        match (format, self) {
            (ScaleFormat::F32, Profile::VerlTorch | Profile::Hf) => self.multiplier(amax),
            (ScaleFormat::F32, _) => self.scale(amax),
            (ScaleFormat::Ue8m0, Profile::VerlTorch | Profile::Hf) => ceil_pow2(1.0 / self.multiplier(amax)),
            (ScaleFormat::Ue8m0, _) => ceil_pow2(self.scale(amax)),
        }
    }

    /// What the cast does and proves for this profile. f32 and f16 values are not rounded to bfloat16.
    pub fn cast_spec(self, format: ScaleFormat, edges: Edges) -> CastSpec {
        let cast = match (format, self) {
            (ScaleFormat::Ue8m0, _) => CastRule::Reciprocal,
            (_, Profile::VerlTorch | Profile::Hf) => CastRule::Multiply,
            (_, Profile::VerlTriton | Profile::Deepgemm) => CastRule::Reciprocal,
            (_, Profile::Deepseek | Profile::VllmGroup | Profile::Slime) => CastRule::Divide,
        };
        let contract = match format {
            ScaleFormat::F32 => Contract::Amax,
            ScaleFormat::Ue8m0 => Contract::Pow2,
        };
        CastSpec { format, cast, edges, floor: self.floor(format, edges), contract, round_bf16: false }
    }

    /// Scales of activations. Profiles without an eps of their own take vLLM's 1e-10, which is what serves them: a
    /// group of zeros needs a scale above 0.
    pub fn activation_rule(self) -> ActivationRule {
        let eps = match self.eps() {
            0.0 => 1e-10,
            eps => eps,
        };
        ActivationRule { eps, divisor: F, pow2_up: false }
    }

    fn eps(self) -> f32 {
        match self {
            Profile::VerlTorch | Profile::Hf => 0.0,
            Profile::VerlTriton | Profile::VllmGroup => 1e-10,
            Profile::Deepseek | Profile::Deepgemm => 1e-4,
            Profile::Slime => 1e-12,
        }
    }

    /// Blocks of zeros have the scale that the formula gives for eps, or 1 where there is no eps; `zero_below` is 0
    /// then, so that nothing but zeros is meant. Without eps, `zero_below` is the largest amax that has no usable
    /// scale; but not where the seed's edges are asked for, which say inf there.
    fn floor(self, format: ScaleFormat, edges: Edges) -> Floor {
        let eps = self.eps();
        if eps > 0.0 {
            let s = self.scale(0.0);
            let zero_scale = if format == ScaleFormat::Ue8m0 { ceil_pow2(s) } else { s };
            return Floor { eps, zero_below: 0.0, zero_scale };
        }
        let zero_below = match (format, edges) {
            (ScaleFormat::Ue8m0, _) => TINY_POW2,
            (ScaleFormat::F32, Edges::Strict) => TINY,
            (ScaleFormat::F32, Edges::PropagateNan | Edges::IgnoreNan) => 0.0,
        };
        Floor { eps, zero_below, zero_scale: 1.0 }
    }

    /// g of the profiles that multiply, amax > 0.
    fn multiplier(self, amax: f32) -> f32 {
        match self {
            Profile::Hf => (1.0 / amax) * F,
            _ if amax == f32::INFINITY => 1.0,
            _ => F / amax,
        }
    }

    /// s of the profiles that divide. `amax` is not NaN: `f32::max` would swallow it.
    fn scale(self, amax: f32) -> f32 {
        match self {
            Profile::VllmGroup => amax.max(self.eps()) * (1.0 / F),
            _ => amax.max(self.eps()) / F,
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Profile {
    type Err = KernelError;

    fn from_str(name: &str) -> Result<Self, KernelError> {
        Profile::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| KernelError::UnknownProfile(name.into()))
    }
}
