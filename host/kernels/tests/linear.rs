//! `linear` and `dot`: against f64, against the literal definition, and their invariances.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bits, cases, gauss_vec, rng};
use patchhost_kernels::dot::dot;
use patchhost_kernels::e4m3::DECODE;
use patchhost_kernels::isa::Isa;
use patchhost_kernels::linear::{
    Kind, MatrixView, PackedMatrix, Product, ScaleOrder, Scales, linear, linear_with, multiply, multiply_with,
};
use patchhost_kernels::team::Team;
use rand::Rng;

/// Weights in one of the stored forms, and as f32.
struct Weights {
    f32s: Vec<f32>,
    u16s: Vec<u16>,
    q: Vec<u8>,
    scales: Vec<f32>,
    kind: usize,
    block: (usize, usize),
}

impl Weights {
    fn random(rng: &mut rand::rngs::StdRng, kind: usize, n: usize, k: usize, block: (usize, usize)) -> Self {
        let mut w = Weights { f32s: gauss_vec(rng, n * k, 1.0), u16s: vec![], q: vec![], scales: vec![], kind, block };
        match kind {
            0 => {}
            1 => {
                w.u16s = w.f32s.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
                w.f32s = w.u16s.iter().map(|b| half::bf16::from_bits(*b).to_f32()).collect();
            }
            2 => {
                w.u16s = w.f32s.iter().map(|x| half::f16::from_f32(*x).to_bits()).collect();
                w.f32s = w.u16s.iter().map(|b| half::f16::from_bits(*b).to_f32()).collect();
            }
            _ => {
                // All codes but NaN: subnormals, both zeros.
                w.q = (0..n * k).map(|_| rng.random::<u8>()).map(|q| if q & 0x7f == 0x7f { 0 } else { q }).collect();
                let grid = k.div_ceil(block.1);
                // Scales over the whole range, now and then one whose 256-fold overflows (then outputs stay small
                // because x is scaled by the caller only in f64 checks, so those are left out there).
                w.scales = (0..n.div_ceil(block.0) * grid).map(|_| 2f32.powf(rng.random_range(-9.0..-3.0))).collect();
                w.f32s = (0..n * k)
                    .map(|i| DECODE[w.q[i] as usize] * w.scales[i / k / block.0 * grid + i % k / block.1])
                    .collect();
            }
        }
        w
    }

    fn view(&self) -> MatrixView<'_> {
        match self.kind {
            0 => MatrixView::F32 { data: &self.f32s },
            1 => MatrixView::Bf16 { data: &self.u16s },
            2 => MatrixView::F16 { data: &self.u16s },
            _ => {
                let (block_rows, block_cols) = self.block;
                MatrixView::Fp8Block {
                    q: &self.q,
                    scales: &self.scales,
                    order: ScaleOrder::RowMajor,
                    block_rows,
                    block_cols,
                }
            }
        }
    }
}

/// The definition, word for word: `kind` and `block` as in `Weights`.
fn by_definition(x: &[f32], w: &Weights, j: usize) -> f32 {
    let k = x.len();
    let cols = if w.kind == 3 { w.block.1 } else { 128 };
    let mut total = 0f32;
    for (b, start) in (0..k).step_by(cols).enumerate() {
        let mut sum = 0f32;
        for c in start..(start + cols).min(k) {
            sum = match w.kind {
                3 => {
                    let x = x[c] * 2f32.powi(-72) * 2f32.powi(112);
                    x.mul_add(DECODE[w.q[j * k + c] as usize] * 2f32.powi(-120), sum)
                }
                _ => x[c].mul_add(w.f32s[j * k + c], sum),
            };
        }
        total = match w.kind {
            3 => (sum * 2f32.powi(40)).mul_add(w.scales[j / w.block.0 * k.div_ceil(w.block.1) + b], total),
            _ => total + sum,
        };
    }
    if w.kind == 3 { total * 2f32.powi(40) } else { total }
}

fn lanes_by_definition(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for (c, (a, b)) in a.iter().zip(b).enumerate() {
        lanes[c % 16] = a.mul_add(*b, lanes[c % 16]);
    }
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
    }
    lanes[0]
}

