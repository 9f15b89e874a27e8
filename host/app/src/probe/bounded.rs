//! A patch that is asked no more after a deadline. Each call ends by its own limits, but a probe makes thousands of
//! calls, and must end even if the patch is slow.

use patchhost_runtime::hooks::{
    ActivationRule, BlockQuant, Blocks, Consumer, Decision, HookCause, HookError, ModelInfo, RowPanel, TensorInfo,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

/// The deadline of a probe, and whether a question came after it.
#[derive(Clone)]
pub(super) struct Deadline {
    until: Instant,
    missed: Arc<AtomicBool>,
}

impl Deadline {
    pub(super) fn new(until: Instant) -> Self {
        Self { until, missed: Arc::default() }
    }

    /// Whether a question was not asked because time was up. Reading this resets it.
    pub(super) fn was_missed(&self) -> bool {
        self.missed.swap(false, Relaxed)
    }
}

/// A patch's block quantization that is asked only until the deadline.
pub(super) struct Bounded {
    inner: Arc<dyn BlockQuant>,
    deadline: Deadline,
}

impl Bounded {
    pub(super) fn new(inner: Arc<dyn BlockQuant>, deadline: &Deadline) -> Self {
        Self { inner, deadline: deadline.clone() }
    }

    fn in_time(&self) -> Result<&dyn BlockQuant, HookError> {
        if Instant::now() < self.deadline.until {
            return Ok(&*self.inner);
        }
        self.deadline.missed.store(true, Relaxed);
        Err(HookError {
            patch: self.inner.name().to_owned(),
            call: "the probe".to_owned(),
            cause: HookCause::Limit,
            why: "time was up".to_owned(),
            next: "probe with more time".to_owned(),
        })
    }
}

impl BlockQuant for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn decide(&self, model: &ModelInfo, reader: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Decision>, HookError> {
        self.in_time()?.decide(model, reader, tensors)
    }
    fn activation(&self, model: &ModelInfo) -> Result<Option<ActivationRule>, HookError> {
        self.in_time()?.activation(model)
    }
    fn scales(&self, b: &Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.in_time()?.scales(b, amax)
    }
    fn scales_with_moments(&self, b: &Blocks<'_>, amax: &[f32], squares: &[f32]) -> Result<Vec<f32>, HookError> {
        self.in_time()?.scales_with_moments(b, amax, squares)
    }
    fn panel_scales(&self, b: &Blocks<'_>, panel: &RowPanel, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.in_time()?.panel_scales(b, panel, amax)
    }
    fn activation_scales(&self, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.in_time()?.activation_scales(amax)
    }
}
