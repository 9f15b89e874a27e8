//! Attention and activation quantization against f64 references.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bits, cases, encode_by_search, gauss_vec, in_blocks, positive_values, rng};
use patchhost_kernels::activation::{GROUP, apply_groups, apply_groups_with, apply_rule, group_amax, rule_scales};
use patchhost_kernels::attention::{AttentionShape, Context, Layout, attend_rows, attend_rows_with};
use patchhost_kernels::e4m3;
use patchhost_kernels::isa::Isa;
use patchhost_kernels::linear::{MatrixView, ScaleOrder, linear};
use patchhost_kernels::profile::Profile;
use patchhost_kernels::spec::ActivationRule;
use patchhost_kernels::strided::{Strides, copy_heads};
use patchhost_kernels::team::Team;
use rand::Rng;

/// Attention in f64: row after row of heads. Keys and values by position.
fn softmax_f64(shape: &AttentionShape, q: &[f32], context: &Context<'_>, scale: f32) -> Vec<f64> {
    let AttentionShape { heads, kv_heads, head_dim, value_dim, layout } = *shape;
    let value_stride = if layout == Layout::Shared { head_dim } else { kv_heads * value_dim };
    let Context { keys, values, first, len } = *context;
    let mut out = vec![];
    for h in 0..heads {
        let kv = h / (heads / kv_heads);
        let score = |p: usize| {
            let key = &keys[(p * kv_heads + kv) * head_dim..][..head_dim];
            let q = &q[h * head_dim..][..head_dim];
            q.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() * f64::from(scale)
        };
        let scores: Vec<f64> = (first..len).map(score).collect();
        let max = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
        let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
        out.extend((0..value_dim).map(|d| {
            let value = |p: usize| f64::from(values[p * value_stride + kv * value_dim + d]);
            scores.iter().zip(first..).map(|(score, p)| (score - max).exp() * value(p)).sum::<f64>() / sum
        }));
    }
    out
}

#[test]
fn attention_is_softmax_in_f64_and_equal_on_all_paths() {
    let mut rng = rng(20);
    let teams = [Team::new(1), Team::new(3)];
    for case in 0..cases(90) {
        let kv_heads = rng.random_range(1..4);
        let heads = kv_heads * rng.random_range(1..4);
        let head_dim = [1, 8, 16, 33, 64, 80, 128, 200][case % 8];
        // A third has one width, a third another for the values, a third the values within the keys.
        let shape = match case / 30 {
            0 => AttentionShape::grouped(heads, kv_heads, head_dim),
            1 => {
                let value_dim = rng.random_range(1..150);
                AttentionShape { value_dim, ..AttentionShape::grouped(heads, kv_heads, head_dim) }
            }
            _ => {
                // Heads enough for several runs of those that are computed side by side; positions for several blocks.
                let head_dim = [36, 65, 80, 576][case % 4];
                AttentionShape::shared(rng.random_range(1..21), head_dim, head_dim - rng.random_range(0..17))
            }
        };
        let AttentionShape { heads, kv_heads, head_dim, value_dim, layout } = shape;
        let value_stride = if layout == Layout::Shared { head_dim } else { kv_heads * value_dim };
        let (rows, len) = (rng.random_range(1..4), rng.random_range(1..90) * if case % 10 == 9 { 5 } else { 1 });
        let first = if case % 3 == 0 { rng.random_range(0..len) } else { 0 };
        let ldq = heads * head_dim + case % 2 * 7;
        let q = gauss_vec(&mut rng, rows * ldq, [0.3, 1.0, 6.0][case % 3]);
        let keys = gauss_vec(&mut rng, (len + 2 * rows) * kv_heads * head_dim, 1.0);
        let own = gauss_vec(&mut rng, (len + 2 * rows) * value_stride, 1.0);
        let values = if case / 30 == 2 { &keys } else { &own };
        let scale = 1.0 / (head_dim as f32).sqrt();
        let by_position = |row: usize| Context { keys: &keys, values, first, len: len + row };
        let laid = |shape: &AttentionShape, keys: &[f32], values: &[f32]| match layout {
            Layout::Blocks => in_blocks(shape, keys, values),
            Layout::Shared => (keys.to_vec(), values.to_vec()),
        };
        let (laid_keys, laid_values) = laid(&shape, &keys, values);
        let context = |row: usize| Context { keys: &laid_keys, values: &laid_values, first, len: len + row };
        let mut results = vec![];
        for isa in Isa::available() {
            let mut out = vec![9.0; rows * heads * value_dim];
            for (row, out) in out.chunks_exact_mut(heads * value_dim).enumerate() {
                let q = &q[row * ldq..][..heads * head_dim];
                let context = |_| context(row);
                attend_rows_with(isa, &teams[0], &shape, q, q.len(), &context, scale, out);
            }
            results.push(out);
        }
        for team in &teams {
            let mut out = vec![9.0; rows * heads * value_dim];
            attend_rows(team, &shape, &q, ldq, &context, scale, &mut out);
            results.push(out);
        }
        // Head by head: what is computed side by side makes no difference.
        let alone = AttentionShape { heads: 1, kv_heads: 1, value_dim, head_dim, layout: Layout::Blocks };
        let mut out = vec![];
        for i in 0..rows * heads {
            let (row, h) = (i / heads, i % heads);
            let kv = h / (heads / kv_heads);
            let pick = |all: &[f32], stride: usize, dim: usize| -> Vec<f32> {
                (0..len + row).flat_map(|p| all[p * stride + kv * dim..][..dim].to_vec()).collect()
            };
            let (keys, values) = (pick(&keys, kv_heads * head_dim, head_dim), pick(values, value_stride, value_dim));
            let (keys, values) = in_blocks(&alone, &keys, &values);
            let q = &q[row * ldq + h * head_dim..][..head_dim];
            out.extend(vec![9.0; value_dim]);
            let context = |_| Context { keys: &keys, values: &values, first, len: len + row };
            attend_rows(&teams[0], &alone, q, head_dim, &context, scale, &mut out[i * value_dim..]);
        }
        results.push(out);
        for other in &results[1..] {
            assert_eq!(bits(other), bits(&results[0]), "case {case}");
        }
        for (row, out) in results[0].chunks_exact(heads * value_dim).enumerate() {
            let exact = softmax_f64(&shape, &q[row * ldq..], &by_position(row), scale);
            for (i, (got, exact)) in out.iter().zip(exact).enumerate() {
                assert!((f64::from(*got) - exact).abs() < 2e-5, "case {case}, value {i}: {got} for {exact}");
            }
        }
    }
}

