//! Keys and values of one sequence.

/// Keys and values of one sequence, all layers, f32, [positions, kv_heads × head_dim] each.
pub struct KvCache {
    layers: Vec<(Vec<f32>, Vec<f32>)>,
    width: usize,
    len: usize,
}

impl KvCache {
    pub(crate) fn new(layers: usize, width: usize) -> Self {
        Self { layers: vec![(Vec::new(), Vec::new()); layers], width, len: 0 }
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
        self.layers.iter().map(|(k, v)| (k.len() + v.len()) * 4).sum()
    }

    pub(crate) fn append(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let (k, v) = &mut self.layers[layer];
        k.extend_from_slice(keys);
        v.extend_from_slice(values);
    }

    /// Keys and values of one layer, those of the running step included.
    pub(crate) fn layer(&self, layer: usize) -> (&[f32], &[f32]) {
        let (k, v) = &self.layers[layer];
        (k, v)
    }

    /// The step succeeded.
    pub(crate) fn commit(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// The step failed: forget what it added.
    pub(crate) fn rollback(&mut self) {
        for (k, v) in &mut self.layers {
            k.truncate(self.len * self.width);
            v.truncate(self.len * self.width);
        }
    }
}
