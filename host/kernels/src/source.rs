//! A weight matrix as it lies in a file: bytes of any alignment, row-major, little endian.

use crate::error::KernelError;
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, dispatch, pad};
use crate::spec::Elem;

/// A borrowed `rows x cols` matrix of `elem`, or some of the columns of one. Built by [`Source::new`], which checks the
/// length.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Row-major little-endian elements of the whole matrix, at any alignment (they come out of files).
    pub bytes: &'a [u8],
    /// Type of the elements.
    pub elem: Elem,
    /// Number of rows; may be 0.
    pub rows: usize,
    /// Number of columns; may be 0.
    pub cols: usize,
    /// Columns of the whole matrix, and the first of them that is column 0 here.
    stride: usize,
    first_col: usize,
}

impl<'a> Source<'a> {
    /// Describes `bytes` as a `rows x cols` matrix of `elem`.
    ///
    /// # Errors
    /// [`KernelError::Length`] if the number of bytes is not `rows * cols * elem.size()`, [`KernelError::Overflow`] if
    /// that product does not fit a `usize`.
    pub fn new(bytes: &'a [u8], elem: Elem, rows: usize, cols: usize) -> Result<Self, KernelError> {
        let expected = rows.checked_mul(cols).and_then(|n| n.checked_mul(elem.size()));
        match expected {
            None => Err(KernelError::Overflow { rows, cols, elem }),
            Some(expected) if expected != bytes.len() => {
                Err(KernelError::Length { rows, cols, elem, expected, actual: bytes.len() })
            }
            Some(_) => Ok(Source { bytes, elem, rows, cols, stride: cols, first_col: 0 }),
        }
    }

    /// The same for rows that begin `stride` elements apart: a view into a wider matrix. `bytes` ends with the last row.
    ///
    /// # Errors
    /// [`KernelError::Length`] if `stride` is less than `cols`, or there are fewer or more bytes than
    /// `((rows - 1) * stride + cols) * elem.size()` (0 where there are no elements); [`KernelError::Overflow`] if that does not
    /// fit a `usize`.
    pub fn strided(bytes: &'a [u8], elem: Elem, rows: usize, cols: usize, stride: usize) -> Result<Self, KernelError> {
        let elements = match rows.checked_sub(1) {
            Some(before) if cols > 0 => before.checked_mul(stride).and_then(|n| n.checked_add(cols)),
            _ => Some(0),
        };
        let expected = elements.and_then(|n| n.checked_mul(elem.size()));
        match expected {
            None => Err(KernelError::Overflow { rows, cols, elem }),
            Some(expected) if expected != bytes.len() || (stride < cols && rows > 1) => {
                Err(KernelError::Length { rows, cols, elem, expected, actual: bytes.len() })
            }
            Some(_) => Ok(Source { bytes, elem, rows, cols, stride, first_col: 0 }),
        }
    }

    /// `cols` columns from `first` as a matrix of their own; the bytes stay where they are.
    ///
    /// # Panics
    /// If there are no such columns.
    pub fn columns(&self, first: usize, cols: usize) -> Source<'a> {
        assert!(first <= self.cols && cols <= self.cols - first, "the columns lie in the matrix");
        Source { cols, first_col: self.first_col + first, ..*self }
    }

    /// The bytes of one row.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline]
    pub fn row_bytes(&self, row: usize) -> &'a [u8] {
        let start = (row * self.stride + self.first_col) * self.elem.size();
        &self.bytes[start..start + self.cols * self.elem.size()]
    }

    /// Writes one row, widened exactly to f32, to `out` (`cols` values). With `round_bf16`, f32 and f16 values are
    /// first rounded to the nearest bfloat16, ties to even.
    ///
    /// # Panics
    /// If there is no such row or `out` has another length than `cols`.
    pub fn row_f32(&self, row: usize, round_bf16: bool, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "one f32 per column");
        let bytes = self.row_bytes(row);
        match (self.elem, round_bf16) {
            (Elem::F32, false) => dispatch(Isa::detect(), Widen::<F32, false> { bytes, out, elem: F32 }),
            (Elem::F32, true) => dispatch(Isa::detect(), Widen::<F32, true> { bytes, out, elem: F32 }),
            (Elem::F16, false) => dispatch(Isa::detect(), Widen::<F16, false> { bytes, out, elem: F16 }),
            (Elem::F16, true) => dispatch(Isa::detect(), Widen::<F16, true> { bytes, out, elem: F16 }),
            (Elem::Bf16, _) => dispatch(Isa::detect(), Widen::<Bf16, false> { bytes, out, elem: Bf16 }),
        }
    }

    /// Writes one row as bfloat16 bits to `out` (`cols` values): a copy for bf16, else rounded to nearest even.
    ///
    /// # Panics
    /// If there is no such row or `out` has another length than `cols`.
    pub fn row_bf16(&self, row: usize, out: &mut [u16]) {
        assert_eq!(out.len(), self.cols, "one u16 per column");
        if self.elem == Elem::Bf16 {
            let (pairs, _) = self.row_bytes(row).as_chunks::<2>();
            for (out, pair) in out.iter_mut().zip(pairs) {
                *out = u16::from_le_bytes(*pair);
            }
        } else {
            let mut wide = vec![0.0; self.cols];
            self.row_f32(row, true, &mut wide);
            for (out, x) in out.iter_mut().zip(wide) {
                *out = (x.to_bits() >> 16) as u16;
            }
        }
    }
}

