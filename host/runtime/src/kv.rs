//! What one sequence remembers: keys and values of attention layers, the state of recurrent ones.

use std::sync::Arc;

use crate::lora::Adapter;
use crate::weights::WeightSet;

/// Most positions that memory is reserved for ahead; a longer text grows by doubling.
const RESERVED: usize = 4096;

/// What one sequence remembers, all layers.
pub struct KvCache {
    layers: Vec<LayerCache>,
    len: usize,
    /// The adapter whose keys and values these are.
    adapter: Option<Arc<Adapter>>,
    /// The weights whose keys and values these are ([`WeightSet::id`] and version); none while it is empty.
    weights: Option<(u64, u64)>,
    /// Go on with other weights, with the old keys kept.
    keep: bool,
}

/// How much a layer remembers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LayerShape {
    /// Keys and values of every position, this many numbers each. Where latents are both, there are no values.
    Attention { keys: usize, values: usize },
    /// A state of fixed size: the last inputs of the convolution, and the recurrent state.
    Recurrent { conv: usize, state: usize },
}

/// The memory of one layer.
enum LayerCache {
    /// Keys and values.
    Attention([Rows; 2]),
    /// The state, and the one before the running step.
    Recurrent { now: RecurrentState, before: Option<RecurrentState> },
}

/// f32, [positions, width].
struct Rows {
    data: Vec<f32>,
    width: usize,
}

/// State of a gated DeltaNet layer.
#[derive(Debug, Clone)]
pub(crate) struct RecurrentState {
    /// The last kernel - 1 inputs of the convolution, [kernel - 1, channels], oldest first.
    pub(crate) conv: Vec<f32>,
    /// [value heads, key_dim, value_dim].
    pub(crate) state: Vec<f32>,
}

impl KvCache {
    pub(crate) fn new(shapes: &[LayerShape], adapter: Option<Arc<Adapter>>) -> Self {
        let layer = |shape: &LayerShape| match *shape {
            LayerShape::Attention { keys, values } => {
                LayerCache::Attention([keys, values].map(|width| Rows { data: Vec::new(), width }))
            }
            LayerShape::Recurrent { conv, state } => LayerCache::Recurrent {
                now: RecurrentState { conv: vec![0.0; conv], state: vec![0.0; state] },
                before: None,
            },
        };
        Self { layers: shapes.iter().map(layer).collect(), len: 0, adapter, weights: None, keep: false }
    }

    /// The adapter that the sequence runs with.
    pub fn adapter(&self) -> Option<&Arc<Adapter>> {
        self.adapter.as_ref()
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let numbers = |layer: &LayerCache| match layer {
            LayerCache::Attention(both) => both.iter().map(|rows| rows.data.len()).sum(),
            LayerCache::Recurrent { now, .. } => now.conv.len() + now.state.len(),
        };
        self.layers.iter().map(|l| numbers(l) * 4).sum()
    }

    /// Bytes that it takes besides, however short it is.
    #[cfg(feature = "text")]
    pub(crate) fn overhead(&self) -> usize {
        // Each list of rows costs the allocator about 16 bytes.
        self.layers.len() * (size_of::<LayerCache>() + 2 * 16)
    }

    /// Room for the keys and the values of some more positions, all zero; nothing for a recurrent layer.
    pub(crate) fn extend(&mut self, layer: usize, positions: usize) -> Option<(&mut [f32], &mut [f32])> {
        let LayerCache::Attention(both) = &mut self.layers[layer] else { return None };
        let [keys, values] = both.each_mut().map(|Rows { data, width }| {
            let from = data.len();
            data.resize(from + positions * *width, 0.0);
            &mut data[from..]
        });
        Some((keys, values))
    }

