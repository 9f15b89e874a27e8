//! The cast of bfloat16 by steps, and strips of panels, against the definition.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bits, cases, gauss_vec, rng, to_bytes};
use patchhost_kernels::cast::{CastReport, ContractViolation, Measure, cast_panel_with};
use patchhost_kernels::e4m3;
use patchhost_kernels::isa::Isa;
use patchhost_kernels::panel::{PanelSpec, StripAt, quantize_panels_with};
use patchhost_kernels::profile::Profile;
use patchhost_kernels::source::Source;
use patchhost_kernels::spec::{CastRule, CastSpec, Contract, Edges, Elem, Floor, ScaleFormat};
use patchhost_kernels::stats::{PanelStats, StatsOptions, panel_stats_with};
use rand::Rng;

/// Codes, saturated and flushed values, one by one.
fn reference(x: &[u16], factor: f32, divide: bool, nan: u8) -> (Vec<u8>, u64, u64) {
    let (mut saturated, mut flushed) = (0, 0);
    let codes = x.iter().map(|b| {
        let x = half::bf16::from_bits(*b).to_f32();
        let y = if divide { x / factor } else { x * factor };
        if y.is_nan() {
            return nan;
        }
        saturated += u64::from(y.abs().to_bits() > 448f32.to_bits() + 8);
        let code = e4m3::encode(y);
        flushed += u64::from(x != 0.0 && code & 0x7f == 0);
        code
    });
    (codes.collect(), saturated, flushed)
}

/// All bfloat16 as one block of 256 rows, whose edge policy admits any factor.
fn every_bfloat16(factor: f32, rule: CastRule) {
    let x: Vec<u16> = (0..=u16::MAX).collect();
    let bytes: Vec<u8> = x.iter().flat_map(|b| b.to_le_bytes()).collect();
    let src = Source::new(&bytes, Elem::Bf16, 256, 256).unwrap();
    let spec = CastSpec {
        format: ScaleFormat::F32,
        cast: rule,
        edges: Edges::IgnoreNan,
        floor: Floor { eps: 0.0, zero_below: 0.0, zero_scale: 1.0 },
        contract: Contract::Amax,
        round_bf16: false,
    };
    let given = if rule == CastRule::Reciprocal { 1.0 / factor } else { factor };
    let factor = if rule == CastRule::Reciprocal { 1.0 / given } else { factor };
    let (codes, saturated, flushed) = reference(&x, factor, rule == CastRule::Divide, 0xfe);
    for isa in Isa::available() {
        let (mut q, mut scales) = (vec![0; 65536], [0.0]);
        let report = cast_panel_with(
            isa,
            &src,
            0,
            256,
            256,
            &[given],
            &[f32::INFINITY],
            &spec,
            Measure::Nothing,
            &mut q,
            &mut scales,
        )
        .unwrap();
        if let Some(i) = (0..q.len()).find(|i| q[*i] != codes[*i]) {
            panic!("{isa:?} {rule:?} {factor:e}: {:#x} -> {:#x}, not {:#x}", x[i], q[i], codes[i]);
        }
        assert_eq!((report.saturated, report.flushed), (saturated, flushed), "{isa:?} {rule:?} {factor:e}");
    }
}

#[test]
fn steps_cast_every_bfloat16_as_the_definition_does() {
    let mut factors = vec![1.0, 1.5, 448.0, 1.0 / 3.0, f32::MIN_POSITIVE, 1e-40, 3e38, f32::MAX, f32::INFINITY];
    // Just below and above 1, 2 and the root of 2, where mantissas wrap; and the whole range of exponents.
    for x in [1.0f32, 2.0, std::f32::consts::SQRT_2] {
        factors.extend((-3i32..=3).map(|d| f32::from_bits(x.to_bits().wrapping_add_signed(d))));
    }
    factors.extend((-126..=127).step_by(11).map(|e| 1.372_549 * 2f32.powi(e)));
    let mut rng = rng(11);
    factors.extend(
        (0..cases(if cfg!(debug_assertions) { 20 } else { 200 }))
            .map(|_| f32::from_bits(rng.random_range(100u32 << 23..150 << 23))),
    );
    // Spread over the kinds when there are to be few.
    let step = factors.len().div_ceil(cases(factors.len()).max(1));
    for factor in factors.into_iter().step_by(step) {
        for rule in [CastRule::Multiply, CastRule::Divide, CastRule::Reciprocal] {
            every_bfloat16(factor, rule);
        }
    }
}

