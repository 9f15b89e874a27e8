//! How far two models' predictions are apart.

/// Distance of the predictions of two sets of weights on the same tokens.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Mismatch {
    /// Positions compared.
    pub positions: usize,
    /// Mean over positions of KL(reference ‖ candidate) over the whole vocabulary, in nats.
    pub kl: f64,
    /// Greatest KL of one position.
    pub kl_max: f64,
    /// Share of positions whose most likely token is the same.
    pub top1_agreement: f64,
}

/// Compares logits [positions, vocab], row by row, in f64.
pub fn mismatch(reference: &[f32], candidate: &[f32], vocab: usize) -> Mismatch {
    let rows = reference.chunks_exact(vocab).zip(candidate.chunks_exact(vocab));
    let (mut sum, mut max, mut agree, mut positions) = (0.0, 0.0f64, 0usize, 0usize);
    for (r, c) in rows {
        let (lr, lc) = (log_softmax(r), log_softmax(c));
        let kl: f64 =
            lr.iter().zip(&lc).map(|(p, q)| if *p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) }).sum();
        sum += kl;
        max = max.max(kl);
        agree += usize::from(crate::sampling::argmax(r) == crate::sampling::argmax(c));
        positions += 1;
    }
    let n = positions.max(1) as f64;
    Mismatch { positions, kl: sum / n, kl_max: max, top1_agreement: agree as f64 / n }
}

/// The natural logarithm of the probability of each token, in f64.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let (max, log_sum) = normalizer(logits);
    logits.iter().map(|l| *l as f64 - max - log_sum).collect()
}

/// The same of one token; none where the vocabulary ends before it.
pub fn log_prob(logits: &[f32], token: usize) -> Option<f64> {
    let (max, log_sum) = normalizer(logits);
    logits.get(token).map(|l| *l as f64 - max - log_sum)
}

/// The largest logit, and the logarithm of the sum of `exp(logit - largest)`.
fn normalizer(logits: &[f32]) -> (f64, f64) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let sum: f64 = logits.iter().map(|l| (*l as f64 - max).exp()).sum();
    (max, sum.ln())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn kl_of_a_known_pair() {
        // p = (1/2, 1/2), q = (1/4, 3/4): KL = ln(2) / 2 + ln(2/3) / 2.
        let m = mismatch(&[0.0, 0.0], &[0.0, 3f32.ln()], 2);
        assert!((m.kl - (0.5 * 2f64.ln() + 0.5 * (2.0f64 / 3.0).ln())).abs() < 1e-6, "{m:?}");
        let same = mismatch(&[0.5, -1.0, 3.0], &[0.5, -1.0, 3.0], 3);
        assert!(same.kl.abs() < 1e-12 && same.top1_agreement == 1.0);
        assert!((log_prob(&[0.0, 3f32.ln()], 1).unwrap_or(0.0) - 0.75f64.ln()).abs() < 1e-7);
        assert_eq!(log_prob(&[0.0], 1), None);
    }
}
