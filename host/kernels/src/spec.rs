//! The vocabulary of block quantization: what a patch declares about a tensor and the native cast then does and proves.
//! The same words as in `wit/patch/0.1.0/block-quant.wit`, which says what each means bit for bit.

/// How the elements of a weight are stored before quantization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Elem {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl Elem {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Elem::F32 => 4,
            Elem::F16 | Elem::Bf16 => 2,
        }
    }
}

/// Values a stored scale may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum ScaleFormat {
    /// Any finite f32 greater than zero.
    F32,
    /// A power of two 2^(b-127), 1 <= b <= 254.
    Ue8m0,
}

/// How the cast uses the number that a patch returned for a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum CastRule {
    /// The number is the stored scale `s`; `q = RN8(clamp(x / s))`.
    Divide,
    /// The number is the stored scale `s`; `q = RN8(clamp(x * (1 / s)))`.
    Reciprocal,
    /// The number is the multiplier `g`; `q = RN8(clamp(x * g))`, stored `s = 1 / g`.
    Multiply,
}

/// What happens to blocks that hold NaN or infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Edges {
    /// The caller refuses the tensor; the cast never sees such a block.
    Strict,
    /// `amax` is NaN where the block holds a NaN; NaN products become 0x7f (verl's PyTorch path).
    PropagateNan,
    /// `amax` skips NaN; NaN products become 0xfe (verl's Triton path).
    IgnoreNan,
}

/// Which scales are right for small blocks.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Floor {
    /// `a = max(amax, eps)` takes the place of amax.
    pub eps: f32,
    /// Blocks with `amax <= zero_below` must have exactly `zero_scale`.
    pub zero_below: f32,
    /// The stored scale of such a block.
    pub zero_scale: f32,
}

/// What the cast proves about the stored scale `s` of each block, `a = max(amax, eps)`.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Contract {
    /// `a / s` is 448 within 8 ulp.
    Amax,
    /// `224 < a / s <= 448` within 8 ulp, and `s` is a power of two.
    Pow2,
    /// `a / s > 224`, and at most this share of the block's values saturate.
    Clip(f32),
}

/// Everything the cast needs to know about one tensor.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct CastSpec {
    /// Values a stored scale may take.
    pub format: ScaleFormat,
    /// What the patch's numbers mean.
    pub cast: CastRule,
    /// What happens to NaN and infinity.
    pub edges: Edges,
    /// Scales of small blocks.
    pub floor: Floor,
    /// What is proved on every block.
    pub contract: Contract,
    /// Round f32 and f16 values to bf16 before anything else.
    pub round_bf16: bool,
}

/// How activation scales follow from the amax of a 1×128 group: `s = max(amax, eps) / divisor`.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ActivationRule {
    /// Smallest amax.
    pub eps: f32,
    /// 448 for e4m3.
    pub divisor: f32,
    /// Round `s` up to a power of two.
    pub pow2_up: bool,
}
