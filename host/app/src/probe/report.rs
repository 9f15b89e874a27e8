//! What a probe found.

use crate::audit::Finding;
use crate::base::Hook;
use serde::Serialize;
use std::fmt;

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

/// One check of a probe: what was asked, and how it ended.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// Its name in reports: `vectors`.
    pub name: &'static str,
    /// The hook that was asked; none: the patch as a whole.
    pub hook: Option<Hook>,
    /// Whether the answers were right.
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
    /// As findings of an audit: `PH950` to `PH958`.
    pub fn findings(&self) -> Vec<Finding> {
        super::findings::of_probe(self)
    }

    /// Whether no check failed. Remarks and checks that were not made count as passed.
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

/// For people: one line of sum, then one for each check.
impl fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let against = self.profile.as_ref().map_or_else(|| "no named profile".to_owned(), |p| format!("profile {p}"));
        let (passed, all) = (self.count(Verdict::Passed), self.checks.len());
        let (patch, asked, seconds) = (&self.patch, self.asked(), self.seconds);
        writeln!(
            f,
            "probe of `{patch}`, {against}: {passed} of {all} checks passed, {asked} answers in {seconds:.1} s"
        )?;
        for check in &self.checks {
            let mark = match check.verdict {
                Verdict::Passed => "ok",
                Verdict::Failed => "FAILED",
                Verdict::Note => "note",
                Verdict::Skipped => "skipped",
            };
            let title = check.title();
            write!(f, "  {mark:7}  {title:26}")?;
            if check.asked > 0 {
                write!(f, "  {:>7}", check.asked)?;
            }
            if let Some(worst) = &check.worst {
                write!(f, "  {worst}")?;
            }
            if let Some(why) = &check.why {
                write!(f, "  {}", why.replace('\n', "\n      "))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Check {
    /// Whether there was no time for it.
    pub fn out_of_time(&self) -> bool {
        self.verdict == Verdict::Skipped && self.why.as_deref().is_some_and(|why| why.starts_with("time was up"))
    }

    /// Hook and name, as reports show it: `block-quant vectors`.
    pub fn title(&self) -> String {
        match self.hook {
            Some(hook) => format!("{hook} {}", self.name),
            None => self.name.to_owned(),
        }
    }
}
