//! Latent attention in its absorbed form (DeepSeek-V2, section 2.1.2). `kv_b_proj` expands a latent c to a key `U c` and a
//! value `V c` per head. Instead of expanding every cached position, `q . (U c)` is computed as `(U^T q) . c`, and the sum
//! of weighted values as V times the sum of weighted latents: then the cache holds latents only. What that takes is
//! derived when weights are published, `U^T` and V of each head, packed for the kernels.
//!
//! The weights are those of the checkpoint, exactly; FP8 becomes f32, code times scale. Their inputs are never quantized,
//! whatever the activations of other FP8 matrices are: vLLM dequantizes W_UK and W_UV as well.

use std::collections::HashMap;
use std::ops::Range;

use patchhost_kernels::linear::{Kind, PackedMatrix, ROWS};
use rayon::prelude::*;

use crate::pace::{breathe, piece};
use crate::registry::{Expansion, ParamId, Registry};
use crate::weights::{Matrix, Part};

/// What is derived from one `kv_b_proj`, per head.
pub(crate) struct Absorbed {
    /// `U^T`, [kv_rank, nope].
    pub(crate) keys: Vec<PackedMatrix>,
    /// V, [value, kv_rank].
    pub(crate) values: Vec<PackedMatrix>,
}

impl Absorbed {
    /// Of every latent layer, on all threads.
    pub(crate) fn all(registry: &Registry, params: &[Vec<Part>]) -> HashMap<ParamId, Self> {
        let one = |(param, e): &(ParamId, Expansion)| Some((*param, Self::new(e, params[*param].first()?)));
        registry.expansions().par_iter().filter_map(one).collect()
    }

    fn new(e: &Expansion, part: &Part) -> Self {
        let heads: Vec<_> = (0..e.heads).into_par_iter().map(|h| head(e, part, h)).collect();
        let (keys, values) = heads.into_iter().unzip();
        Self { keys, values }
    }
}

/// Rows that are transposed and packed at a time.
const PACKED_ROWS: usize = 4 * ROWS;

fn head(e: &Expansion, part: &Part, h: usize) -> (PackedMatrix, PackedMatrix) {
    let (rows, rank) = (e.rows(h), part.cols);
    let widened;
    let (kind, bytes) = match part.matrix.plain() {
        Some((kind, bytes)) if kind != Kind::Fp8 => {
            let stride = rank * kind.size();
            (kind, &bytes[rows.start * stride..rows.end * stride])
        }
        _ => {
            widened = widen(&part.matrix, rows, rank);
            (Kind::F32, patchhost_kernels::bytes_of_f32(&widened))
        }
    };
    let (up, down) = bytes.split_at(e.nope * rank * kind.size());
    let mut keys = PackedMatrix::zeroed(kind, rank, e.nope, None);
    let mut turned = Vec::new();
    for first in (0..rank).step_by(PACKED_ROWS) {
        let columns = first..(first + PACKED_ROWS).min(rank);
        piece(|| {
            match kind.size() {
                2 => transpose::<2>(up, rank, columns, &mut turned),
                _ => transpose::<4>(up, rank, columns, &mut turned),
            }
            keys.pack_rows(first, &turned);
        });
    }
    let mut values = PackedMatrix::zeroed(kind, e.value, rank, None);
    values.fill(down, breathe);
    (keys, values)
}

/// Rows in f32.
fn widen(matrix: &Matrix, rows: Range<usize>, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows.len() * cols];
    for (row, out) in rows.zip(out.chunks_exact_mut(cols.max(1))) {
        piece(|| matrix.row(row, cols, out));
    }
    out
}

/// Some columns of a row-major matrix of values of SIZE bytes, as rows.
fn transpose<const SIZE: usize>(from: &[u8], cols: usize, columns: Range<usize>, out: &mut Vec<u8>) {
    let from = from.as_chunks::<SIZE>().0;
    let rows = from.len() / cols;
    out.resize(columns.len() * rows * SIZE, 0);
    let to = out.as_chunks_mut::<SIZE>().0;
    for (r, row) in from.chunks_exact(cols).enumerate() {
        for (c, value) in row[columns.clone()].iter().enumerate() {
            to[c * rows + r] = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use patchhost_kernels::linear::ScaleOrder;

    /// Every matrix holds the values of its rows, whatever they are stored as.
    #[test]
    fn the_values_are_those_of_the_rows() {
        let e = Expansion { heads: 3, nope: 5, value: 18 };
        let (rows, rank) = (e.heads * (e.nope + e.value), 150);
        let number = |i: usize| ((i * 7919) % 1009) as f32 / 64.0 - 7.0;
        let floats: Vec<f32> = (0..rows * rank).map(number).collect();
        let halves: Vec<u16> = floats.iter().map(|v| bf16::from_f32(*v).to_bits()).collect();
        let q: Vec<u8> = floats.iter().map(|v| patchhost_kernels::e4m3::encode(*v)).collect();
        let order = ScaleOrder::RowMajor;
        let scales = (0..rows.div_ceil(16) * rank.div_ceil(128)).map(|i| 0.3 + i as f32).collect();
        let kinds = [
            (Kind::F32, Matrix::F32(floats)),
            (Kind::Bf16, Matrix::Bf16(halves)),
            (Kind::F32, Matrix::Fp8 { q: q.into(), scales, order, block_rows: 16, block_cols: 128 }),
        ];
        for (kind, matrix) in kinds {
            let part = Part { rows, cols: rank, matrix };
            let absorbed = Absorbed::new(&e, &part);
            assert_eq!((absorbed.keys.len(), absorbed.values.len()), (3, 3));
            for h in 0..e.heads {
                let (keys, values) = (&absorbed.keys[h], &absorbed.values[h]);
                assert_eq!((keys.kind(), keys.n(), keys.k()), (kind, rank, e.nope));
                assert_eq!((values.kind(), values.n(), values.k()), (kind, e.value, rank));
                let (mut row, mut turned, mut plain) = (vec![0.0; rank], vec![0.0; e.nope], vec![0.0; rank]);
                for (i, at) in e.rows(h).enumerate() {
                    part.matrix.row(at, rank, &mut row);
                    if i >= e.nope {
                        values.row(i - e.nope, &mut plain);
                        assert_eq!(row, plain);
                        continue;
                    }
                    for (c, value) in row.iter().enumerate() {
                        keys.row(c, &mut turned);
                        assert_eq!(turned[i], *value);
                    }
                }
            }
        }
    }
}
