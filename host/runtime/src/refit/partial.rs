//! A partial update: the tensors that came, over those that are held. What comes of it is a whole [`Source`], so that patches are
//! asked about all of it, and its weights are those of a whole update with the same values.
//!
//! A tensor that came takes the place of the one of its name, and of whatever else writes the same parts of the model: all
//! experts in one tensor over a tensor for each, an embedding over the copy of it that is its tied head, a bf16 weight over an
//! FP8 one and its scales. Where it writes only some parts of a stacked tensor, the others are cut out of that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use safetensors::tensor::Dtype;
use sha2::{Digest, Sha256};

use super::arrivals::Source;
use crate::bytes::{TensorBytes, TensorData};
use crate::checkpoint::{Checkpoint, CheckpointTensor};
use crate::error::{Refusal, Result, RuntimeError};
use crate::fp8::scale_names;
use crate::hooks::Slot;
use crate::registry::{ParamDecl, ParamId, Registry};
use crate::words::{hex, shown};

/// Most names that a report holds.
const NAMED: usize = 16;

/// What a partial update left as it was.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Stayed {
    /// Tensors that came.
    pub came: usize,
    /// Their bytes.
    pub came_bytes: u64,
    /// Tensors that stayed as they were.
    pub tensors: usize,
    /// Their names, in order; the first of them, where they are many.
    pub names: Vec<String>,
    /// SHA-256 of all their names, each with a line feed.
    pub names_sha256: String,
    /// All of their names.
    #[serde(skip)]
    all: Arc<BTreeSet<String>>,
}

impl Stayed {
    fn new(came: &Checkpoint, all: BTreeSet<String>) -> Self {
        let mut hasher = Sha256::new();
        all.iter().for_each(|name| hasher.update(format!("{name}\n")));
        Self {
            came: came.tensors().len(),
            came_bytes: came.tensors().map(|t| t.data.len() as u64).sum(),
            tensors: all.len(),
            names: all.iter().take(NAMED).map(|name| shown(name)).collect(),
            names_sha256: hex(&hasher.finalize()),
            all: Arc::new(all),
        }
    }

    /// Whether a tensor is one of those that stayed.
    pub fn has(&self, name: &str) -> bool {
        self.all.contains(name)
    }

    /// All of their names, in order.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(String::as_str)
    }
}

impl Source {
    /// All tensors after this partial update of what is held. `registry` says which tensors write the same parts of the model;
    /// without it only names count.
    pub fn over(&self, held: &Checkpoint, registry: Option<&Registry>) -> Result<Self> {
        // What was promised must have come, and is not looked for among what stays.
        self.check()?;
        let part = self.checkpoint();
        if part.tensors().len() == 0 {
            let why = "no tensor came, so that nothing would change";
            return Err(refuse("a partial update", why, "send the tensors that changed"));
        }
        let mut over = Over { part, held, gone: BTreeSet::new(), cut: Vec::new() };
        over.scales()?;
        if let Some(registry) = registry {
            over.parts(registry)?;
            over.tied(registry);
        }
        let stay = held.tensors().filter(|t| part.get(&t.name).is_none() && !over.gone.contains(&t.name));
        let mut all: BTreeMap<String, CheckpointTensor> =
            stay.chain(&over.cut).map(|t| (t.name.clone(), t.clone())).collect();
        let stayed = Stayed::new(part, all.keys().cloned().collect());
        unburden(&mut all);
        let checkpoint = Checkpoint::from_tensors(all.into_values().chain(part.tensors().cloned()))?;
        let mut begin = self.begin().clone();
        begin.complete = None;
        Ok(Self { checkpoint, begin, stayed: Some(Arc::new(stayed)), notes: self.notes.clone(), sums: OnceLock::new() })
    }
}

/// One partial update on its way.
struct Over<'a> {
    part: &'a Checkpoint,
    held: &'a Checkpoint,
    /// Names of held tensors whose place is taken under another name.
    gone: BTreeSet<String>,
    /// What is left of held tensors of which a part is replaced.
    cut: Vec<CheckpointTensor>,
}

/// One part of a runtime tensor.
type PartId = (ParamId, usize);

