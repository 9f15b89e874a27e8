//! Buffers of a forward pass, kept from pass to pass.

use patchhost_kernels::linear::{PackedMatrix, Product};

use crate::weights::Part;

/// The rows of one sequence within a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    /// First row.
    pub(super) row: usize,
    /// Positions before the pass.
    pub(super) past: usize,
    /// Rows.
    pub(super) tokens: usize,
}

/// Whose token a row is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    /// Index of the sequence in the batch.
    pub(super) sequence: usize,
    /// Positions that it attends to, its own included.
    pub(super) len: usize,
}

/// One choice of an expert.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pick {
    pub(super) expert: usize,
    pub(super) weight: f32,
}

/// Buffers; what is in them lasts from one operator to the next. Matrices are [rows of the batch, width], row-major.
#[derive(Default)]
pub(super) struct Work {
    pub(super) spans: Vec<Span>,
    pub(super) owners: Vec<Owner>,
    /// cos of each row's angles, [rows, rotary_dim / 2].
    pub(super) cos: Vec<f32>,
    /// sin of them.
    pub(super) sin: Vec<f32>,
    /// The residual stream, [rows, hidden].
    pub(super) x: Vec<f32>,
    /// Its norm, which a mixer or an MLP takes.
    pub(super) normed: Vec<f32>,
    /// What a mixer or an MLP gives, [rows, hidden].
    pub(super) mixed: Vec<f32>,
    /// The input of a product as FP8 matrices see it.
    pub(super) quantized: Vec<f32>,
    /// Queries, keys and values; or gate and up.
    pub(super) wide: Vec<f32>,
    /// Queries where they do not stay among the keys and values.
    pub(super) q: Vec<f32>,
    /// The latent of latent attention, before its norm.
    pub(super) k: Vec<f32>,
    /// Low-rank halves of latent attention.
    pub(super) low: Vec<f32>,
    pub(super) low_normed: Vec<f32>,
    /// Inputs of the products of latent attention's heads, head after head, and their outputs.
    pub(super) by_head: Vec<f32>,
    pub(super) head_out: Vec<f32>,
    pub(super) head_products: Vec<Product<'static, PackedMatrix>>,
    /// Gates of attention, or of a shared expert.
    pub(super) gate: Vec<f32>,
    /// Heads' outputs, or silu(gate) * up.
    pub(super) inner: Vec<f32>,
    pub(super) experts: Experts,
}

/// Buffers of routed experts.
#[derive(Default)]
pub(super) struct Experts {
    pub(super) router: Vec<f32>,
    /// Scores of one row, and what decides.
    pub(super) scores: Vec<f32>,
    pub(super) choice: Vec<f32>,
    /// `top_k` of each row, best first.
    pub(super) picks: Vec<Pick>,
    /// Indices of picks, by expert.
    pub(super) order: Vec<usize>,
    /// For each pick, its place in `order`, and its weight.
    pub(super) places: Vec<(usize, f32)>,
    /// Rows of x in that order, and as FP8 matrices see them.
    pub(super) x: Vec<f32>,
    pub(super) x_fp8: Vec<f32>,
    /// gate and up, [picks, 2 * width].
    pub(super) both: Vec<f32>,
    /// silu(gate) * up, and as FP8 matrices see it.
    pub(super) gated: Vec<f32>,
    pub(super) gated_fp8: Vec<f32>,
    /// [picks, hidden].
    pub(super) out: Vec<f32>,
    pub(super) products: Vec<Product<'static, Part>>,
}

impl Work {
    /// Keeps the last row of each sequence alone.
    pub(super) fn keep_last(&mut self, hidden: usize) {
        for (i, span) in self.spans.iter().enumerate() {
            let last = span.row + span.tokens - 1;
            self.x.copy_within(last * hidden..(last + 1) * hidden, i * hidden);
            self.owners[i] = self.owners[last];
        }
        self.owners.truncate(self.spans.len());
        self.x.truncate(self.spans.len() * hidden);
    }
}