#[test]
fn every_path_is_the_definition_bit_for_bit() {
    let mut rng = rng(1);
    let team = Team::new(2);
    for case in 0..cases(160) {
        let m = if case % 4 == 0 { rng.random_range(13..=40) } else { rng.random_range(1..=18) };
        let n = rng.random_range(1..=70);
        let k = if case % 5 == 0 { rng.random_range(1000..2600) } else { rng.random_range(0..=300) };
        let block = [(128, 128), (16, 48), (7, 13), (1, 16), (64, 4096), (3, 1)][case % 6];
        let w = Weights::random(&mut rng, case % 4, n, k, block);
        let mut x = gauss_vec(&mut rng, m * k, 1.0);
        if case % 8 == 7 {
            // The ends of the range: what underflows and overflows does so alike everywhere.
            x.iter_mut().for_each(|x| *x *= 2f32.powi(rng.random_range(-149..127)));
        }
        let bias = (case % 3 == 0).then(|| gauss_vec(&mut rng, n, 1.0));
        let ldo = n + case % 4;
        let mut expected = vec![7.0; m * ldo];
        for i in 0..m {
            for j in 0..n {
                let sum = by_definition(&x[i * k..(i + 1) * k], &w, j);
                expected[i * ldo + j] = bias.as_ref().map_or(sum, |bias| sum + bias[j]);
            }
        }
        for isa in Isa::available() {
            let mut out = vec![7.0; m * ldo];
            linear_with(isa, &team, &x, m, k, w.view(), n, bias.as_deref(), &mut out, ldo);
            // NaN has many bits; else all must be the same. Also that the gap between rows is left alone.
            let plain = |x: &[f32]| x.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect::<Vec<_>>();
            assert_eq!(plain(&out), plain(&expected), "{isa:?} case {case}: m {m} n {n} k {k} block {block:?}");
        }
    }
}

#[test]
fn the_order_of_packing_changes_no_bit() {
    let (mut rng, team) = (rng(7), Team::new(1));
    for case in 0..cases(24) {
        let (m, n, k) = (rng.random_range(1..=18), rng.random_range(1..=40), rng.random_range(1..=200));
        let w = Weights::random(&mut rng, case % 4, n, k, [(128, 128), (7, 13), (16, 48)][case % 3]);
        let x = gauss_vec(&mut rng, m * k, 1.0);
        let mut expected = None;
        for packed in Isa::available() {
            let matrix = PackedMatrix::new_for(packed, w.view(), n, k);
            let mut bytes = Vec::new();
            matrix.unpack_rows(0, n, &mut bytes);
            assert_eq!(bytes, bytes_of(&w), "{packed:?} gives the rows back");
            for isa in Isa::available() {
                let mut out = vec![0.0; m * n];
                let parts = std::slice::from_ref(&matrix);
                multiply_with(
                    isa,
                    &team,
                    &mut [Product { x: &x, x_fp8: None, m, parts, bias: None, out: &mut out, ldo: n }],
                );
                let expected = expected.get_or_insert_with(|| bits(&out));
                assert_eq!(&bits(&out), expected, "packed for {packed:?}, multiplied by {isa:?}, case {case}");
            }
        }
    }
}

/// The rows as a checkpoint has them.
fn bytes_of(w: &Weights) -> Vec<u8> {
    match w.view() {
        MatrixView::F32 { data } => patchhost_kernels::bytes_of_f32(data).to_vec(),
        MatrixView::Bf16 { data } | MatrixView::F16 { data } => patchhost_kernels::bytes_of_u16(data).to_vec(),
        MatrixView::Fp8Block { q, .. } => q.to_vec(),
    }
}

