//! One refit as a transaction. Dropping it at any point aborts it: nothing live was touched.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::watch::{Watches, digests, watch};
use super::{Planned, Progress, RefitHooks, RefitReport};
use crate::assembly::{Assembly, ChunkHeader, Duplicates};
use crate::checkpoint::{Checkpoint, CheckpointTensor};
use crate::engine::Engine;
use crate::error::{Refusal, Result, RuntimeError};
use crate::hooks::Dtype;
use crate::weights::WeightSet;
use crate::words::nearest;

/// What the trainer promised about one tensor.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// Element type in the words of safetensors (`BF16`, `F32`, `F8_E4M3`, …).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<safetensors::tensor::Dtype>,
    /// Dimensions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<usize>>,
    /// SHA-256 of the bytes, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// Everything that the trainer promised to send, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The tensors.
    pub tensors: BTreeMap<String, Promise>,
}

/// How a transaction begins.
#[derive(Debug, Clone, Default)]
pub struct Begin {
    /// What the trainer calls these weights (a step, a hash); none: the number of the publish.
    pub version: Option<String>,
    /// What will be sent; none: whatever comes, checked against the model alone.
    pub manifest: Option<Manifest>,
    /// What happens when bytes come twice.
    pub duplicates: Duplicates,
    /// Take vectors in a narrower type than the live ones have.
    pub allow_narrowing: bool,
}

/// A refit that takes chunks.
pub struct Transaction<'e> {
    engine: &'e Engine,
    turn: TurnGuard<'e>,
    begin: Begin,
    label: String,
    hooks: RefitHooks,
    assembly: Assembly,
    watches: Watches,
}

/// Weights that are complete and proved, and not yet live.
pub struct StagedRefit<'e> {
    engine: &'e Engine,
    _turn: TurnGuard<'e>,
    checkpoint: Checkpoint,
    hooks: RefitHooks,
    set: WeightSet,
    report: RefitReport,
}

impl<'e> Transaction<'e> {
    pub(crate) fn new(
        engine: &'e Engine,
        turn: TurnGuard<'e>,
        begin: Begin,
        hooks: &RefitHooks,
        limit: usize,
    ) -> Result<Self> {
        let label = begin.version.clone().unwrap_or_else(|| (engine.version() + 1).to_string());
        let expected: Option<Vec<String>> = begin.manifest.as_ref().map(|m| m.tensors.keys().cloned().collect());
        let watches = watch(&hooks.observers, &label, expected.as_deref())?;
        let assembly = Assembly::new(begin.duplicates, limit);
        Ok(Self { engine, turn, begin, label, hooks: hooks.clone(), assembly, watches })
    }

    /// A range of bytes of a tensor. A chunk that is refused changes nothing; the transaction goes on.
    pub fn chunk(&mut self, chunk: &ChunkHeader<'_>, bytes: &[u8]) -> Result<()> {
        self.admits(chunk.name, chunk.dtype, chunk.shape)?;
        self.assembly.chunk(chunk, bytes).map_err(RuntimeError::Refit)
    }

    /// A whole tensor; its bytes are shared, not copied.
    pub fn tensor(&mut self, tensor: &CheckpointTensor) -> Result<()> {
        self.admits(&tensor.name, tensor.stored, &tensor.shape)?;
        self.assembly.tensor(tensor).map_err(RuntimeError::Refit)
    }

    /// Bytes that arrived.
    pub fn bytes(&self) -> u64 {
        self.assembly.bytes()
    }

    /// Ends it without effect; so does dropping it.
    pub fn abort(self) {
        tracing::info!(version = self.label, "refit aborted");
    }

