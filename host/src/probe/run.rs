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

/// Told what is asked next.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// How thorough a probe is.
#[derive(Clone)]
pub struct ProbeOptions {
    /// Inputs of each property.
    pub random: usize,
    /// Values of each class of edges that go through the native cast; vectors take them all.
    pub edges: usize,
    /// Calls between the first time and the last time that the same is asked.
    pub calls: usize,
    /// Layers of the synthetic model that are asked about by name.
    pub layers: usize,
    /// Rows and columns of the matrix that is compared with native code.
    pub matrix: (usize, usize),
    /// Whether observers see a refit and state is handed over: what they see may change them, so not where the patch is
    /// used afterwards.
    pub stateful: bool,
    /// Seed of everything that is random.
    pub seed: u64,
    /// No check begins after so long, but for those that are asked of every patch; after twice as long, and
    /// [`LONGEST`] at the earliest, nothing more is asked. Each call has limits of its own.
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

/// What every patch is asked ends after this, or after twice the budget. A patch has to be hundreds of times slower than
/// `fp8_block` for that.
pub const LONGEST: Duration = Duration::from_secs(4);

/// What is asked of every patch, however little time there is: whether a wrong patch is found must not depend on what
/// else the machine does.
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
    /// The patch, until time is up.
    pub(super) fn bounded(&self, quant: Arc<dyn BlockQuant>) -> Bounded {
        Bounded::new(quant, &self.deadline)
    }

    /// When no check begins any more.
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
