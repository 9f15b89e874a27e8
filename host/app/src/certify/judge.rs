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
    /// Of the one token that is farthest.
    pub most: f64,
}

impl Distance {
    const FAR: Self = Self { mean: f64::INFINITY, most: f64::INFINITY };

    fn over(all: impl IntoIterator<Item = f64>) -> Self {
        let (mut sum, mut most, mut count) = (0.0, 0.0_f64, 0.0);
        for one in all {
            (sum, most, count) = (sum + one, most.max(one), count + 1.0);
        }
        if count == 0.0 { Self::FAR } else { Self { mean: sum / count, most } }
    }

    /// Whether it is no farther than `other` in both measures.
    pub fn within(self, other: Self) -> bool {
        self.mean <= other.mean && self.most <= other.most
    }

    /// The farther of both, measure by measure.
    pub fn or_more(self, other: Self) -> Self {
        Self { mean: self.mean.max(other.mean), most: self.most.max(other.most) }
    }

    /// How much is tolerated where right weights were seen to be so far apart: three times as much, and a little for what is
    /// lost where numbers are written as text.
    pub fn tolerated(self) -> Self {
        Self { mean: 3.0 * self.mean + 1e-4, most: 3.0 * self.most + 1e-3 }
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
        let within = Distance { mean: 0.01, most: 0.02 };
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
