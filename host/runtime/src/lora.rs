//! LoRA adapters from tensors: assembled from chunks, admitted by a patch, checked natively whatever the patch says, and
//! published at once. A sequence keeps the adapter (and its version) that its cache was made with.

mod config;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use half::{bf16, f16};
use safetensors::tensor::Dtype as StDtype;

use crate::assembly::{Assembly, ChunkHeader, Duplicates};
use crate::checkpoint::CheckpointTensor;
use crate::error::{Refusal, Result, RuntimeError};
use crate::hooks::{Lora, LoraPlan, LoraSide, ModelInfo, Role, TensorInfo};
use crate::refit::info;
use crate::registry::{ParamId, Registry};
use config::{Config, refuse_config};

/// Most bytes of one adapter.
const MOST_BYTES: usize = 8 << 30;

/// The two halves for one part of a runtime tensor, in f32.
#[derive(Debug, Clone)]
struct LowRank {
    /// [r, in].
    a: Vec<f32>,
    /// [out, r].
    b: Vec<f32>,
}

/// A published adapter.
#[derive(Debug)]
pub struct Adapter {
    name: String,
    version: u64,
    rank: usize,
    scaling: f32,
    parts: HashMap<(ParamId, usize), LowRank>,
}

impl Adapter {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts the loads of this name, from 1.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// r.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Parts of runtime tensors that it adapts.
    pub fn adapted(&self) -> usize {
        self.parts.len()
    }

    /// Whether it was made for this model: every part that it adapts exists, and its halves have the part's shape.
    #[cfg(feature = "text")]
    pub(crate) fn fits(&self, registry: &Registry) -> bool {
        self.parts.iter().all(|((param, part), low)| {
            let Some(decl) = registry.params().get(*param).filter(|d| *part < d.part_count()) else { return false };
            let cols = decl.cols.unwrap_or_default();
            low.a.len() == self.rank * cols && low.b.len() == self.rank * decl.part(*part).rows
        })
    }

    /// out += scaling · B (A x) for one row, if the part is adapted. Row by row, so that a row's sum does not depend on
    /// the batch.
    pub(crate) fn add(&self, param: ParamId, part: usize, x: &[f32], out: &mut [f32]) {
        self.add_rows(param, part, 0..out.len(), x, out);
    }

    /// The same for some rows of the part.
    pub(crate) fn add_rows(&self, param: ParamId, part: usize, rows: Range<usize>, x: &[f32], out: &mut [f32]) {
        let Some(low) = self.parts.get(&(param, part)) else { return };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let inner: Vec<f32> = low.a.chunks_exact(x.len()).map(|row| dot(row, x)).collect();
        for (o, row) in out.iter_mut().zip(low.b[rows.start * self.rank..].chunks_exact(self.rank)) {
            *o += self.scaling * dot(row, &inner);
        }
    }

    /// out += scaling · Aᵀ (Bᵀ x) with some rows of B, one value of x for each: the product with these rows of the part,
    /// transposed.
    pub(crate) fn add_transposed(&self, param: ParamId, part: usize, rows: Range<usize>, x: &[f32], out: &mut [f32]) {
        let Some(low) = self.parts.get(&(param, part)) else { return };
        let mut inner = vec![0.0; self.rank];
        for (x, row) in x.iter().zip(low.b[rows.start * self.rank..].chunks_exact(self.rank)) {
            inner.iter_mut().zip(row).for_each(|(sum, b)| *sum += x * b);
        }
        for (inner, row) in inner.iter().zip(low.a.chunks_exact(out.len())) {
            out.iter_mut().zip(row).for_each(|(o, a)| *o += self.scaling * inner * a);
        }
    }
}

/// The adapters of one engine. Readers never wait; a load or unload replaces the whole map.
#[derive(Default)]
pub struct Adapters {
    live: ArcSwap<BTreeMap<String, Arc<Adapter>>>,
    versions: AtomicU64,
}

impl Adapters {
    /// The adapter of a name as it is published now.
    pub fn get(&self, name: &str) -> Option<Arc<Adapter>> {
        self.live.load().get(name).cloned()
    }

    /// All of them, by name.
    pub fn list(&self) -> Vec<Arc<Adapter>> {
        self.live.load().values().cloned().collect()
    }

    /// Takes the adapter out. Sequences that run with it keep it; its memory goes with the last of them.
    pub fn unload(&self, name: &str) -> bool {
        let old = self.live.rcu(|map| {
            let mut map = BTreeMap::clone(map);
            map.remove(name);
            map
        });
        old.contains_key(name)
    }

