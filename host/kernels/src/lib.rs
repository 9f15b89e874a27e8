//! Block-FP8 numerics and kernels: pure functions over slices, no I/O, no wasm.
//!
//! A weight matrix is cut into blocks (128x128, or any size), each with one scale; its elements become 8-bit floats
//! ([`e4m3`]). Which scale a block has is asked of a patch, that is, of untrusted code. The way through this crate:
//!
//! 1. [`source::Source`] describes the bytes of a checkpoint tensor.
//! 2. [`stats::panel_stats`] computes what the patch is told: amax, and on request the sum of squares, of each block.
//! 3. The patch answers with a number per block. ([`profile::Profile`] has the published formulas natively, as the
//!    reference.)
//! 4. [`cast::cast_panel`] proves every answer against the scheme's contract and casts. [`panel::quantize_panels`] is
//!    the way from 2 to 4 that reads the weights from memory once.
//! 5. [`linear::multiply`] and [`attention::attend_rows`] compute with the result, shared out over a [`team::Team`];
//!    [`rows`], [`heads`] and [`strided`] have what lies between; [`activation`] emulates W8A8.
//!
//! **One result.** Every function gives the same bits on all instruction sets ([`isa::Isa`]), for all thread counts and
//! batch sizes. Sums are defined as sixteen partial sums in a fixed order for that. MXCSR (FPCR on Arm) is never touched:
//! subnormals count, and a patch that runs between two kernels finds the floating-point environment it expects.
//!
//! The paths are AVX-512, AVX2 and NEON, and plain Rust for all other machines; the best one is chosen at run time.
//!
//! `unsafe` is confined to the intrinsics behind the `Simd` trait, a few unchecked loads, and threads that write parts of one
//! slice ([`team`]), each with its reason.

pub mod activation;
pub mod attention;
pub mod cast;
mod contract;
pub mod dot;
pub mod e4m3;
pub mod e8m0;
pub mod environment;
pub mod error;
pub mod heads;
pub mod isa;
pub mod linear;
pub mod pages;
pub mod panel;
pub mod profile;
pub mod rows;
mod simd;
pub mod source;
pub mod spec;
pub mod stats;
mod steps;
pub mod strided;
mod strip;
pub mod team;

pub use error::KernelError;
pub use isa::Isa;
pub use simd::{bytes_of_f32, bytes_of_u16};
