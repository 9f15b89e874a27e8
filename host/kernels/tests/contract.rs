//! The proof of scales: honest ones pass, wrong ones do not, and what the cast counts is so.
#![allow(clippy::unwrap_used)]

mod common;

use common::{encode_by_search, gauss_vec, positive_values, quantize, rng, to_bytes};
use patchhost_kernels::cast::{Measure, Violation, cast_panel};
use patchhost_kernels::isa::Isa;
use patchhost_kernels::profile::Profile;
use patchhost_kernels::source::Source;
use patchhost_kernels::spec::{CastRule, CastSpec, Contract, Edges, Elem, Floor, ScaleFormat};
use rand::Rng;

const FORMATS: [ScaleFormat; 2] = [ScaleFormat::F32, ScaleFormat::Ue8m0];

/// Checks 1x1 blocks: the contract for any amax at all, without large matrices.
fn accepts(spec: &CastSpec, amax: &[f32], given: &[f32]) -> Result<Vec<f32>, Violation> {
    let bytes = to_bytes(amax, Elem::F32);
    let src = Source::new(&bytes, Elem::F32, 1, amax.len()).unwrap();
    let (mut q, mut scales) = (vec![0; amax.len()], vec![0.0; amax.len()]);
    cast_panel(&src, 0, 1, 1, given, amax, spec, Measure::Nothing, &mut q, &mut scales).map_err(|v| v.what)?;
    Ok(scales)
}

/// All magnitudes: uniform bits, weights of usual size, around powers of two and around the profiles' thresholds.
fn magnitudes(n: usize) -> Vec<f32> {
    let mut rng = rng(10);
    let mut out: Vec<f32> = (0..n).map(|_| f32::from_bits(rng.random_range(0..0x7f80_0000u32))).collect();
    out.extend((0..n).map(|_| rng.random_range(1e-3f32..1.0)));
    let thresholds = [1e-4f32, 1e-10, 1e-12, 448.0 * 2f32.powi(-126) / 4.0, 224.0 * 2f32.powi(-126), 448.0, 1.0];
    let powers = (-149..128).map(|e| 2f64.powi(e) as f32);
    let scaled = (-140..119).map(|e| (448.0 * 2f64.powi(e)) as f32);
    for x in thresholds.into_iter().chain(powers).chain(scaled) {
        for delta in -6i32..=6 {
            let bits = x.to_bits().saturating_add_signed(delta).min(0x7f7f_ffff);
            out.push(f32::from_bits(bits));
        }
    }
    out
}

#[test]
fn honest_scales_pass_in_all_profiles() {
    let amax = magnitudes(20_000);
    for profile in Profile::ALL {
        for format in FORMATS {
            for edges in [Edges::Strict, Edges::PropagateNan, Edges::IgnoreNan] {
                let spec = profile.cast_spec(format, edges);
                let given: Vec<f32> = amax.iter().map(|a| profile.given(format, edges, *a)).collect();
                let result = accepts(&spec, &amax, &given);
                if let Err(what) = result {
                    let bad: Vec<_> = (0..amax.len())
                        .filter(|i| accepts(&spec, &amax[*i..*i + 1], &given[*i..*i + 1]).is_err())
                        .map(|i| (amax[i], given[i]))
                        .collect();
                    panic!(
                        "{profile} {format:?} {edges:?}: {what}; {} blocks: {:?}",
                        bad.len(),
                        &bad[..bad.len().min(5)]
                    );
                }
            }
        }
    }
}

