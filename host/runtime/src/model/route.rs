//! Which experts a token goes through, and with which weights.

use super::work::Pick;
use crate::families::{GroupScore, Groups, Moe, Scoring};

/// Appends the `top_k` best experts of one row of router logits (the lower index wins a tie) and their weights. `scores`
/// and `choice` are room to work in.
pub(super) fn route(
    logits: &[f32],
    bias: Option<&[f32]>,
    moe: &Moe,
    scores: &mut Vec<f32>,
    choice: &mut Vec<f32>,
    picks: &mut Vec<Pick>,
) {
    scores.clear();
    match moe.scoring {
        Scoring::Softmax => softmax(logits, scores),
        Scoring::SigmoidWithBias => scores.extend(logits.iter().map(|l| 1.0 / (1.0 + (-l).exp()))),
    }
    // What decides; the weights are the scores without the bias.
    choice.clear();
    match bias {
        Some(bias) => choice.extend(scores.iter().zip(bias).map(|(s, b)| s + b)),
        None => choice.extend_from_slice(scores),
    }
    if let Some(groups) = &moe.groups {
        mask_groups(choice, groups);
    }
    let first = picks.len();
    for _ in 0..moe.top_k.min(choice.len()) {
        let taken = |expert: usize| picks[first..].iter().any(|p| p.expert == expert);
        if let Some(expert) = best(choice, taken) {
            picks.push(Pick { expert, weight: scores[expert] });
        }
    }
    let picked = &mut picks[first..];
    if moe.renormalize {
        // DeepSeek guards against a sum of zero, which softmax cannot have.
        let guard = if moe.scoring == Scoring::SigmoidWithBias { 1e-20 } else { 0.0 };
        let total: f32 = picked.iter().map(|p| p.weight).sum::<f32>() + guard;
        picked.iter_mut().for_each(|p| p.weight /= total);
    }
    picked.iter_mut().for_each(|p| p.weight *= moe.scale);
}

fn softmax(logits: &[f32], out: &mut Vec<f32>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    out.extend(logits.iter().map(|l| (l - max).exp()));
    let sum: f32 = out.iter().sum();
    out.iter_mut().for_each(|e| *e /= sum);
}

/// The index of the largest score that is not taken; the first of equals.
fn best(scores: &[f32], taken: impl Fn(usize) -> bool) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (i, score) in scores.iter().enumerate() {
        if best.is_none_or(|b| score.total_cmp(&scores[b]).is_gt()) && !taken(i) {
            best = Some(i);
        }
    }
    best
}

/// Takes the experts of all but the best groups out of the choice.
fn mask_groups(choice: &mut [f32], groups: &Groups) {
    let size = choice.len() / groups.count;
    let score = |group: &[f32]| match groups.score {
        GroupScore::Max => group.iter().copied().fold(f32::NEG_INFINITY, f32::max),
        GroupScore::TopTwo => {
            let first = best(group, |_| false);
            let second = best(group, |i| Some(i) == first);
            first.into_iter().chain(second).map(|e| group[e]).sum()
        }
    };
    let scores: Vec<f32> = choice.chunks_exact(size).map(score).collect();
    let mut chosen: Vec<usize> = Vec::with_capacity(groups.chosen);
    for _ in 0..groups.chosen {
        chosen.extend(best(&scores, |i| chosen.contains(&i)));
    }
    for group in (0..groups.count).filter(|g| !chosen.contains(g)) {
        choice[group * size..(group + 1) * size].fill(f32::NEG_INFINITY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moe(experts: usize, top_k: usize) -> Moe {
        Moe {
            block: "mlp",
            experts,
            top_k,
            intermediate: 1,
            scoring: Scoring::Softmax,
            groups: None,
            renormalize: false,
            scale: 1.0,
            shared: None,
        }
    }

    fn picked(logits: &[f32], bias: Option<&[f32]>, moe: &Moe) -> Vec<(usize, f32)> {
        let mut picks = vec![Pick { expert: 3, weight: 9.0 }];
        route(logits, bias, moe, &mut vec![7.0], &mut vec![7.0; 9], &mut picks);
        picks[1..].iter().map(|p| (p.expert, p.weight)).collect()
    }

    #[test]
    fn softmax_then_top_k() {
        let logits = [0.0, 2.0, 1.0, 2.0];
        let best = picked(&logits, None, &moe(4, 2));
        let z = 2.0 * 2f32.exp() + 1f32.exp() + 1.0;
        assert_eq!(best.iter().map(|p| p.0).collect::<Vec<_>>(), [1, 3]);
        assert!((best[0].1 - 2f32.exp() / z).abs() < 1e-6);
        let renormalized = picked(&logits, None, &Moe { renormalize: true, scale: 2.0, ..moe(4, 2) });
        assert!((renormalized[0].1 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_bias_changes_the_choice_and_not_the_weights() {
        let config = Moe { scoring: Scoring::SigmoidWithBias, ..moe(3, 1) };
        let best = picked(&[2.0, 0.0, 0.0], Some(&[0.0, 0.0, 5.0]), &config);
        assert_eq!(best, [(2, 0.5)]);
    }

    #[test]
    fn only_the_best_groups_take_part() {
        // Best single expert in group 0, best pair in group 1.
        let logits = [3.0, -9.0, 2.0, 2.0];
        let groups = |score| Some(Groups { count: 2, chosen: 1, score });
        let by_max = picked(&logits, None, &Moe { groups: groups(GroupScore::Max), ..moe(4, 1) });
        let sigmoid = Moe { scoring: Scoring::SigmoidWithBias, groups: groups(GroupScore::TopTwo), ..moe(4, 1) };
        assert_eq!((by_max[0].0, picked(&logits, None, &sigmoid)[0].0), (0, 2));
    }
}
