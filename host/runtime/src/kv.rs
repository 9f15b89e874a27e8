//! What one sequence remembers: keys and values of attention layers, the state of recurrent ones.

use std::sync::Arc;

use patchhost_kernels::attention::in_blocks;

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
    /// Keys and values of every position, this many numbers each, in blocks of positions.
    Attention { keys: usize, values: usize },
    /// Latents, which are keys and values, by position.
    Latent { width: usize },
    /// A state of fixed size: the last inputs of the convolution, and the recurrent state.
    Recurrent { conv: usize, state: usize },
}

impl LayerShape {
    /// Bytes of so many positions.
    pub(crate) fn bytes(&self, positions: usize) -> usize {
        let numbers = match *self {
            LayerShape::Attention { keys, values } => in_blocks(positions, keys + values),
            LayerShape::Latent { width } => positions * width,
            LayerShape::Recurrent { conv, state } => conv + state,
        };
        numbers * size_of::<f32>()
    }
}

/// The memory of one layer.
enum LayerCache {
    /// Keys and values; the same where there is only one of them.
    Attention { keys: Rows, values: Option<Rows> },
    /// The state, and the one before the running step.
    Recurrent { now: RecurrentState, before: Option<RecurrentState> },
}

/// Numbers of every position.
struct Rows {
    data: Vec<f32>,
    width: usize,
    /// Whether the positions lie in blocks ([`patchhost_kernels::attention::Layout::Blocks`]): then the last block is
    /// whole, and what lies behind the last position is anything.
    blocks: bool,
}

impl Rows {
    fn new(width: usize, blocks: bool) -> Self {
        Self { data: Vec::new(), width, blocks }
    }

    /// Numbers that so many positions take.
    fn size(&self, positions: usize) -> usize {
        if self.blocks { in_blocks(positions, self.width) } else { positions * self.width }
    }

    /// Grows to so many positions.
    fn extend(&mut self, positions: usize) -> &mut [f32] {
        self.data.resize(self.size(positions), 0.0);
        &mut self.data
    }