    /// All has been sent: completeness, manifest, observers, coverage, quantization and layout, in this order. On an
    /// error the old weights keep serving.
    pub fn finish(mut self, progress: Progress<'_>) -> Result<StagedRefit<'e>> {
        let tensors = self.assembly.finish().map_err(RuntimeError::Refit)?;
        let known = match &self.begin.manifest {
            Some(manifest) => manifest.tensors.values().any(|p| p.sha256.is_some()),
            None => false,
        };
        let sums = if known || !self.watches.is_empty() { digests(&tensors) } else { Vec::new() };
        if let Some(manifest) = &self.begin.manifest {
            kept(manifest, &tensors, &sums)?;
        }
        let observers = self.watches.show(&tensors, &sums)?;
        let checkpoint = self.engine.readable(&Checkpoint::from_tensors(tensors)?)?;
        let planned = Planned::new(self.engine.setup(), &checkpoint, &self.hooks)?;
        if let (false, Ok(live)) = (self.begin.allow_narrowing, self.engine.live()) {
            planned.refuse_narrowing(&live)?;
        }
        let (set, mut report) = planned.stage(self.engine.version() + 1, &self.label, &self.hooks, progress)?;
        report.observers = observers;
        let Self { engine, turn, hooks, .. } = self;
        Ok(StagedRefit { engine, _turn: turn, checkpoint, hooks, set, report })
    }

    fn admits(&self, name: &str, dtype: safetensors::tensor::Dtype, shape: &[usize]) -> Result<()> {
        self.begin.manifest.as_ref().map_or(Ok(()), |manifest| manifest.admits(name, dtype, shape))
    }
}

impl Manifest {
    /// Refuses a tensor that was not promised like this.
    pub fn admits(&self, name: &str, dtype: safetensors::tensor::Dtype, shape: &[usize]) -> Result<()> {
        let shown = crate::words::shown(name);
        let Some(promise) = self.tensors.get(name) else {
            let near = nearest(name, self.tensors.keys().map(String::as_str));
            let hint = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            return Err(broken(&shown, format!("the manifest does not name it{hint}")));
        };
        if promise.dtype.is_some_and(|d| d != dtype) {
            return Err(broken(&shown, format!("it came as {dtype:?}, the manifest says {:?}", promise.dtype)));
        }
        match &promise.shape {
            Some(promised) if promised != shape => {
                Err(broken(&shown, format!("its shape is {shape:?}, the manifest says {promised:?}")))
            }
            _ => Ok(()),
        }
    }
}

impl StagedRefit<'_> {
    /// The weights, for a look before they are live.
    pub fn weights(&self) -> &WeightSet {
        &self.set
    }

    /// What was done.
    pub fn report(&self) -> &RefitReport {
        &self.report
    }

    /// Loads the same tensors a second time, apart from everything, and compares every bit and the layout.
    pub fn verify(&self) -> Result<()> {
        let planned = Planned::new(self.engine.setup(), &self.checkpoint, &self.hooks)?;
        let (fresh, _) = planned.stage(self.report.version, &self.report.label, &self.hooks, &|_, _, _| {})?;
        match self.set.first_difference(&fresh) {
            None => Ok(()),
            Some((param, part)) => {
                let decl = &self.engine.registry().params()[param];
                Err(RuntimeError::Refit(Refusal::new(
                    format!("{} of `{}`", decl.part_label(part), decl.name),
                    "a fresh load of the same tensors gives other bits: a patch does not answer the same twice",
                    "do not use that patch; the old weights keep serving",
                )))
            }
        }
    }

    /// Makes the weights live, by one pointer exchange. Caches that the old ones made are refused from now on.
    pub fn publish(self) -> RefitReport {
        self.engine.publish(self.set, &self.report);
        self.report
    }
}

/// Everything that was promised came, with the bytes that were promised.
fn kept(manifest: &Manifest, tensors: &[CheckpointTensor], sums: &[String]) -> Result<()> {
    let came: BTreeMap<&str, usize> = tensors.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
    for (name, promise) in &manifest.tensors {
        let shown = crate::words::shown(name);
        let Some(i) = came.get(name.as_str()) else {
            return Err(broken(&shown, "the manifest promises it, and it did not come".to_string()));
        };
        if let (Some(promised), Some(found)) = (&promise.sha256, sums.get(*i))
            && !promised.eq_ignore_ascii_case(found)
        {
            return Err(broken(&shown, format!("its bytes have sha256 {found}, the manifest says {promised}")));
        }
    }
    Ok(())
}

fn broken(name: &str, why: String) -> RuntimeError {
    let next = "send what the manifest says; nothing was published, the old weights keep serving";
    RuntimeError::Refit(Refusal::new(format!("tensor `{name}`"), why, next))
}

/// Whether `new` holds fewer bits than `old`.
pub(super) fn narrower(new: Dtype, old: Dtype) -> bool {
    old == Dtype::F32 && matches!(new, Dtype::Bf16 | Dtype::F16 | Dtype::F8E4m3)
}

/// Whose turn it is to refit: one at a time.
#[derive(Default)]
pub(crate) struct Turn {
    taken: Mutex<bool>,
    free: Condvar,
}

/// Gives the turn back when dropped.
pub(crate) struct TurnGuard<'a>(&'a Turn);

impl Turn {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the others.
    pub(crate) fn wait(&self) -> TurnGuard<'_> {
        let mut taken = self.lock();
        while *taken {
            taken = self.free.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken = true;
        TurnGuard(self)
    }

    /// Only if nobody has it.
    pub(crate) fn take(&self) -> Option<TurnGuard<'_>> {
        let mut taken = self.lock();
        (!std::mem::replace(&mut *taken, true)).then(|| TurnGuard(self))
    }

    /// Whether somebody has it.
    pub(crate) fn is_taken(&self) -> bool {
        *self.lock()
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        *self.0.lock() = false;
        self.0.free.notify_one();
    }
}
