//! What an export holds: every tensor of the checkpoint under its own name. Fused expert tensors are written one by one
//! under the family's per-expert names, because those are what every reader of block FP8 loads (transformers stacks
//! them, vLLM and SGLang place them); Qwen3-VL-MoE is read fused only and stays as it is.

use std::collections::HashMap;

use patchhost_runtime::bytes::{TensorBytes, TensorData};
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::hooks::{Elem, LoaderMap, Role};
use patchhost_runtime::plan::{Action, Dest, Plan};
use patchhost_runtime::refit::Setup;
use patchhost_runtime::registry::{Registry, Spare};
use safetensors::tensor::Dtype;

use super::{Result, refused};

/// Model types whose readers know only fused experts.
const FUSED_ONLY: [&str; 1] = ["qwen3_vl_moe"];

/// One tensor to write, before it is decided whether it becomes FP8.
pub struct Output {
    /// Name in the export.
    pub name: String,
    /// Role in the registry.
    pub role: Role,
    /// Stored element type.
    pub dtype: Dtype,
    /// Element type, where it is one that weights are computed in.
    pub elem: Option<Elem>,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Runtime tensor it belongs to; none for what the runtime does not load.
    pub target: Option<String>,
    /// Set where it cannot be quantized whatever a patch says.
    pub fixed: Option<String>,
    pub(super) data: Data,
}

/// Where the bytes of an [`Output`] come from.
#[derive(Clone)]
pub(super) enum Data {
    /// As they are.
    Plain(TensorData),
    /// Columns `first .. first + rows` of a stored matrix with `stored` columns, as rows.
    Columns { bytes: TensorData, first: usize, stored: usize },
}

impl Output {
    /// Bytes of the data as stored.
    pub fn bytes(&self) -> u64 {
        let elements = self.shape.iter().map(|d| *d as u64).product::<u64>();
        match (&self.data, self.elem) {
            (Data::Columns { .. }, Some(elem)) => elements * elem.size() as u64,
            (Data::Plain(bytes) | Data::Columns { bytes, .. }, _) => bytes.len() as u64,
        }
    }

    /// The data, copied only where it is stored transposed.
    pub(super) fn load(&self) -> std::result::Result<TensorBytes, RuntimeError> {
        match &self.data {
            Data::Plain(bytes) => bytes.load(),
            Data::Columns { bytes, first, stored } => {
                self.turned(&bytes.load()?, *first, *stored).ok_or_else(|| self.short())
            }
        }
    }

    fn turned(&self, bytes: &[u8], first: usize, stored: usize) -> Option<TensorBytes> {
        let [rows, cols] = self.shape[..] else { return None };
        let size = self.elem?.size();
        let mut out = vec![0u8; rows * cols * size];
        for (c, line) in bytes.chunks_exact(stored * size).enumerate().take(cols) {
            for (r, value) in line.chunks_exact(size).skip(first).take(rows).enumerate() {
                let to = (r * cols + c) * size;
                out.get_mut(to..to + size)?.copy_from_slice(value);
            }
        }
        let len = out.len();
        TensorBytes::new(std::sync::Arc::new(out), 0..len)
    }

    /// The error where the data does not fit the shape.
    pub(super) fn short(&self) -> RuntimeError {
        RuntimeError::Checkpoint(Refusal::new(
            format!("tensor `{}`", self.name),
            "its data does not fit its shape",
            "copy or download the checkpoint again",
        ))
    }
}

