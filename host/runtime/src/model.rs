//! The forward pass: our kernels over buffers that are kept from pass to pass.
//!
//! A batch is a list of sequences of any lengths: their tokens are rows of one matrix. Every operator works on rows
//! alone and sums in a fixed order, so a row's result does not depend on the batch it is in, on how a prompt is split
//! into steps, or on the number of threads.
//!
//! One thread walks through the layers and hands each operator to the [`Team`]. In the steady state of decoding nothing
//! is allocated.

mod attention;
mod clock;
mod delta;
mod exact;
mod experts;
mod latent;
mod linear;
mod logits;
mod mlp;
mod route;
mod work;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use patchhost_kernels::rows::{add, rms_norm};
use patchhost_kernels::team::Team;

use crate::error::{Refusal, Result, RuntimeError};
use crate::families::{Arch, Common};
use crate::hooks::HookError;
use crate::kv::{KvCache, LayerShape};
use crate::lora::Adapter;
use crate::registry::{MixerParams, ModelParams};
use crate::rope::RopeScaling;
use crate::weights::WeightSet;
use clock::Clock;
pub use clock::{Op, Profile};
pub use logits::Logits;
use work::{Owner, Span, Work};

/// One sequence of a batch: its new tokens, and what came before.
pub struct Sequence<'a> {
    /// New tokens, at least one.
    pub tokens: &'a [u32],
    /// Keys and values of the earlier ones; the new ones are added.
    pub cache: &'a mut KvCache,
}

/// Which rows of logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// One per sequence: its last token's.
    Last,
    /// Every token's.
    All,
}

/// A model: its shape. Weights come with each call.
pub struct Model {
    common: Common,
    params: ModelParams,
    /// What each layer of a sequence remembers.
    memory: Vec<LayerShape>,
    /// Dimensions of a head that are rotated.
    rotary_dim: usize,
    /// Inverse frequencies of a sequence within the model's own length.
    inv_freq: Vec<f32>,
    team: &'static Team,
    /// Buffers of passes that are over, for the next ones.
    idle: Mutex<Vec<Work>>,
    /// Times of the passes, where somebody asked for them.
    profile: Mutex<Option<Profile>>,
}

/// One forward pass, as its layers see it.
pub(crate) struct Pass<'a, 'c> {
    weights: &'a WeightSet,
    team: &'a Team,
    /// The sequences, whose caches the layers extend.
    batch: &'a mut [Sequence<'c>],
    /// Index of the layer.
    layer: usize,
    /// Products are summed in f64.
    exact: bool,
    clock: &'a Clock,
}

/// Takes back what a pass added to the caches, unless it was committed: also when the pass panics.
struct Undo<'a, 'c>(&'a mut [Sequence<'c>]);

impl Drop for Undo<'_, '_> {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(|s| s.cache.rollback());
    }
}

impl Model {
    pub(crate) fn new(arch: &Arch, params: ModelParams) -> Result<Self> {
        let c = &arch.common;
        let rotary_dim = c.rope.rotary_dim(c.head_dim);
        let memory = params
            .layers
            .iter()
            .map(|l| match &l.mixer {
                MixerParams::Attention(_) => {
                    let width = c.kv_heads * c.head_dim;
                    LayerShape::Attention { keys: width, values: width }
                }
                MixerParams::Latent(p) => latent::memory(&p.shape),
                MixerParams::DeltaNet(p) => delta::memory(&p.shape),
            })
            .collect();
        let inv_freq = c.rope.inv_freq(rotary_dim, 0);
        let (team, idle, profile) = (Team::global(), Mutex::default(), Mutex::default());
        Ok(Self { common: c.clone(), params, memory, rotary_dim, inv_freq, team, idle, profile })
    }

    /// Rows of the output: the size of the vocabulary as the model has it.
    pub fn vocab(&self) -> usize {
        self.common.vocab
    }

    /// Positions that a sequence may have: `max_position_embeddings`, or as many times more as dynamic rope scaling says.
    pub fn max_positions(&self) -> usize {
        match self.common.rope.scaling {
            RopeScaling::Dynamic { factor, original } => (original as f64 * factor.max(1.0)) as usize,
            _ => self.common.max_positions,
        }
    }

