//! The questions a refit and a forward pass ask of patches, as Rust traits. The runtime never knows that WebAssembly
//! answers them: `patchhost::abi` does. Same words as `wit/patch/0.1.0`.

use crate::bytes::TensorBytes;
pub use patchhost_kernels::spec::{ActivationRule, CastRule, CastSpec, Contract, Edges, Elem, Floor, ScaleFormat};

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// OCP e4m3fn.
    F8E4m3,
    /// OCP e8m0.
    F8E8m0,
    /// 64-bit integers.
    I64,
    /// Bytes.
    U8,
    /// Anything else that safetensors can hold.
    Other,
}

/// What a tensor is for, as the tensor registry sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Token embeddings.
    Embedding,
    /// RMSNorm weights.
    Norm,
    /// Attention projections and their biases.
    Attention,
    /// Dense feed-forward projections.
    Mlp,
    /// Routed experts.
    Expert,
    /// Shared experts and their gate projections (not the sigmoid gate, which is a router).
    SharedExpert,
    /// Router (gate) weights, including `shared_expert_gate`.
    Router,
    /// The output head.
    LmHead,
    /// Buffers.
    Buffer,
    /// Anything the registry does not know.
    Other,
}

/// One tensor, without its data.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TensorInfo {
    /// Full name.
    pub name: String,
    /// Stored element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<u64>,
    /// What it is for.
    pub role: Role,
}

/// The model that is being loaded.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// `architectures[0]` of config.json.
    pub architecture: String,
    /// `model_type` of config.json.
    pub model_type: String,
    /// Decoder layers.
    pub layers: u32,
    /// Routed experts; 0 for a dense model.
    pub experts: u32,
    /// The text of config.json.
    pub config: String,
}

/// Who will read the result.
#[derive(Debug, Clone)]
pub struct Consumer {
    /// `patchhost`, `vllm`, `sglang`, `transformers`, …
    pub engine: String,
    /// Its version.
    pub version: String,
}

/// Which part of a runtime tensor is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names are vLLM's and explained in loader-map.wit
pub enum Slot {
    Whole,
    W1,
    W2,
    W3,
    W13,
    Q,
    K,
    V,
    Gate,
    Up,
}

/// Where one checkpoint tensor goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// The host's own loader decides.
    Native,
    /// Deliberately not loaded, with the reason.
    Ignore(String),
    /// Into a runtime tensor.
    Place {
        /// Name of the runtime tensor.
        target: String,
        /// Part of it.
        slot: Slot,
        /// Expert, or none for all of them (3-D checkpoint tensors) and for dense tensors.
        expert: Option<u32>,
        /// The last two dimensions are swapped in the checkpoint.
        transposed: bool,
    },
}

/// What the host computes or lends before it asks for scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// amax per block.
    Amax,
    /// amax and sum of squares per block.
    Moments,
    /// The rows themselves.
    Rows,
}

/// How one tensor is quantized.
#[derive(Debug, Clone, PartialEq)]
pub struct Scheme {
    /// Rows of a block.
    pub block_rows: usize,
    /// Columns of a block.
    pub block_cols: usize,
    /// Suffix of the scale tensor's name.
    pub scale_suffix: String,
    /// What the patch must see.
    pub needs: Needs,
    /// How the cast works and what it proves.
    pub cast: CastSpec,
    /// Name of the arithmetic, for reports and file metadata.
    pub profile: String,
    /// Why, for `explain`.
    pub rule: String,
}

/// Whether one tensor becomes FP8.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Stays as it is, with the reason.
    Keep(String),
    /// Becomes FP8.
    Quantize(Scheme),
}

/// A run of blocks of one (rows × cols) matrix.
#[derive(Debug, Clone, Copy)]
pub struct Blocks<'a> {
    /// Name of the checkpoint tensor.
    pub tensor: &'a str,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// Rows of a block.
    pub block_rows: usize,
    /// Columns of a block.
    pub block_cols: usize,
    /// Index of the first block, row-major over the block grid.
    pub first_block: usize,
}

/// The rows of one panel (one row of blocks), lent to a patch that needs them.
#[derive(Clone)]
pub struct RowPanel {
    /// The matrix: row-major elements of `elem`, `cols` to a row.
    pub data: TensorBytes,
    /// Element type.
    pub elem: Elem,
    /// Columns of the matrix.
    pub cols: usize,
    /// First row of the panel within `data`.
    pub first_row: usize,
    /// Rows of the panel.
    pub rows: usize,
}

/// Why a patch did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookCause {
    /// It trapped.
    Trap,
    /// It reached a limit (fuel, time, memory, output size).
    Limit,
    /// It answered, but not what the interface allows.
    BadOutput,
    /// It answered with an error of its own.
    Refused,
    /// It does not implement what it declared to need.
    Unsupported,
}

/// A patch failed: what was asked, why it failed, what to do next.
#[derive(Debug, Clone, thiserror::Error)]
#[error("patch `{patch}` failed in {call}\n  why: {why}\n  next: {next}")]
pub struct HookError {
    /// Name of the patch.
    pub patch: String,
    /// The call, with the tensor where there is one.
    pub call: String,
    /// Kind of failure.
    pub cause: HookCause,
    /// Why, with the number, name or limit.
    pub why: String,
    /// What to do next.
    pub next: String,
}

/// Where checkpoint tensors go.
pub trait LoaderMap: Send + Sync {
    /// Name of the patch, for messages.
    fn name(&self) -> &str;
    /// One placement per checkpoint tensor, in order.
    fn resolve(
        &self,
        model: &ModelInfo,
        registry: &[TensorInfo],
        checkpoint: &[TensorInfo],
    ) -> Result<Vec<Placement>, HookError>;
}

/// What becomes FP8, and with which scale. Called from many threads at once during a refit.
pub trait BlockQuant: Send + Sync {
    /// Name of the patch, for messages.
    fn name(&self) -> &str;
    /// One decision per tensor, in order.
    fn decide(&self, model: &ModelInfo, reader: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Decision>, HookError>;
    /// The activation rule, or none where `activation_scales` must be called.
    fn activation(&self, model: &ModelInfo) -> Result<Option<ActivationRule>, HookError>;
    /// One number per block (meaning: [`CastRule`]).
    fn scales(&self, blocks: &Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError>;
    /// The same with sums of squares.
    fn scales_with_moments(
        &self,
        blocks: &Blocks<'_>,
        amax: &[f32],
        sum_squares: &[f32],
    ) -> Result<Vec<f32>, HookError>;
    /// The same for one panel, whose rows the patch may read.
    fn panel_scales(&self, blocks: &Blocks<'_>, panel: &RowPanel, amax: &[f32]) -> Result<Vec<f32>, HookError>;
    /// Stored scales of 1×128 activation groups.
    fn activation_scales(&self, amax: &[f32]) -> Result<Vec<f32>, HookError>;
}