impl Over<'_> {
    /// FP8 weights and their scales come together: codes under the scales of other codes are other weights.
    fn scales(&mut self) -> Result<()> {
        let is_fp8 = |t: &CheckpointTensor| t.stored == Dtype::F8_E4M3;
        for t in self.part.tensors() {
            let held: Vec<String> = scale_names(&t.name).into_iter().filter(|n| self.held.get(n).is_some()).collect();
            let came = scale_names(&t.name).iter().any(|n| self.part.get(n).is_some());
            if is_fp8(t)
                && !came
                && let Some(scale) = held.first()
            {
                let why =
                    format!("it came in FP8 without its scales, and `{}` belongs to the codes before", shown(scale));
                return Err(refuse(
                    format!("tensor `{}`", shown(&t.name)),
                    why,
                    "send an FP8 weight and its scales together",
                ));
            }
            if is_fp8(t) || self.held.get(&t.name).is_some_and(is_fp8) {
                self.gone.extend(held);
            }
        }
        for t in self.held.tensors().filter(|t| is_fp8(t) && self.part.get(&t.name).is_none()) {
            let came = scale_names(&t.name).into_iter().find(|n| self.part.get(n).is_some());
            if let Some(scale) = came {
                let why = format!("the FP8 weight `{}`, whose scales they are, did not come with them", shown(&t.name));
                return Err(refuse(
                    format!("tensor `{}`", shown(&scale)),
                    why,
                    "send an FP8 weight and its scales together",
                ));
            }
        }
        Ok(())
    }

    /// Held tensors that write parts of the model which tensors of other names write now.
    fn parts(&mut self, registry: &Registry) -> Result<()> {
        let mut writers: HashMap<PartId, &str> = HashMap::new();
        for t in self.part.tensors() {
            writers.extend(written(registry, &t.name).into_iter().map(|part| (part, t.name.as_str())));
        }
        for t in self.held.tensors().filter(|t| self.part.get(&t.name).is_none()) {
            let parts = written(registry, &t.name);
            let Some(by) = parts.iter().find_map(|part| writers.get(part)) else { continue };
            let left: Vec<PartId> = parts.iter().filter(|part| !writers.contains_key(part)).copied().collect();
            if !left.is_empty() {
                self.cut.extend(cut(registry, t, &left, by)?);
            }
            self.gone.insert(t.name.clone());
            if t.stored == Dtype::F8_E4M3 {
                self.gone.extend(scale_names(&t.name).into_iter().filter(|n| self.part.get(n).is_none()));
            }
        }
        Ok(())
    }

    /// A head that is the embedding changes with it.
    fn tied(&mut self, registry: &Registry) {
        let Some((head, embed)) = registry.tied_head() else { return };
        let came = |t: &CheckpointTensor| registry.native(&t.name).is_some_and(|place| place.param == embed);
        if self.part.get(head).is_none() && self.part.tensors().any(came) {
            self.gone.insert(head.to_string());
            self.gone.extend(scale_names(head));
        }
    }
}

/// The parts of the model that a tensor of this name writes, as the host's own map has it.
fn written(registry: &Registry, name: &str) -> Vec<PartId> {
    let Some(place) = registry.place(name) else { return Vec::new() };
    let Some(decl) = registry.params().get(place.param) else { return Vec::new() };
    let slots: &[Slot] = if place.slot == Slot::W13 { &[Slot::W1, Slot::W3] } else { &[place.slot] };
    let experts = match place.expert {
        Some(expert) => expert..expert + 1,
        None => 0..decl.experts.unwrap_or(1),
    };
    let parts = experts.flat_map(|expert| slots.iter().filter_map(move |slot| decl.part_index(expert, *slot)));
    parts.map(|part| (place.param, part)).collect()
}

