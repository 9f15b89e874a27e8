//! Panel statistics and sources: against plain loops, and equal on all paths.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bits, cases, gauss_vec, rng, to_bytes};
use patchhost_kernels::cast::{Measure, cast_panel_with};
use patchhost_kernels::isa::Isa;
use patchhost_kernels::profile::Profile;
use patchhost_kernels::source::Source;
use patchhost_kernels::spec::{Edges, Elem, ScaleFormat};
use patchhost_kernels::stats::{StatsOptions, panel_stats, panel_stats_with};
use patchhost_kernels::{KernelError, cast::CastReport};
use proptest::prelude::*;

const ELEMS: [Elem; 3] = [Elem::F32, Elem::F16, Elem::Bf16];

fn widen(x: f32, elem: Elem, round: bool) -> f32 {
    let x = match elem {
        Elem::F32 => x,
        Elem::F16 => half::f16::from_f32(x).to_f32(),
        Elem::Bf16 => half::bf16::from_f32(x).to_f32(),
    };
    if round { half::bf16::from_f32(x).to_f32() } else { x }
}

/// The documented definition, element by element.
fn reference(x: &[f32], cols: usize, rows: std::ops::Range<usize>, block: usize, ignore: bool) -> (Vec<f32>, Vec<f32>) {
    let mut amax = vec![];
    let mut sums = vec![];
    for left in (0..cols).step_by(block) {
        let (mut max, mut lanes) = (0f32, [0f32; 16]);
        for r in rows.clone() {
            for c in left..(left + block).min(cols) {
                let x = x[r * cols + c];
                if x.is_nan() && ignore {
                    continue;
                }
                max = if x.is_nan() || max.is_nan() { f32::NAN } else { max.max(x.abs()) };
                let lane = &mut lanes[(c - left) % 16];
                *lane = x.mul_add(x, *lane);
            }
        }
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] += lanes[l + half];
            }
        }
        amax.push(max);
        sums.push(if lanes[0].is_nan() { f32::NAN } else { lanes[0] });
    }
    (amax, sums)
}

