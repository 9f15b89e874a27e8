//! `out = x * w^T + bias` with weights in f32, bf16, f16 or block FP8, the same bits whatever the machine.
//!
//! Definition of `out[i][j]`. The weight is `w[j][c]`, widened exactly, or for FP8 `decode(q) * scale` with one f32
//! multiplication. Sixteen lanes start at +0.0; lane l takes the columns `c = l, l + 16, l + 32, ...` in this order,
//! each by one fused multiply-add; where k is no multiple of 16, the last step is padded with zeros. The lanes are
//! summed by the tree `l + (l+8)`, then +4, +2, +1; then the bias is added. This does not depend on the [`Isa`], on m
//! (a row of a batch equals the row alone) or on the number of threads, which only share out j.
//!
//! m = 1 decodes in the registers (`gemv.rs`); larger m decodes a strip of weights once and multiplies it in register
//! tiles (`gemm.rs`).

mod gemm;
mod gemv;
mod weights;

use crate::isa::Isa;
use crate::simd::{Kernel, Simd, dispatch, pad_f32};
use crate::source::{Bf16, F16, F32};
use rayon::prelude::*;
use weights::{Dense, Fp8, Weights};

/// Below this many multiplications a second thread costs more than it brings.
const PARALLEL_MACS: usize = 64 * 1024;

/// A weight matrix `n x k`, row-major.
#[derive(Debug, Clone, Copy)]
pub enum MatrixView<'a> {
    /// IEEE binary32.
    F32 {
        /// `n * k` values.
        data: &'a [f32],
    },
    /// bfloat16.
    Bf16 {
        /// `n * k` bit patterns.
        data: &'a [u16],
    },
    /// IEEE binary16.
    F16 {
        /// `n * k` bit patterns.
        data: &'a [u16],
    },
    /// e4m3 codes with one f32 scale per block. The codes must be free of NaN
    /// ([`crate::e4m3::contains_nan_code`]): the vector paths take 0x7f and 0xff for ±480.
    Fp8Block {
        /// `n * k` codes.
        q: &'a [u8],
        /// One scale per block of the `ceil(n / block_rows) x ceil(k / block_cols)` grid.
        scales: &'a [f32],
        /// How the scales lie.
        order: ScaleOrder,
        /// Rows of a block.
        block_rows: usize,
        /// Columns of a block.
        block_cols: usize,
    },
}

/// How the scales of a block grid lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScaleOrder {
    /// Row after row, without gaps.
    #[default]
    RowMajor,
    /// Column after column, each of `stride` values, of which the grid's rows come first: the layout that DeepGEMM's TMA
    /// loads take.
    ColMajor {
        /// Values of a column, padding included; at least the rows of the grid.
        stride: usize,
    },
}

impl ScaleOrder {
    /// Column-major with columns padded to a multiple of 16 bytes (4 values), for a grid of `rows`.
    pub fn aligned(rows: usize) -> Self {
        ScaleOrder::ColMajor { stride: rows.next_multiple_of(4) }
    }

    /// Values that a grid takes, padding included.
    pub fn len(self, rows: usize, cols: usize) -> usize {
        match self {
            ScaleOrder::RowMajor => rows * cols,
            ScaleOrder::ColMajor { stride } => stride * cols,
        }
    }

    /// Distance in values from one row to the next, and from one column to the next.
    pub fn strides(self, cols: usize) -> (usize, usize) {
        match self {
            ScaleOrder::RowMajor => (cols, 1),
            ScaleOrder::ColMajor { stride } => (1, stride),
        }
    }
}

/// `out[i * ldo + j] = sum over c of x[i][c] * w[j][c] + bias[j]` for i < m, j < n; see the module for the exact order.
/// `x` is `m x k`, `w` is `n x k`, `bias` has n values. Uses [`Isa::detect`] and the current rayon pool.
///
/// # Panics
/// If a slice does not fit its shape: `x` and the weights exactly, `out` at least `(m - 1) * ldo + n` values,
/// `ldo >= n`, block sizes above 0.
pub fn linear(
    x: &[f32],
    m: usize,
    k: usize,
    w: MatrixView<'_>,
    n: usize,
    bias: Option<&[f32]>,
    out: &mut [f32],
    ldo: usize,
) {
    linear_with(Isa::detect(), x, m, k, w, n, bias, out, ldo);
}