/// What stays of a stacked tensor, each part under its own name.
fn cut(registry: &Registry, t: &CheckpointTensor, left: &[PartId], by: &str) -> Result<Vec<CheckpointTensor>> {
    let no = |why: &str| {
        let why = format!("it is a part of `{}`, of which the rest stays, and {why}", shown(&t.name));
        refuse(format!("tensor `{}`", shown(by)), why, "send that tensor whole")
    };
    let Some(place) = registry.place(&t.name) else { return Err(no("nothing is known of its parts")) };
    let Some(decl) = registry.params().get(place.param) else { return Err(no("nothing is known of its parts")) };
    let Some(elem) = t.elem() else { return Err(no("its FP8 codes cannot be cut from their scales")) };
    let cols = decl.cols.unwrap_or(1);
    let whole = Whole { decl, both: place.slot == Slot::W13, expert: place.expert, cols, elem: elem.size() };
    let Some(turned) = whole.lies(&t.shape) else { return Err(no("its shape does not say how its parts lie")) };
    let bytes = turned.then(|| t.data.load()).transpose()?;
    let mut made = Vec::with_capacity(left.len());
    for (param, part) in left {
        let name =
            registry.checkpoint_name_of(*param, *part).ok_or_else(|| no("its parts have no names of their own"))?;
        let data = match &bytes {
            None => whole.slice(&t.data, *part),
            Some(bytes) => whole.turned(bytes, *part),
        };
        let data = data.ok_or_else(|| no("its data is shorter than its shape"))?;
        made.push(CheckpointTensor::new(name, t.stored, vec![decl.part(*part).rows, cols], data));
    }
    Ok(made)
}

/// How the parts lie in a tensor that holds several.
struct Whole<'a> {
    decl: &'a ParamDecl,
    /// It holds w1 and w3 of each expert, one below the other.
    both: bool,
    /// It holds one expert only.
    expert: Option<usize>,
    cols: usize,
    /// Bytes of an element.
    elem: usize,
}

impl Whole<'_> {
    /// Rows of one expert's matrix.
    fn rows(&self) -> usize {
        let rows = self.decl.parts.iter().map(|p| p.rows);
        if self.both { rows.sum() } else { rows.max().unwrap_or(0) }
    }

    /// Whether its matrices are stored transposed; none where the shape does not say it.
    fn lies(&self, shape: &[usize]) -> Option<bool> {
        let [.., a, b] = shape else { return None };
        let (rows, cols) = (self.rows(), self.cols);
        match (*a == rows && *b == cols, *a == cols && *b == rows) {
            (true, false) => Some(false),
            (false, true) => Some(true),
            _ => None,
        }
    }

    /// Which matrix of the tensor has a part, and its first row there.
    fn find(&self, part: usize) -> (usize, usize) {
        let each = self.decl.parts.len().max(1);
        let expert = if self.expert.is_some() { 0 } else { part / each };
        let above = if self.both { self.decl.parts.iter().take(part % each).map(|p| p.rows).sum() } else { 0 };
        (expert, above)
    }

    fn slice(&self, data: &TensorData, part: usize) -> Option<TensorData> {
        let (expert, first) = self.find(part);
        let row = self.cols * self.elem;
        let start = (expert * self.rows() + first) * row;
        data.slice(start..start + self.decl.part(part).rows * row)
    }

    fn turned(&self, bytes: &TensorBytes, part: usize) -> Option<TensorData> {
        let (expert, first) = self.find(part);
        let (all, rows, size) = (self.rows(), self.decl.part(part).rows, self.elem);
        let matrix = bytes.get(expert * all * self.cols * size..(expert + 1) * all * self.cols * size)?;
        let mut out = vec![0; rows * self.cols * size];
        for (at, element) in out.chunks_exact_mut(size).enumerate() {
            let (row, col) = (at / self.cols, at % self.cols);
            let from = (col * all + first + row) * size;
            element.copy_from_slice(matrix.get(from..from + size)?);
        }
        let len = out.len();
        TensorBytes::new(Arc::new(out), 0..len).map(TensorData::from)
    }
}

/// Copies what stays out of buffers that hold little else: a small tensor of an early update would keep all of its body in memory.
fn unburden(tensors: &mut BTreeMap<String, CheckpointTensor>) {
    let mut used: HashMap<usize, usize> = HashMap::new();
    for tensor in tensors.values() {
        if let Some((buffer, _)) = tensor.data.buffer() {
            *used.entry(buffer).or_default() += tensor.data.len();
        }
    }
    for tensor in tensors.values_mut() {
        if let Some((buffer, bytes)) = tensor.data.buffer()
            && used.get(&buffer).is_some_and(|used| *used < bytes / 2)
        {
            tensor.data = tensor.data.copied();
        }
    }
}

fn refuse(what: impl Into<String>, why: impl Into<String>, next: &str) -> RuntimeError {
    RuntimeError::Refit(Refusal::new(what, why, format!("{next}; nothing was published, the old weights keep serving")))
}

#[cfg(test)]
mod tests;
