//! Weight matrices in the order in which the kernels read them.
//!
//! Sixteen rows stand side by side, column after column, so that one load brings the same column of sixteen outputs: a
//! product needs no horizontal sums, and a thread reads memory from front to back. `n` is padded to a multiple of 16
//! with zeros, and each block of columns to a multiple of 4 (a quad). A quad is
//!
//! - for f32, f16 and bf16: 4 columns of 16 values each, little endian;
//! - for e4m3: one cache line, its codes in the order that the machine's instructions decode with the least work
//!   ([`Codes`]).
//!
//! Packing is a permutation: [`PackedMatrix::unpack_rows`] gives the bytes of a checkpoint back.

use super::{MatrixView, ScaleOrder};
use crate::e4m3;
use crate::isa::Isa;
use crate::pages::{Buffer, Plain};
use rayon::prelude::*;

/// Rows that stand side by side.
pub const ROWS: usize = 16;
/// Groups of sixteen rows that one thread packs in a row.
const RUN: usize = 4;
/// Columns of a quad.
pub(super) const QUAD: usize = 4;
/// Columns of a partial sum of plain floats; FP8 has its block's.
pub(super) const DENSE_BLOCK: usize = 128;

/// A cache line of weights.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

// SAFETY: bytes, without padding.
unsafe impl Plain for Line {}

/// Element type of a packed matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IEEE binary32.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE binary16.
    F16,
    /// e4m3 codes with block scales.
    Fp8,
}

impl Kind {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::Bf16 | Kind::F16 => 2,
            Kind::Fp8 => 1,
        }
    }
}

/// Where the code of row r (0..16) and column c (0..4) lies in the cache line of a quad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codes {
    /// Byte `32 (c / 2) + 16 (r / 8) + 8 (c % 2) + r % 8`: `unpack` with zeros yields whole columns on 256-bit and on
    /// 512-bit registers.
    Columns,
    /// Byte `4 r + c`: four codes of a row share a 32-bit lane, and shifts and masks yield a column of floats each.
    Lanes,
}

impl Codes {
    /// The order that suits the instructions.
    fn of(isa: Isa) -> Self {
        if isa.usable() == Isa::Avx2Subnormal { Codes::Lanes } else { Codes::Columns }
    }

    /// Byte of a line that holds row r of column c of the quad.
    #[inline(always)]
    fn at(self, r: usize, c: usize) -> usize {
        match self {
            Codes::Columns => 32 * (c / 2) + 16 * (r / 8) + 8 * (c % 2) + r % 8,
            Codes::Lanes => 4 * r + c,
        }
    }
}

/// Scales of an e4m3 matrix.
#[derive(Debug, Clone)]
pub struct Scales {
    /// One per block of the `ceil(n / block_rows) x ceil(k / block_cols)` grid.
    pub values: Vec<f32>,
    /// How they lie.
    pub order: ScaleOrder,
    /// Rows of a block.
    pub block_rows: usize,
    /// Columns of a block.
    pub block_cols: usize,
}

/// A weight matrix `n x k`, packed for [`super::multiply`].
#[derive(Clone)]
pub struct PackedMatrix {
    n: usize,
    k: usize,
    kind: Kind,
    codes: Codes,
    lines: Buffer<Line>,
    /// Cache lines of sixteen rows.
    group_lines: usize,
    /// Columns of a partial sum.
    block_cols: usize,
    scales: Option<Scales>,
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedMatrix({:?}, {} x {})", self.kind, self.n, self.k)
    }
}

impl PackedMatrix {
    /// Packs an `n x k` matrix. e4m3 codes must be free of NaN ([`crate::e4m3::contains_nan_code`]): the vector paths
    /// take 0x7f and 0xff for ±480.
    ///
    /// # Panics
    /// If the data or the scales have another size than n, k and the blocks say, or a block size is 0.
    pub fn new(view: MatrixView<'_>, n: usize, k: usize) -> Self {
        Self::new_for(Isa::detect(), view, n, k)
    }

