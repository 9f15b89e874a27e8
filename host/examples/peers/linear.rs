//! y = x * w^T in block FP8, and the read bandwidth. Models are larger than any cache: many copies of the weights in
//! turn, so that each comes from memory.

use std::hint::black_box;
use std::time::Instant;

use patchhost_kernels::linear::{MatrixView, PackedMatrix, Product, ScaleOrder, multiply};
use patchhost_kernels::team::Team;
use rayon::prelude::*;
use serde_json::{Value, json};

const BLOCK: usize = 128;

/// Packed copies of the last weights, kept from job to job.
#[derive(Default)]
pub struct Work {
    copies: Vec<PackedMatrix>,
}

impl Work {
    /// One job: see `main`.
    pub fn run(&mut self, job: &Value) -> anyhow::Result<Value> {
        let (repeats, bytes) = (super::number(job, "repeats")?, super::number(job, "bytes")?);
        if job["read"] == true {
            return read(bytes, repeats);
        }
        let (m, k, n) = (super::number(job, "m")?, super::number(job, "k")?, super::number(job, "n")?);
        let copies = bytes.div_ceil(n * k);
        if self.copies.len() != copies || self.copies.first().is_none_or(|w| (w.n(), w.k()) != (n, k)) {
            self.copies.clear();
            let one = packed(n, k);
            self.copies = vec![one; copies];
        }
        multiply_all(&self.copies, m, repeats)
    }
}

/// Every code but the two NaNs, in an order without a pattern, with random scales.
fn packed(n: usize, k: usize) -> PackedMatrix {
    let code = |i: usize| {
        let code = ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        if code & 0x7f == 0x7f { code ^ 1 } else { code }
    };
    let q: Vec<u8> = (0..n * k).into_par_iter().map(code).collect();
    let grid = n.div_ceil(BLOCK) * k.div_ceil(BLOCK);
    let scales: Vec<f32> = super::normal(grid, 1.0).map(|s| s.abs() * 1e-3 + 1e-4).collect();
    let order = ScaleOrder::RowMajor;
    let view = MatrixView::Fp8Block { q: &q, scales: &scales, order, block_rows: BLOCK, block_cols: BLOCK };
    PackedMatrix::new(view, n, k)
}

fn multiply_all(copies: &[PackedMatrix], m: usize, repeats: usize) -> anyhow::Result<Value> {
    let (n, k) = copies.first().map_or((0, 0), |w| (w.n(), w.k()));
    let x: Vec<f32> = super::normal(m * k, 1.0).collect();
    let mut out = vec![0.0; m * n];
    let mut seconds = Vec::new();
    for round in 0..repeats + 1 {
        let started = Instant::now();
        for w in copies {
            let (parts, out) = (std::slice::from_ref(w), &mut out[..]);
            multiply(Team::global(), &mut [Product { x: &x, x_fp8: None, m, parts, bias: None, out, ldo: n }]);
        }
        black_box(&out);
        if round > 0 {
            seconds.push(started.elapsed().as_secs_f64() / copies.len() as f64);
        }
    }
    Ok(json!({ "seconds": seconds, "bytes": copies.first().map_or(0, PackedMatrix::bytes) }))
}

fn read(bytes: usize, repeats: usize) -> anyhow::Result<Value> {
    let words = vec![1u64; bytes / 8];
    let mut made = super::timed(repeats, || {
        let each = words.len().div_ceil(rayon::current_num_threads());
        black_box(words.par_chunks(each).map(sum).sum::<u64>());
        Ok(())
    })?;
    made["bytes"] = json!(bytes);
    Ok(made)
}

/// Four streams, as the products read: one alone does not reach what the memory gives. Several sums at once, so that the
/// additions do not wait for each other.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [[0u64; 8]; 4];
    let quarter = words.len() / 4;
    for at in (0..quarter / 8 * 8).step_by(8) {
        for (stream, sums) in sums.iter_mut().enumerate() {
            for (sum, word) in sums.iter_mut().zip(&words[stream * quarter + at..][..8]) {
                *sum = sum.wrapping_add(*word);
            }
        }
    }
    sums.iter().flatten().fold(0, |all, sum| all.wrapping_add(*sum))
}
