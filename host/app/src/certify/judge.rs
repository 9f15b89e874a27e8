//! Which weights an engine holds, told from its answers: against recorded answers of fresh loads, or against what another
//! runtime computes for the same tokens.

use super::engine::Answered;
use super::error::KitError;

/// The answers to all prompts, in their order.
pub type Answers = Vec<Answered>;

/// How far answers are from what they should be: differences of log probabilities.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Distance {
    /// Over all tokens.
    pub mean: f64,
    /// Of the token in the middle: one token that another expert was chosen for does not move it.
    pub median: f64,
    /// Of the one token that is farthest.
    pub most: f64,
}

impl Distance {
    const FAR: Self = Self { mean: f64::INFINITY, median: f64::INFINITY, most: f64::INFINITY };

    /// No difference at all.
    pub const NONE: Self = Self { mean: 0.0, median: 0.0, most: 0.0 };

    fn over(all: impl IntoIterator<Item = f64>) -> Self {
        let mut all: Vec<f64> = all.into_iter().collect();
        all.sort_by(f64::total_cmp);
        let (Some(median), Some(most)) = (all.get(all.len() / 2), all.last()) else { return Self::FAR };
        Self { mean: all.iter().sum::<f64>() / all.len() as f64, median: *median, most: *most }
    }

    /// Whether it is no farther than `other` in any measure.
    pub fn within(self, other: Self) -> bool {
        self.mean <= other.mean && self.median <= other.median && self.most <= other.most
    }

    fn zip(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Self { mean: f(self.mean, other.mean), median: f(self.median, other.median), most: f(self.most, other.most) }
    }

    /// The farther of both, measure by measure.
    pub fn or_more(self, other: Self) -> Self {
        self.zip(other, f64::max)
    }

    /// Where this is tolerated: how far wrong weights must be from right ones to be told from them, rounding included.
    pub fn visible(self) -> Self {
        self.zip(self, |one, _| one * 4.0 / 3.0)
    }

    /// How much is tolerated where right weights were seen to be so far apart: three times as much, and a little for what is
    /// lost where numbers are written as text.
    pub fn tolerated(self) -> Self {
        let least = Self { mean: 1e-4, median: 1e-4, most: 1e-3 };
        self.zip(least, |one, least| 3.0 * one + least)
    }
}

/// The distance of two sets of answers to the same prompts. Tokens must be the same; where two tokens were as good as equally
/// likely, the rest of that answer is another text and is not compared.
pub fn between(one: &Answers, other: &Answers, tolerated: Distance) -> Distance {
    if one.len() != other.len() {
        return Distance::FAR;
    }
    let mut all = Vec::new();
    for (one, other) in one.iter().zip(other) {
        if one.tokens.len() != other.tokens.len() || one.logprobs.len() != other.logprobs.len() {
            return Distance::FAR;
        }
        for (at, (a, b)) in one.tokens.iter().zip(&other.tokens).enumerate() {
            let apart = match (one.logprobs.get(at), other.logprobs.get(at)) {
                (Some(a), Some(b)) => (a - b).abs(),
                _ => 0.0,
            };
            // Without log probabilities nobody can say that two tokens were equally likely.
            let tie = !one.logprobs.is_empty() && at > 0 && apart <= tolerated.most;
            if a != b && !tie {
                return Distance::FAR;
            }
            all.push(apart);
            if a != b {
                break;
            }
        }
    }
    Distance::over(all)
}

/// Another runtime that can load the same checkpoints.
pub trait Fresh {
    /// For each token of an answer: its log probability behind the prompt and the tokens before it, and that of the most
    /// likely token there.
    fn logprobs(&mut self, checkpoint: usize, prompt: &[u32], tokens: &[u32]) -> Result<Vec<(f64, f64)>, KitError>;
}

/// How far answers are from what another runtime computes for the same tokens.
pub fn computed(
    own: &mut dyn Fresh,
    checkpoint: usize,
    prompts: &[Vec<u32>],
    answers: &Answers,
) -> Result<Distance, KitError> {
    let mut all = Vec::new();
    for (prompt, answer) in prompts.iter().zip(answers) {
        for (at, (own, best)) in own.logprobs(checkpoint, prompt, &answer.tokens)?.into_iter().enumerate() {
            // A greedy engine takes the most likely token, or one that is as good as equally likely.
            let worse = best - own;
            let apart = answer.logprobs.get(at).map_or(0.0, |said| (said - own).abs());
            all.push(worse.max(apart));
        }
    }
    // A difference that is no number is none that can be tolerated.
    Ok(if all.iter().any(|d| d.is_nan()) { Distance::FAR } else { Distance::over(all) })
}

/// What a fresh load of each checkpoint answers.
pub struct Reference {
    /// Answers of an engine that loaded the checkpoint at its start, asked once and again, by checkpoint.
    pub recorded: Vec<Vec<Answers>>,
    /// How far such answers may be apart.
    pub recorded_within: Distance,
    /// What judges the checkpoints that have no recorded answers.
    pub own: Option<Box<dyn Fresh>>,
    /// How far the engine may be from the other runtime.
    pub own_within: Distance,
    /// The prompts.
    pub prompts: Vec<Vec<u32>>,
}

impl Reference {
    /// How far answers are from a checkpoint, as the other runtime computes it.
    fn own_distance(&mut self, checkpoint: usize, answers: &Answers) -> Result<Distance, KitError> {
        match &mut self.own {
            Some(own) => computed(own.as_mut(), checkpoint, &self.prompts, answers),
            None => Ok(Distance::FAR),
        }
    }

    /// Whether answers are those of a checkpoint.
    pub fn fits(&mut self, checkpoint: usize, answers: &Answers) -> Result<bool, KitError> {
        let within = self.recorded_within;
        match self.recorded.get(checkpoint).filter(|runs| !runs.is_empty()) {
            Some(runs) => Ok(runs.iter().any(|run| between(answers, run, within).within(within))),
            None => Ok(self.own_distance(checkpoint, answers)?.within(self.own_within)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(tokens: &[u32], logprobs: &[f64]) -> Answers {
        vec![Answered { tokens: tokens.to_vec(), logprobs: logprobs.to_vec() }]
    }

    #[test]
    fn answers_are_compared_up_to_a_tie() {
        let within = Distance { mean: 0.01, median: 0.01, most: 0.02 };
        let one = answer(&[1, 2, 3], &[-1.0, -0.5, -2.0]);
        assert!(between(&one, &one, within).within(within));
        assert!(between(&one, &answer(&[1, 2, 3], &[-1.0, -0.51, -2.0]), within).within(within));
        assert!(!between(&one, &answer(&[1, 2, 3], &[-1.0, -0.55, -2.0]), within).within(within));
        // Equally likely: what follows is another text. Otherwise it is another model.
        assert!(between(&one, &answer(&[1, 9, 7], &[-1.0, -0.505, -9.0]), within).within(within));
        assert!(!between(&one, &answer(&[1, 9, 7], &[-1.0, -0.9, -9.0]), within).within(within));
        assert!(!between(&one, &answer(&[1, 2], &[-1.0, -0.5]), within).within(within));
        assert!(!between(&answer(&[1, 2], &[]), &answer(&[1, 3], &[]), within).within(within));
    }
}