    /// [`PackedMatrix::new`] in the order that suits the instructions of `isa`.
    ///
    /// # Panics
    /// As [`PackedMatrix::new`].
    pub fn new_for(isa: Isa, view: MatrixView<'_>, n: usize, k: usize) -> Self {
        let (kind, bytes, scales) = match view {
            MatrixView::F32 { data } => (Kind::F32, crate::simd::bytes_of_f32(data), None),
            MatrixView::Bf16 { data } => (Kind::Bf16, crate::simd::bytes_of_u16(data), None),
            MatrixView::F16 { data } => (Kind::F16, crate::simd::bytes_of_u16(data), None),
            MatrixView::Fp8Block { q, scales, order, block_rows, block_cols } => {
                (Kind::Fp8, q, Some(Scales { values: scales.to_vec(), order, block_rows, block_cols }))
            }
        };
        let mut packed = Self::zeroed_for(isa, kind, n, k, scales);
        assert_eq!(bytes.len(), n * k * kind.size(), "w is n x k");
        for first in (0..n).step_by(ROWS) {
            let rows = ROWS.min(n - first);
            packed.pack_rows(first, &bytes[first * k * kind.size()..(first + rows) * k * kind.size()]);
        }
        packed
    }

    /// A matrix of zero bytes, to be filled by [`PackedMatrix::pack_rows`].
    ///
    /// # Panics
    /// If there are scales for a kind other than FP8 or none for FP8, or they do not fit n, k and the blocks.
    pub fn zeroed(kind: Kind, n: usize, k: usize, scales: Option<Scales>) -> Self {
        Self::zeroed_for(Isa::detect(), kind, n, k, scales)
    }

    fn zeroed_for(isa: Isa, kind: Kind, n: usize, k: usize, scales: Option<Scales>) -> Self {
        assert_eq!(kind == Kind::Fp8, scales.is_some(), "FP8 has scales and nothing else has");
        let mut block_cols = DENSE_BLOCK;
        if let Some(s) = &scales {
            assert!(s.block_rows > 0 && s.block_cols > 0, "blocks have at least one row and column");
            let (grid_rows, grid_cols) = (n.div_ceil(s.block_rows), k.div_ceil(s.block_cols));
            assert_eq!(s.values.len(), s.order.len(grid_rows, grid_cols), "one scale per block, and the padding");
            if let ScaleOrder::ColMajor { stride } = s.order {
                assert!(stride >= grid_rows, "a column holds all rows of the grid");
            }
            block_cols = s.block_cols;
        }
        let block_cols = block_cols.min(k.max(1));
        let quads = (k / block_cols) * block_cols.div_ceil(QUAD) + (k % block_cols).div_ceil(QUAD);
        let group_lines = quads * kind.size();
        let count = n.div_ceil(ROWS) * group_lines;
        let lines = Buffer::zeroed(count);
        Self { n, k, kind, codes: Codes::of(isa), lines, group_lines, block_cols, scales }
    }

    /// Fills the rows from `first` (a multiple of 16) with row-major little-endian bytes of whole rows.
    ///
    /// # Panics
    /// If the rows are no whole rows of the matrix, or more than 16 start or end within sixteen.
    pub fn pack_rows(&mut self, first: usize, bytes: &[u8]) {
        let stride = self.k * self.kind.size();
        if stride == 0 || bytes.is_empty() {
            return;
        }
        let rows = bytes.len() / stride;
        assert!(bytes.len().is_multiple_of(stride) && first + rows <= self.n, "whole rows of the matrix");
        assert!(first.is_multiple_of(ROWS), "sixteen rows are filled together");
        assert!(rows.is_multiple_of(ROWS) || first + rows == self.n, "sixteen rows are filled together");
        let (form, group_lines) = (self.form(), self.group_lines);
        form.pack(bytes, &mut self.lines[first / ROWS * group_lines..]);
    }