    /// Bytes of the cache of a sequence of so many positions: keys and values lie in blocks of 16, the last one whole.
    pub fn cache_bytes(&self, positions: usize) -> usize {
        self.memory.iter().map(|shape| shape.bytes(positions)).sum()
    }

    /// The length beyond which it matters how a sequence is split into steps (dynamic rope scaling), if any.
    pub fn split_matters_beyond(&self) -> Option<usize> {
        match self.common.rope.scaling {
            RopeScaling::Dynamic { original, .. } => Some(original),
            _ => None,
        }
    }

    /// An empty cache for one sequence.
    pub fn new_cache(&self) -> KvCache {
        self.new_cache_with(None)
    }

    /// An empty cache for one sequence that runs with an adapter: its keys and values depend on it.
    pub fn new_cache_with(&self, adapter: Option<Arc<Adapter>>) -> KvCache {
        KvCache::new(&self.memory, adapter)
    }

    /// Logits of the rows that are wanted, in f32. On an error, and after a panic, the caches are as before.
    pub fn forward(&self, weights: &WeightSet, batch: &mut [Sequence<'_>], rows: Rows) -> Result<Logits> {
        let mut logits = Logits::default();
        self.forward_into(weights, batch, rows, &mut logits)?;
        Ok(logits)
    }

    /// [`Model::forward`] into logits that the caller keeps from pass to pass.
    pub fn forward_into(
        &self,
        weights: &WeightSet,
        batch: &mut [Sequence<'_>],
        rows: Rows,
        logits: &mut Logits,
    ) -> Result<()> {
        self.pass(weights, batch, rows, logits, false)
    }

    /// [`Model::forward`] with the products summed in f64 instead of f32, much slower. How far the two are apart is what no
    /// difference between engines can be told from. The sums of attention and the absorbed matrices of latent attention stay f32.
    pub fn forward_exact(&self, weights: &WeightSet, batch: &mut [Sequence<'_>], rows: Rows) -> Result<Logits> {
        let mut logits = Logits::default();
        self.pass(weights, batch, rows, &mut logits, true)?;
        Ok(logits)
    }

    fn pass(
        &self,
        weights: &WeightSet,
        batch: &mut [Sequence<'_>],
        rows: Rows,
        logits: &mut Logits,
        exact: bool,
    ) -> Result<()> {
        self.check(weights, batch)?;
        let mut work = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let clock = Clock::new(self.profile().is_some());
        let undo = Undo(batch);
        let pass = Pass { weights, team: self.team, batch: &mut *undo.0, layer: 0, exact, clock: &clock };
        let result = self.run(pass, rows, &mut work, logits);
        if let Some(profile) = &mut *self.profile() {
            profile.add(&clock);
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(work);
        if result.is_ok() {
            undo.0.iter_mut().for_each(|s| s.cache.commit(s.tokens.len(), weights));
        }
        result.map_err(RuntimeError::Hook)
    }

    /// Counts from now on how long each operator takes (`true`), or no longer; gives what was counted so far.
    pub fn profiled(&self, on: bool) -> Option<Profile> {
        std::mem::replace(&mut *self.profile(), on.then(Profile::default))
    }

    fn profile(&self) -> MutexGuard<'_, Option<Profile>> {
        self.profile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, weights: &WeightSet, batch: &[Sequence<'_>]) -> Result<()> {
        let refuse = |why: String, next: &str| Err(RuntimeError::Request(Refusal::new("a forward pass", why, next)));
        if let Some(local) = weights.local_experts() {
            let why =
                format!("these weights hold only the experts {}..{} (expert parallelism)", local.start, local.end);
            return refuse(why, "load the model without --expert-parallel");
        }
        for s in batch {
            if let Some(old) = s.cache.stale(weights) {
                let now = weights.version();
                let why = format!("the cache holds keys and values of weights version {old}, and {now} is published");
                return refuse(why, "compute the sequence anew with an empty cache, or keep the old keys by intent");
            }
            if s.tokens.is_empty() {
                return refuse("a sequence has no new token".to_string(), "give at least one token per sequence");
            }
            if let Some(t) = s.tokens.iter().find(|t| **t as usize >= self.common.vocab) {
                let why = format!("token id {t} is not below the vocabulary size {}", self.common.vocab);
                return refuse(why, "tokenize with the model's own tokenizer");
            }
            let end = s.cache.len() + s.tokens.len();
            if end > self.max_positions() {
                let why = format!("{end} positions are more than max_position_embeddings {}", self.max_positions());
                return refuse(why, "shorten the prompt or --max-tokens");
            }
        }
        Ok(())
    }

    fn run(
        &self,
        mut pass: Pass<'_, '_>,
        rows: Rows,
        work: &mut Work,
        logits: &mut Logits,
    ) -> std::result::Result<(), HookError> {
        let (c, team, w) = (&self.common, pass.team, pass.weights);
        let clock = pass.clock;
        self.begin(&pass, work);
        clock.lap(Op::Embed);
        let m = work.owners.len();
        for (layer, p) in self.params.layers.iter().enumerate() {
            pass.layer = layer;
            work.normed.resize(m * c.hidden, 0.0);
            rms_norm(team, &work.x, w.vector(p.input_norm), c.eps as f32, &mut work.normed);
            clock.lap(Op::Norm);
            match &p.mixer {
                MixerParams::Attention(a) => self.attend(&mut pass, a, work)?,
                MixerParams::Latent(l) => self.attend_latent(&mut pass, l, work)?,
                MixerParams::DeltaNet(d) => self.delta_net(&mut pass, d, work)?,
            }
            add(team, &mut work.x, &work.mixed);
            rms_norm(team, &work.x, w.vector(p.post_norm), c.eps as f32, &mut work.normed);
            clock.lap(Op::Norm);
            self.mlp(&pass, &p.mlp, work)?;
            add(team, &mut work.x, &work.mixed);
        }
        if rows == Rows::Last {
            work.keep_last(c.hidden);
        }
        let m = work.owners.len();
        work.normed.resize(m * c.hidden, 0.0);
        rms_norm(team, &work.x, w.vector(self.params.norm), c.eps as f32, &mut work.normed);
        clock.lap(Op::Norm);
        logits.vocab = c.vocab;
        let out = &mut logits.values;
        linear::linear(&pass, Op::Head, &work.owners, self.params.head, None, &work.normed, &mut work.quantized, out)
    }

    /// Rows of the batch, their positions' angles, and their embeddings.
    fn begin(&self, pass: &Pass<'_, '_>, work: &mut Work) {
        work.spans.clear();
        work.owners.clear();
        for (sequence, s) in pass.batch.iter().enumerate() {
            let past = s.cache.len();
            work.spans.push(Span { row: work.owners.len(), past, tokens: s.tokens.len() });
            work.owners.extend((0..s.tokens.len()).map(|i| Owner { sequence, len: past + i + 1 }));
        }
        self.angles(work);
        let hidden = self.common.hidden;
        work.x.resize(work.owners.len() * hidden, 0.0);
        let tokens = pass.batch.iter().flat_map(|s| s.tokens);
        for (t, row) in tokens.zip(work.x.chunks_exact_mut(hidden)) {
            pass.weights.parts(self.params.embed)[0].matrix.row(*t as usize, hidden, row);
        }
    }

    /// cos and sin of each row's position. Under dynamic scaling a sequence longer than the model's own length has
    /// frequencies of its own, those of its length after this step (as transformers computes them); keys that earlier
    /// steps cached keep theirs, so beyond that length a prompt's split into steps matters.
    fn angles(&self, work: &mut Work) {
        let factor = self.common.rope.attention_factor();
        work.cos.clear();
        work.sin.clear();
        for span in &work.spans {
            let end = span.past + span.tokens;
            let stretched;
            let frequencies = match self.common.rope.scaling {
                RopeScaling::Dynamic { original, .. } if end > original => {
                    stretched = self.common.rope.inv_freq(self.rotary_dim, end);
                    &stretched
                }
                _ => &self.inv_freq,
            };
            for p in span.past..end {
                for f in frequencies {
                    let (sin, cos) = (p as f32 * f).sin_cos();
                    work.cos.push(cos * factor);
                    work.sin.push(sin * factor);
                }
            }
        }
    }
}