#[test]
fn wrong_scales_are_refused() {
    let mut rng = rng(11);
    let mut refused = 0;
    for amax in magnitudes(3000) {
        for profile in Profile::ALL {
            let spec = profile.cast_spec(ScaleFormat::F32, Edges::Strict);
            let honest = profile.given(ScaleFormat::F32, Edges::Strict, amax);
            for sign in [-1.0, 1.0] {
                let error = sign * 2f64.powi(-rng.random_range(1..=18));
                let wrong = (f64::from(honest) * (1.0 + error)) as f32;
                assert!(accepts(&spec, &[amax], &[wrong]).is_err(), "{profile} {amax:e}: {wrong:e} for {honest:e}");
                refused += 1;
            }
            let spec = profile.cast_spec(ScaleFormat::Ue8m0, Edges::Strict);
            let honest = profile.given(ScaleFormat::Ue8m0, Edges::Strict, amax);
            for wrong in [honest * 2.0, honest / 2.0, f32::from_bits(honest.to_bits() + 1), -honest] {
                // A doubled or halved scale is right only where the ratio is 448 or 224 within the tolerance.
                let ratio = f64::from(amax.max(spec.floor.eps)) / f64::from(wrong);
                let tolerated = (ratio - 448.0).abs() < 3e-4 || (ratio - 224.0).abs() < 2e-4;
                if !tolerated {
                    assert!(accepts(&spec, &[amax], &[wrong]).is_err(), "{profile} {amax:e}: {wrong:e}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 200_000, "{refused}");
}

#[test]
fn each_violation_has_its_name() {
    let spec = Profile::VerlTriton.cast_spec(ScaleFormat::F32, Edges::Strict);
    let one = |spec: &CastSpec, amax: f32, given: f32| accepts(spec, &[amax], &[given]).unwrap_err();
    assert_eq!(one(&spec, 1.0, f32::NAN), Violation::NotFinite);
    assert_eq!(one(&spec, 1.0, f32::INFINITY), Violation::NotFinite);
    assert_eq!(one(&spec, 1.0, 0.0), Violation::NotPositive);
    assert_eq!(one(&spec, 1.0, -1.0 / 448.0), Violation::NotPositive);
    assert_eq!(one(&spec, f32::NAN, 1.0), Violation::NotFinite);
    assert_eq!(one(&spec, f32::INFINITY, 1.0), Violation::NotFinite);
    assert!(matches!(one(&spec, 0.0, 1.0), Violation::WrongZeroScale { .. }));
    assert!(matches!(one(&spec, 1.0, 1.0 / 440.0), Violation::AmaxRatio { .. }));
    let pow2 = Profile::VerlTriton.cast_spec(ScaleFormat::Ue8m0, Edges::Strict);
    assert_eq!(one(&pow2, 1.0, 1.0 / 448.0), Violation::NotPowerOfTwo);
    assert!(matches!(one(&pow2, 1.0, 1.0 / 128.0), Violation::Pow2Ratio { .. }));
    let multiply = Profile::VerlTorch.cast_spec(ScaleFormat::F32, Edges::Strict);
    assert!(matches!(one(&multiply, 1e-37, f32::INFINITY), Violation::NotFinite));
    assert!(matches!(one(&multiply, 1e-37, 2.0), Violation::WrongZeroScale { .. }));
    assert_eq!(accepts(&multiply, &[1e-37], &[1.0]).unwrap(), [1.0]);
    // Edges other than strict exempt what is not finite, and nothing else.
    let lenient = Profile::VerlTorch.cast_spec(ScaleFormat::F32, Edges::PropagateNan);
    assert!(accepts(&lenient, &[f32::NAN], &[f32::NAN]).is_ok());
    assert!(accepts(&lenient, &[1e-37], &[f32::INFINITY]).is_ok());
    assert!(accepts(&lenient, &[1.0], &[f32::INFINITY]).is_err());
    assert!(accepts(&lenient, &[1.0], &[440.0]).is_err());
    let text = cast_panel(
        &Source::new(&1f32.to_le_bytes(), Elem::F32, 1, 1).unwrap(),
        0,
        1,
        1,
        &[0.5],
        &[1.0],
        &spec,
        Measure::Nothing,
        &mut [0],
        &mut [0.0],
    )
    .unwrap_err()
    .to_string();
    assert_eq!(
        text,
        "block column 0: max(amax, eps) / scale is 2, not 448 within 8 ulp (amax 1e0, returned 5e-1, stored scale 5e-1)"
    );
}

#[test]
fn what_is_exempt_does_not_count_as_proved() {
    let bytes: Vec<u8> = [1.0, f32::NAN].iter().flat_map(|x: &f32| x.to_le_bytes()).collect();
    let src = Source::new(&bytes, Elem::F32, 1, 2).unwrap();
    let lenient = Profile::VerlTorch.cast_spec(ScaleFormat::F32, Edges::PropagateNan);
    let (given, amax) = ([448.0, f32::NAN], [1.0, f32::NAN]);
    let (mut q, mut scales) = ([0; 2], [0.0; 2]);
    let report = cast_panel(&src, 0, 1, 1, &given, &amax, &lenient, Measure::Nothing, &mut q, &mut scales).unwrap();
    assert_eq!(report.proved, 1);
}

#[test]
fn zero_below_is_the_exact_edge() {
    for (profile, g) in [(Profile::VerlTorch, (|a| 448.0 / a) as fn(f32) -> f32), (Profile::Hf, |a| (1.0 / a) * 448.0)]
    {
        let edge = profile.cast_spec(ScaleFormat::F32, Edges::Strict).floor.zero_below;
        let above = f32::from_bits(edge.to_bits() + 1);
        assert!(g(edge).is_infinite(), "{profile}");
        assert!(g(above).is_finite() && (1.0 / g(above)) > 0.0, "{profile}");
        assert_eq!(profile.given(ScaleFormat::F32, Edges::Strict, edge), 1.0);
        assert_eq!(profile.given(ScaleFormat::F32, Edges::Strict, above), g(above));
        assert_eq!(profile.given(ScaleFormat::F32, Edges::PropagateNan, edge), f32::INFINITY);
        assert_eq!(profile.given(ScaleFormat::F32, Edges::PropagateNan, 0.0), 1.0);
    }
    assert_eq!(Profile::VerlTorch.given(ScaleFormat::F32, Edges::PropagateNan, f32::INFINITY), 1.0);
    assert!(Profile::VerlTorch.given(ScaleFormat::F32, Edges::PropagateNan, f32::NAN).is_nan());
    assert_eq!(Profile::VerlTriton.given(ScaleFormat::F32, Edges::IgnoreNan, f32::INFINITY), f32::INFINITY);
}

#[test]
fn clip_counts_and_limits() {
    let mut rng = rng(12);
    let x = gauss_vec(&mut rng, 64 * 96, 1.0);
    let bytes = to_bytes(&x, Elem::F32);
    let src = Source::new(&bytes, Elem::F32, 64, 96).unwrap();
    let spec = |limit| CastSpec {
        format: ScaleFormat::F32,
        cast: CastRule::Divide,
        edges: Edges::Strict,
        floor: Floor { eps: 0.0, zero_below: 0.0, zero_scale: 1.0 },
        contract: Contract::Clip(limit),
        round_bf16: false,
    };
    let s = 2.0 / 448.0; // clips beyond two sigma
    let blocks = [0..32, 32..64, 64..96].map(|columns| {
        (0..64)
            .flat_map(|r| x[r * 96..][columns.clone()].iter())
            .filter(|x| (f64::from(**x) / f64::from(s)).abs() > 448.0003)
            .count()
    });
    let amax: Vec<f32> =
        (0..3).map(|b| (0..64).flat_map(|r| &x[r * 96 + b * 32..][..32]).fold(0f32, |a, x| a.max(x.abs()))).collect();
    let (mut q, mut scales) = (vec![0; 64 * 96], vec![0.0; 3]);
    let mut run =
        |limit| cast_panel(&src, 0, 64, 32, &[s; 3], &amax, &spec(limit), Measure::Nothing, &mut q, &mut scales);
    let most = *blocks.iter().max().unwrap();
    let report = run(most as f32 / 2048.0).unwrap();
    assert_eq!((report.saturated as usize, report.proved), (blocks.iter().sum::<usize>(), 3));
    assert!(most > 40);
    match run((most - 1) as f32 / 2048.0).unwrap_err().what {
        Violation::ClipShare { share, .. } => assert_eq!(share, most as f64 / 2048.0),
        other => panic!("{other}"),
    }
    assert!(matches!(run(f32::NAN).unwrap_err().what, Violation::ClipShare { .. }));
    // A scale that is too large wastes bits: refused too.
    let large = [amax[0] / 223.9, s, s];
    let error =
        cast_panel(&src, 0, 64, 32, &large, &amax, &spec(1.0), Measure::Nothing, &mut q, &mut scales).unwrap_err();
    assert!(matches!(error.what, Violation::ClipRatio { .. }));
}

#[test]
fn cast_counts_and_errors_agree_with_f64() {
    let mut rng = rng(13);
    let table = positive_values();
    for (case, rule) in [CastRule::Divide, CastRule::Reciprocal, CastRule::Multiply].into_iter().enumerate() {
        for elem in [Elem::F32, Elem::F16, Elem::Bf16] {
            for round_bf16 in [false, true] {
                let (rows, cols) = (rng.random_range(1..40), rng.random_range(1..90));
                let mut x = gauss_vec(&mut rng, rows * cols, 0.02);
                // Something to flush, and zeros that are not flushed.
                x.iter_mut().step_by(5).for_each(|x| *x *= 1e-4);
                x.iter_mut().step_by(7).for_each(|x| *x = 0.0);
                let bytes = to_bytes(&x, elem);
                let src = Source::new(&bytes, elem, rows, cols).unwrap();
                let profile = [Profile::Slime, Profile::VerlTriton, Profile::VerlTorch][case];
                let mut spec = profile.cast_spec(ScaleFormat::F32, Edges::Strict);
                assert_eq!(spec.cast, rule);
                spec.round_bf16 = round_bf16;
                let block = (rng.random_range(1..30), rng.random_range(1..50));
                let given = |a| profile.given(ScaleFormat::F32, Edges::Strict, a);
                let got = quantize(Isa::detect(), &src, block, &spec, given).unwrap();

                let stored: Vec<f32> = x
                    .iter()
                    .map(|x| match elem {
                        Elem::F32 => *x,
                        Elem::F16 => half::f16::from_f32(*x).to_f32(),
                        Elem::Bf16 => half::bf16::from_f32(*x).to_f32(),
                    })
                    .map(|x| if round_bf16 { half::bf16::from_f32(x).to_f32() } else { x })
                    .collect();
                let (mut flushed, mut error, mut sum) = (0, 0.0, 0.0);
                for (i, x) in stored.iter().enumerate() {
                    let (r, c) = (i / cols / block.0 * block.0, i % cols / block.1 * block.1);
                    let mut amax = 0f32;
                    for r in r..(r + block.0).min(rows) {
                        amax = stored[r * cols + c..r * cols + (c + block.1).min(cols)]
                            .iter()
                            .fold(amax, |a, x| a.max(x.abs()));
                    }
                    let g = given(amax);
                    let (y, s) = match rule {
                        CastRule::Divide => (x / g, g),
                        CastRule::Reciprocal => (x * (1.0 / g), g),
                        CastRule::Multiply => (x * g, 1.0 / g),
                    };
                    let code = encode_by_search(y, &table);
                    assert_eq!(got.q[i], code, "{rule:?} {elem:?} {x:e}");
                    let grid = cols.div_ceil(block.1);
                    assert_eq!(got.scales[r / block.0 * grid + c / block.1], s);
                    flushed += u64::from(*x != 0.0 && code & 0x7f == 0);
                    let value = table[usize::from(code & 0x7f)] * if code & 0x80 != 0 { -1.0 } else { 1.0 };
                    error += (f64::from(*x) - value * f64::from(s)).powi(2);
                    sum += f64::from(*x).powi(2);
                }
                assert_eq!(got.report.flushed, flushed);
                assert_eq!(got.report.saturated, 0);
                assert!((got.report.squared_error - error).abs() <= 1e-4 * error + 1e-30);
                assert!((got.report.squared_sum - sum).abs() <= 1e-5 * sum);
            }
        }
    }
}