    /// Fills all rows with row-major little-endian bytes, on all threads of the pool; `between` is called before each
    /// run of some rows.
    ///
    /// # Panics
    /// If there are not as many bytes as the matrix has.
    pub fn fill(&mut self, bytes: &[u8], between: impl Fn() + Sync) {
        let stride = self.k * self.kind.size();
        assert_eq!(bytes.len(), self.n * stride, "all bytes of the matrix");
        if bytes.is_empty() {
            return;
        }
        let (form, group_lines) = (self.form(), self.group_lines);
        let runs = self.lines.par_chunks_mut(RUN * group_lines).zip(bytes.par_chunks(RUN * ROWS * stride));
        runs.for_each(|(lines, bytes)| {
            between();
            form.pack(bytes, lines);
        });
    }

    /// Whether its codes lie as the instructions of `isa` want them.
    pub(super) fn suits(&self, isa: Isa) -> bool {
        self.kind != Kind::Fp8 || self.codes == Codes::of(isa)
    }

    /// The same matrix as [`PackedMatrix::new_for`] packs it.
    pub(super) fn packed_for(&self, isa: Isa) -> Self {
        let mut packed = Self::zeroed_for(isa, self.kind, self.n, self.k, self.scales.clone());
        let mut bytes = Vec::new();
        self.unpack_rows(0, self.n, &mut bytes);
        packed.pack_rows(0, &bytes);
        packed
    }

    fn form(&self) -> Form {
        let Self { kind, codes, k, block_cols, group_lines, .. } = *self;
        Form { kind, codes, k, block_cols, group_lines }
    }

    /// Rows (outputs).
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns (inputs).
    pub fn k(&self) -> usize {
        self.k
    }

    /// Element type.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The scales of an FP8 matrix.
    pub fn scales(&self) -> Option<&Scales> {
        self.scales.as_ref()
    }

    /// Bytes of the matrix without padding, scales included.
    pub fn bytes(&self) -> usize {
        self.n * self.k * self.kind.size() + self.scales.as_ref().map_or(0, |s| s.values.len() * 4)
    }

    /// Whether every stored bit is the same, scales and their layout included.
    pub fn bit_equal(&self, other: &Self) -> bool {
        let scales = |a: &Scales, b: &Scales| {
            let bits = |s: &Scales| s.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            a.order == b.order && a.block_rows == b.block_rows && a.block_cols == b.block_cols && bits(a) == bits(b)
        };
        (self.n, self.k, self.kind, self.codes) == (other.n, other.k, other.kind, other.codes)
            && self.lines == other.lines
            && match (&self.scales, &other.scales) {
                (Some(a), Some(b)) => scales(a, b),
                (a, b) => a.is_none() && b.is_none(),
            }
    }

    /// Rows `first .. first + count` as row-major little-endian bytes, appended to `out`.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn unpack_rows(&self, first: usize, count: usize, out: &mut Vec<u8>) {
        assert!(first + count <= self.n, "rows of the matrix");
        let size = self.kind.size();
        out.reserve(count * self.k * size);
        for row in first..first + count {
            self.for_each_in_row(row, |bytes| out.extend_from_slice(bytes));
        }
    }

    /// One row in f32; FP8 as `decode(q) * scale`.
    ///
    /// # Panics
    /// If there is no such row or `out` has another length than k.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n && out.len() == self.k, "a row of k values");
        let mut c = 0;
        self.for_each_in_row(row, |bytes| {
            out[c] = match *bytes {
                [q] => e4m3::decode(q) * self.scale(row, c / self.block_cols),
                [a, b] if self.kind == Kind::Bf16 => half::bf16::from_le_bytes([a, b]).to_f32(),
                [a, b] => half::f16::from_le_bytes([a, b]).to_f32(),
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                _ => unreachable!("1, 2 or 4 bytes"),
            };
            c += 1;
        });
    }

    fn for_each_in_row(&self, row: usize, mut f: impl FnMut(&[u8])) {
        let size = self.kind.size();
        let lines = &self.lines[row / ROWS * self.group_lines..][..self.group_lines];
        let r = row % ROWS;
        let mut at = 0;
        for start in (0..self.k).step_by(self.block_cols) {
            let width = self.block_cols.min(self.k - start);
            for c in 0..width {
                if self.kind == Kind::Fp8 {
                    f(&lines[at + c / QUAD].0[self.codes.at(r, c % QUAD)..][..1]);
                } else {
                    let byte = (c * ROWS + r) * size;
                    f(&lines[at + byte / 64].0[byte % 64..][..size]);
                }
            }
            at += width.div_ceil(QUAD) * size;
        }
    }

    /// The scale of a block; 1 without scales.
    #[inline(always)]
    pub(super) fn scale(&self, row: usize, block: usize) -> f32 {
        let Some(s) = &self.scales else { return 1.0 };
        let (down, across) = s.order.strides(self.k.div_ceil(s.block_cols));
        s.values[row / s.block_rows * down + block * across]
    }

    /// The lines of sixteen rows.
    #[inline(always)]
    pub(super) fn group(&self, group: usize) -> &[Line] {
        &self.lines[group * self.group_lines..(group + 1) * self.group_lines]
    }

    /// Columns of a partial sum.
    #[inline(always)]
    pub(super) fn block_cols(&self) -> usize {
        self.block_cols
    }
}

