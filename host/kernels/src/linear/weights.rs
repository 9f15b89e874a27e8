//! Weight matrices as sources of lanes.

use super::ScaleOrder;
use crate::cast::dequantize_row;
use crate::isa::Isa;
use crate::simd::{Simd, pad};
use crate::source::Element;

/// Sixteen columns of a row at a time.
pub(super) trait Weights: Copy + Send + Sync {
    /// Bytes of one element.
    const SIZE: usize;
    /// What the lanes of a span of columns are multiplied with, if anything.
    fn scale<S: Simd>(self, s: S, row: usize, span: usize) -> S::F;
    /// Columns that share a scale: a multiple of 16, or at least k. `None`: this matrix has no fused decoding, use
    /// [`Weights::widen`].
    fn span(self) -> Option<usize>;
    /// The bytes of a row.
    fn row<'a>(self, row: usize) -> &'a [u8]
    where
        Self: 'a;
    /// 16 elements times scale.
    fn load<S: Simd>(self, s: S, x: &[u8], scale: S::F) -> S::F;
    /// Fewer than 16 elements times scale; the other lanes are zero.
    fn load_tail<S: Simd>(self, s: S, x: &[u8], scale: S::F) -> S::F;
    /// A row as f32, for matrices without fused decoding.
    fn widen(self, isa: Isa, row: usize, out: &mut [f32]);
}

/// Rows of plain floats.
#[derive(Clone, Copy)]
pub(super) struct Dense<'a, E> {
    elem: E,
    bytes: &'a [u8],
    k: usize,
}

impl<'a, E: Element> Dense<'a, E> {
    pub(super) fn new(elem: E, bytes: &'a [u8], n: usize, k: usize) -> Self {
        assert_eq!(bytes.len(), n * k * E::SIZE, "w is n x k");
        Dense { elem, bytes, k }
    }
}

impl<E: Element + Send + Sync> Weights for Dense<'_, E> {
    const SIZE: usize = E::SIZE;

    #[inline(always)]
    fn scale<S: Simd>(self, s: S, _row: usize, _span: usize) -> S::F {
        s.splat(1.0)
    }
    #[inline(always)]
    fn span(self) -> Option<usize> {
        Some(usize::MAX)
    }
    #[inline(always)]
    fn row<'a>(self, row: usize) -> &'a [u8]
    where
        Self: 'a,
    {
        let stride = self.k * E::SIZE;
        &self.bytes[row * stride..(row + 1) * stride]
    }
    #[inline(always)]
    fn load<S: Simd>(self, s: S, x: &[u8], _scale: S::F) -> S::F {
        self.elem.load(s, x)
    }
    #[inline(always)]
    fn load_tail<S: Simd>(self, s: S, x: &[u8], _scale: S::F) -> S::F {
        self.elem.load_tail(s, x)
    }
    fn widen(self, _isa: Isa, _row: usize, _out: &mut [f32]) {
        unreachable!("plain floats have a span");
    }
}

/// Rows of e4m3 codes with block scales.
#[derive(Clone, Copy)]
pub(super) struct Fp8<'a> {
    q: &'a [u8],
    scales: &'a [f32],
    k: usize,
    block_rows: usize,
    block_cols: usize,
    grid_cols: usize,
    /// Distance in `scales` from one row of blocks to the next, and from one column to the next.
    strides: (usize, usize),
    /// Whether blocks start at multiples of 16 columns and every `256 * scale` is finite.
    fused: bool,
}

impl<'a> Fp8<'a> {
    pub(super) fn new(
        q: &'a [u8],
        scales: &'a [f32],
        order: ScaleOrder,
        n: usize,
        k: usize,
        block_rows: usize,
        block_cols: usize,
    ) -> Self {
        assert!(block_rows > 0 && block_cols > 0, "blocks have at least one row and column");
        assert_eq!(q.len(), n * k, "w is n x k");
        let grid_cols = k.div_ceil(block_cols);
        let grid_rows = n.div_ceil(block_rows);
        assert_eq!(scales.len(), order.len(grid_rows, grid_cols), "one scale per block, and the padding");
        if let ScaleOrder::ColMajor { stride } = order {
            assert!(stride >= grid_rows, "a column holds all rows of the grid");
        }
        let aligned = block_cols.is_multiple_of(16) || block_cols >= k;
        let fused = aligned && scales.iter().all(|s| (s * 256.0).is_finite());
        let strides = order.strides(grid_cols);
        Fp8 { q, scales, k, block_rows, block_cols, grid_cols, strides, fused }
    }
}

impl Weights for Fp8<'_> {
    const SIZE: usize = 1;

    #[inline(always)]
    fn scale<S: Simd>(self, s: S, row: usize, span: usize) -> S::F {
        // The lanes are value / 256; both factors of 256 are exact, so that the product is rounded once.
        let (down, across) = self.strides;
        s.splat(self.scales[row / self.block_rows * down + span * across] * 256.0)
    }
    #[inline(always)]
    fn span(self) -> Option<usize> {
        self.fused.then_some(self.block_cols)
    }
    #[inline(always)]
    fn row<'a>(self, row: usize) -> &'a [u8]
    where
        Self: 'a,
    {
        &self.q[row * self.k..(row + 1) * self.k]
    }
    #[inline(always)]
    fn load<S: Simd>(self, s: S, x: &[u8], scale: S::F) -> S::F {
        match x.first_chunk::<16>() {
            Some(x) => s.mul(s.load_e4m3_256th(x), scale),
            None => unreachable!("16 codes"),
        }
    }
    #[inline(always)]
    fn load_tail<S: Simd>(self, s: S, x: &[u8], scale: S::F) -> S::F {
        s.mul(s.load_e4m3_256th(&pad::<16>(x)), scale)
    }
    fn widen(self, isa: Isa, row: usize, out: &mut [f32]) {
        let (down, across) = self.strides;
        let first = row / self.block_rows * down;
        let scales: Vec<f32> = (0..self.grid_cols).map(|c| self.scales[first + c * across]).collect();
        dequantize_row(isa, self.row(row), &scales, self.block_cols, out);
    }
}
