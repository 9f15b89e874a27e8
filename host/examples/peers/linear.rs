//! y = x * w^T in block FP8 or bf16, and the read bandwidth. Models are larger than any cache: many copies of the weights in
//! turn, so that each comes from memory.

use std::hint::black_box;
use std::time::Instant;

use anyhow::bail;
use patchhost_kernels::linear::{MatrixView, PackedMatrix, Product, ScaleOrder, multiply};
use patchhost_kernels::pages::prefer_large;
use patchhost_kernels::team::Team;
use rayon::prelude::*;
use serde_json::{Value, json};

const BLOCK: usize = 128;

/// What is kept from job to job: packed copies of the last weights, and the buffer that is read.
#[derive(Default)]
pub struct Work {
    copies: Vec<PackedMatrix>,
    bf16: bool,
    words: Vec<u64>,
    large: bool,
}

impl Work {
    /// One job: see `main`.
    pub fn run(&mut self, job: &Value) -> anyhow::Result<Value> {
        let (repeats, bytes) = (super::number(job, "repeats")?, super::number(job, "bytes")?);
        if job["read"] == true {
            return self.read(job, bytes, repeats);
        }
        let (m, k, n) = (super::number(job, "m")?, super::number(job, "k")?, super::number(job, "n")?);
        let bf16 = match job["weights"].as_str() {
            None | Some("fp8") => false,
            Some("bf16") => true,
            Some(other) => bail!("`weights` is `{other}`, and must be `fp8` or `bf16`"),
        };
        let copies = bytes.div_ceil(n * k * if bf16 { 2 } else { 1 });
        let same = self.copies.first().is_some_and(|w| (w.n(), w.k()) == (n, k)) && self.bf16 == bf16;
        // More copies than a job asks for do no harm: it goes through the first of them.
        if !same || self.copies.len() < copies {
            self.copies.clear();
            let one = if bf16 { packed_bf16(n, k) } else { packed(n, k) };
            (self.copies, self.bf16) = (vec![one; copies], bf16);
        }
        multiply_all(&self.copies[..copies], m, repeats)
    }

    /// Reads as many bytes, on small pages or on the large ones that packed weights ask for.
    fn read(&mut self, job: &Value, bytes: usize, repeats: usize) -> anyhow::Result<Value> {
        let large = match job["pages"].as_str() {
            None | Some("small") => false,
            Some("large") => true,
            Some(other) => bail!("`pages` is `{other}`, and must be `small` or `large`"),
        };
        if self.words.len() != bytes / 8 || self.large != large {
            self.words = Vec::with_capacity(bytes / 8);
            if large {
                prefer_large(self.words.spare_capacity_mut());
            }
            self.words.resize(bytes / 8, 1);
            self.large = large;
        }
        let words = &self.words;
        let mut made = super::timed(repeats, || {
            let each = words.len().div_ceil(rayon::current_num_threads());
            black_box(words.par_chunks(each).map(sum).sum::<u64>());
            Ok(())
        })?;
        made["bytes"] = json!(bytes);
        made["large_pages"] = json!(large_pages());
        Ok(made)
    }
}

/// Bytes of this process that lie on large pages; none where the system does not say.
fn large_pages() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = text.lines().find(|line| line.starts_with("AnonHugePages:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
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

/// Weights that look like a model's, cut to bf16.
fn packed_bf16(n: usize, k: usize) -> PackedMatrix {
    let data: Vec<u16> = super::normal(n * k, 0.02).map(|w| (w.to_bits() >> 16) as u16).collect();
    PackedMatrix::new(MatrixView::Bf16 { data: &data }, n, k)
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
    let bytes = copies.first().map_or(0, PackedMatrix::bytes);
    Ok(json!({ "seconds": seconds, "bytes": bytes, "large_pages": large_pages() }))
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
