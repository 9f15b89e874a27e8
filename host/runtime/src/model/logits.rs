//! What a forward pass gives.

/// Logits of some rows, in f32.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Logits {
    pub(super) values: Vec<f32>,
    pub(super) vocab: usize,
}

impl Logits {
    /// Rows.
    pub fn len(&self) -> usize {
        self.values.len() / self.vocab.max(1)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Values of a row.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// One row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.vocab..(row + 1) * self.vocab]
    }

    /// All rows, one after the other.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocab.max(1))
    }

    /// All values, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All values, row-major, without a copy.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }

    /// All values, to be changed.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}