#[test]
fn attention_edges() {
    let shape = AttentionShape::grouped(1, 1, 16);
    let one = [1.0; 32];
    let team = Team::new(1);
    let attend = |isa: Isa, keys: &[f32], values: &[f32], first: usize| {
        let mut out = [5.0; 16];
        let (keys, values) = in_blocks(&shape, keys, values);
        let context = |_| Context { keys: &keys, values: &values, first, len: 2 };
        attend_rows_with(isa, &team, &shape, &one[..16], 16, &context, 1.0, &mut out);
        out
    };
    for isa in Isa::available() {
        assert_eq!(attend(isa, &one, &one, 2), [0.0; 16]);
        // A score far below the maximum has weight 0; a NaN is not hidden.
        let mut keys = [0.0; 32];
        keys[..16].fill(100.0);
        let mut values = [2.0; 32];
        values[16..].fill(1e30);
        assert_eq!(attend(isa, &keys, &values, 0), [2.0; 16]);
        keys[20] = f32::NAN;
        assert!(attend(isa, &keys, &values, 0).iter().all(|x| x.is_nan()), "{isa:?}");
    }
}

#[test]
fn heads_are_copied_between_any_strides() {
    let mut rng = rng(23);
    for (rows, heads, width) in [(1, 1, 1), (3, 4, 5), (70, 16, 40), (0, 2, 2)] {
        let x = gauss_vec(&mut rng, rows * heads * width, 1.0);
        let (by_row, by_head) = (Strides::rows(heads, width), Strides::heads(rows, width));
        let (mut there, mut back) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        copy_heads(&Team::new(2), [rows, heads, width], &x, by_row, &mut there, by_head);
        copy_heads(&Team::new(2), [rows, heads, width], &there, by_head, &mut back, by_row);
        assert_eq!(bits(&x), bits(&back));
        for i in 0..rows * heads {
            let (row, h) = (i / heads, i % heads);
            assert_eq!(x[i * width..][..width], there[(h * rows + row) * width..][..width]);
        }
    }
}

#[test]
#[should_panic(expected = "no two heads")]
fn heads_that_overlap_are_refused() {
    let from = Strides::rows(2, 4);
    copy_heads(&Team::new(1), [2, 2, 4], &[0.0; 16], from, &mut [0.0; 16], Strides { row: 3, head: 4 });
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