impl AsRef<PackedMatrix> for PackedMatrix {
    fn as_ref(&self) -> &PackedMatrix {
        self
    }
}

/// How rows become lines.
#[derive(Clone, Copy)]
struct Form {
    kind: Kind,
    codes: Codes,
    k: usize,
    block_cols: usize,
    group_lines: usize,
}

impl Form {
    /// Rows of `k` values into lines, sixteen rows at a time.
    fn pack(self, bytes: &[u8], lines: &mut [Line]) {
        let Form { kind, codes, k, block_cols, group_lines } = self;
        let stride = k * kind.size();
        for (bytes, lines) in bytes.chunks(ROWS * stride).zip(lines.chunks_exact_mut(group_lines)) {
            let mut at = 0;
            for start in (0..k).step_by(block_cols) {
                let width = block_cols.min(k - start);
                match kind {
                    Kind::Fp8 => pack_codes(codes, bytes, stride, start, width, &mut lines[at..]),
                    Kind::Bf16 | Kind::F16 => pack_floats::<2>(bytes, stride, start, width, &mut lines[at..]),
                    Kind::F32 => pack_floats::<4>(bytes, stride, start, width, &mut lines[at..]),
                }
                at += width.div_ceil(QUAD) * kind.size();
            }
        }
    }
}

/// One block of columns of up to sixteen rows of codes.
fn pack_codes(codes: Codes, bytes: &[u8], stride: usize, start: usize, width: usize, lines: &mut [Line]) {
    let mut done = 0;
    #[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_feature = "neon")))]
    if bytes.len() == ROWS * stride {
        let (lines, _) = lines.as_chunks_mut::<4>();
        for (tile, lines) in lines.iter_mut().take(width / 16).enumerate() {
            let rows: [&[u8; 16]; ROWS] = std::array::from_fn(|r| {
                let at = r * stride + start + 16 * tile;
                bytes[at..].first_chunk::<16>().expect("the tile lies in the rows")
            });
            match codes {
                Codes::Columns => super::transpose::columns(&rows, lines),
                Codes::Lanes => super::transpose::lanes(&rows, lines),
            }
            done += 16;
        }
    }
    for (r, row) in bytes.chunks_exact(stride).enumerate() {
        for c in done..width {
            lines[c / QUAD].0[codes.at(r, c % QUAD)] = row[start + c];
        }
    }
}

/// One block of columns of up to sixteen rows of floats of SIZE bytes.
fn pack_floats<const SIZE: usize>(bytes: &[u8], stride: usize, start: usize, width: usize, lines: &mut [Line]) {
    let per_line = 64 / SIZE;
    let rows = bytes.len() / stride;
    for first in (0..width).step_by(QUAD) {
        for c in first..(first + QUAD).min(width) {
            for r in 0..rows {
                let value = c * ROWS + r;
                let to = lines[value / per_line].0.as_chunks_mut::<SIZE>().0;
                to[value % per_line] = bytes[r * stride + (start + c) * SIZE..].as_chunks::<SIZE>().0[0];
            }
        }
    }
}