/// Every tensor of the export, in the checkpoint's order.
pub fn outputs(setup: &Setup<'_>, checkpoint: &Checkpoint, loader: Option<&dyn LoaderMap>) -> Result<Vec<Output>> {
    let Setup { registry, model, .. } = *setup;
    let plan = Plan::new(setup, checkpoint, loader)?;
    let names = Names::new(registry);
    let fused_only = FUSED_ONLY.contains(&model.model_type.as_str());
    let mut out = Vec::with_capacity(plan.actions.len());
    for (tensor, action) in checkpoint.tensors().zip(&plan.actions) {
        let mut whole = Output {
            name: tensor.name.clone(),
            role: Role::Other,
            dtype: tensor.stored,
            elem: tensor.elem(),
            shape: tensor.shape.clone(),
            target: None,
            fixed: None,
            data: Data::Plain(tensor.data.clone()),
        };
        match action {
            // Never: an export has all experts.
            Action::Elsewhere(_) => continue,
            // Who reads the export takes the embedding, or would take a head that is not the one which is served.
            Action::Ignore(_) if matches!(registry.spare(&tensor.name), Some(Spare::TiedHead(_))) => continue,
            // They are of the quantization that is undone here; readers of the new one know no such scales.
            Action::Ignore(_) if matches!(registry.spare(&tensor.name), Some(Spare::ActivationScale)) => continue,
            Action::Ignore(reason) => {
                whole.fixed = Some(format!("not part of the model that is served: {reason}"));
                out.push(whole);
            }
            Action::Load { .. } if matches!(tensor.stored, Dtype::F8_E4M3 | Dtype::F8_E5M2) => {
                return Err(refused(
                    format!("tensor `{}`", tensor.name),
                    "it is FP8 already; its scales belong to the names and blocks of the format it came in",
                    "export the unquantized checkpoint",
                ));
            }
            Action::Load { role, dests, transposed } => {
                whole.role = *role;
                whole.target = dests.first().and_then(|d| registry.params().get(d.param)).map(|p| p.name.clone());
                let fused = dests.len() > 1 || (tensor.shape.len() == 3 && *role == Role::Expert);
                if !fused {
                    whole.fixed = transposed.map(|_| "it is stored transposed; its reader's names have it so".into());
                    out.push(whole);
                } else if fused_only {
                    whole.fixed = Some("its readers know these experts only fused, without scales".into());
                    out.push(whole);
                } else if let Some(parts) = split(&names, tensor, *role, dests, *transposed, &whole.target) {
                    out.extend(parts);
                } else {
                    whole.fixed = Some("it is fused, and the family has no names for its parts".into());
                    out.push(whole);
                }
            }
        }
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    match out.windows(2).find(|w| w[0].name == w[1].name) {
        Some(twice) => Err(refused(
            format!("tensor `{}`", twice[0].name),
            "it is in the checkpoint, and a part of a fused tensor would have the same name",
            "remove one of the two from the checkpoint",
        )),
        None => Ok(out),
    }
}

/// The checkpoint names of the parts of fused runtime tensors.
struct Names<'a> {
    registry: &'a Registry,
    by_part: HashMap<(usize, usize), &'a str>,
}

impl<'a> Names<'a> {
    fn new(registry: &'a Registry) -> Self {
        let mut by_part = HashMap::new();
        for name in registry.checkpoint_names() {
            let place = registry.native(name).or_else(|| registry.expert_names(name));
            let part = place.and_then(|p| {
                let decl = registry.params().get(p.param)?;
                Some((p.param, decl.part_index(p.expert.unwrap_or(0), p.slot)?))
            });
            if let Some(part) = part {
                by_part.insert(part, name);
            }
        }
        Self { registry, by_part }
    }

    fn of(&self, dest: &Dest) -> Option<&'a str> {
        self.by_part.get(&(dest.param, dest.part)).copied()
    }
}

fn split(
    names: &Names<'_>,
    tensor: &CheckpointTensor,
    role: Role,
    dests: &[Dest],
    transposed: Option<(usize, usize, usize)>,
    target: &Option<String>,
) -> Option<Vec<Output>> {
    let elem = tensor.elem()?;
    dests
        .iter()
        .map(|d| {
            let vector = names.registry.params().get(d.param)?.cols.is_none();
            let data = match transposed {
                None => {
                    let start = d.offset * elem.size();
                    Data::Plain(tensor.data.slice(start..start + d.rows * d.cols * elem.size())?)
                }
                // Stored as [matrices, cols, rows]: the part is a run of columns of one stored matrix.
                Some((_, cols, rows)) => {
                    let (matrix, within) = (d.offset / (rows * cols), d.offset % (rows * cols));
                    let each = rows * cols * elem.size();
                    let bytes = tensor.data.slice(matrix * each..(matrix + 1) * each)?;
                    Data::Columns { bytes, first: within / cols, stored: rows }
                }
            };
            Some(Output {
                name: names.of(d)?.to_string(),
                role,
                dtype: tensor.stored,
                elem: Some(elem),
                shape: if vector { vec![d.rows] } else { vec![d.rows, d.cols] },
                target: target.clone(),
                fixed: None,
                data,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Arc;

    #[test]
    fn columns_of_a_stored_matrix_become_rows() {
        // Stored [2, 3]: columns 1 and 2, as a [2, 2] matrix.
        let stored: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let output = Output {
            name: String::new(),
            role: Role::Expert,
            dtype: Dtype::F32,
            elem: Some(Elem::F32),
            shape: vec![2, 2],
            target: None,
            fixed: None,
            data: Data::Columns {
                bytes: TensorBytes::new(Arc::new(stored), 0..24).unwrap().into(),
                first: 1,
                stored: 3,
            },
        };
        let loaded = output.load().unwrap();
        let values: Vec<f32> = loaded.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(values, [2.0, 5.0, 3.0, 6.0]);
        assert_eq!(output.bytes(), 16);
    }
}
