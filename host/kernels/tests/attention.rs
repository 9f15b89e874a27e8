//! Attention and activation quantization against f64 references.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bits, cases, encode_by_search, gauss_vec, positive_values, rng};
use patchhost_kernels::activation::{GROUP, apply_groups, apply_groups_with, apply_rule, group_amax, rule_scales};
use patchhost_kernels::attention::{AttentionShape, attend_with};
use patchhost_kernels::e4m3;
use patchhost_kernels::isa::Isa;
use patchhost_kernels::linear::{MatrixView, ScaleOrder, linear};
use patchhost_kernels::profile::Profile;
use patchhost_kernels::spec::ActivationRule;
use patchhost_kernels::team::Team;
use rand::Rng;

#[test]
fn attention_is_softmax_in_f64_and_equal_on_all_paths() {
    let mut rng = rng(20);
    for case in 0..cases(60) {
        let kv_heads = rng.random_range(1..4);
        let heads = kv_heads * rng.random_range(1..4);
        let head_dim = [1, 8, 16, 33, 64, 80, 128, 200][case % 8];
        let len = rng.random_range(1..90);
        let first = if case % 3 == 0 { rng.random_range(0..len) } else { 0 };
        let shape = AttentionShape { heads, kv_heads, head_dim };
        let spread = [0.3, 1.0, 6.0][case % 3];
        let q = gauss_vec(&mut rng, heads * head_dim, spread);
        let keys = gauss_vec(&mut rng, (len + 2) * kv_heads * head_dim, 1.0);
        let values = gauss_vec(&mut rng, (len + 2) * kv_heads * head_dim, 1.0);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut results = vec![];
        for isa in Isa::available() {
            let mut out = vec![9.0; q.len()];
            attend_with(isa, &shape, &q, &keys, &values, first, len, scale, &mut out);
            results.push(out);
        }
        for other in &results[1..] {
            assert_eq!(bits(other), bits(&results[0]));
        }
        for h in 0..heads {
            let at = |p: usize| (p * kv_heads + h / (heads / kv_heads)) * head_dim;
            let scores: Vec<f64> = (first..len)
                .map(|p| {
                    (0..head_dim).map(|d| f64::from(q[h * head_dim + d]) * f64::from(keys[at(p) + d])).sum::<f64>()
                })
                .map(|score| score * f64::from(scale))
                .collect();
            let max = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
            let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
            for d in 0..head_dim {
                let weighted =
                    scores.iter().zip(first..).map(|(score, p)| (score - max).exp() * f64::from(values[at(p) + d]));
                let exact = weighted.sum::<f64>() / sum;
                let got = f64::from(results[0][h * head_dim + d]);
                assert!((got - exact).abs() < 2e-5, "case {case} head {h}: {got} for {exact}");
            }
        }
    }
}

#[test]
fn attention_edges() {
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 16 };
    let (one, mut out) = ([1.0; 32], [5.0; 16]);
    for isa in Isa::available() {
        attend_with(isa, &shape, &one[..16], &one, &one, 2, 2, 1.0, &mut out);
        assert_eq!(out, [0.0; 16]);
        // A score far below the maximum has weight 0; a NaN is not hidden.
        let mut keys = [0.0; 32];
        keys[..16].fill(100.0);
        let mut values = [2.0; 32];
        values[16..].fill(1e30);
        attend_with(isa, &shape, &one[..16], &keys, &values, 0, 2, 1.0, &mut out);
        assert_eq!(out, [2.0; 16]);
        keys[20] = f32::NAN;
        attend_with(isa, &shape, &one[..16], &keys, &values, 0, 2, 1.0, &mut out);
        assert!(out.iter().all(|x| x.is_nan()), "{isa:?}");
    }
}

