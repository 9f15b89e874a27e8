//! Axes of charts: where they begin and end, and the round values that are written at them.

/// Powers of ten that are written out; beyond them a tick is written like `2e-5`.
const PLAIN: std::ops::RangeInclusive<i32> = -6..=5;

/// An axis whose ticks are whole multiples of 1, 2 or 5 times a power of ten. It begins and ends at a tick.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Axis {
    /// The first tick and the last one, in steps.
    ticks: (i64, i64),
    /// A step is this many...
    digit: i64,
    /// ...times this power of ten.
    power: i32,
}

impl Axis {
    /// The axis that holds both values, cut into about `about` steps. None where they are one value, or no finite numbers.
    pub(crate) fn around(least: f64, most: f64, about: u32) -> Option<Self> {
        let span = most - least;
        // Closer together than this, and steps would be below what an f64 can tell apart.
        let apart = least.abs().max(most.abs()) * 1e-12;
        if !(span.is_finite() && span > apart && span > f64::MIN_POSITIVE * 1e9) {
            return None;
        }
        let (digit, power) = round_step(span / f64::from(about.max(1)));
        let axis = Self { ticks: (0, 0), digit, power };
        let step = axis.value(1);
        // A value that is a tick but for rounding is no reason for one more step.
        let ticks = ((least / step + 1e-9).floor() as i64, (most / step - 1e-9).ceil() as i64);
        Some(Self { ticks, ..axis })
    }

    /// The axis from 0 to at least `most`; none where that is not above 0.
    pub(crate) fn from_zero(most: f64, about: u32) -> Option<Self> {
        Self::around(0.0, most, about)
    }

    /// Where a value lies: 0 at the beginning of the axis, 1 at its end.
    pub(crate) fn share(&self, value: f64) -> f64 {
        let (from, to) = (self.value(self.ticks.0), self.value(self.ticks.1));
        ((value - from) / (to - from)).clamp(0.0, 1.0)
    }

    /// Each tick: where it lies, and what is written there.
    pub(crate) fn ticks(&self) -> Vec<(f64, String)> {
        (self.ticks.0..=self.ticks.1).map(|i| (self.share(self.value(i)), self.label(i))).collect()
    }

    fn value(&self, tick: i64) -> f64 {
        let whole = (tick * self.digit) as f64;
        // A division by a power of ten is exact where a product with its inverse is not.
        if self.power < 0 { whole / 10f64.powi(-self.power) } else { whole * 10f64.powi(self.power) }
    }

    /// The tick from its whole numbers, so that no digit of it is a rounding error.
    fn label(&self, tick: i64) -> String {
        let whole = tick * self.digit;
        if whole == 0 {
            return "0".to_owned();
        }
        let sign = if whole < 0 { "-" } else { "" };
        let mut digits = whole.unsigned_abs().to_string();
        let largest = digits.len() as i32 - 1 + self.power;
        if PLAIN.contains(&self.power) && PLAIN.contains(&largest) {
            if self.power >= 0 {
                digits.push_str(&"0".repeat(self.power as usize));
                return format!("{sign}{digits}");
            }
            let after = self.power.unsigned_abs() as usize;
            let padded = format!("{digits:0>width$}", width = after + 1);
            let (before, after) = padded.split_at(padded.len() - after);
            return format!("{sign}{before}.{after}");
        }
        let digits = digits.trim_end_matches('0');
        let (first, rest) = digits.split_at(1);
        let point = if rest.is_empty() { "" } else { "." };
        format!("{sign}{first}{point}{rest}e{largest}")
    }
}

/// The least of 1, 2 and 5 times a power of ten that is not below `raw`.
fn round_step(raw: f64) -> (i64, i32) {
    let power = raw.log10().floor() as i32;
    let share = raw / 10f64.powi(power);
    let digits = [1, 2, 5].into_iter().find(|digit| share <= *digit as f64 * (1.0 + 1e-9));
    digits.map_or((1, power + 1), |digit| (digit, power))
}