fn check(
    x: &[f32],
    elem: Elem,
    rows: usize,
    cols: usize,
    first: usize,
    count: usize,
    block: usize,
    opts: StatsOptions,
) {
    let bytes: Vec<u8> = std::iter::once(9).chain(to_bytes(x, elem)).collect();
    let src = Source::new(&bytes[1..], elem, rows, cols).unwrap();
    let wide: Vec<f32> = x.iter().map(|x| widen(*x, elem, opts.round_bf16)).collect();
    let (amax, sums) = reference(&wide, cols, first..first + count, block, opts.ignore_nan);
    let mut nonfinite = (first * cols..(first + count) * cols).filter(|i| !wide[*i].is_finite());
    let all = nonfinite.clone().count() as u64;
    let nonfinite = nonfinite.next();
    for isa in Isa::available() {
        let got = panel_stats_with(isa, &src, first, count, block, &opts);
        assert_eq!(bits(&got.amax), bits(&amax), "{isa:?} {elem:?}");
        assert_eq!(got.first_nonfinite, nonfinite.map(|i| (i / cols, i % cols)), "{isa:?}");
        assert_eq!(got.nonfinite, all, "{isa:?}");
        assert_eq!(bits(&got.sum_squares), if opts.moments { bits(&sums) } else { vec![] }, "{isa:?} {elem:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(300) as u32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn stats_are_the_plain_loops(
        seed: u64, elem in 0usize..3, rows in 1usize..40, cols in 1usize..300, block in 1usize..310,
        from in 0usize..40, specials in 0usize..4, moments: bool, round_bf16: bool, ignore_nan: bool,
    ) {
        let mut rng = rng(seed);
        let mut x = gauss_vec(&mut rng, rows * cols, 10.0);
        for i in 0..specials {
            use rand::Rng;
            let at = rng.random_range(0..x.len());
            x[at] = [f32::NAN, f32::NEG_INFINITY, -f32::NAN, f32::MAX, 1e-40][(i + at) % 5];
        }
        let first = from % rows;
        check(&x, ELEMS[elem], rows, cols, first, rows - first, block, StatsOptions { moments, round_bf16, ignore_nan });
    }

    /// Bytes, scales and counts of the cast do not depend on the instructions, whatever the bits.
    #[test]
    fn casts_are_equal_on_all_paths(
        seed: u64, elem in 0usize..3, rows in 1usize..20, cols in 1usize..300, block in 1usize..310,
        profile in 0usize..7, ue8m0: bool, ignore: bool, round_bf16: bool, measure in 0usize..3,
    ) {
        use rand::Rng;
        let mut rng = rng(seed);
        let bytes: Vec<u8> = (0..rows * cols * ELEMS[elem].size()).map(|_| rng.random()).collect();
        let src = Source::new(&bytes, ELEMS[elem], rows, cols).unwrap();
        let edges = if ignore { Edges::IgnoreNan } else { Edges::PropagateNan };
        let format = if ue8m0 { ScaleFormat::Ue8m0 } else { ScaleFormat::F32 };
        let profile = Profile::ALL[profile];
        let mut spec = profile.cast_spec(format, edges);
        spec.round_bf16 = round_bf16;
        let opts = StatsOptions { moments: false, round_bf16, ignore_nan: ignore };
        let amax = panel_stats(&src, 0, rows, block, &opts).amax;
        let given: Vec<f32> = amax.iter().map(|a| profile.given(format, edges, *a)).collect();
        let measured = [Measure::Nothing, Measure::Sample, Measure::All][measure];
        let mut results: Vec<(Vec<u8>, Vec<u32>, CastReport)> = vec![];
        for isa in Isa::available() {
            let (mut q, mut scales) = (vec![0; rows * cols], vec![0.0; given.len()]);
            let report = cast_panel_with(isa, &src, 0, rows, block, &given, &amax, &spec, measured, &mut q, &mut scales);
            results.push((q, bits(&scales), report.unwrap()));
        }
        for other in &results[1..] {
            prop_assert_eq!(other, &results[0]);
        }
    }
}

#[test]
fn shapes_at_the_edge() {
    let opts = StatsOptions { moments: true, ..Default::default() };
    for elem in ELEMS {
        for (rows, cols) in [(0, 5), (5, 0), (1, 1), (1, 4097), (4097, 1), (300, 130)] {
            let x: Vec<f32> = (0..rows * cols).map(|i| (i as f32).sin()).collect();
            for block in [1, 16, 128, 4096, usize::MAX] {
                check(&x, elem, rows, cols, 0, rows, block.min(1 << 40), opts);
            }
        }
    }
}

#[test]
fn rows_are_widened_and_rounded_exactly() {
    // All 2^16 patterns of both 16-bit formats, and floats around rounding midpoints.
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let bytes: Vec<u8> = all.iter().flat_map(|b| b.to_le_bytes()).collect();
    let mut out = vec![0.0; 65536];
    let mut out16 = vec![0u16; 65536];
    for elem in [Elem::F16, Elem::Bf16] {
        let src = Source::new(&bytes, elem, 1, 65536).unwrap();
        for round in [false, true] {
            src.row_f32(0, round, &mut out);
            for (b, out) in all.iter().zip(&out) {
                let x = if elem == Elem::F16 {
                    half::f16::from_bits(*b).to_f32()
                } else {
                    half::bf16::from_bits(*b).to_f32()
                };
                let x = if round { half::bf16::from_f32(x).to_f32() } else { x };
                assert!(x.to_bits() == out.to_bits() || (x.is_nan() && out.is_nan()), "{elem:?} {b:#x}");
            }
        }
    }
    let floats: Vec<f32> = (0..65537u32).map(|i| f32::from_bits(i.wrapping_mul(65521).wrapping_add(0x8000))).collect();
    let bytes = to_bytes(&floats, Elem::F32);
    let src = Source::new(&bytes[..4 * 65536], Elem::F32, 1, 65536).unwrap();
    src.row_bf16(0, &mut out16);
    src.row_f32(0, true, &mut out);
    for ((x, b), wide) in floats.iter().zip(&out16).zip(&out) {
        let expected = half::bf16::from_f32(*x);
        assert!(expected.to_bits() == *b || (x.is_nan() && half::bf16::from_bits(*b).is_nan()));
        assert_eq!(wide.to_bits(), u32::from(*b) << 16);
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let e = Source::new(&[0; 7], Elem::Bf16, 2, 2).unwrap_err();
    assert_eq!(e.to_string(), "a 2x2 matrix of Bf16 has 8 bytes, not 7");
    let e = Source::new(&[], Elem::F32, usize::MAX, 2).unwrap_err();
    assert_eq!(e, KernelError::Overflow { rows: usize::MAX, cols: 2, elem: Elem::F32 });
    assert_eq!("hf".parse::<Profile>().unwrap(), Profile::Hf);
    assert!("nope".parse::<Profile>().unwrap_err().to_string().contains("verl-torch"));
}
