//! The engines that the bundled patches name in their targets. A range here is a claim: somebody read or ran that version
//! with the patch's answers in mind. A version that nobody looked at is left out, and the patch is shown as not applicable.

/// An engine and the versions of it, as a semver range.
pub type Engine = (&'static str, &'static str);

/// The embedded runtime: the interface 0.1 of this host.
pub const PATCHHOST: Engine = ("patchhost", ">=0.1, <0.2");

/// vLLM: 0.32.0 was run and 0.33.0 read. Fused tensors are called `w13_weight` and `w2_weight`, block FP8 is stored as
/// e4m3 with f32 scales under `weight_scale_inv`, and logits processors are a documented point.
pub const VLLM: Engine = ("vllm", ">=0.32, <0.34");

/// SGLang: 0.5.23 was read, and no other. It takes block FP8 as vLLM does, through a custom weight loader.
pub const SGLANG: Engine = ("sglang", "=0.5.23");