    fn publish(&self, adapter: Adapter) -> Arc<Adapter> {
        let adapter = Arc::new(adapter);
        self.live.rcu(|map| {
            let mut map = BTreeMap::clone(map);
            map.insert(adapter.name.clone(), adapter.clone());
            map
        });
        adapter
    }
}

/// An adapter on its way: chunks in any number and order; nothing is published before [`AdapterBuilder::finish`].
pub struct AdapterBuilder {
    name: String,
    config: String,
    tensors: Assembly,
}

impl AdapterBuilder {
    /// `config` is the text of adapter_config.json.
    pub fn new(name: impl Into<String>, config: impl Into<String>) -> Self {
        Self { name: name.into(), config: config.into(), tensors: Assembly::new(Duplicates::Refuse, MOST_BYTES) }
    }

    /// A whole tensor.
    pub fn tensor(&mut self, t: &CheckpointTensor) -> Result<()> {
        float(&t.name, t.stored)?;
        self.tensors.tensor(t).map_err(of_adapter)
    }

    /// A range of bytes of a tensor.
    pub fn chunk(&mut self, chunk: &ChunkHeader<'_>, bytes: &[u8]) -> Result<()> {
        float(chunk.name, chunk.dtype)?;
        self.tensors.chunk(chunk, bytes).map_err(of_adapter)
    }

    /// Checks everything and publishes the adapter under its name, or refuses and changes nothing.
    pub fn finish(
        self,
        registry: &Registry,
        model: &ModelInfo,
        patch: &dyn Lora,
        adapters: &Adapters,
    ) -> Result<Arc<Adapter>> {
        let tensors = self.tensors.finish().map_err(of_adapter)?;
        let infos: Vec<TensorInfo> = tensors.iter().map(|t| info(t, Role::Other)).collect();
        let targets: Vec<TensorInfo> = registry.params().iter().map(|p| p.info()).collect();
        let config = Config::read(&self.config)?;
        let plan = patch.admit(model, &self.config, &targets, &infos)?;
        config.agree(&plan, patch.name())?;
        let halves = place(registry, &plan, &tensors, patch.name())?;
        covered(registry, &config, &halves)?;
        let parts = halves.into_iter().filter_map(|(at, h)| Some((at, LowRank { a: h.a?, b: h.b? }))).collect();
        Ok(adapters.publish(Adapter {
            name: self.name,
            version: adapters.versions.fetch_add(1, Ordering::Relaxed) + 1,
            rank: plan.rank as usize,
            scaling: plan.scaling,
            parts,
        }))
    }
}

#[derive(Default)]
struct Halves {
    a: Option<Vec<f32>>,
    b: Option<Vec<f32>>,
}

/// Checks every place: it exists, its shape fits, no half comes twice.
fn place(
    registry: &Registry,
    plan: &LoraPlan,
    tensors: &[CheckpointTensor],
    patch: &str,
) -> Result<BTreeMap<(ParamId, usize), Halves>> {
    let mut halves: BTreeMap<(ParamId, usize), Halves> = BTreeMap::new();
    let rank = plan.rank as usize;
    for (t, place) in tensors.iter().zip(&plan.places) {
        let shown = crate::words::shown(&place.target);
        let wrong = |why: String| refuse(&t.name, format!("patch `{patch}` places it {why}"), "repair the patch");
        let param = registry
            .find(&place.target)
            .ok_or_else(|| wrong(format!("in `{shown}`, which the runtime does not have")))?;
        let decl = &registry.params()[param];
        let Some(cols) = decl.cols.filter(|_| decl.role != Role::Embedding && decl.stored.is_none()) else {
            return Err(wrong(format!("in `{shown}`, which is no linear layer")));
        };
        let expert = match (decl.experts, place.expert) {
            (Some(_), Some(e)) => e as usize,
            (None, None) => 0,
            (None, Some(e)) => return Err(wrong(format!("in expert {e} of `{shown}`, which has no experts"))),
            (Some(_), None) => return Err(wrong(format!("in `{shown}`, without saying in which expert"))),
        };
        let part = decl.part_index(expert, place.slot);
        let part =
            part.ok_or_else(|| wrong(format!("in slot {:?} of `{shown}`, which it does not have", place.slot)))?;
        let rows = decl.part(part).rows;
        let expected = match place.side {
            LoraSide::A => [rank, cols],
            LoraSide::B => [rows, rank],
        };
        if t.shape != expected {
            let why = format!(
                "its shape is {:?}; for {} of `{shown}` with r = {rank} it must be {expected:?}",
                t.shape,
                decl.part_label(part)
            );
            return Err(refuse(&t.name, why, "use an adapter that was trained on this model"));
        }
        let entry = halves.entry((param, part)).or_default();
        let half = match place.side {
            LoraSide::A => &mut entry.a,
            LoraSide::B => &mut entry.b,
        };
        let values = widen(t)?;
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let why = format!("the value at {i} is {}", values[i]);
            return Err(RuntimeError::NonFinite(Refusal::new(
                format!("adapter tensor `{}`", t.name),
                why,
                "repair the adapter",
            )));
        }
        if half.replace(values).is_some() {
            return Err(refuse(
                &t.name,
                "another tensor is the same half of the same module".to_string(),
                "remove one of them",
            ));
        }
    }
    Ok(halves)
}