#[test]
fn close_to_f64() {
    let mut rng = rng(2);
    for kind in 0..4 {
        let (m, n, k) = (5, 33, 1500);
        let w = Weights::random(&mut rng, kind, n, k, (32, 64));
        let x = gauss_vec(&mut rng, m * k, 1.0);
        let mut out = vec![0.0; m * n];
        linear(&x, m, k, w.view(), n, None, &mut out, n);
        for i in 0..m {
            for j in 0..n {
                let terms = || (0..k).map(|c| f64::from(x[i * k + c]) * f64::from(w.f32s[j * k + c]));
                let (exact, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                assert!((f64::from(out[i * n + j]) - exact).abs() < 1e-6 * size, "kind {kind}");
            }
        }
    }
}

#[test]
fn absurd_scales_stay_exact() {
    // The units of the sums must not make a scale overflow that the result does not.
    let q = vec![0x01u8; 32];
    let scales = [f32::MAX, 1.0];
    for isa in Isa::available() {
        for m in [1, 2] {
            let x = vec![1.0; 16 * m];
            let mut out = vec![0.0; 2 * m];
            let w = MatrixView::Fp8Block {
                q: &q,
                scales: &scales,
                order: ScaleOrder::RowMajor,
                block_rows: 1,
                block_cols: 16,
            };
            linear_with(isa, Team::global(), &x, m, 16, w, 2, None, &mut out, 2);
            assert_eq!(out[0], f32::MAX / 512.0 * 16.0);
            assert_eq!(out[1], 16.0 / 512.0);
        }
    }
}

#[test]
fn a_row_of_a_batch_is_the_row_alone_and_threads_change_nothing() {
    let mut rng = rng(3);
    let (m, n, k) = (19, 301, 777);
    for kind in 0..4 {
        let w = Weights::random(&mut rng, kind, n, k, (100, 128));
        let x = gauss_vec(&mut rng, m * k, 1.0);
        let run = |threads: usize, m: usize, x: &[f32]| {
            let mut out = vec![0.0; m * n];
            linear_with(Isa::detect(), &Team::new(threads), x, m, k, w.view(), n, None, &mut out, n);
            bits(&out)
        };
        let whole = run(1, m, &x);
        assert_eq!(whole, run(2, m, &x));
        assert_eq!(whole, run(3, m, &x));
        for i in 0..m {
            let row = &x[i * k..(i + 1) * k];
            assert_eq!(whole[i * n..(i + 1) * n], run(1 + i % 3, 1, row)[..], "row {i} kind {kind}");
        }
        for few in [2, 3, 6, 7, 12] {
            assert_eq!(whole[..few * n], run(2, few, &x[..few * k])[..]);
        }
    }
}

#[test]
fn dot_is_the_definition() {
    let mut rng = rng(4);
    for k in [0, 1, 15, 16, 17, 64, 100, 1000] {
        let (a, b) = (gauss_vec(&mut rng, k, 1.0), gauss_vec(&mut rng, k, 1.0));
        for isa in Isa::available() {
            assert_eq!(dot(isa, &a, &b).to_bits(), lanes_by_definition(&a, &b).to_bits(), "{isa:?} {k}");
        }
    }
}

/// Column-major scales with padded columns are only another order in memory: the same bits come out, for one row of x
/// and for many.
#[test]
fn column_major_scales_give_the_same_bits() {
    let mut rng = rng(31);
    for (n, k, block_rows, block_cols) in
        [(300usize, 384usize, 128, 128), (7, 50, 2, 9), (64, 64, 128, 128), (129, 257, 64, 16)]
    {
        let q: Vec<u8> = (0..n * k).map(|_| rng.random::<u8>() & 0x77).collect();
        let (grid_rows, grid_cols) = (n.div_ceil(block_rows), k.div_ceil(block_cols));
        let scales: Vec<f32> = (0..grid_rows * grid_cols).map(|_| rng.random_range(0.001..0.1)).collect();
        let order = ScaleOrder::aligned(grid_rows);
        let ScaleOrder::ColMajor { stride } = order else { unreachable!() };
        assert!(stride.is_multiple_of(4) && stride >= grid_rows && stride < grid_rows + 4);
        let mut turned = vec![f32::NAN; order.len(grid_rows, grid_cols)];
        for (i, s) in scales.iter().enumerate() {
            turned[i % grid_cols * stride + i / grid_cols] = *s;
        }
        // What lies in the padding is not read.
        turned.iter_mut().filter(|s| s.is_nan()).for_each(|s| *s = 1e30);
        for m in [1, 3, 17] {
            let x = gauss_vec(&mut rng, m * k, 1.0);
            let run = |scales: &[f32], order| {
                let w = MatrixView::Fp8Block { q: &q, scales, order, block_rows, block_cols };
                let mut out = vec![0.0; m * n];
                linear(&x, m, k, w, n, None, &mut out, n);
                bits(&out)
            };
            assert_eq!(run(&scales, ScaleOrder::RowMajor), run(&turned, order), "{n}x{k}, m = {m}");
        }
    }
}

/// What a checkpoint's rows are packed from comes back byte for byte, filled at once or sixteen rows at a time.
#[test]
fn packing_is_a_permutation() {
    let mut rng = rng(5);
    for case in 0..cases(60) {
        let (n, k) = (rng.random_range(1..70), if case % 7 == 0 { 0 } else { rng.random_range(1..300) });
        let block = [(128, 128), (16, 48), (7, 13), (1, 16), (64, 4096), (3, 1)][case % 6];
        let w = Weights::random(&mut rng, case % 4, n, k, block);
        let bytes: Vec<u8> = match w.kind {
            0 => w.f32s.iter().flat_map(|v| v.to_le_bytes()).collect(),
            3 => w.q.clone(),
            _ => w.u16s.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        let packed = PackedMatrix::new(w.view(), n, k);
        let (mut back, mut row) = (Vec::new(), vec![0.0; k]);
        let half = n / 2;
        packed.unpack_rows(0, half, &mut back);
        packed.unpack_rows(half, n - half, &mut back);
        assert!(back == bytes, "case {case}: {n} x {k}");
        for r in 0..n {
            packed.row(r, &mut row);
            assert_eq!(bits(&row), bits(&w.f32s[r * k..(r + 1) * k]));
        }
        let scales = packed.scales().map(|s| Scales { ..s.clone() });
        let mut piecewise = PackedMatrix::zeroed(packed.kind(), n, k, scales);
        let stride = k * packed.kind().size();
        for first in (0..n).step_by(16).rev() {
            piecewise.pack_rows(first, &bytes[first * stride..(first + 16).min(n) * stride]);
        }
        assert!(piecewise.bit_equal(&packed));
        let scales = packed.scales().map(|s| Scales { ..s.clone() });
        let mut at_once = PackedMatrix::zeroed(packed.kind(), n, k, scales);
        let runs = std::sync::atomic::AtomicUsize::new(0);
        at_once.fill(&bytes, || {
            runs.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(at_once.bit_equal(&packed) && runs.into_inner() == if k > 0 { n.div_ceil(64) } else { 0 });
        if let Some(byte) = bytes.first() {
            let mut other = bytes.clone();
            other[0] = byte ^ 1;
            piecewise.pack_rows(0, &other[..16.min(n) * stride]);
            assert!(!piecewise.bit_equal(&packed));
        }
    }
    assert_eq!(Kind::Fp8.size(), 1);
}

/// Several products in one call, with stacked parts of several kinds, a bias, two forms of x: each as if alone.
#[test]
fn products_together_are_products_alone() {
    let mut rng = rng(6);
    for m in [1, 3, 20] {
        let k = 200;
        let parts: Vec<Weights> =
            (0..4).map(|kind| Weights::random(&mut rng, kind, 10 + 17 * kind, k, (16, 64))).collect();
        let sizes: Vec<usize> = (0..4).map(|kind| 10 + 17 * kind).collect();
        let packed: Vec<PackedMatrix> =
            parts.iter().zip(&sizes).map(|(w, n)| PackedMatrix::new(w.view(), *n, k)).collect();
        let n: usize = sizes.iter().sum();
        let bias = gauss_vec(&mut rng, n, 1.0);
        let xs: Vec<Vec<f32>> = (0..6).map(|_| gauss_vec(&mut rng, m * k, 1.0)).collect();
        let mut outs = vec![vec![0.0; m * n]; 3];
        let mut products: Vec<Product<'_, PackedMatrix>> = outs
            .iter_mut()
            .enumerate()
            .map(|(i, out)| Product {
                x: &xs[2 * i],
                x_fp8: (i > 0).then_some(&xs[2 * i + 1][..]),
                m,
                parts: &packed,
                bias: (i < 2).then_some(&bias[..]),
                out,
                ldo: n,
            })
            .collect();
        multiply(&Team::new(3), &mut products);
        for (i, out) in outs.iter().enumerate() {
            let mut first = 0;
            for (w, rows) in parts.iter().zip(&sizes) {
                let x = if w.kind == 3 && i > 0 { &xs[2 * i + 1] } else { &xs[2 * i] };
                let mut alone = vec![0.0; m * rows];
                let bias = (i < 2).then_some(&bias[first..first + rows]);
                linear(x, m, k, w.view(), *rows, bias, &mut alone, *rows);
                for r in 0..m {
                    assert_eq!(bits(&out[r * n + first..][..*rows]), bits(&alone[r * rows..][..*rows]), "m {m} i {i}");
                }
                first += rows;
            }
        }
    }
}
