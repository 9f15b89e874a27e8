//! verl's rejection sampling metrics, `rollout_rs_*`: which tokens or sequences a trust region would mask out.
//!
//! With `d` as in [`super::rollout_corr`], clamped to ±20: `k1 = -d`, `k2 = d^2 / 2`, `k3 = exp(d) - d - 1` of each token.
//! A rule looks at the token's own (`token_k*`), or at the sum, mean or maximum over its sequence (`seq_sum_k*`,
//! `seq_mean_k*`, `seq_max_k*`). k1 is kept between `ln(lower)` and `ln(upper)` (one number C means 1/C to C), the others
//! up to the threshold. A token is kept if every rule keeps it.
//!
//! Per rule `NAME`, `s` being the statistic of each counted token (a sequence's on all its tokens) and `y_i` the sequence's
//! own, or `mean_i s` for token rules: `_mean` is `mean(s)`; `_max`, `_min`, `_fraction_high`, `_fraction_low` are over
//! tokens for token rules and over sequences with counted tokens for the others; `_std` is of `s` clamped to the bounds;
//! `_seq_mean`, `_seq_std` (n - 1), `_seq_max`, `_seq_min`, `_seq_max_deviation` (`max abs(y_i)`), `_seq_fraction_high`
//! and, for k1, `_seq_fraction_low` are of `y_i`; `_masked_fraction` is the share of counted tokens rejected,
//! `_seq_masked_fraction` of sequences that lose one. `rollout_rs_masked_fraction` and `rollout_rs_seq_masked_fraction`
//! are those of all rules together, the latter over all sequences.

use super::rollout_corr::{Batch, Metrics, Token, clamp, k3, max, mean, min, sample_std_or_zero, share, spread};

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Token,
    Sum,
    Mean,
    Max,
}

/// One entry of `rollout_rs` with its threshold.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Rule {
    /// As verl names it: `token_k1`, …, `seq_max_k3`.
    pub name: &'static str,
    /// Lower bound of the statistic; only k1 has one.
    pub lower: Option<f64>,
    /// Upper bound of the statistic.
    pub upper: f64,
    #[serde(skip)]
    reach: Reach,
    #[serde(skip)]
    estimator: u8,
}

const RULES: [(&str, Reach, u8); 11] = [
    ("token_k1", Reach::Token, 1),
    ("token_k2", Reach::Token, 2),
    ("token_k3", Reach::Token, 3),
    ("seq_sum_k1", Reach::Sum, 1),
    ("seq_sum_k2", Reach::Sum, 2),
    ("seq_sum_k3", Reach::Sum, 3),
    ("seq_mean_k1", Reach::Mean, 1),
    ("seq_mean_k2", Reach::Mean, 2),
    ("seq_mean_k3", Reach::Mean, 3),
    ("seq_max_k2", Reach::Max, 2),
    ("seq_max_k3", Reach::Max, 3),
];

/// Reads `rollout_rs` and `rollout_rs_threshold`: comma-separated rules, and one threshold for all or one for each.
pub fn parse(rules: &str, thresholds: &str) -> Result<Vec<Rule>, String> {
    let names: Vec<&str> = rules.split(',').map(str::trim).filter(|n| !n.is_empty()).collect();
    let bounds: Vec<&str> = thresholds.split(',').map(str::trim).filter(|t| !t.is_empty()).collect();
    if names.is_empty() || !(bounds.len() == 1 || bounds.len() == names.len()) {
        return Err(format!(
            "{} rules with {} thresholds; give one for all, or one for each",
            names.len(),
            bounds.len()
        ));
    }
    let mut out: Vec<Rule> = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let Some((name, reach, estimator)) = RULES.iter().find(|r| r.0 == *name) else {
            let known: Vec<&str> = RULES.iter().map(|r| r.0).collect();
            return Err(format!("no rule `{}`; there are {}", name.escape_debug(), known.join(", ")));
        };
        if out.iter().any(|r| r.name == *name) {
            return Err(format!("rule `{name}` is given twice"));
        }
        let bound = bounds.get(i).or(bounds.first()).copied().unwrap_or_default();
        let (lower, upper) = limits(name, *estimator, bound)?;
        out.push(Rule { name, lower, upper, reach: *reach, estimator: *estimator });
    }
    Ok(out)
}