fn widen(t: &CheckpointTensor) -> Result<Vec<f32>> {
    let data = t.data.load()?;
    Ok(match t.stored {
        StDtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        StDtype::F16 => data.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        _ => data.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
    })
}

/// Both halves of every adapted part; `target_modules` in every layer (or those of `layers_to_transform`), less
/// `exclude_modules`. Where they are `all-linear`, and for routed experts (which PEFT reaches only where they are modules
/// of their own), what is adapted anywhere must be adapted everywhere.
fn covered(registry: &Registry, config: &Config, halves: &BTreeMap<(ParamId, usize), Halves>) -> Result<()> {
    let missing = |module: &str, side: &str| {
        let name = format!("base_model.model.{module}.lora_{side}.weight");
        refuse(&name, "it is missing: the adapter must be complete".to_string(), "send every tensor of the adapter")
    };
    if halves.is_empty() {
        return Err(refuse_config("the adapter holds no tensors".to_string()));
    }
    let leaf = |module: &str| module.rsplit('.').next().unwrap_or_default().to_string();
    let mut present = BTreeSet::new();
    let mut names = BTreeMap::new();
    for (param, decl) in registry.params().iter().enumerate() {
        for part in 0..decl.part_count() {
            let name = registry.checkpoint_name_of(param, part);
            if let Some(module) = name.and_then(|n| n.strip_suffix(".weight")).filter(|_| decl.cols.is_some()) {
                names.insert((param, part), module.to_string());
            }
        }
    }
    for (at, h) in halves {
        let Some(module) = names.get(at) else { continue };
        match (&h.a, &h.b) {
            (None, _) => return Err(missing(module, "A")),
            (_, None) => return Err(missing(module, "B")),
            _ => present.insert((leaf(module), registry.params()[at.0].role == Role::Expert)),
        };
    }
    for (at, module) in &names {
        let decl = &registry.params()[at.0];
        let routed = decl.role == Role::Expert;
        let seen = present.contains(&(leaf(module), routed));
        let targeted = match config.targets.has(module) {
            Some(targeted) if !routed => targeted,
            _ => seen,
        } && config.exclude.has(module) == Some(false);
        let linear = decl.role != Role::Embedding && decl.stored.is_none();
        if linear && targeted && in_layers(module, config.layers.as_deref()) && !halves.contains_key(at) {
            return Err(missing(module, "A"));
        }
    }
    Ok(())
}

fn in_layers(module: &str, layers: Option<&[u64]>) -> bool {
    let Some(layers) = layers else { return true };
    let mut components = module.split('.').skip_while(|c| *c != "layers").skip(1);
    components.next().and_then(|n| n.parse().ok()).is_none_or(|n: u64| layers.contains(&n))
}

fn float(name: &str, stored: StDtype) -> Result<()> {
    match stored {
        StDtype::F32 | StDtype::F16 | StDtype::BF16 => Ok(()),
        other => Err(refuse(name, format!("its dtype is {other:?}"), "send it in f32, bf16 or f16")),
    }
}

fn of_adapter(refusal: Refusal) -> RuntimeError {
    RuntimeError::Refit(Refusal { what: format!("adapter {}", refusal.what), ..refusal })
}

fn refuse(name: &str, why: String, next: &str) -> RuntimeError {
    let shown = crate::words::shown(name);
    RuntimeError::Refit(Refusal::new(format!("adapter tensor `{shown}`"), why, next))
}
