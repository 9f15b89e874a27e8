//! Tasks whose reward a rule computes: verifiable, deterministic, from 0 to 1. Each is a share and not a yes or no, so that
//! a model that starts far away still sees which of its answers is better.

use serde::{Deserialize, Serialize};

/// What is rewarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// The share of words that have no letter e and that the text did not have before; 0 for fewer than three words
    Lipogram,
    /// The share of finished sentences (ended by . ! or ?) that are questions; 0 where none is finished
    Question,
    /// The share of finished lines that have 12 to 24 characters; 0 where none is finished
    ShortLines,
}

impl Task {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Task::Lipogram => "lipogram",
            Task::Question => "question",
            Task::ShortLines => "short-lines",
        }
    }

    /// The reward of a generated text, from 0 to 1.
    pub fn reward(self, text: &str) -> f64 {
        match self {
            Task::Lipogram => {
                let words = text.split(|c: char| !c.is_alphabetic() && c != '\'').filter(|w| !w.is_empty());
                let words: Vec<String> = words.map(str::to_lowercase).collect();
                // Without the second condition the best text would be one word again and again.
                let good: Vec<bool> =
                    words.iter().enumerate().map(|(i, w)| !w.contains('e') && !words[..i].contains(w)).collect();
                if good.len() < 3 { 0.0 } else { share(&good) }
            }
            Task::Question => {
                let ends: Vec<bool> = text.chars().filter(|c| matches!(c, '.' | '!' | '?')).map(|c| c == '?').collect();
                share(&ends)
            }
            Task::ShortLines => {
                let Some((finished, _)) = text.rsplit_once('\n') else { return 0.0 };
                let fits: Vec<bool> =
                    finished.split('\n').map(|line| (12..=24).contains(&line.trim_end().chars().count())).collect();
                share(&fits)
            }
        }
    }
}

/// The share of `true`; 0 of nothing.
fn share(of: &[bool]) -> f64 {
    if of.is_empty() { 0.0 } else { of.iter().filter(|b| **b).count() as f64 / of.len() as f64 }
}

/// What the bundled model continues: the heads of speeches, as its training text has them.
pub const PROMPTS: [&str; 32] = [
    "ROMEO.\n",
    "JULIET.\n",
    "HAMLET.\n",
    "OPHELIA.\n",
    "KING.\n",
    "QUEEN.\n",
    "OTHELLO.\n",
    "IAGO.\n",
    "BRUTUS.\n",
    "CASSIUS.\n",
    "ANTONY.\n",
    "CLEOPATRA.\n",
    "PORTIA.\n",
    "SHYLOCK.\n",
    "MACBETH.\n",
    "LADY MACBETH.\n",
    "BANQUO.\n",
    "LEAR.\n",
    "CORDELIA.\n",
    "FOOL.\n",
    "KENT.\n",
    "PROSPERO.\n",
    "MIRANDA.\n",
    "ARIEL.\n",
    "ROSALIND.\n",
    "ORLANDO.\n",
    "DUKE.\n",
    "FALSTAFF.\n",
    "PRINCE.\n",
    "VIOLA.\n",
    "OLIVIA.\n",
    "BEATRICE.\n",
];

#[cfg(test)]
mod tests {
    use super::Task;

    #[test]
    fn rewards_are_what_the_help_says() {
        for (task, text, reward) in [
            (Task::Lipogram, "I am not a king.", 1.0),
            (Task::Lipogram, "The man is here", 0.5),
            (Task::Lipogram, "'tis Eve, o'er all", 0.5),
            (Task::Lipogram, "I will. I will", 0.5),
            (Task::Lipogram, "no, not", 0.0),
            (Task::Lipogram, "", 0.0),
            (Task::Question, "Who? What? Nobody. Go", 2.0 / 3.0),
            (Task::Question, "Who is it", 0.0),
            (Task::ShortLines, "a line of twenty chars\nshort\nunfinished", 0.5),
            (Task::ShortLines, "a line of twenty chars", 0.0),
            (Task::ShortLines, "\n", 0.0),
        ] {
            assert_eq!(task.reward(text), reward, "{task:?} of {text:?}");
        }
    }
}