/// How 16 elements of one type become lanes.
pub(crate) trait Element: Copy {
    /// Bytes of one element.
    const SIZE: usize;
    /// Widens 16 elements; `x` has `16 * SIZE` bytes.
    fn load<S: Simd>(self, s: S, x: &[u8]) -> S::F;
    /// Widens fewer than 16 elements; the other lanes are +0.0.
    fn load_tail<S: Simd>(self, s: S, x: &[u8]) -> S::F;
}

/// IEEE binary32.
#[derive(Clone, Copy)]
pub(crate) struct F32;
/// IEEE binary16.
#[derive(Clone, Copy)]
pub(crate) struct F16;
/// bfloat16.
#[derive(Clone, Copy)]
pub(crate) struct Bf16;

impl Element for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    fn load<S: Simd>(self, s: S, x: &[u8]) -> S::F {
        // SAFETY: f32 takes any bits, [f32; 16] behind a pointer is only read through an unaligned copy.
        let lanes = unsafe { x[..64].as_ptr().cast::<[f32; 16]>().read_unaligned() };
        s.load(&lanes)
    }
    #[inline(always)]
    fn load_tail<S: Simd>(self, s: S, x: &[u8]) -> S::F {
        self.load(s, &pad::<64>(x))
    }
}

/// The two 16-bit formats differ only in the lane operation.
macro_rules! element16 {
    ($name:ident, $load:ident) => {
        impl Element for $name {
            const SIZE: usize = 2;
            #[inline(always)]
            fn load<S: Simd>(self, s: S, x: &[u8]) -> S::F {
                match x.first_chunk::<32>() {
                    Some(x) => s.$load(x),
                    None => unreachable!("16 elements of 2 bytes"),
                }
            }
            #[inline(always)]
            fn load_tail<S: Simd>(self, s: S, x: &[u8]) -> S::F {
                s.$load(&pad::<32>(x))
            }
        }
    };
}
element16!(F16, load_f16);
element16!(Bf16, load_bf16);

/// One row, widened.
struct Widen<'a, E, const ROUND: bool> {
    bytes: &'a [u8],
    out: &'a mut [f32],
    elem: E,
}

impl<E: Element, const ROUND: bool> Kernel for Widen<'_, E, ROUND> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (full, tail) = self.out.as_chunks_mut::<16>();
        for (out, x) in full.iter_mut().zip(self.bytes.chunks_exact(16 * E::SIZE)) {
            let x = self.elem.load(s, x);
            s.store(if ROUND { s.round_bf16(x) } else { x }, out);
        }
        if !tail.is_empty() {
            let from = self.bytes.len() - tail.len() * E::SIZE;
            let x = self.elem.load_tail(s, &self.bytes[from..]);
            let mut lanes = [0.0; 16];
            s.store(if ROUND { s.round_bf16(x) } else { x }, &mut lanes);
            tail.copy_from_slice(&lanes[..tail.len()]);
        }
    }
}