    #[cfg(feature = "text")]
    fn prefix(&self, positions: usize) -> Self {
        Self { data: self.data[..self.size(positions)].to_vec(), width: self.width, blocks: self.blocks }
    }
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
                LayerCache::Attention { keys: Rows::new(keys, true), values: Some(Rows::new(values, true)) }
            }
            LayerShape::Latent { width } => LayerCache::Attention { keys: Rows::new(width, false), values: None },
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
            LayerCache::Attention { keys, values } => keys.data.len() + values.as_ref().map_or(0, |v| v.data.len()),
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

    /// Makes room for some more positions. Gives the keys and the values of all positions; no values where latents are
    /// both; nothing for a recurrent layer. The new ones begin at position [`KvCache::len`]; they lie as [`LayerShape`]
    /// says, and hold anything.
    pub(crate) fn extend(&mut self, layer: usize, positions: usize) -> Option<(&mut [f32], &mut [f32])> {
        let end = self.len + positions;
        let LayerCache::Attention { keys, values } = &mut self.layers[layer] else { return None };
        let values = values.as_mut().map_or(&mut [][..], |values| values.extend(end));
        Some((keys.extend(end), values))
    }

    /// Reserves memory for a text of so many positions in all, as far as [`RESERVED`], so that keys and values are not moved
    /// while they grow. The system gives the memory when it is used.
    pub fn reserve(&mut self, positions: usize) {
        self.each_rows(|rows| {
            let size = rows.size(positions.min(RESERVED));
            rows.data.reserve_exact(size.saturating_sub(rows.data.len()));
        });
    }

    /// Keys and values of one layer, those of the running step included; the same where latents are both. Nothing for a
    /// recurrent layer.
    pub(crate) fn layer(&self, layer: usize) -> (&[f32], &[f32]) {
        match &self.layers[layer] {
            LayerCache::Attention { keys, values } => (&keys.data, &values.as_ref().unwrap_or(keys).data),
            LayerCache::Recurrent { .. } => (&[], &[]),
        }
    }

    /// All keys and all values.
    fn each_rows(&mut self, mut each: impl FnMut(&mut Rows)) {
        for layer in &mut self.layers {
            if let LayerCache::Attention { keys, values } = layer {
                each(keys);
                values.iter_mut().for_each(&mut each);
            }
        }
    }

    /// The state of a recurrent layer, to be advanced by the running step; `None` for an attention layer.
    pub(crate) fn advance(&mut self, layer: usize) -> Option<&mut RecurrentState> {
        match &mut self.layers[layer] {
            LayerCache::Attention { .. } => None,
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
            LayerCache::Attention { keys, values } => {
                let values = values.as_ref().map(|rows| rows.prefix(len));
                LayerCache::Attention { keys: keys.prefix(len), values }
            }
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
        self.each_rows(|rows| rows.data.shrink_to_fit());
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
        let len = self.len;
        self.each_rows(|rows| rows.data.truncate(rows.size(len)));
        for layer in &mut self.layers {
            if let LayerCache::Recurrent { now, before } = layer
                && let Some(old) = before.take()
            {
                *now = old;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use patchhost_kernels::attention::{put_key, put_value};

    const SHAPES: [LayerShape; 2] = [LayerShape::Attention { keys: 6, values: 4 }, LayerShape::Latent { width: 3 }];

    /// The number `i` of the key or value at a position.
    fn number(position: usize, i: usize) -> f32 {
        (100 * position + i) as f32
    }

    /// Adds positions as a step does, but for the commit.
    fn add(cache: &mut KvCache, positions: usize) {
        let (past, row) = (cache.len, |p| -> Vec<f32> { (0..6).map(|i| number(p, i)).collect() });
        let (keys, values) = cache.extend(0, positions).unwrap();
        for p in past..past + positions {
            put_key(keys, p, &row(p));
            put_value(values, p, 2, &row(p)[..4]);
        }
        let (keys, values) = cache.extend(1, positions).unwrap();
        assert!(values.is_empty());
        for p in past..past + positions {
            keys[3 * p..][..3].copy_from_slice(&row(p)[..3]);
        }
    }

    fn check(cache: &KvCache, positions: usize) {
        let (keys, values) = cache.layer(0);
        assert_eq!((keys.len(), values.len()), (in_blocks(positions, 6), in_blocks(positions, 4)));
        for p in 0..positions {
            let (block, lane) = (p / 16 * 16, p % 16);
            assert!((0..6).all(|i| keys[block * 6 + i * 16 + lane] == number(p, i)), "key {p}");
            assert!((0..4).all(|i| values[block * 4 + (i / 2 * 16 + lane) * 2 + i % 2] == number(p, i)), "value {p}");
        }
        let (keys, values) = cache.layer(1);
        assert!(std::ptr::eq(keys, values) && keys.len() == 3 * positions);
        assert!((0..3 * positions).all(|i| keys[i] == number(i / 3, i % 3)));
        assert_eq!(cache.bytes(), SHAPES.iter().map(|s| s.bytes(positions)).sum::<usize>());
    }

    #[test]
    fn blocks_grow_and_are_rolled_back() {
        let mut cache = KvCache::new(&SHAPES, None);
        cache.reserve(20);
        for positions in [1, 5, 9, 1, 1, 14, 1, 16, 33] {
            // A step that fails leaves nothing, whatever it wrote.
            add(&mut cache, 40);
            check(&cache, cache.len + 40);
            cache.rollback();
            check(&cache, cache.len);
            add(&mut cache, positions);
            cache.len += positions;
            cache.rollback();
            check(&cache, cache.len);
        }
        assert_eq!(cache.len, 81);
    }

    #[cfg(feature = "text")]
    #[test]
    fn a_prefix_ends_and_goes_on_within_a_block() {
        let mut cache = KvCache::new(&SHAPES, None);
        add(&mut cache, 50);
        cache.len = 50;
        for len in [0, 1, 15, 16, 17, 32, 49, 50] {
            let mut part = cache.prefix(len).unwrap();
            check(&part, len);
            part.shrink();
            add(&mut part, 21);
            check(&part, len + 21);
        }
        assert!(cache.prefix(51).is_none());
    }
}
