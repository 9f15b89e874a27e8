//! Attention bit for bit against the definition in plain Rust: one query, one position, one lane after the other.
#![allow(clippy::unwrap_used)]

mod common;

use common::{cases, gauss_vec, in_blocks, rng};
use patchhost_kernels::attention::{AttentionShape, Context, Layout, attend_rows, attend_rows_with};
use patchhost_kernels::isa::Isa;
use patchhost_kernels::team::Team;
use rand::Rng;
use rand::rngs::StdRng;

/// The tree `l + (l+8)`, +4, +2, +1.
fn tree(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
    }
    lanes[0]
}

/// Sixteen lanes by dimension modulo 16, the last step padded with zeros.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for i in 0..a.len().next_multiple_of(16) {
        let at = |x: &[f32]| x.get(i).copied().unwrap_or(0.0);
        lanes[i % 16] = at(a).mul_add(at(b), lanes[i % 16]);
    }
    tree(lanes)
}

fn exp(x: f32) -> f32 {
    let magic = 12_582_912f32;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, magic);
    let n = shifted - magic;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let mut p = 1f32 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p.mul_add(r, c);
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < -87.0 { 0.0 } else { p * power }
}

/// One head of one row. Keys and values by position, for all key heads.
fn attend(shape: &AttentionShape, q: &[f32], kv: usize, at: &Context<'_>, scale: f32) -> Vec<f32> {
    let AttentionShape { kv_heads, head_dim, value_dim, layout, .. } = *shape;
    let value_stride = if layout == Layout::Shared { head_dim } else { kv_heads * value_dim };
    let mut out = vec![0f32; value_dim];
    if at.first >= at.len {
        return out;
    }
    let key = |p: usize| &at.keys[(p * kv_heads + kv) * head_dim..][..head_dim];
    let scores: Vec<f32> = (at.first..at.len).map(|p| dot(q, key(p)) * scale).collect();
    // NaN does not win here.
    let max = scores.iter().fold(f32::NEG_INFINITY, |max, s| if *s > max { *s } else { max });
    let weights: Vec<f32> = scores.iter().map(|s| exp(s + -max)).collect();
    let mut lanes = [0f32; 16];
    for chunk in weights.chunks(16) {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += chunk.get(l).copied().unwrap_or(0.0);
        }
    }
    for (w, p) in weights.iter().zip(at.first..) {
        for (d, out) in out.iter_mut().enumerate() {
            *out = w.mul_add(at.values[p * value_stride + kv * value_dim + d], *out);
        }
    }
    let sum = tree(lanes);
    out.iter().map(|x| x / sum).collect()
}