fn limits(name: &str, estimator: u8, bound: &str) -> Result<(Option<f64>, f64), String> {
    let number = |t: &str| t.parse::<f64>().ok().filter(|v| v.is_finite() && *v > 0.0);
    let bad = |what: &str| Err(format!("threshold `{}` of rule `{name}` is not {what}", bound.escape_debug()));
    match (estimator, bound.split_once('_')) {
        (1, None) => match number(bound) {
            Some(c) => Ok((Some((1.0 / c).ln()), c.ln())),
            None => bad("a ratio above 0, or LOWER_UPPER"),
        },
        (1, Some((lower, upper))) => match (number(lower), number(upper)) {
            (Some(lower), Some(upper)) => Ok((Some(lower.ln()), upper.ln())),
            _ => bad("LOWER_UPPER, both above 0"),
        },
        _ => match number(bound) {
            Some(upper) => Ok((None, upper)),
            None => bad("one number above 0"),
        },
    }
}

impl Rule {
    fn of_token(&self, token: &Token) -> f64 {
        let d = clamp(token.log_ratio());
        match self.estimator {
            1 => -d,
            2 => 0.5 * d * d,
            _ => k3(d),
        }
    }

    /// The statistic of each counted token.
    fn statistics(&self, sequence: &[Token]) -> Vec<f64> {
        let own: Vec<f64> = sequence.iter().map(|t| self.of_token(t)).collect();
        let whole = match self.reach {
            Reach::Token => return own,
            Reach::Sum => own.iter().sum(),
            Reach::Mean => mean(own.iter().copied()),
            Reach::Max => max(own.iter().copied()),
        };
        vec![whole; own.len()]
    }

    fn keeps(&self, statistic: f64) -> bool {
        self.lower.is_none_or(|lower| statistic >= lower) && statistic <= self.upper
    }
}

pub(super) fn rejection(batch: &Batch, rules: &[Rule], m: &mut Metrics) {
    if rules.is_empty() {
        return;
    }
    let mut kept: Vec<Vec<bool>> = batch.iter().map(|s| vec![true; s.len()]).collect();
    for rule in rules {
        let statistics: Vec<Vec<f64>> = batch.iter().map(|s| rule.statistics(s)).collect();
        one_rule(rule, &statistics, m);
        for (kept, statistics) in kept.iter_mut().zip(&statistics) {
            kept.iter_mut().zip(statistics).for_each(|(kept, s)| *kept &= rule.keeps(*s));
        }
    }
    let lost = |kept: &bool| f64::from(u8::from(!*kept));
    m.put("rollout_rs_masked_fraction", mean(kept.iter().flatten().map(lost)));
    m.put("rollout_rs_seq_masked_fraction", mean(kept.iter().map(|s| lost(&s.iter().all(|k| *k)))));
}

fn one_rule(rule: &Rule, statistics: &[Vec<f64>], m: &mut Metrics) {
    let tokens: Vec<f64> = statistics.concat();
    let sequences: Vec<f64> = statistics.iter().filter(|s| !s.is_empty()).map(|s| mean(s.iter().copied())).collect();
    let reached = if rule.reach == Reach::Token { &tokens } else { &sequences };
    let below = |s: f64| rule.lower.is_some_and(|lower| s < lower);
    let mut put = |what: &str, value: f64| m.put(format!("rollout_rs_{}_{what}", rule.name), value);
    put("mean", mean(tokens.iter().copied()));
    put("max", max(reached.iter().copied()));
    put("min", min(reached.iter().copied()));
    put("fraction_high", share(reached, |s| s > rule.upper));
    put("fraction_low", share(reached, below));
    let clamped: Vec<f64> = tokens.iter().map(|s| s.max(rule.lower.unwrap_or(0.0)).min(rule.upper)).collect();
    put("std", if clamped.len() > 1 { spread(&clamped) } else { 0.0 });
    put("seq_mean", mean(sequences.iter().copied()));
    put("seq_std", sample_std_or_zero(&sequences));
    put("seq_max", max(sequences.iter().copied()));
    put("seq_min", min(sequences.iter().copied()));
    put("seq_max_deviation", max(sequences.iter().map(|s| s.abs())));
    put("seq_fraction_high", share(&sequences, |s| s > rule.upper));
    if rule.lower.is_some() {
        put("seq_fraction_low", share(&sequences, below));
    }
    put("masked_fraction", share(&tokens, |s| !rule.keeps(s)));
    let loses = |s: &&Vec<f64>| s.iter().any(|s| !rule.keeps(*s));
    let with_tokens = statistics.iter().filter(|s| !s.is_empty()).count();
    put("seq_masked_fraction", statistics.iter().filter(loses).count() as f64 / with_tokens.max(1) as f64);
}
