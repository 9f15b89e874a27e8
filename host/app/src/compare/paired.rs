//! Two sides measured at the same places: whether one is lower, or it only looks so.

use serde::Serialize;

/// How two lists of distances differ, place by place. What both find hard cancels out, so this tells smaller differences apart
/// than their two means do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Paired {
    /// Places that both have a finite number for.
    pub places: usize,
    /// Mean of B minus A.
    pub mean_difference: f64,
    /// Standard error of that mean, as if places were independent.
    pub standard_error: f64,
    /// Places where A is lower.
    pub lower_a: usize,
    /// Places where B is lower.
    pub lower_b: usize,
}

impl Paired {
    /// Of two lists of the same places; none where no place has two numbers.
    pub fn of(a: &[f64], b: &[f64]) -> Option<Self> {
        let both = a.iter().zip(b).filter(|(a, b)| a.is_finite() && b.is_finite());
        let differences: Vec<f64> = both.map(|(a, b)| b - a).collect();
        let n = differences.len();
        if n == 0 {
            return None;
        }
        let mean = differences.iter().sum::<f64>() / n as f64;
        let squares = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>();
        // One place says nothing about how others vary.
        let error = if n > 1 { (squares / (n - 1) as f64 / n as f64).sqrt() } else { mean.abs() };
        Some(Self {
            places: n,
            mean_difference: mean,
            standard_error: error,
            lower_a: differences.iter().filter(|d| **d > 0.0).count(),
            lower_b: differences.iter().filter(|d| **d < 0.0).count(),
        })
    }

    /// Whether the mean is more than two standard errors from zero.
    pub fn is_clear(&self) -> bool {
        self.mean_difference.abs() > 2.0 * self.standard_error
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::Paired;

    #[test]
    fn a_small_shift_of_every_place_is_clear_and_a_few_wild_places_are_not() {
        let a: Vec<f64> = (0..50).map(|i| f64::from(i * i % 17)).collect();
        let shifted: Vec<f64> = a.iter().enumerate().map(|(i, x)| x - 0.01 - 1e-4 * (i % 3) as f64).collect();
        let found = Paired::of(&a, &shifted).unwrap();
        assert!(found.is_clear() && found.mean_difference < -0.01, "{found:?}");
        assert_eq!((found.places, found.lower_a, found.lower_b), (50, 0, 50));

        let mut wild = a.clone();
        wild[7] += 1.0;
        assert!(!Paired::of(&a, &wild).unwrap().is_clear());
        assert!(!Paired::of(&a, &a).unwrap().is_clear());
    }

    #[test]
    fn one_place_is_never_clear_and_places_without_a_number_do_not_count() {
        assert!(!Paired::of(&[1.0], &[9.0]).unwrap().is_clear());
        assert_eq!(Paired::of(&[f64::NAN, 1.0], &[1.0, f64::INFINITY]), None);
        assert_eq!(Paired::of(&[], &[]), None);
        assert_eq!(Paired::of(&[f64::NAN, 1.0, 2.0], &[1.0, 3.0, 3.0]).unwrap().places, 2);
    }
}
