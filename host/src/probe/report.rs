//! What a probe found.

use crate::abi::Hook;
use serde::Serialize;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every answer was right.
    Passed,
    /// An answer was wrong, or there was none.
    Failed,
    /// Nothing is wrong with the answers, and somebody should know.
    Note,
    /// It was not asked: it does not apply, or time was up.
    Skipped,
}

/// One check.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// Short name: `vectors`.
    pub name: &'static str,
    /// The hook that was asked; none: the patch as a whole.
    pub hook: Option<Hook>,
    /// How it ended.
    pub verdict: Verdict,
    /// How many answers were looked at.
    pub asked: u64,
    /// What was asked, and what it is worth knowing: for people.
    pub about: &'static str,
    /// The worst figure, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst: Option<String>,
    /// The first wrong answer, small enough to ask again by hand; or why it was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Everything a probe says about one patch.
#[derive(Debug, Clone, Serialize)]
pub struct ProbeReport {
    /// Name that the patch gives itself.
    pub patch: String,
    /// The numeric profile whose vectors were asked; none: it has a recipe of its own.
    pub profile: Option<String>,
    /// In the order in which they were made.
    pub checks: Vec<Check>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl ProbeReport {
    /// Whether nothing failed.
    pub fn passed(&self) -> bool {
        self.first_failure().is_none()
    }

    /// The first check that failed.
    pub fn first_failure(&self) -> Option<&Check> {
        self.checks.iter().find(|check| check.verdict == Verdict::Failed)
    }

    /// How many checks ended like this.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|check| check.verdict == verdict).count()
    }

    /// Answers that were looked at.
    pub fn asked(&self) -> u64 {
        self.checks.iter().map(|check| check.asked).sum()
    }
}

impl Check {
    /// `block-quant vectors`.
    pub fn title(&self) -> String {
        match self.hook {
            Some(hook) => format!("{hook} {}", self.name),
            None => self.name.to_owned(),
        }
    }
}
