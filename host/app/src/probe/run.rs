//! The probe itself: the checks in order, each with what is left of the time.

use super::bounded::{Bounded, Deadline};
use super::constants::Constants;
use super::report::{Check, ProbeReport, Verdict};
use super::{others, quant};
use crate::base::Hook;
use crate::patch::Patch;
use patchhost_runtime::hooks::BlockQuant;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A function that is told the name of the next check, to show progress.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// How thorough a probe is.
#[derive(Clone)]
pub struct ProbeOptions {
    /// How many random inputs each property is tried with.
    pub random: usize,
    /// How many values of each class of edge cases are cast in matrices. The golden vectors use all of them.
    pub edges: usize,
    /// How many calls are made to see whether the answers change in time.
    pub calls: usize,
    /// How many layers the made-up model has that the patch is asked about.
    pub layers: usize,
    /// Rows and columns of the matrix that is compared with native code.
    pub matrix: (usize, usize),
    /// Whether observers are shown a refit and state is exported and imported. Both may change what the patch
    /// remembers, so this is false where the same patch is used afterwards.
    pub stateful: bool,
    /// Seed of everything that is random.
    pub seed: u64,
    /// After this time no further check begins, but for the few that are made for every patch. After twice this time
    /// (and not before [`LONGEST`]) nothing more is asked. Each call has limits of its own.
    pub budget: Duration,
    /// The same component in code that was compiled without optimization: see [`super::examine`].
    pub twin: Option<Arc<Patch>>,
    /// What stands in the component: see [`super::constants`].
    pub constants: Option<Arc<Constants>>,
    /// Told the name of each check before it begins.
    pub progress: Option<Progress>,
}

impl ProbeOptions {
    /// For a reviewer: `patchhost audit --probe`.
    pub fn thorough() -> Self {
        Self {
            random: 1_000,
            edges: 1_000,
            calls: 20_000,
            layers: 96,
            matrix: (1024, 2048),
            stateful: true,
            seed: 1,
            budget: Duration::from_secs(20),
            twin: None,
            constants: None,
            progress: None,
        }
    }

    /// Before a patch becomes live: a fraction of a second beside a refit.
    pub fn quick() -> Self {
        Self {
            random: 100,
            edges: 5,
            calls: 500,
            layers: 12,
            matrix: (256, 512),
            stateful: false,
            seed: 1,
            budget: Duration::from_millis(500),
            twin: None,
            constants: None,
            progress: None,
        }
    }
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self::thorough()
    }
}

/// Even the checks that are made for every patch end after this time, or after twice the budget if that is later. Only
/// a patch that is hundreds of times slower than `fp8_block` gets that far.
pub const LONGEST: Duration = Duration::from_secs(4);

/// Checks that are made for every patch, even when time is up: whether a wrong patch is found must not depend on how
/// busy the machine is.
const ALWAYS: [&str; 6] = ["decisions", "contract", "vectors", "properties", "locality", "names"];

/// Asks a patch everything. Never panics, whatever it answers; stops at the first check that fails, since what comes after
/// would fail for the same reason.
pub fn run(patch: &Arc<Patch>, options: &ProbeOptions) -> ProbeReport {
    let began = Instant::now();
    let deadline = Deadline::new(began + options.budget.saturating_mul(2).max(LONGEST));
    let mut probe = Probe { options, began, deadline, checks: Vec::new() };
    let mut profile = None;
    if let Some(block_quant) = patch.block_quant() {
        profile = quant::run(&mut probe, patch, block_quant);
    }
    others::run(&mut probe, patch);
    ProbeReport {
        patch: patch.info().name.clone(),
        profile,
        checks: probe.checks,
        seconds: began.elapsed().as_secs_f64(),
    }
}

/// A probe under way.
pub(super) struct Probe<'a> {
    pub(super) options: &'a ProbeOptions,
    began: Instant,
    deadline: Deadline,
    checks: Vec<Check>,
}

/// What a check found out: how many answers, the worst figure, and a remark that is no failure.
#[derive(Default)]
pub(super) struct Found {
    pub(super) asked: u64,
    pub(super) worst: Option<String>,
    pub(super) note: Option<String>,
}

impl Found {
    pub(super) fn asked(asked: usize) -> Self {
        Self { asked: asked as u64, ..Self::default() }
    }
}

impl Probe<'_> {
    /// Lets a patch be asked only until the deadline.
    pub(super) fn bounded(&self, quant: Arc<dyn BlockQuant>) -> Bounded {
        Bounded::new(quant, &self.deadline)
    }

    /// The moment after which no check begins.
    pub(super) fn until(&self) -> Instant {
        self.began + self.options.budget
    }

    /// Whether something failed already.
    pub(super) fn failed(&self) -> bool {
        self.checks.iter().any(|check| check.verdict == Verdict::Failed)
    }

    /// Makes one check, unless one before it failed or time is up.
    pub(super) fn check(
        &mut self,
        name: &'static str,
        hook: Option<Hook>,
        about: &'static str,
        ask: impl FnOnce(&ProbeOptions) -> Result<Found, String>,
    ) {
        if self.failed() {
            return;
        }
        let mut check = Check { name, hook, about, verdict: Verdict::Skipped, asked: 0, worst: None, why: None };
        if self.began.elapsed() > self.options.budget && !ALWAYS.contains(&name) {
            check.why = Some(format!("time was up after {:.1} s", self.options.budget.as_secs_f64()));
            self.checks.push(check);
            return;
        }
        if let Some(progress) = &self.options.progress {
            progress(&check.title());
        }
        match ask(self.options) {
            Ok(Found { asked, worst, note }) => {
                check.verdict = if note.is_some() { Verdict::Note } else { Verdict::Passed };
                (check.asked, check.worst, check.why) = (asked, worst, note);
            }
            Err(_) if self.deadline.was_missed() => {
                check.why = Some(format!("time was up after {:.1} s", self.began.elapsed().as_secs_f64()));
            }
            Err(why) => {
                check.verdict = Verdict::Failed;
                check.why = Some(why);
            }
        }
        self.checks.push(check);
    }

    /// Says why a check is not made.
    pub(super) fn skip(&mut self, name: &'static str, hook: Option<Hook>, about: &'static str, why: &str) {
        if !self.failed() {
            let why = Some(why.to_owned());
            self.checks.push(Check { name, hook, about, verdict: Verdict::Skipped, asked: 0, worst: None, why });
        }
    }
}
