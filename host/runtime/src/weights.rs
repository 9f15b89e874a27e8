//! Published weights: immutable once made, shared by `Arc`. A refit makes a new set; requests that hold the old one
//! keep it.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use patchhost_kernels::linear::MatrixView;

use crate::activation::Activation;
use crate::error::Result;
use crate::hooks::Elem;
use crate::registry::{ParamId, Registry};

/// The data of one part, row-major.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// As in the checkpoint.
    F32(Vec<f32>),
    /// bf16 bits.
    Bf16(Vec<u16>),
    /// f16 bits.
    F16(Vec<u16>),
    /// Block FP8.
    Fp8 {
        /// e4m3fn codes.
        q: Vec<u8>,
        /// Stored scales (multipliers), row-major over the block grid.
        scales: Vec<f32>,
        /// Rows of a block.
        block_rows: usize,
        /// Columns of a block.
        block_cols: usize,
    },
}

impl Matrix {
    /// Staging for `len` elements: every byte 0xFF, which is NaN in each of these types, so that a byte that nobody
    /// wrote cannot pass for a weight.
    pub fn staging(elem: Elem, len: usize) -> Self {
        match elem {
            Elem::F32 => Matrix::F32(vec![f32::from_bits(u32::MAX); len]),
            Elem::Bf16 => Matrix::Bf16(vec![u16::MAX; len]),
            Elem::F16 => Matrix::F16(vec![u16::MAX; len]),
        }
    }

    /// Copies little-endian bytes over staging of the same length.
    pub fn fill(&mut self, bytes: &[u8]) {
        match self {
            Matrix::F32(out) => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            Matrix::Bf16(out) | Matrix::F16(out) => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = u16::from_le_bytes(*b);
                }
            }
            Matrix::Fp8 { q, .. } => q.copy_from_slice(bytes),
        }
    }

    /// As the kernels take it.
    pub fn view(&self) -> MatrixView<'_> {
        match self {
            Matrix::F32(data) => MatrixView::F32 { data },
            Matrix::Bf16(data) => MatrixView::Bf16 { data },
            Matrix::F16(data) => MatrixView::F16 { data },
            Matrix::Fp8 { q, scales, block_rows, block_cols } => {
                MatrixView::Fp8Block { q, scales, block_rows: *block_rows, block_cols: *block_cols }
            }
        }
    }

    /// Whether it is block FP8.
    pub fn is_fp8(&self) -> bool {
        matches!(self, Matrix::Fp8 { .. })
    }

    /// Bytes of data, scales included.
    pub fn bytes(&self) -> usize {
        match self {
            Matrix::F32(d) => d.len() * 4,
            Matrix::Bf16(d) | Matrix::F16(d) => d.len() * 2,
            Matrix::Fp8 { q, scales, .. } => q.len() + scales.len() * 4,
        }
    }

    /// One row, widened to f32.
    pub fn row(&self, row: usize, cols: usize, out: &mut [f32]) {
        let range = row * cols..(row + 1) * cols;
        match self {
            Matrix::F32(d) => out.copy_from_slice(&d[range]),
            Matrix::Bf16(d) => out.iter_mut().zip(&d[range]).for_each(|(o, b)| *o = bf16::from_bits(*b).to_f32()),
            Matrix::F16(d) => out.iter_mut().zip(&d[range]).for_each(|(o, b)| *o = f16::from_bits(*b).to_f32()),
            Matrix::Fp8 { q, scales, block_rows, block_cols } => {
                let grid = cols.div_ceil(*block_cols);
                for (c, (o, b)) in out.iter_mut().zip(&q[range]).enumerate() {
                    let scale = scales[row / block_rows * grid + c / block_cols];
                    *o = patchhost_kernels::e4m3::decode(*b) * scale;
                }
            }
        }
    }

    fn bit_equal(&self, other: &Self) -> bool {
        match (self, other) {
            (Matrix::F32(a), Matrix::F32(b)) => same_bits(a, b),
            (Matrix::Bf16(a), Matrix::Bf16(b)) | (Matrix::F16(a), Matrix::F16(b)) => a == b,
            (
                Matrix::Fp8 { q, scales, block_rows, block_cols },
                Matrix::Fp8 { q: q2, scales: s2, block_rows: r2, block_cols: c2 },
            ) => q == q2 && same_bits(scales, s2) && block_rows == r2 && block_cols == c2,
            _ => false,
        }
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits())
}

/// One part of a runtime tensor.
#[derive(Debug, Clone)]
pub struct Part {
    /// Rows.
    pub rows: usize,
    /// Columns; 1 for vectors.
    pub cols: usize,
    /// The data.
    pub matrix: Matrix,
}

/// A whole model's weights, all of one refit.
pub struct WeightSet {
    version: u64,
    params: Vec<Vec<Part>>,
    /// Vectors (norms, biases) in f32, parts concatenated; `None` for matrices.
    vectors: Vec<Option<Tensor>>,
    activation: Arc<Activation>,
}

impl WeightSet {
    pub(crate) fn new(
        registry: &Registry,
        version: u64,
        params: Vec<Vec<Part>>,
        activation: Activation,
    ) -> Result<Self> {
        let mut vectors = Vec::with_capacity(params.len());
        for (decl, parts) in registry.params().iter().zip(&params) {
            vectors.push(match decl.cols {
                Some(_) => None,
                None => {
                    let mut all = Vec::new();
                    for part in parts {
                        let mut values = vec![0.0; part.rows];
                        part.matrix.row(0, part.rows, &mut values);
                        let offset = if decl.plus_one { 1.0 } else { 0.0 };
                        all.extend(values.into_iter().map(|v| v + offset));
                    }
                    let len = all.len();
                    Some(Tensor::from_vec(all, len, &Device::Cpu)?)
                }
            });
        }
        Ok(Self { version, params, vectors, activation: Arc::new(activation) })
    }

    /// Counts publishes, from 1.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The parts of a runtime tensor: of each expert, in the order of the declaration.
    pub fn parts(&self, param: ParamId) -> &[Part] {
        &self.params[param]
    }

    pub(crate) fn vector(&self, param: ParamId) -> Result<&Tensor> {
        let missing = || candle_core::Error::Msg("a matrix was used as a vector".to_string());
        Ok(self.vectors[param].as_ref().ok_or_else(missing)?)
    }

    /// How activations are treated before an FP8 matrix.
    pub fn activation(&self) -> &Activation {
        &self.activation
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> usize {
        self.params.iter().flatten().map(|p| p.matrix.bytes()).sum()
    }

    /// The first runtime tensor that differs from `other` in any bit, with its part.
    pub fn first_difference(&self, other: &Self) -> Option<(ParamId, usize)> {
        for (id, (a, b)) in self.params.iter().zip(&other.params).enumerate() {
            if a.len() != b.len() {
                return Some((id, a.len().min(b.len())));
            }
            if let Some(part) = a.iter().zip(b).position(|(x, y)| !x.matrix.bit_equal(&y.matrix)) {
                return Some((id, part));
            }
        }
        None
    }
}