/// Amax, codes, scales and counts of panels do not depend on strips, and NaN, infinities and zeros pass through.
#[test]
fn strips_are_the_panel() {
    let mut rng = rng(3);
    for (rows, cols, block) in [(128, 16384, 128), (128, 1312, 128), (64, 700, 33), (128, 40, 128), (3, 9000, 4096)] {
        for elem in [Elem::Bf16, Elem::F16, Elem::F32] {
            // The second of two panels, and a third that is short.
            let all = 2 * rows + rows / 2;
            let mut x = gauss_vec(&mut rng, all * cols, 0.02);
            for i in (0..x.len()).step_by(97) {
                x[i] = [0.0, -0.0, 1e-7, f32::NAN, -1e-5][i % 5];
            }
            let bytes = to_bytes(&x, elem);
            let src = Source::new(&bytes, elem, all, cols).unwrap();
            for (edges, measure) in [(Edges::IgnoreNan, Measure::Nothing), (Edges::PropagateNan, Measure::Sample)] {
                let cast = Profile::VerlTriton.cast_spec(ScaleFormat::F32, edges);
                let give = |amax: &[f32]| -> Vec<f32> {
                    amax.iter().map(|a| Profile::VerlTriton.given(ScaleFormat::F32, edges, *a)).collect()
                };
                let opts = StatsOptions { ignore_nan: edges == Edges::IgnoreNan, ..Default::default() };
                let grid = cols.div_ceil(block);
                for isa in Isa::available() {
                    let (mut q, mut scales) = (vec![0; (all - rows) * cols], vec![0.0; 2 * grid]);
                    let (mut amax, mut report) = (Vec::new(), CastReport::default());
                    for (panel, q) in q.chunks_mut(rows * cols).enumerate() {
                        let (first, rows) = ((panel + 1) * rows, q.len() / cols);
                        let of = panel_stats_with(isa, &src, first, rows, block, &opts).amax;
                        let scales = &mut scales[panel * grid..(panel + 1) * grid];
                        let given = give(&of);
                        report +=
                            cast_panel_with(isa, &src, first, rows, block, &given, &of, &cast, measure, q, scales)
                                .unwrap();
                        amax.extend(of);
                    }
                    let (block_rows, block_cols) = (rows, block);
                    let spec = PanelSpec { block_rows, block_cols, moments: false, cast: &cast, measure, whole: false };
                    let (mut q2, mut scales2) = (vec![0; q.len()], vec![0.0; scales.len()]);
                    let mut asked = Vec::new();
                    let ask = |at: StripAt, stats: &PanelStats| -> Result<Vec<f32>, ContractViolation> {
                        assert_eq!((at.panel - 1) * grid + at.first_block, asked.len());
                        asked.extend_from_slice(&stats.amax);
                        Ok(give(&stats.amax))
                    };
                    let report2 =
                        quantize_panels_with(isa, &src, 1, &spec, ask, |_, v| v, &mut q2, &mut scales2).unwrap();
                    assert_eq!(bits(&amax), bits(&asked));
                    assert!(q == q2 && bits(&scales) == bits(&scales2), "{isa:?} {elem:?} {rows}x{cols}");
                    assert_eq!(counts(&report), counts(&report2));
                    let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * a.abs();
                    assert!(close(report.squared_error, report2.squared_error));
                    assert!(close(report.squared_sum, report2.squared_sum));
                }
            }
        }
    }
}

fn counts(report: &CastReport) -> (u64, u64) {
    (report.saturated, report.flushed)
}

#[test]
fn a_violation_names_its_block_in_the_panel() {
    let (cols, grid) = (16384, 128);
    let bytes = to_bytes(&vec![1.0f32; 256 * cols], Elem::Bf16);
    let src = Source::new(&bytes, Elem::Bf16, 256, cols).unwrap();
    let cast = Profile::Deepseek.cast_spec(ScaleFormat::F32, Edges::Strict);
    let measure = Measure::All;
    let spec = PanelSpec { block_rows: 128, block_cols: 128, moments: false, cast: &cast, measure, whole: false };
    let ask = |at: StripAt, stats: &PanelStats| -> Result<Vec<f32>, (usize, ContractViolation)> {
        let good = 1.0f32 / 448.0;
        let blocks = at.first_block..at.first_block + stats.amax.len();
        Ok(blocks.map(|block| if (at.panel, block) == (1, 101) { 2.0 * good } else { good }).collect())
    };
    let (mut q, mut scales) = (vec![0; 256 * cols], vec![0.0; 2 * grid]);
    let isa = Isa::detect();
    let broken = |panel, violation| (panel, violation);
    let (panel, violation) = quantize_panels_with(isa, &src, 0, &spec, ask, broken, &mut q, &mut scales).unwrap_err();
    assert_eq!((panel, violation.block_col), (1, 101));
}

/// A sample is one row of each 32 of the panel.
#[test]
fn a_sample_measures_one_row_of_each_32() {
    let mut rng = rng(8);
    let x = gauss_vec(&mut rng, 64 * 256, 1.0);
    let bytes = to_bytes(&x, Elem::Bf16);
    let cast = Profile::VerlTorch.cast_spec(ScaleFormat::F32, Edges::Strict);
    let measured = |bytes: &[u8], amax: &[f32], measure| {
        let rows = bytes.len() / 512;
        let src = Source::new(bytes, Elem::Bf16, rows, 256).unwrap();
        let given: Vec<f32> = amax.iter().map(|a| 448.0 / a).collect();
        let (mut q, mut scales) = (vec![0; rows * 256], vec![0.0; 2]);
        let isa = Isa::detect();
        let report =
            cast_panel_with(isa, &src, 0, rows, 128, &given, amax, &cast, measure, &mut q, &mut scales).unwrap();
        (report.squared_error, report.squared_sum)
    };
    let src = Source::new(&bytes, Elem::Bf16, 64, 256).unwrap();
    let amax = panel_stats_with(Isa::detect(), &src, 0, 64, 128, &StatsOptions::default()).amax;
    let some: Vec<u8> = bytes.chunks(512).step_by(32).flatten().copied().collect();
    assert_eq!(measured(&bytes, &amax, Measure::Sample), measured(&some, &amax, Measure::All));
    assert_eq!(measured(&bytes, &amax, Measure::Nothing), (0.0, 0.0));
}