    /// Reserves memory for a text of so many positions in all, as far as [`RESERVED`], so that keys and values are not moved
    /// while they grow. The system gives the memory when it is used.
    pub fn reserve(&mut self, positions: usize) {
        for layer in &mut self.layers {
            if let LayerCache::Attention(both) = layer {
                for Rows { data, width } in both {
                    data.reserve_exact((positions.min(RESERVED) * *width).saturating_sub(data.len()));
                }
            }
        }
    }

    /// Keys and values of one layer, those of the running step included; the same where latents are both. Nothing for a
    /// recurrent layer.
    pub(crate) fn layer(&self, layer: usize) -> (&[f32], &[f32]) {
        match &self.layers[layer] {
            LayerCache::Attention([keys, values]) if values.width == 0 => (&keys.data, &keys.data),
            LayerCache::Attention([keys, values]) => (&keys.data, &values.data),
            LayerCache::Recurrent { .. } => (&[], &[]),
        }
    }

    /// The state of a recurrent layer, to be advanced by the running step; `None` for an attention layer.
    pub(crate) fn advance(&mut self, layer: usize) -> Option<&mut RecurrentState> {
        match &mut self.layers[layer] {
            LayerCache::Attention(_) => None,
            LayerCache::Recurrent { now, before } => {
                before.get_or_insert_with(|| now.clone());
                Some(now)
            }
        }
    }

    /// A copy of the first `len` positions; none where that cannot be had: a recurrent layer knows its last state only.
    #[cfg(feature = "text")]
    pub(crate) fn prefix(&self, len: usize) -> Option<Self> {
        if len > self.len || (len < self.len && self.is_recurrent()) {
            return None;
        }
        let layers = self.layers.iter().map(|layer| match layer {
            LayerCache::Attention(both) => LayerCache::Attention(
                both.each_ref().map(|Rows { data, width }| Rows { data: data[..len * width].to_vec(), width: *width }),
            ),
            LayerCache::Recurrent { now, .. } => LayerCache::Recurrent { now: now.clone(), before: None },
        });
        Some(Self {
            layers: layers.collect(),
            len,
            adapter: self.adapter.clone(),
            weights: self.weights,
            keep: self.keep,
        })
    }

    /// Whether any layer has a state instead of keys and values.
    #[cfg(feature = "text")]
    pub(crate) fn is_recurrent(&self) -> bool {
        self.layers.iter().any(|l| matches!(l, LayerCache::Recurrent { .. }))
    }

    /// Gives back memory that was reserved for more positions.
    #[cfg(feature = "text")]
    pub(crate) fn shrink(&mut self) {
        for layer in &mut self.layers {
            if let LayerCache::Attention(both) = layer {
                both.iter_mut().for_each(|rows| rows.data.shrink_to_fit());
            }
        }
    }

    /// Lets the sequence go on with weights that are published later, keeping the keys and values of the old ones, as
    /// vLLM does in pause mode `keep`. Without this a publish invalidates the cache.
    pub fn keep_across_publishes(&mut self) {
        self.keep = true;
    }

    /// The version of the weights that made the cache, if these are others.
    pub(crate) fn stale(&self, weights: &WeightSet) -> Option<u64> {
        self.weights.filter(|(id, _)| *id != weights.id() && !self.keep).map(|(_, version)| version)
    }

    /// The step succeeded.
    pub(crate) fn commit(&mut self, tokens: usize, weights: &WeightSet) {
        self.weights = Some((weights.id(), weights.version()));
        self.len += tokens;
        for layer in &mut self.layers {
            if let LayerCache::Recurrent { before, .. } = layer {
                *before = None;
            }
        }
    }

    /// Forgets what a step added that was not committed.
    pub(crate) fn rollback(&mut self) {
        for layer in &mut self.layers {
            match layer {
                LayerCache::Attention(both) => {
                    both.iter_mut().for_each(|rows| rows.data.truncate(self.len * rows.width));
                }
                LayerCache::Recurrent { now, before } => {
                    if let Some(old) = before.take() {
                        *now = old;
                    }
                }
            }
        }
    }
}
