//! The vocabulary of `block-quant.wit` in plain Rust, so that the logic builds and is tested natively, without bindings.

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum Dtype {
    F32,
    F16,
    Bf16,
    F8E4m3,
    F8E8m0,
    I64,
    U8,
    Other,
}

impl Dtype {
    /// The name that reasons use.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::F8E4m3 => "f8-e4m3",
            Dtype::F8E8m0 => "f8-e8m0",
            Dtype::I64 => "i64",
            Dtype::U8 => "u8",
            Dtype::Other => "other",
        }
    }
}

/// What a tensor is for, as the runtime's registry sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum Role {
    Embedding,
    Norm,
    Attention,
    Mlp,
    Expert,
    SharedExpert,
    Router,
    LmHead,
    Buffer,
    Other,
}

impl Role {
    /// The name that reasons use.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Embedding => "embedding",
            Role::Norm => "norm",
            Role::Attention => "attention",
            Role::Mlp => "mlp",
            Role::Expert => "expert",
            Role::SharedExpert => "shared-expert",
            Role::Router => "router",
            Role::LmHead => "lm-head",
            Role::Buffer => "buffer",
            Role::Other => "other",
        }
    }
}

/// One tensor, without its data.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Full name in the checkpoint.
    pub name: &'a str,
    /// Stored element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: &'a [u64],
    /// What it is for.
    pub role: Role,
}

/// Values a stored scale may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleFormat {
    /// Any f32.
    F32,
    /// A power of two.
    Ue8m0,
}

/// How the native cast uses the number of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cast {
    /// `q = RN8(x / s)`.
    Divide,
    /// `q = RN8(x * (1 / s))`.
    Reciprocal,
    /// `q = RN8(x * g)`, stored `s = 1 / g`.
    Multiply,
}

/// What happens to blocks that are not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edges {
    /// The refit is refused.
    Strict,
    /// verl's PyTorch path.
    PropagateNan,
    /// verl's Triton path.
    IgnoreNan,
}

/// Which scales are right for small blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Floor {
    /// `max(amax, eps)` takes the place of amax.
    pub eps: f32,
    /// Blocks with `amax <= zero_below` have exactly `zero_scale`.
    pub zero_below: f32,
    /// The stored scale of such a block.
    pub zero_scale: f32,
}

/// What the native cast proves about each scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Contract {
    /// `a / s` is 448 within 8 ulp.
    Amax,
    /// `224 < a / s <= 448`, `s` a power of two.
    Pow2,
    /// `a / s > 224`, at most this share of the values saturates.
    Clip(f32),
}

/// What the host computes or lends before it asks for scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// amax per block.
    Amax,
    /// amax and sum of squares per block.
    Moments,
    /// The rows.
    Rows,
}

/// How one tensor is quantized: all of the WIT record `scheme` but the rule, which differs per tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scheme {
    /// Rows of a block.
    pub block_rows: u32,
    /// Columns of a block.
    pub block_cols: u32,
    /// Values a stored scale may take.
    pub format: ScaleFormat,
    /// What the patch must see.
    pub needs: Needs,
    /// What its numbers mean.
    pub cast: Cast,
    /// What happens to NaN and infinity.
    pub edges: Edges,
    /// Scales of small blocks.
    pub floor: Floor,
    /// What the cast proves.
    pub contract: Contract,
    /// Round f32 and f16 to bf16 first.
    pub round_bf16: bool,
    /// Name of the arithmetic.
    pub profile: &'static str,
}

/// Suffix of every scale tensor's name, as DeepSeek, vLLM, SGLang and transformers read it.
pub const SCALE_SUFFIX: &str = "_scale_inv";

/// Whether one tensor becomes FP8.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Stays as it is, with the reason.
    Keep(String),
    /// Becomes FP8, with the rule that says so.
    Quantize(String),
}

/// `s = max(amax, eps) / divisor` for a 1x128 group of activations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActivationRule {
    /// Smallest amax.
    pub eps: f32,
    /// 448 for e4m3.
    pub divisor: f32,
    /// Then rounded up to a power of two.
    pub pow2_up: bool,
}
