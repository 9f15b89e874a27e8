//! Which experts a token goes through, and with which weights.

use crate::families::{GroupScore, Groups, Moe, Scoring};

/// The `top_k` best experts of one row of router logits (the lower index wins a tie) and their weights.
pub(super) fn route(logits: &[f32], bias: Option<&[f32]>, moe: &Moe) -> Vec<(usize, f32)> {
    let scores = match moe.scoring {
        Scoring::Softmax => softmax(logits),
        Scoring::SigmoidWithBias => logits.iter().map(|l| 1.0 / (1.0 + (-l).exp())).collect(),
    };
    // What decides; the weights are the scores without the bias.
    let mut choice = match bias {
        Some(bias) => scores.iter().zip(bias).map(|(s, b)| s + b).collect(),
        None => scores.clone(),
    };
    if let Some(groups) = &moe.groups {
        mask_groups(&mut choice, groups);
    }
    let mut best: Vec<(usize, f32)> = order(&choice).into_iter().take(moe.top_k).map(|e| (e, scores[e])).collect();
    if moe.renormalize {
        // DeepSeek guards against a sum of zero, which softmax cannot have.
        let guard = if moe.scoring == Scoring::SigmoidWithBias { 1e-20 } else { 0.0 };
        let total: f32 = best.iter().map(|b| b.1).sum::<f32>() + guard;
        best.iter_mut().for_each(|b| b.1 /= total);
    }
    best.iter_mut().for_each(|b| b.1 *= moe.scale);
    best
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f32> = logits.iter().map(|l| (l - max).exp()).collect();
    let sum: f32 = exps.iter().sum();
    exps.iter().map(|e| e / sum).collect()
}

/// Indices, best first.
fn order(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order
}

/// Takes the experts of all but the best groups out of the choice.
fn mask_groups(choice: &mut [f32], groups: &Groups) {
    let size = choice.len() / groups.count;
    let group_scores: Vec<f32> = choice
        .chunks_exact(size)
        .map(|group| match groups.score {
            GroupScore::Max => group.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            GroupScore::TopTwo => order(group).into_iter().take(2).map(|e| group[e]).sum(),
        })
        .collect();
    for group in order(&group_scores).into_iter().skip(groups.chosen) {
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

    #[test]
    fn softmax_then_top_k() {
        let logits = [0.0, 2.0, 1.0, 2.0];
        let picked = route(&logits, None, &moe(4, 2));
        let z = 2.0 * 2f32.exp() + 1f32.exp() + 1.0;
        assert_eq!(picked.iter().map(|p| p.0).collect::<Vec<_>>(), [1, 3]);
        assert!((picked[0].1 - 2f32.exp() / z).abs() < 1e-6);
        let renormalized = route(&logits, None, &Moe { renormalize: true, scale: 2.0, ..moe(4, 2) });
        assert!((renormalized[0].1 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_bias_changes_the_choice_and_not_the_weights() {
        let config = Moe { scoring: Scoring::SigmoidWithBias, ..moe(3, 1) };
        let picked = route(&[2.0, 0.0, 0.0], Some(&[0.0, 0.0, 5.0]), &config);
        assert_eq!(picked, [(2, 0.5)]);
    }

    #[test]
    fn only_the_best_groups_take_part() {
        // Best single expert in group 0, best pair in group 1.
        let logits = [3.0, -9.0, 2.0, 2.0];
        let groups = |score| Some(Groups { count: 2, chosen: 1, score });
        let by_max = route(&logits, None, &Moe { groups: groups(GroupScore::Max), ..moe(4, 1) });
        let sigmoid = Moe { scoring: Scoring::SigmoidWithBias, groups: groups(GroupScore::TopTwo), ..moe(4, 1) };
        assert_eq!((by_max[0].0, route(&logits, None, &sigmoid)[0].0), (0, 2));
    }
}
