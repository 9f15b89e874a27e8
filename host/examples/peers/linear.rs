//! y = x * w^T in block FP8, and the read bandwidth. Models are larger than any cache: many copies of the weights in
//! turn, so that each comes from memory.

use std::hint::black_box;
use std::time::Instant;

use patchhost_kernels::linear::{MatrixView, ScaleOrder, linear};
use rayon::prelude::*;
use serde_json::{Value, json};

const BLOCK: usize = 128;

/// Codes of the weights, kept from job to job.
#[derive(Default)]
pub struct Work {
    codes: Vec<u8>,
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
        if self.codes.len() < copies * n * k {
            self.codes = codes(copies * n * k);
        }
        multiply(&self.codes[..copies * n * k], m, k, n, repeats)
    }
}

/// Every code but the two NaNs, in an order without a pattern.
fn codes(count: usize) -> Vec<u8> {
    let code = |i: usize| {
        let code = ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        if code & 0x7f == 0x7f { code ^ 1 } else { code }
    };
    (0..count).into_par_iter().map(code).collect()
}

fn multiply(q: &[u8], m: usize, k: usize, n: usize, repeats: usize) -> anyhow::Result<Value> {
    let copies = q.len() / (n * k);
    let scales: Vec<f32> = super::normal((n / BLOCK) * (k / BLOCK), 1.0).map(|s| s.abs() * 1e-3 + 1e-4).collect();
    let x: Vec<f32> = super::normal(m * k, 1.0).collect();
    let mut out = vec![0.0; m * n];
    let mut seconds = Vec::new();
    for round in 0..repeats + 1 {
        let started = Instant::now();
        for q in q.chunks_exact(n * k) {
            let order = ScaleOrder::RowMajor;
            let w = MatrixView::Fp8Block { q, scales: &scales, order, block_rows: BLOCK, block_cols: BLOCK };
            linear(&x, m, k, w, n, None, &mut out, n);
        }
        black_box(&out);
        if round > 0 {
            seconds.push(started.elapsed().as_secs_f64() / copies as f64);
        }
    }
    Ok(json!({ "seconds": seconds, "bytes": n * k + scales.len() * 4 }))
}

fn read(bytes: usize, repeats: usize) -> anyhow::Result<Value> {
    let words = vec![1u64; bytes / 8];
    let mut made = super::timed(repeats, || {
        black_box(words.par_chunks(1 << 16).map(sum).sum::<u64>());
        Ok(())
    })?;
    made["bytes"] = json!(bytes);
    Ok(made)
}

/// Several sums at once, so that the additions do not wait for each other.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    for chunk in words.as_chunks::<32>().0 {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}
