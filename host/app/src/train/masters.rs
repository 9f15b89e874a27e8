//! Master weights: every tensor of the checkpoint that the model computes with, in f32, as a variable of candle's
//! autograd. The rollout engine gets them under the checkpoint's own names and in its own dtypes.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use half::{bf16, f16};
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::hooks::Elem;
use patchhost_runtime::registry::{Registry, Spare};
use safetensors::tensor::Dtype;
use sha2::{Digest, Sha256};

use super::error::{Result, usage};
use crate::base::hex;

/// One trained tensor.
pub struct Master {
    /// Name in the checkpoint.
    pub name: String,
    /// Element type in the checkpoint.
    pub stored: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// The value.
    pub var: Var,
}

impl Master {
    /// The values, row-major.
    pub fn values(&self) -> Result<Vec<f32>> {
        Ok(self.var.as_tensor().flatten_all()?.to_vec1()?)
    }

    /// Replaces the values.
    pub fn set(&self, values: Vec<f32>) -> Result<()> {
        Ok(self.var.set(&Tensor::from_vec(values, self.shape.clone(), &Device::Cpu)?)?)
    }
}

/// All trained tensors, in the order of their names.
pub struct Masters {
    all: Vec<Master>,
    by_name: BTreeMap<String, usize>,
    /// Tensors that the model does not compute with; they are sent as they are.
    others: Vec<CheckpointTensor>,
}

impl Masters {
    /// Widens the tensors of a checkpoint that `registry` has a place for.
    pub fn read(checkpoint: &Checkpoint, registry: &Registry) -> Result<Self> {
        let mut made = Self { all: Vec::new(), by_name: BTreeMap::new(), others: Vec::new() };
        for tensor in checkpoint.tensors() {
            let name = &tensor.name;
            if registry.native(name).is_none() && registry.expert_names(name).is_none() {
                // A head that is the embedding is trained with it: a copy of what it was would differ after a step. One that
                // differs already is sent, and refused.
                let embedding = match registry.spare(name) {
                    Some(Spare::TiedHead(embed)) => {
                        registry.checkpoint_name_of(embed, 0).and_then(|n| checkpoint.get(n))
                    }
                    _ => None,
                };
                let same = match embedding.filter(|e| e.stored == tensor.stored) {
                    Some(embedding) => embedding.data.load()?[..] == tensor.data.load()?[..],
                    None => false,
                };
                if !same {
                    made.others.push(tensor.clone());
                }
                continue;
            }
            let values = widened(tensor)?;
            if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                let why = format!("element {i} is {}", values[i]);
                return Err(usage(format!("tensor `{name}`"), why, "train from a checkpoint of finite weights"));
            }
            let var = Var::from_vec(values, tensor.shape.clone(), &Device::Cpu)?;
            made.by_name.insert(name.clone(), made.all.len());
            made.all.push(Master { name: name.clone(), stored: tensor.stored, shape: tensor.shape.clone(), var });
        }
        Ok(made)
    }

    /// All of them, in the order of their names.
    pub fn all(&self) -> &[Master] {
        &self.all
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<&Master> {
        self.by_name.get(name).map(|i| &self.all[*i])
    }

    /// How many numbers are trained.
    pub fn parameters(&self) -> usize {
        self.all.iter().map(|m| m.shape.iter().product::<usize>()).sum()
    }

    /// What the rollout engine is refitted with.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        let mut tensors = self.others.clone();
        for master in &self.all {
            let bytes: Vec<u8> = narrowed(&master.values()?, master.stored);
            let range = 0..bytes.len();
            // The range is that of the buffer itself, so it is inside.
            let Some(data) = TensorBytes::new(Arc::new(bytes), range) else { continue };
            tensors.push(CheckpointTensor::new(&master.name, master.stored, master.shape.clone(), data));
        }
        Ok(Checkpoint::from_tensors(tensors)?)
    }

    /// Rounds every value to bf16.
    pub fn round_to_bf16(&self) -> Result<()> {
        for master in &self.all {
            master.set(master.values()?.into_iter().map(|v| bf16::from_f32(v).to_f32()).collect())?;
        }
        Ok(())
    }

    /// SHA-256 over names and f32 values.
    pub fn digest(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        for master in &self.all {
            hasher.update(master.name.as_bytes());
            hasher.update([0]);
            hasher.update(le_bytes(&master.values()?));
        }
        Ok(hex(&hasher.finalize()))
    }
}

/// f32 values as they lie in a file.
pub(super) fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn widened(tensor: &CheckpointTensor) -> Result<Vec<f32>> {
    let data = tensor.data.load()?;
    let halves = || data.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
    match tensor.elem() {
        Some(Elem::F32) => Ok(data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Some(Elem::Bf16) => Ok(halves().map(|b| bf16::from_bits(b).to_f32()).collect()),
        Some(Elem::F16) => Ok(halves().map(|b| f16::from_bits(b).to_f32()).collect()),
        None => Err(usage(
            format!("tensor `{}`", tensor.name),
            format!("it is stored as {:?}; master weights start from F32, BF16 or F16", tensor.stored),
            "give --dequantize for an FP8 checkpoint",
        )),
    }
}

fn narrowed(values: &[f32], stored: Dtype) -> Vec<u8> {
    match stored {
        Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        _ => le_bytes(values),
    }
}
