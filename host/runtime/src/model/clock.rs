//! Where the time of a forward pass goes.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// What a forward pass spends time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Embedding and angles.
    Embed,
    /// RMS norms and residual sums.
    Norm,
    /// Quantizing activations to FP8, calls to a patch included.
    Quantize,
    /// Projections of attention (and of DeltaNet).
    Project,
    /// Norms and rotation of heads, and writing keys and values.
    Heads,
    /// Attention itself, or the recurrence of DeltaNet.
    Attend,
    /// Router logits and the choice of experts.
    Route,
    /// Products of routed experts.
    Experts,
    /// Products of a dense or shared MLP.
    Mlp,
    /// Gates, sums and gathering around them.
    Gate,
    /// The output head.
    Head,
}

const OPS: [Op; 11] = [
    Op::Embed,
    Op::Norm,
    Op::Quantize,
    Op::Project,
    Op::Heads,
    Op::Attend,
    Op::Route,
    Op::Experts,
    Op::Mlp,
    Op::Gate,
    Op::Head,
];

/// Times of the passes since profiling began.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    spent: [Duration; OPS.len()],
    passes: u64,
}

impl Profile {
    /// Forward passes.
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// What each operator took in all passes.
    pub fn spent(&self) -> impl Iterator<Item = (Op, Duration)> {
        OPS.into_iter().zip(self.spent)
    }

    pub(super) fn add(&mut self, clock: &Clock) {
        self.passes += 1;
        for (sum, spent) in self.spent.iter_mut().zip(&clock.spent) {
            *sum += spent.get();
        }
    }
}

/// The stop watch of one pass; stands still unless profiling is on.
pub(super) struct Clock {
    last: Cell<Option<Instant>>,
    spent: [Cell<Duration>; OPS.len()],
}

impl Clock {
    pub(super) fn new(on: bool) -> Self {
        Self { last: Cell::new(on.then(Instant::now)), spent: Default::default() }
    }

    /// Counts the time since the last lap for `op`.
    pub(super) fn lap(&self, op: Op) {
        if let Some(last) = self.last.get() {
            let now = Instant::now();
            let spent = &self.spent[op as usize];
            spent.set(spent.get() + (now - last));
            self.last.set(Some(now));
        }
    }
}
