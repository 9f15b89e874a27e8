//! Sequences laid out for a forward pass.

use candle_core::{Device, Tensor};
use patchhost_runtime::families::Common;
use patchhost_runtime::rope::RopeScaling;

use crate::train::error::{Result, usage};

/// Sequences laid out for a forward pass.
pub struct Batch {
    tokens: Tensor,
    /// First row of each sequence, and the number of all rows.
    starts: Vec<u32>,
    longest: usize,
    /// For each place of [sequences, longest] the row that stands there; behind the end of a sequence any row.
    pad: Tensor,
    /// For each row its place.
    unpad: Tensor,
    /// Of each row: [rows, 1, rotated / 2].
    cos: Tensor,
    sin: Tensor,
}

impl Batch {
    pub(super) fn new(c: &Common, sequences: &[&[u32]]) -> Result<Self> {
        let longest = sequences.iter().map(|s| s.len()).max().unwrap_or(0);
        let positions = match c.rope.scaling {
            RopeScaling::Dynamic { factor, original } => (original as f64 * factor.max(1.0)) as usize,
            _ => c.max_positions,
        };
        if longest == 0 || longest > positions || sequences.iter().any(|s| s.is_empty()) {
            return Err(usage(
                format!("a batch whose longest sequence has {longest} tokens"),
                format!("a sequence has from 1 to {positions}, the positions of the model"),
                "shorten the prompts or --max-tokens",
            ));
        }
        let tokens: Vec<u32> = sequences.concat();
        if let Some(id) = tokens.iter().find(|id| **id as usize >= c.vocab) {
            let why = format!("it is not below the vocabulary size {}", c.vocab);
            return Err(usage(format!("token id {id}"), why, "tokenize with the model's own tokenizer"));
        }
        let (mut starts, mut pad, mut unpad) = (vec![0], Vec::new(), Vec::new());
        let rotated = c.rope.rotary_dim(c.head_dim);
        let factor = c.rope.attention_factor();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        let mut row = 0u32;
        for (i, sequence) in sequences.iter().enumerate() {
            // As in the runtime: beyond its own length a model with dynamic scaling has frequencies of that length.
            let length = match c.rope.scaling {
                RopeScaling::Dynamic { original, .. } if sequence.len() > original => sequence.len(),
                _ => 0,
            };
            let frequencies = c.rope.inv_freq(rotated, length);
            for place in 0..longest {
                pad.push(if place < sequence.len() { row + place as u32 } else { row });
            }
            for position in 0..sequence.len() {
                unpad.push((i * longest + position) as u32);
                for f in &frequencies {
                    let angle = position as f32 * f;
                    cos.push(angle.cos() * factor);
                    sin.push(angle.sin() * factor);
                }
            }
            row += sequence.len() as u32;
            starts.push(row);
        }
        let shape = (row as usize, 1, rotated / 2);
        let device = Device::Cpu;
        Ok(Self {
            tokens: Tensor::new(tokens, &device)?,
            starts,
            longest,
            pad: Tensor::new(pad, &device)?,
            unpad: Tensor::new(unpad, &device)?,
            cos: Tensor::from_vec(cos, shape, &device)?,
            sin: Tensor::from_vec(sin, shape, &device)?,
        })
    }

    pub(super) fn tokens(&self) -> &Tensor {
        &self.tokens
    }

    /// How many sequences.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The rows of one sequence.
    pub fn rows(&self, sequence: usize) -> std::ops::Range<u32> {
        self.starts[sequence]..self.starts[sequence + 1]
    }

    pub(super) fn cos_sin(&self) -> (&Tensor, &Tensor) {
        (&self.cos, &self.sin)
    }

    /// x [rows, width] to [sequences, longest, width].
    pub(super) fn padded(&self, x: &Tensor) -> Result<Tensor> {
        let width = x.dim(1)?;
        Ok(x.index_select(&self.pad, 0)?.reshape((self.len(), self.longest, width))?)
    }

    /// x [sequences * longest, width] to [rows, width].
    pub(super) fn unpadded(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.index_select(&self.unpad, 0)?)
    }

    /// What is added to scores [longest, longest]: -inf for what a position does not see.
    pub(super) fn causal(&self, window: Option<usize>) -> Result<Tensor> {
        let n = self.longest;
        let sees = |query: usize, key: usize| key <= query && window.is_none_or(|w| query - key < w);
        let mask: Vec<f32> = (0..n * n).map(|i| if sees(i / n, i % n) { 0.0 } else { f32::NEG_INFINITY }).collect();
        Ok(Tensor::from_vec(mask, (n, n), &Device::Cpu)?)
    }
}
