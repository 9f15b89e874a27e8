//! The kernel against a plain reference, and the search against the scale amax / 448.

use super::*;

/// A small reproducible generator (SplitMix64).
struct Rng(u64);

impl Rng {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Student's t: a normal over the root of a mean of squares.
    fn student(&mut self, freedom: u32) -> f64 {
        let squares: f64 = (0..freedom).map(|_| self.normal().powi(2)).sum();
        self.normal() / (squares / f64::from(freedom)).sqrt()
    }
}

fn bf16(x: f64) -> u16 {
    let bits = (x as f32).to_bits();
    ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}

fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// e4m3fn by its definition: nearest multiple of the step of its binade, ties to even.
fn rn8(y: f64) -> f64 {
    let a = y.abs().min(448.0);
    let step = 2f64.powi((a.max(1e-30).log2().floor() as i32).max(-6) - 3);
    ((a / step).round_ties_even() * step).copysign(y)
}

struct Matrix {
    rows: usize,
    cols: usize,
    bits: Vec<u16>,
}

impl Matrix {
    fn new(rows: usize, cols: usize, mut next: impl FnMut() -> f64) -> Self {
        Self { rows, cols, bits: (0..rows * cols).map(|_| bf16(next())).collect() }
    }

    fn block(&self, b: usize, width: usize) -> impl Iterator<Item = f32> {
        self.bits
            .chunks(self.cols)
            .flat_map(move |row| &row[b * width..self.cols.min((b + 1) * width)])
            .map(|&x| widen(x))
    }

    fn amax(&self, width: usize) -> Vec<f32> {
        (0..self.cols.div_ceil(width)).map(|b| self.block(b, width).fold(0.0, |m: f32, x| m.max(x.abs()))).collect()
    }

    fn scales(&self, settings: &MseSettings, width: usize, max_rows: u32) -> Vec<f32> {
        let search = Search::new(settings);
        let (rows, cols) = (self.rows as u32, self.cols as u32);
        let panel = Panel { tensor: "t", first_block: 0, rows, cols, block_cols: width as u32, max_rows };
        let read = |first: u32, n: u32| self.bits[first as usize * self.cols..][..n as usize * self.cols].to_vec();
        panel_scales(&search, &panel, &self.amax(width), read).expect("scales")
    }

    /// Sum of squared errors, and the largest share of a block that saturates, under the given scales.
    fn loss(&self, width: usize, scales: &[f32]) -> (f64, f64) {
        let (mut error, mut share) = (0.0, 0f64);
        for (b, &s) in scales.iter().enumerate() {
            let (mut saturated, mut n) = (0, 0);
            for x in self.block(b, width) {
                let y = x * (1.0 / s);
                saturated += usize::from(y.abs() > F8_MAX);
                n += 1;
                error += (f64::from(x) - rn8(f64::from(y)) * f64::from(s)).powi(2);
            }
            share = share.max(saturated as f64 / n as f64);
        }
        (error, share)
    }

    /// The best of the search's candidates, found by brute force.
    fn brute(&self, settings: &MseSettings, width: usize) -> f64 {
        let search = Search::new(settings);
        let one = |(b, &a): (usize, &f32)| {
            let candidates = search.factors.iter().map(|f| self.one_block(b, width, f * search.base(a)));
            let allowed = candidates.filter(|(_, share)| *share <= f64::from(settings.clip));
            allowed.map(|(error, _)| error).fold(f64::INFINITY, f64::min)
        };
        self.amax(width).iter().enumerate().filter(|(_, a)| **a > 0.0).map(one).sum()
    }

    fn one_block(&self, b: usize, width: usize, s: f32) -> (f64, f64) {
        let bits: Vec<u16> = self.block(b, width).map(|x| (x.to_bits() >> 16) as u16).collect();
        let cols = bits.len();
        Self { rows: 1, cols, bits }.loss(cols, &[s])
    }
}

/// RMSE of the search over RMSE of amax / 448.
fn ratio(m: &Matrix, settings: &MseSettings) -> f64 {
    let plain: Vec<f32> = m.amax(128).iter().map(|a| a / F8_MAX).collect();
    let (best, share) = m.loss(128, &m.scales(settings, 128, 32));
    assert!(share <= f64::from(settings.clip));
    (best / m.loss(128, &plain).0).sqrt()
}

#[test]
fn heavy_tails_lose_less() {
    let mut rng = Rng(7);
    let outlier = |rng: &mut Rng| rng.normal() * if rng.uniform() < 1e-3 { 30.0 } else { 1.0 };
    let matrices = [
        ("normal", 0.998, Matrix::new(128, 1024, || 0.02 * rng.normal())),
        ("student t, 4", 0.985, Matrix::new(128, 1024, || 0.02 * rng.student(4))),
        ("student t, 3", 0.98, Matrix::new(128, 1024, || 0.02 * rng.student(3))),
        ("student t, 2", 0.97, Matrix::new(128, 1024, || 0.02 * rng.student(2))),
        ("outliers", 0.97, Matrix::new(128, 1024, || 0.02 * outlier(&mut rng))),
    ];
    for (name, most, m) in matrices {
        let r = ratio(&m, &MseSettings::default());
        println!("{name}: RMSE is {r:.4} of that of amax / 448");
        assert!(r < most, "{name}: {r}");
    }
}