#[test]
fn groups_are_quantized_by_the_definition() {
    let mut rng = rng(21);
    let table = positive_values();
    for (m, k) in [(1, 1), (3, 128), (2, 300), (5, 4096), (0, 7), (4, 0)] {
        let mut x = gauss_vec(&mut rng, m * k, 3.0);
        x.iter_mut().step_by(97).for_each(|x| *x *= 1e-3);
        let mut amax = vec![1.0; 3];
        group_amax(&x, m, k, &mut amax);
        let groups = k.div_ceil(GROUP);
        assert_eq!(amax.len(), m * groups);
        let rule = Profile::VllmGroup.activation_rule();
        let mut scales = vec![0.0; amax.len()];
        rule_scales(&rule, &amax, &mut scales);
        let (mut in_one, mut apart) = (vec![0.0; m * k], vec![0.0; m * k]);
        apply_rule(&Team::new(2), &rule, &x, m, k, &mut in_one);
        apply_groups(&x, m, k, &scales, &mut apart);
        assert_eq!(bits(&in_one), bits(&apart));
        for isa in Isa::available() {
            let mut out = vec![0.0; m * k];
            apply_groups_with(isa, &x, m, k, &scales, &mut out);
            for i in 0..m * k {
                let (row, group) = (i / k, i % k / GROUP);
                let columns = row * k + group * GROUP..row * k + ((group + 1) * GROUP).min(k);
                let exact = x[columns].iter().fold(0f32, |a, x| a.max(x.abs()));
                let s = exact.max(1e-10) / 448.0;
                assert_eq!((amax[row * groups + group], scales[row * groups + group]), (exact, s));
                let code = encode_by_search(x[i] / s, &table);
                assert_eq!(out[i].to_bits(), (e4m3::decode(code) * s).to_bits());
            }
        }
    }
    let mut amax = vec![];
    group_amax(&[1.0, f32::NAN, f32::NEG_INFINITY, 0.0], 4, 1, &mut amax);
    assert!(amax[1].is_nan() && amax[0] == 1.0 && amax[2] == f32::INFINITY && amax[3] == 0.0);
    let mut scales = [0.0; 4];
    rule_scales(&ActivationRule { eps: 0.5, divisor: 448.0, pow2_up: true }, &amax, &mut scales);
    assert!(scales[1].is_nan() && scales[0] == 1.0 / 256.0 && scales[3] == 1.0 / 512.0, "{scales:?}");
    let mut out = [0.0; 2];
    apply_groups(&[f32::NAN, 1.0], 1, 2, &[1.0], &mut out);
    assert!(out[0].is_nan() && out[1] == 1.0);
}

/// The emulation against vLLM's `native_w8a8_block_matmul`: per 128 columns, the dot of the codes in f64, times both
/// scales, summed. The difference must be f32 rounding only.
#[test]
fn w8a8_emulation_equals_the_block_accumulated_reference() {
    let mut rng = rng(22);
    for (m, n, k) in [(3, 40, 512), (1, 17, 1000), (7, 64, 2048)] {
        let x = gauss_vec(&mut rng, m * k, 2.0);
        let q: Vec<u8> = gauss_vec(&mut rng, n * k, 100.0).iter().map(|w| e4m3::encode(*w)).collect();
        let groups = k.div_ceil(GROUP);
        let wscales: Vec<f32> = (0..n.div_ceil(128) * groups).map(|_| rng.random_range(1e-4..1e-3)).collect();
        let (mut amax, mut scales) = (vec![], vec![0.0; m * groups]);
        group_amax(&x, m, k, &mut amax);
        rule_scales(&Profile::VllmGroup.activation_rule(), &amax, &mut scales);
        let mut emulated = vec![0.0; m * k];
        apply_groups(&x, m, k, &scales, &mut emulated);
        let mut out = vec![0.0; m * n];
        let w = MatrixView::Fp8Block {
            q: &q,
            scales: &wscales,
            order: ScaleOrder::RowMajor,
            block_rows: 128,
            block_cols: GROUP,
        };
        linear(&emulated, m, k, w, n, None, &mut out, n);
        let (mut difference, mut norm) = (0.0, 0.0);
        for i in 0..m {
            for j in 0..n {
                let mut sum = 0.0;
                for g in 0..groups {
                    let s = scales[i * groups + g];
                    let dot: f64 = (g * GROUP..((g + 1) * GROUP).min(k))
                        .map(|c| {
                            f64::from(e4m3::decode(e4m3::encode(x[i * k + c] / s)))
                                * f64::from(e4m3::decode(q[j * k + c]))
                        })
                        .sum();
                    sum += dot * f64::from(s) * f64::from(wscales[j / 128 * groups + g]);
                }
                difference += (f64::from(out[i * n + j]) - sum).abs();
                norm += sum.abs();
            }
        }
        assert!(difference / norm < 1e-5, "{}", difference / norm);
        // And quantizing did something: the plain product is far from it.
        let mut plain = vec![0.0; m * n];
        linear(&x, m, k, w, n, None, &mut plain, n);
        let far: f64 = plain.iter().zip(&out).map(|(a, b)| f64::from((a - b).abs())).sum();
        assert!(far / norm > 1e-3);
    }
}