/// [`linear`] with the instructions of `isa`.
///
/// # Panics
/// As [`linear`].
pub fn linear_with(
    isa: Isa,
    x: &[f32],
    m: usize,
    k: usize,
    w: MatrixView<'_>,
    n: usize,
    bias: Option<&[f32]>,
    out: &mut [f32],
    ldo: usize,
) {
    assert_eq!(x.len(), m * k, "x is m x k");
    assert!(bias.is_none_or(|bias| bias.len() == n), "one bias per output");
    if m == 0 || n == 0 {
        return;
    }
    assert!(ldo >= n && out.len() >= (m - 1) * ldo + n, "out holds m rows of n values, ldo apart");
    let call = Call { isa, x, m, k, n, bias, ldo };
    match w {
        MatrixView::F32 { data } => call.run(Dense::new(F32, crate::simd::bytes_of_f32(data), n, k), out),
        MatrixView::Bf16 { data } => call.run(Dense::new(Bf16, crate::simd::bytes_of_u16(data), n, k), out),
        MatrixView::F16 { data } => call.run(Dense::new(F16, crate::simd::bytes_of_u16(data), n, k), out),
        MatrixView::Fp8Block { q, scales, order, block_rows, block_cols } => {
            call.run(Fp8::new(q, scales, order, n, k, block_rows, block_cols), out);
        }
    }
}

/// The arguments but the weights.
#[derive(Clone, Copy)]
struct Call<'a> {
    isa: Isa,
    x: &'a [f32],
    m: usize,
    k: usize,
    n: usize,
    bias: Option<&'a [f32]>,
    ldo: usize,
}

impl Call<'_> {
    fn run<W: Weights>(self, w: W, out: &mut [f32]) {
        let threads = if self.m * self.n * self.k > PARALLEL_MACS { rayon::current_num_threads() } else { 1 };
        if self.m == 1 {
            let out = &mut out[..self.n];
            // A few tasks per thread, so that a thread that is late does not hold up all others.
            let rows = self.n.div_ceil(threads * if threads > 1 { 4 } else { 1 }).next_multiple_of(gemv::ROWS);
            if threads == 1 {
                gemv::gemv(self.isa, self.x, self.k, w, 0, out);
            } else {
                out.par_chunks_mut(rows).enumerate().for_each(|(task, out)| {
                    gemv::gemv(self.isa, self.x, self.k, w, task * rows, out);
                });
            }
            if let Some(bias) = self.bias {
                out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
            }
            return;
        }
        let x = gemm::PackedX::new(self.isa, self.x, self.m, self.k);
        let rows = if threads == 1 { self.n } else { self.n.div_ceil(threads * 4).next_multiple_of(gemm::GROUP) };
        let tasks = self.n.div_ceil(rows);
        let scatter = |out: &mut [f32], task: usize, part: &[f32]| {
            let first = task * rows;
            let width = rows.min(self.n - first);
            for (out, part) in out.chunks_mut(self.ldo).zip(part.chunks_exact(width)) {
                let out = &mut out[first..first + width];
                match self.bias {
                    Some(bias) => {
                        let sums = part.iter().zip(&bias[first..]).map(|(sum, bias)| sum + bias);
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum);
                    }
                    None => out.copy_from_slice(part),
                }
            }
        };
        let compute = |task: usize| gemm::columns(self.isa, &x, w, task * rows, rows.min(self.n - task * rows));
        if tasks == 1 {
            scatter(out, 0, &compute(0));
        } else {
            // Each task owns its columns of all rows, which no slice describes: tasks return them and one thread puts
            // them into place, 1/k of the work.
            let parts: Vec<Vec<f32>> = (0..tasks).into_par_iter().map(compute).collect();
            for (task, part) in parts.iter().enumerate() {
                scatter(out, task, part);
            }
        }
    }
}

/// The inner product of two slices in the order of this module's definition (16 lanes, fixed tree).
///
/// # Panics
/// If the slices differ in length.
pub fn dot(isa: Isa, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of one length");
    dispatch(isa, Dot { a, b })
}

struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        dot_lanes(s, self.a, self.b)
    }
}

/// [`dot`] inside a kernel.
#[inline(always)]
pub(crate) fn dot_lanes<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let (a16, a_tail) = a.as_chunks::<16>();
    let (b16, b_tail) = b.as_chunks::<16>();
    let mut acc = s.splat(0.0);
    for (a, b) in a16.iter().zip(b16) {
        acc = s.fma(s.load(a), s.load(b), acc);
    }
    if !a_tail.is_empty() {
        acc = s.fma(s.load(&pad_f32(a_tail)), s.load(&pad_f32(b_tail)), acc);
    }
    s.sum(acc)
}
