//! Where keys and values of a sequence lie.

/// Positions of a block.
pub const BLOCK: usize = 16;

/// Keys of one head.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub(super) all: &'a [f32],
    /// Values of a key.
    pub(super) dim: usize,
    /// Whether they lie in blocks, dimension by dimension; else by position.
    pub(super) blocked: bool,
    /// From a block, or a position, to the next.
    pub(super) stride: usize,
    /// Of this head within a block.
    pub(super) start: usize,
}

impl<'a> Keys<'a> {
    /// `[dim][16 positions]`.
    #[inline(always)]
    pub(super) fn block(&self, block: usize) -> &'a [[f32; BLOCK]] {
        self.all[block * self.stride + self.start..][..self.dim * BLOCK].as_chunks().0
    }

    /// The key at a position.
    #[inline(always)]
    pub(super) fn position(&self, position: usize) -> &'a [f32] {
        &self.all[position * self.stride + self.start..][..self.dim]
    }
}

/// Values of one head.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    pub(super) all: &'a [f32],
    /// Numbers of a value.
    pub(super) dim: usize,
    /// From a block to the next.
    pub(super) block_stride: usize,
    /// From a position to the next within a block.
    pub(super) stride: usize,
    /// Of this head within a block.
    pub(super) start: usize,
}

impl<'a> Values<'a> {
    /// Positions `from..to` of one block, from a column on.
    #[inline(always)]
    pub(super) fn rows(&self, from: usize, to: usize, column: usize) -> &'a [f32] {
        let start = from / BLOCK * self.block_stride + self.start;
        let at = |position: usize| start + position % BLOCK * self.stride;
        &self.all[at(from) + column..at(to - 1) + self.dim]
    }
}

/// Numbers that so many positions take, `width` each, where keys or values lie in blocks: the last block is whole.
pub fn in_blocks(positions: usize, width: usize) -> usize {
    positions.next_multiple_of(BLOCK) * width
}

/// Writes the keys of all heads at one position. `keys` are whole blocks from position 0 on: `[kv_heads, head_dim, 16]`
/// each.
///
/// # Panics
/// If the block of the position does not lie in `keys`.
pub fn put_key(keys: &mut [f32], position: usize, row: &[f32]) {
    let block = &mut keys[position / BLOCK * BLOCK * row.len()..][..BLOCK * row.len()];
    for (lanes, key) in block.as_chunks_mut::<BLOCK>().0.iter_mut().zip(row) {
        lanes[position % BLOCK] = *key;
    }
}

/// Writes the values of all heads at one position. `values` are whole blocks from position 0 on:
/// `[kv_heads, 16, value_dim]` each.
///
/// # Panics
/// If the block of the position does not lie in `values`.
pub fn put_value(values: &mut [f32], position: usize, value_dim: usize, row: &[f32]) {
    if value_dim == 0 {
        return;
    }
    let block = &mut values[position / BLOCK * BLOCK * row.len()..][..BLOCK * row.len()];
    for (head, value) in block.chunks_exact_mut(BLOCK * value_dim).zip(row.chunks_exact(value_dim)) {
        head[position % BLOCK * value_dim..][..value_dim].copy_from_slice(value);
    }
}