#[test]
fn finds_what_brute_force_finds() {
    let mut rng = Rng(3);
    let clipping = MseSettings { range: (0.5, 1.95), clip: 0.02, ..MseSettings::default() };
    for settings in [MseSettings::default(), clipping] {
        for (rows, cols, width) in
            [(128, 256, 128), (44, 130, 128), (1, 1, 128), (7, 100, 33), (3, 700, 600), (128, 5, 1)]
        {
            let m = Matrix::new(rows, cols, || rng.student(2));
            let scales = m.scales(&settings, width, 5);
            let (error, share) = m.loss(width, &scales);
            let best = m.brute(&settings, width);
            assert!(share <= f64::from(settings.clip), "{rows}x{cols}/{width}: {share} saturate");
            assert!(error <= best * 1.0001 + 1e-12, "{rows}x{cols}/{width}: {error} against {best}");
            for (s, a) in scales.iter().zip(m.amax(width)) {
                assert!(f64::from(a) / f64::from(*s) > 224.5, "{a} / {s}");
            }
        }
    }
}

/// Blocks large enough for bins, with values of every binade that a candidate can tell apart, and with zeros: bins and
/// values tell the same losses, and the same number of saturated values.
#[test]
fn bins_lose_what_values_lose() {
    let mut rng = Rng(21);
    for (settings, spread, largest) in [
        (MseSettings::default(), 1.0, 1.0),
        (MseSettings { range: (0.5, 1.95), clip: 0.05, ..MseSettings::default() }, 1.0, 3.0),
        (MseSettings { range: (0.5, 1.99), candidates: 64, clip: 0.05, ..MseSettings::default() }, 24.0, 1.0),
        // The lowest amax with a scale of its own: there are fewer than 20 binades below.
        (MseSettings::default(), 24.0, f64::from(ZERO_BELOW) * 1.01),
        (MseSettings::default(), 3.0, 3e38),
    ] {
        let mut bits: Vec<u16> = (0..128 * 128)
            .map(|i| {
                if i % 7 == 0 {
                    0
                } else {
                    bf16(0.99 * largest * rng.normal().tanh() * (-spread * rng.uniform()).exp2())
                }
            })
            .collect();
        bits[777] = bf16(-largest);
        let amax = bits.iter().map(|&x| widen(x).abs()).fold(0.0, f32::max);
        let search = Search::new(&settings);
        let base = search.base(amax);
        let new = || -> Vec<Tally> { search.factors.iter().map(|f| Tally::new(f * base, *f < 1.0)).collect() };
        let (mut by_value, mut by_bin) = (new(), new());
        bits.chunks(128).for_each(|row| measure_row(row, &mut by_value));
        let mut counts = [0; BINS];
        let mut bins = Bins::new(amax, &mut counts);
        bits.chunks(100).for_each(|row| bins.count(row));
        bins.folded().measure(&mut by_bin);
        // What becomes zero under every scale is left out of the bins: the difference in absolute terms is one number.
        let gap = |i: usize| f64::from(by_value[i].error() - by_bin[i].error()) * f64::from(search.factors[i]).powi(2);
        for i in 0..search.factors.len() {
            let tolerance = 1e-3 * f64::from(by_value[i].error()) + 1e-9;
            assert!((gap(i) - gap(0)).abs() <= tolerance, "{spread} {largest}: candidate {i}: {} {}", gap(i), gap(0));
            assert_eq!(by_value[i].saturated(), by_bin[i].saturated(), "{spread} {largest}: candidate {i}");
        }
    }
}

#[test]
fn the_size_of_reads_changes_nothing() {
    let mut rng = Rng(5);
    let m = Matrix::new(100, 300, || rng.student(3));
    let all = m.scales(&MseSettings::default(), 128, 1000);
    assert!([1, 3, 8, 32].iter().all(|&rows| m.scales(&MseSettings::default(), 128, rows) == all));
}

#[test]
fn zero_and_tiny_blocks_have_scale_one() {
    let mut bits = vec![0; 4 * 384];
    bits[5] = bf16(1.0);
    bits[256] = bf16(1e-36);
    let m = Matrix { rows: 4, cols: 384, bits };
    let scales = m.scales(&MseSettings::default(), 128, 32);
    assert_eq!(scales[1..], [1.0, 1.0]);
    assert!(scales[0] > 0.0 && scales[0] < 0.005);
    let largest = Matrix { rows: 1, cols: 2, bits: vec![0x7F7F, 0x0080] };
    assert!(largest.scales(&MseSettings::default(), 128, 32)[0].is_finite());
}

#[test]
fn powers_of_two() {
    let mut rng = Rng(9);
    let m = Matrix::new(128, 512, || rng.student(3));
    let mut settings = MseSettings::default();
    settings.common.pow2 = true;
    for s in m.scales(&settings, 128, 32) {
        assert_eq!(s.to_bits() & 0x007F_FFFF, 0);
    }
}

#[test]
fn bad_input_is_an_error() {
    let search = Search::new(&MseSettings::default());
    let panel = Panel { tensor: "x", first_block: 6, rows: 2, cols: 200, block_cols: 128, max_rows: 8 };
    let read = |_: u32, n: u32| vec![0; n as usize * 200];
    let nan = panel_scales(&search, &panel, &[1.0, f32::NAN], read).expect_err("NaN");
    assert!(nan.contains("block 7"), "{nan}");
    assert!(panel_scales(&search, &panel, &[1.0], read).is_err());
    assert!(panel_scales(&search, &panel, &[1.0, 1.0], |_, _| vec![0; 3]).is_err());
    assert!(panel_scales(&search, &Panel { block_cols: 0, ..panel }, &[1.0, 1.0], read).is_err());
    let wide = Panel { cols: 1 << 22, block_cols: 1, ..panel };
    assert!(panel_scales(&search, &wide, &vec![1.0; 1 << 22], read).is_err_and(|e| e.contains("memory")));
}
