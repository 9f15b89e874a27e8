//! Distances between bits: scales in ulp, codes in e4m3 steps, values in dB.

/// How two lists of scales differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct ScaleDiff {
    /// Scales with other bits.
    pub differing: u64,
    /// Scales compared.
    pub total: u64,
    /// Greatest distance in ulp (see [`scale_ulps`]).
    pub max_ulp: u32,
}

impl ScaleDiff {
    /// Compares two lists of the same block grid.
    pub fn of(a: &[f32], b: &[f32]) -> Self {
        let mut diff = ScaleDiff { total: a.len() as u64, ..Self::default() };
        for (a, b) in a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()) {
            diff.differing += 1;
            diff.max_ulp = diff.max_ulp.max(scale_ulps(*a, *b));
        }
        diff
    }

    /// Adds another tensor's.
    pub fn add(&mut self, other: &Self) {
        self.differing += other.differing;
        self.total += other.total;
        self.max_ulp = self.max_ulp.max(other.max_ulp);
    }
}

/// How two lists of e4m3 codes differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct CodeDiff {
    /// Bytes that differ; +0 and -0 are two bytes.
    pub differing: u64,
    /// Bytes compared.
    pub total: u64,
    /// Greatest distance in steps (see [`code_steps`]).
    pub max_steps: u32,
}

impl CodeDiff {
    /// Compares two lists of the same shape.
    pub fn of(a: &[u8], b: &[u8]) -> Self {
        let mut diff = CodeDiff { total: a.len() as u64, ..Self::default() };
        for (a, b) in a.iter().zip(b).filter(|(a, b)| a != b) {
            diff.differing += 1;
            diff.max_steps = diff.max_steps.max(code_steps(*a, *b));
        }
        diff
    }

    /// Adds another one's.
    pub fn add(&mut self, other: &Self) {
        self.differing += other.differing;
        self.total += other.total;
        self.max_steps = self.max_steps.max(other.max_steps);
    }

    /// Share of differing bytes; 0 of nothing.
    pub fn share(&self) -> f64 {
        self.differing as f64 / self.total.max(1) as f64
    }
}

/// Floats between two scales, one end counted: 1 for neighbors. Of the bits in sign-magnitude order, so that zero, NaN and
/// infinity have a place too.
pub fn scale_ulps(a: f32, b: f32) -> u32 {
    let order = |x: f32| {
        let magnitude = i64::from(x.to_bits() & 0x7fff_ffff);
        if x.is_sign_negative() { -magnitude } else { magnitude }
    };
    u32::try_from(order(a).abs_diff(order(b))).unwrap_or(u32::MAX)
}

/// Steps between two e4m3 codes in sign-magnitude order: 0 for +0 and -0, 1 for neighbors, 252 from -448 to 448. The NaN
/// codes stand one step beyond 448.
pub fn code_steps(a: u8, b: u8) -> u32 {
    let order = |x: u8| {
        let magnitude = i32::from(x & 0x7f);
        if x & 0x80 != 0 { -magnitude } else { magnitude }
    };
    order(a).abs_diff(order(b))
}

/// Sums for the signal-to-noise ratio against the source weights. Values that are not finite, on either side, are left
/// out: only edges other than strict let them through.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Signal {
    /// `sum x^2`.
    pub squares: f64,
    /// `sum (x - q * s)^2`.
    pub errors: f64,
}

impl Signal {
    /// Takes one weight and what became of it.
    pub fn take(&mut self, x: f32, y: f32) {
        if x.is_finite() && y.is_finite() {
            let (x, y) = (f64::from(x), f64::from(y));
            self.squares += x * x;
            self.errors += (x - y) * (x - y);
        }
    }

    /// Adds another one's.
    pub fn add(&mut self, other: &Self) {
        self.squares += other.squares;
        self.errors += other.errors;
    }

    /// `10 * log10(sum x^2 / sum (x - q s)^2)`; none where nothing was lost, or nothing was there.
    pub fn snr_db(&self) -> Option<f64> {
        (self.squares > 0.0 && self.errors > 0.0).then(|| 10.0 * (self.squares / self.errors).log10())
    }

    /// `sqrt(sum (x - q s)^2 / sum x^2)`; none where nothing was there.
    pub fn relative_rmse(&self) -> Option<f64> {
        (self.squares > 0.0).then(|| (self.errors / self.squares).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulps() {
        assert_eq!(scale_ulps(1.0, 1.0 + f32::EPSILON), 1);
        assert_eq!(scale_ulps(1.0 + f32::EPSILON, 1.0), 1);
        assert_eq!(scale_ulps(1.0, 2.0), 1 << 23);
        assert_eq!(scale_ulps(0.0, -0.0), 0);
        assert_eq!(scale_ulps(f32::from_bits(3), -f32::from_bits(2)), 5);
        let d = ScaleDiff::of(&[1.0, 2.0, 3.0], &[1.0, 2.0_f32.next_up(), 3.0_f32.next_down().next_down()]);
        assert_eq!(d, ScaleDiff { differing: 2, total: 3, max_ulp: 2 });
    }

    #[test]
    fn steps() {
        assert_eq!(code_steps(0x00, 0x80), 0);
        assert_eq!(code_steps(0x01, 0x81), 2);
        assert_eq!(code_steps(0x7e, 0xfe), 252);
        assert_eq!(code_steps(0x7e, 0x7f), 1);
        let d = CodeDiff::of(&[0, 1, 2, 0x38], &[0x80, 1, 4, 0x37]);
        assert_eq!(d, CodeDiff { differing: 3, total: 4, max_steps: 2 });
    }

    #[test]
    fn snr() {
        let mut s = Signal::default();
        assert_eq!((s.snr_db(), s.relative_rmse()), (None, None));
        s.take(3.0, 3.0);
        assert_eq!((s.snr_db(), s.relative_rmse()), (None, Some(0.0)));
        s.take(4.0, 3.5);
        s.take(f32::NAN, 0.0);
        s.take(1.0, f32::INFINITY);
        // 25 / 0.25 = 100: 20 dB, a tenth.
        assert_eq!((s.snr_db(), s.relative_rmse()), (Some(20.0), Some(0.1)));
    }
}
