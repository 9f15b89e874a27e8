//! Weights as a trainer holds them: named tensors in the order in which they are sent, made of a seed or read from a model.

use std::sync::Arc;

use half::{bf16, f16};
use patchhost_runtime::hooks::Role;
use safetensors::tensor::Dtype;

use super::dice::Dice;
use super::family::{Declared, Draw};
use crate::base::Digest;

/// One tensor of a checkpoint, with its bytes.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Its name in the checkpoint.
    pub name: String,
    /// What it is for.
    pub class: Role,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Little-endian, row-major. Shared between checkpoints that have the same tensor.
    pub data: Arc<Vec<u8>>,
}

impl Tensor {
    /// A bf16 tensor of a tiny model: its values depend on the seed and on its name.
    pub fn drawn(declared: Declared, seed: u64) -> Self {
        let Declared { name, class, shape, draw } = declared;
        let mut dice = Dice::new(seed, &name);
        let mut value = || match draw {
            // Values between ±√3·s have the standard deviation s.
            Draw::Spread(s) => dice.signed() * 1.732_050_8 * s,
            Draw::Gain(gain) => gain * (1.0 + 0.1 * dice.signed()),
        };
        let data = (0..shape.iter().product()).flat_map(|_| bf16::from_f32(value()).to_le_bytes()).collect();
        Self { name, class, dtype: Dtype::BF16, shape, data: Arc::new(data) }
    }

    /// SHA-256 of its bytes.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.data)
    }

    /// The same tensor with each value changed, rounded to its own element type. Tensors that are no floating-point numbers
    /// of 16 or 32 bits stay as they are.
    pub fn mapped(&self, mut change: impl FnMut(f32) -> f32) -> Self {
        let data: Vec<u8> = match self.dtype {
            Dtype::BF16 => two(&self.data, |b| bf16::from_f32(change(bf16::from_le_bytes(b).to_f32())).to_le_bytes()),
            Dtype::F16 => two(&self.data, |b| f16::from_f32(change(f16::from_le_bytes(b).to_f32())).to_le_bytes()),
            Dtype::F32 => {
                let words = self.data.as_chunks::<4>().0.iter();
                words.flat_map(|b| change(f32::from_le_bytes(*b)).to_le_bytes()).collect()
            }
            _ => return self.clone(),
        };
        Self { data: Arc::new(data), ..self.clone() }
    }

    /// Bytes of one element; 0 where an element is less than a byte.
    pub fn width(&self) -> usize {
        self.dtype.bitsize() / 8
    }
}

fn two(data: &[u8], change: impl FnMut([u8; 2]) -> [u8; 2]) -> Vec<u8> {
    data.as_chunks::<2>()
        .0
        .iter()
        .copied()
        .flat_map({
            let mut change = change;
            move |b| change(b)
        })
        .collect()
}