/// The bits; all NaN are one: which of two NaN an addition gives is not defined.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// Normal numbers, among them some that are none.
fn values(rng: &mut StdRng, n: usize, special: bool) -> Vec<f32> {
    let mut x = gauss_vec(rng, n, 1.0);
    if special && n > 0 {
        let all = [0.0, -0.0, 1e-45, -1e-45, 1e-30, -1e-30, 3e38, -3e38, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        for _ in 0..n.div_ceil(50) {
            // Rarely infinite, or nothing else would be seen.
            let most = if rng.random_range(0..20) == 0 { all.len() } else { 6 };
            let place = rng.random_range(0..n);
            x[place] = all[rng.random_range(0..most)];
        }
    }
    x
}

struct Case {
    shape: AttentionShape,
    /// Of each sequence: keys, values, and the same as the kernels want them.
    sequences: Vec<[Vec<f32>; 4]>,
    /// Of each row: its sequence, its first position and its length.
    rows: Vec<(usize, usize, usize)>,
    q: Vec<f32>,
    ldq: usize,
    scale: f32,
}

impl Case {
    fn new(rng: &mut StdRng, shape: AttentionShape, special: bool, rows: Vec<(usize, usize, usize)>) -> Self {
        let AttentionShape { heads, kv_heads, head_dim, value_dim, layout } = shape;
        let most = |s: usize| rows.iter().filter(|r| r.0 == s).map(|r| r.2).max().unwrap_or(0);
        let count = rows.iter().map(|r| r.0 + 1).max().unwrap_or(0);
        let sequences = (0..count).map(|s| {
            let keys = values(rng, most(s) * kv_heads * head_dim, special);
            if layout == Layout::Shared {
                return [keys.clone(), keys.clone(), keys.clone(), keys];
            }
            let own = values(rng, most(s) * kv_heads * value_dim, special);
            let (k, v) = in_blocks(&shape, &keys, &own);
            [keys, own, k, v]
        });
        let sequences = sequences.collect();
        let ldq = heads * head_dim + rng.random_range(0..4);
        let sigma = [0.3, 1.0, 6.0][rng.random_range(0..3)];
        let mut q = values(rng, rows.len() * ldq, special);
        q.iter_mut().for_each(|q| *q *= sigma);
        Self { shape, sequences, rows, q, ldq, scale: 1.0 / (head_dim as f32).sqrt() }
    }

    fn check(&self, teams: &[Team], what: &str) {
        let AttentionShape { heads, kv_heads, head_dim, value_dim, .. } = self.shape;
        let mut wanted = vec![];
        for (i, (s, first, len)) in self.rows.iter().enumerate() {
            let [keys, values, ..] = &self.sequences[*s];
            let at = Context { keys, values, first: *first, len: *len };
            for h in 0..heads {
                let q = &self.q[i * self.ldq + h * head_dim..][..head_dim];
                wanted.extend(attend(&self.shape, q, h / (heads / kv_heads), &at, self.scale));
            }
        }
        let context = |row: usize| {
            let (s, first, len) = self.rows[row];
            let [_, _, keys, values] = &self.sequences[s];
            Context { keys, values, first, len }
        };
        let mut out = vec![9.0; wanted.len()];
        for isa in Isa::available() {
            out.fill(9.0);
            attend_rows_with(isa, &teams[0], &self.shape, &self.q, self.ldq, &context, self.scale, &mut out);
            assert_eq!(bits(&out), bits(&wanted), "{what}, {isa:?}: {:?} {:?}", self.shape, self.rows);
        }
        for team in teams {
            out.fill(9.0);
            attend_rows(team, &self.shape, &self.q, self.ldq, &context, self.scale, &mut out);
            assert_eq!(bits(&out), bits(&wanted), "{what}, {team:?}: {:?} {:?}", self.shape, self.rows);
        }
        assert_eq!(out.len(), self.rows.len() * heads * value_dim);
    }
}

/// Rows of up to three sequences: pieces of prompts, single tokens, windows, and rows that attend to nothing.
fn rows(rng: &mut StdRng) -> Vec<(usize, usize, usize)> {
    let mut rows = vec![];
    for s in 0..rng.random_range(1..4) {
        let (past, tokens) = match rng.random_range(0..3) {
            0 => (rng.random_range(0..200), 1),
            1 => (0, rng.random_range(1..40)),
            _ => (rng.random_range(0..150), rng.random_range(1..40)),
        };
        let window = if rng.random_range(0..3) == 0 { rng.random_range(0..40) } else { usize::MAX };
        rows.extend((past + 1..past + tokens + 1).map(|len: usize| (s, len.saturating_sub(window), len)));
    }
    rows
}

#[test]
fn attention_has_the_bits_of_its_definition() {
    let mut rng = rng(40);
    let teams = [Team::new(1), Team::new(3)];
    let dims = [8, 16, 24, 32, 33, 47, 48, 64, 65, 80, 96, 100, 127, 128, 129, 192, 255, 256, 1, 15];
    for case in 0..cases(120) {
        let (kv_heads, share) = (rng.random_range(1..4), rng.random_range(1..9));
        let head_dim = dims[case % dims.len()];
        let mut shape = AttentionShape::grouped(kv_heads * share, kv_heads, head_dim);
        if case % 4 == 3 {
            shape.value_dim = rng.random_range(1..150);
        }
        let rows = rows(&mut rng);
        Case::new(&mut rng, shape, case % 2 == 1, rows).check(&teams, &format!("case {case}"));
    }
    for case in 0..cases(20) {
        let head_dim = [36, 65, 80, 160][case % 4];
        let shape = AttentionShape::shared(rng.random_range(1..41), head_dim, head_dim - rng.random_range(0..17));
        let rows = rows(&mut rng);
        Case::new(&mut rng, shape, case % 2 == 1, rows).check(&teams, &format!("shared, case {case}"));
    }
}

/// Every length up to 200, with windows that begin at each place of a block.
#[test]
fn every_length_and_every_begin() {
    let mut rng = rng(41);
    let teams = [Team::new(1), Team::new(2)];
    for len in 1..=cases(200) {
        let shape = AttentionShape::grouped(2, 1, [64, 40][len % 2]);
        let first = len.saturating_sub(1 + len % 35);
        let rows = vec![(0, 0, len), (0, first, len), (0, 0, len.div_ceil(2)), (0, len, len), (1, first, len)];
        Case::new(&mut rng, shape, len % 3 == 0, rows).check(&teams, &format!("length {len}"));
    }
}

/// What a row may not attend to (later positions of its sequence, what lies behind the last one in its block) changes no
/// bit, whatever it is.
#[test]
fn what_is_not_attended_to_changes_nothing() {
    let mut rng = rng(42);
    let team = Team::new(1);
    let shape = AttentionShape::grouped(6, 2, 24);
    let rows: Vec<_> = (20..37).map(|len| (0, len - 20, len)).collect();
    let mut case = Case::new(&mut rng, shape, false, rows);
    let [keys, values, k, v] = &mut case.sequences[0];
    let positions = keys.len() / 48;
    // As if the memory had been used before.
    keys.resize(48 * positions.next_multiple_of(16), f32::NAN);
    values.resize(keys.len(), f32::INFINITY);
    (*k, *v) = in_blocks(&shape, keys, values);
    case.check(std::slice::from_ref(&team), "behind the last position");
    // The last position is NaN: only the last row sees it.
    let [keys, values, k, v] = &mut case.sequences[0];
    keys[36 * 48..][..48].fill(f32::NAN);
    values[36 * 48..][..48].fill(f32::NAN);
    (*k, *v) = in_blocks(&shape, keys, values);
    case.check(std::slice::from_ref(&team), "a later position");
}