/// Round whole numbers from `first` to `last`, at most about `about` of them; the one number where both are the same.
pub(crate) fn whole_ticks(first: u64, last: u64, about: u32) -> Vec<u64> {
    if last <= first {
        return vec![first];
    }
    let (digit, power) = round_step(((last - first) as f64 / f64::from(about.max(1))).max(1.0));
    let step = (digit as u64).saturating_mul(10u64.saturating_pow(power.max(0) as u32)).max(1);
    let start = first.div_ceil(step).saturating_mul(step);
    (0..).map_while(|i: u64| start.checked_add(i.checked_mul(step)?).filter(|tick| *tick <= last)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Axis, whole_ticks};

    fn labels(least: f64, most: f64) -> Vec<String> {
        Axis::around(least, most, 4).unwrap().ticks().into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_and_hold_both_ends() {
        assert_eq!(labels(0.0, 1.0), ["0", "0.5", "1.0"]);
        assert_eq!(labels(0.0, 0.00123), ["0", "0.0005", "0.0010", "0.0015"]);
        assert_eq!(labels(31.31, 31.97), ["31.2", "31.4", "31.6", "31.8", "32.0"]);
        assert_eq!(labels(-3.0, 17.0), ["-5", "0", "5", "10", "15", "20"]);
        assert_eq!(labels(0.0, 3.1e-7), ["0", "1e-7", "2e-7", "3e-7", "4e-7"]);
        assert_eq!(labels(2e8, 9e8), ["2e8", "4e8", "6e8", "8e8", "1e9"]);
        assert_eq!(labels(0.0, 12_000.0), ["0", "5000", "10000", "15000"]);
    }

    #[test]
    fn every_axis_has_few_ticks_of_which_each_is_a_multiple_of_a_round_step() {
        let mut state = 7u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        for _ in 0..20_000 {
            let size = 10f64.powf(random() * 40.0 - 20.0);
            let (a, b) = ((random() - 0.3) * size, (random() - 0.3) * size);
            let (least, most) = (a.min(b), a.max(b));
            let Some(axis) = Axis::around(least, most, 4) else { continue };
            let ticks = axis.ticks();
            assert!((2..=7).contains(&ticks.len()), "{least} {most}: {ticks:?}");
            assert_eq!((ticks[0].0, ticks[ticks.len() - 1].0), (0.0, 1.0));
            let values: Vec<f64> = ticks.iter().map(|(_, label)| label.parse().unwrap()).collect();
            let step = values[1] - values[0];
            assert!(values[0] <= least + step * 1e-6 && values[values.len() - 1] >= most - step * 1e-6);
            // 1, 2 or 5 times a power of ten, whatever the ticks are.
            let digit = step / 10f64.powf(step.log10().floor());
            assert!([1.0, 2.0, 5.0, 10.0].iter().any(|d| (digit - d).abs() < 1e-4), "{step}: {ticks:?}");
            assert!(values.is_sorted_by(|a, b| a < b) && ticks.iter().all(|(_, label)| label.len() <= 16), "{ticks:?}");
        }
    }

    #[test]
    fn one_value_and_no_number_have_no_axis() {
        for (least, most) in [
            (1.0, 1.0),
            (0.0, 0.0),
            (1.0, 0.0),
            (1e15, 1e15 + 0.25),
            (f64::NAN, 1.0),
            (0.0, f64::INFINITY),
            (f64::NEG_INFINITY, 0.0),
            (-f64::MAX, f64::MAX),
            (0.0, f64::MIN_POSITIVE),
        ] {
            assert_eq!(Axis::around(least, most, 4), None, "{least} {most}");
        }
        assert_eq!(Axis::from_zero(0.0, 4), None);
    }

    #[test]
    fn steps_are_whole_numbers_within_the_run() {
        assert_eq!(whole_ticks(1, 1, 5), [1]);
        assert_eq!(whole_ticks(1, 3, 5), [1, 2, 3]);
        assert_eq!(whole_ticks(1, 40, 5), [10, 20, 30, 40]);
        assert_eq!(whole_ticks(37, 10_000, 5), [2000, 4000, 6000, 8000, 10_000]);
        assert_eq!(whole_ticks(1, 12, 5), [5, 10]);
        assert!(whole_ticks(0, u64::MAX, 5).len() <= 6);
    }
}
