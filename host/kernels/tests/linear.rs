//! `linear` and `dot`: against f64, against the literal definition, and their invariances.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bits, gauss_vec, rng};
use patchhost_kernels::e4m3::DECODE;
use patchhost_kernels::isa::Isa;
use patchhost_kernels::linear::{MatrixView, ScaleOrder, dot, linear, linear_with};
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

/// The definition, word for word.
fn by_definition(x: &[f32], w: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for (c, (x, w)) in x.iter().zip(w).enumerate() {
        lanes[c % 16] = x.mul_add(*w, lanes[c % 16]);
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
    for case in 0..160 {
        let m = rng.random_range(1..=14);
        let n = rng.random_range(1..=70);
        let k = if case % 5 == 0 { rng.random_range(1000..2600) } else { rng.random_range(0..=300) };
        let block = [(128, 128), (16, 48), (7, 13), (1, 16), (64, 4096), (3, 1)][case % 6];
        let w = Weights::random(&mut rng, case % 4, n, k, block);
        let x = gauss_vec(&mut rng, m * k, 1.0);
        let bias = (case % 3 == 0).then(|| gauss_vec(&mut rng, n, 1.0));
        let ldo = n + case % 4;
        let mut expected = vec![7.0; m * ldo];
        for i in 0..m {
            for j in 0..n {
                let sum = by_definition(&x[i * k..(i + 1) * k], &w.f32s[j * k..(j + 1) * k]);
                expected[i * ldo + j] = bias.as_ref().map_or(sum, |bias| sum + bias[j]);
            }
        }
        for isa in Isa::available() {
            let mut out = vec![7.0; m * ldo];
            linear_with(isa, &x, m, k, w.view(), n, bias.as_deref(), &mut out, ldo);
            // Also that the gap between rows is left alone.
            assert_eq!(bits(&out), bits(&expected), "{isa:?} case {case}: m {m} n {n} k {k} block {block:?}");
        }
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
    // 256 * scale overflows: the fused decoding must not be used.
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
            linear_with(isa, &x, m, 16, w, 2, None, &mut out, 2);
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
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![0.0; m * n];
            pool.install(|| linear(x, m, k, w.view(), n, None, &mut out, n));
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
            assert_eq!(dot(isa, &a, &b).to_bits(), by_definition(&a, &b).to_bits(), "{isa:?} {k}");
        }
    }
}

/// Column-major scales with padded columns are only another order in memory: the same bits come out, with fused decoding
/// and without, for one row of x and for many.
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
