//! The questions a refit and a forward pass ask of patches, as Rust traits. The runtime never knows that WebAssembly
//! answers them: `patchhost::abi` does. Same words as `wit/patch/0.1.0`.

use crate::bytes::TensorBytes;
pub use patchhost_kernels::spec::{ActivationRule, CastRule, CastSpec, Contract, Edges, Elem, Floor, ScaleFormat};

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
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
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
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
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Consumer {
    /// `patchhost`, `vllm`, `sglang`, `transformers`, …
    pub engine: String,
    /// Its version.
    pub version: String,
}

/// Which part of a runtime tensor is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Needs {
    /// amax per block.
    Amax,
    /// amax and sum of squares per block.
    Moments,
    /// The rows themselves.
    Rows,
}

/// How one tensor is quantized.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
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
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
#[derive(Debug, Clone, thiserror::Error, serde::Serialize, serde::Deserialize)]
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

/// A layout pass after quantization: pure, invertible, from a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayoutPass {
    /// [gate; up] becomes [up; gate] per expert, on weight and scale.
    SwapW13,
    /// Scales are powers of two, computed directly from the source weight.
    Ue8m0,
    /// Scales are column-major, each column padded to a multiple of 16 bytes.
    ColMajorAlign,
}

/// Which layout the published weights have.
pub trait Layout: Send + Sync {
    /// Name of the patch, for messages.
    fn name(&self) -> &str;
    /// The passes of each runtime tensor (dtype as it will be published), in order.
    fn passes(
        &self,
        model: &ModelInfo,
        reader: &Consumer,
        tensors: &[TensorInfo],
    ) -> Result<Vec<Vec<LayoutPass>>, HookError>;
}

/// Half of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoraSide {
    /// lora_A [r, in].
    A,
    /// lora_B [out, r].
    B,
}

/// Where one adapter tensor goes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LoraPlace {
    /// Name of the runtime tensor.
    pub target: String,
    /// Part of it.
    pub slot: Slot,
    /// Expert of a fused expert tensor.
    pub expert: Option<u32>,
    /// Which half it is.
    pub side: LoraSide,
}

/// An adapter, resolved.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LoraPlan {
    /// r.
    pub rank: u32,
    /// alpha / r, or alpha / sqrt(r) with rslora.
    pub scaling: f32,
    /// One per adapter tensor, in order.
    pub places: Vec<LoraPlace>,
}

/// How an adapter is admitted.
pub trait Lora: Send + Sync {
    /// Name of the patch, for messages.
    fn name(&self) -> &str;
    /// Resolves names and shapes of an adapter's tensors. `peft_config` is the text of adapter_config.json.
    fn admit(
        &self,
        model: &ModelInfo,
        peft_config: &str,
        registry: &[TensorInfo],
        adapter: &[TensorInfo],
    ) -> Result<LoraPlan, HookError>;
}

/// Which token ids are never sampled.
pub trait LogitsMask: Send + Sync {
    /// Name of the patch, for messages.
    fn name(&self) -> &str;
    /// Ascending, disjoint ranges below `rows`. `vocabulary` is one more than the tokenizer's largest id.
    fn masked(&self, model: &ModelInfo, rows: u32, vocabulary: u32) -> Result<Vec<std::ops::Range<u32>>, HookError>;
}

/// One tensor that arrived in a refit.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Arrival {
    /// Checkpoint name.
    pub name: String,
    /// Stored element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<u64>,
    /// SHA-256 of its bytes in checkpoint layout, 64 lower-case hex digits.
    pub sha256: String,
}

/// What an observer says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Verdict {
    /// Go on.
    Accept,
    /// Refuse the refit, with the reason.
    Veto(String),
}

/// Watches one refit. Dropped when the refit ends, whichever way.
pub trait RefitWatch: Send {
    /// A batch of at most 4,096 complete tensors, names ascending over all batches.
    fn tensors(&mut self, batch: &[Arrival]) -> Result<Verdict, HookError>;
    /// All have arrived.
    fn finish(&mut self, total: u32) -> Result<Verdict, HookError>;
}

/// Sees names, shapes and digests of refits, and may veto them.
pub trait RefitObserver: Send + Sync {
    /// Name of the patch, for messages.
    fn name(&self) -> &str;
    /// A refit begins: its version, and the names that the trainer promised. On `Accept` the watch sees the rest.
    fn begin(&self, version: &str, expected: Option<&[String]>) -> Result<(Verdict, Box<dyn RefitWatch>), HookError>;
}
