//! Where the time goes from the start of the process to the first token.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::output::duration;

/// A clock that runs from `main` on. What happens beside the main thread is measured too.
pub struct Startup {
    began: Instant,
    before_main: Duration,
    /// The parts that are done, each with when it ended.
    parts: Mutex<Vec<(Duration, Part)>>,
    first_token: Mutex<Option<Duration>>,
}

/// A piece of work, in milliseconds after `main` began.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    part: &'static str,
    /// For which patch, if for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    start_ms: f64,
    ms: f64,
    /// It is a piece of another part, or ran beside the others: parts without this follow one another.
    within: bool,
}

/// The times of one run, as `--timings` and JSON show them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StartupReport {
    /// From `main` to the first token.
    first_token_ms: f64,
    /// CPU time of the process before `main`: loading and relocating the program.
    before_main_ms: f64,
    /// In the order in which they began.
    parts: Vec<Part>,
}

impl Startup {
    /// To be called first thing in `main`.
    pub fn begin() -> Self {
        Self { began: Instant::now(), before_main: cpu_time(), parts: Mutex::default(), first_token: Mutex::default() }
    }

    /// A step of the main thread.
    pub fn step<R>(&self, part: &'static str, work: impl FnOnce() -> R) -> R {
        self.timed(part, None, false, work)
    }

    /// A piece of a step, or what runs beside it; `patch` names the patch that it is about.
    pub fn within<R>(&self, part: &'static str, patch: Option<&str>, work: impl FnOnce() -> R) -> R {
        self.timed(part, patch, true, work)
    }

    fn timed<R>(&self, part: &'static str, patch: Option<&str>, within: bool, work: impl FnOnce() -> R) -> R {
        let start = self.began.elapsed();
        let done = work();
        let took = self.began.elapsed() - start;
        self.push(start, took, part, patch, within);
        done
    }

    fn push(&self, start: Duration, took: Duration, part: &'static str, patch: Option<&str>, within: bool) {
        let patch = patch.map(str::to_owned);
        let done = Part { part, patch, start_ms: ms(start), ms: ms(took), within };
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).push((start + took, done));
    }

    /// The prompts are read, `begun` ago, and the first token was given out; if there is none, now counts.
    pub fn prefilled(&self, begun: Instant) {
        self.first_token();
        let start = begun.saturating_duration_since(self.began);
        let first = self.first_token.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_default();
        let took = first.saturating_sub(start);
        self.push(start, took, "prefill", None, false);
    }

    /// The first token is there. What comes later does not count.
    pub fn first_token(&self) {
        self.first_token.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| self.began.elapsed());
    }

    /// What was measured up to the first token; up to now if there was none.
    pub fn report(&self) -> StartupReport {
        let first = self.first_token.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(self.began.elapsed());
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut parts: Vec<Part> =
            parts.iter().filter(|(end, _)| *end <= first).map(|(_, part)| part.clone()).collect();
        parts.sort_by(|a, b| a.start_ms.total_cmp(&b.start_ms));
        StartupReport { first_token_ms: ms(first), before_main_ms: ms(self.before_main), parts }
    }
}

impl StartupReport {
    pub fn print(&self) {
        let time = |ms: f64| duration(ms / 1e3);
        outln!(
            "first token {} after main began ({} of CPU time before it)",
            time(self.first_token_ms),
            time(self.before_main_ms)
        );
        for Part { part, patch, start_ms, ms, within } in &self.parts {
            let what = match patch {
                Some(patch) => format!("{part} {patch}"),
                None => (*part).to_owned(),
            };
            let indent = if *within { "    " } else { "  " };
            outln!("{:<34} at {:>9}  {:>9}", format!("{indent}{what}"), time(*start_ms), time(*ms));
        }
    }
}

/// To a microsecond: more digits would be noise.
fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

/// What the process has used so far.
#[cfg(target_os = "linux")]
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(not(target_os = "linux"))]
fn cpu_time() -> Duration {
    Duration::ZERO
}
