//! Helpers of the integration tests.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use patchhost_kernels::attention::{self, AttentionShape, put_key, put_value};
use patchhost_kernels::cast::{CastReport, ContractViolation, Measure, cast_panel_with};
use patchhost_kernels::isa::Isa;
use patchhost_kernels::source::Source;
use patchhost_kernels::spec::{CastSpec, Edges, Elem};
use patchhost_kernels::stats::{StatsOptions, panel_stats_with};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// How many random cases a loop tries: `usual`, or as many as `PATCHHOST_TEST_CASES` says (valgrind and Miri are slow).
pub fn cases(usual: usize) -> usize {
    let asked = std::env::var("PATCHHOST_TEST_CASES").ok().and_then(|n| n.parse().ok());
    asked.map_or(usual, |n: usize| n.min(usual))
}

pub fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// A normal-ish variable: the sum of 12 uniform ones.
pub fn gauss(rng: &mut StdRng) -> f32 {
    (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0
}

pub fn gauss_vec(rng: &mut StdRng, n: usize, sigma: f32) -> Vec<f32> {
    (0..n).map(|_| gauss(rng) * sigma).collect()
}

/// Nearest e4m3 code by search over the table of values: the definition, independent of the bit tricks.
pub fn encode_by_search(x: f32, table: &[f64; 127]) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let a = f64::from(x.abs()).min(448.0);
    let above = table.partition_point(|v| *v < a).min(126);
    let code = if above == 0 {
        0
    } else {
        let (low, high) = (a - table[above - 1], table[above] - a);
        if low < high || (low == high && (above - 1) % 2 == 0) { above - 1 } else { above }
    };
    code as u8 | if x.is_sign_negative() { 0x80 } else { 0 }
}

/// Values of the codes 0 to 0x7e, from the fields.
pub fn positive_values() -> [f64; 127] {
    std::array::from_fn(|code| {
        let (e, m) = ((code >> 3) as i32, (code & 7) as f64);
        if e == 0 { m * 2f64.powi(-9) } else { (1.0 + m / 8.0) * 2f64.powi(e - 7) }
    })
}

pub fn to_bytes(x: &[f32], elem: Elem) -> Vec<u8> {
    match elem {
        Elem::F32 => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Elem::F16 => x.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        Elem::Bf16 => x.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
    }
}

pub struct Quantized {
    pub q: Vec<u8>,
    pub scales: Vec<f32>,
    pub report: CastReport,
}

/// Statistics, scales and cast of a whole matrix, panel by panel.
pub fn quantize(
    isa: Isa,
    src: &Source<'_>,
    (block_rows, block_cols): (usize, usize),
    spec: &CastSpec,
    given: impl Fn(f32) -> f32,
) -> Result<Quantized, ContractViolation> {
    let grid = src.cols.div_ceil(block_cols);
    let mut out = Quantized {
        q: vec![0; src.rows * src.cols],
        scales: vec![0.0; src.rows.div_ceil(block_rows) * grid],
        report: CastReport::default(),
    };
    let opts = StatsOptions { moments: false, round_bf16: spec.round_bf16, ignore_nan: spec.edges == Edges::IgnoreNan };
    for (panel, first) in (0..src.rows).step_by(block_rows).enumerate() {
        let rows = block_rows.min(src.rows - first);
        let amax = panel_stats_with(isa, src, first, rows, block_cols, &opts).amax;
        let given: Vec<f32> = amax.iter().map(|a| given(*a)).collect();
        let q = &mut out.q[first * src.cols..(first + rows) * src.cols];
        let scales = &mut out.scales[panel * grid..(panel + 1) * grid];
        out.report += cast_panel_with(isa, src, first, rows, block_cols, &given, &amax, spec, Measure::All, q, scales)?;
    }
    Ok(out)
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Keys and values by position, in blocks.
pub fn in_blocks(shape: &AttentionShape, keys: &[f32], values: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (key, value) = (shape.kv_heads * shape.head_dim, shape.kv_heads * shape.value_dim);
    let positions = keys.len() / key;
    let mut k = vec![0.0; attention::in_blocks(positions, key)];
    let mut v = vec![0.0; attention::in_blocks(positions, value)];
    for p in 0..positions {
        put_key(&mut k, p, &keys[p * key..][..key]);
        put_value(&mut v, p, shape.value_dim, &values[p * value..][..value]);
    }
    (k, v)
}
