//! The shared vocabulary, lowered: the host checks its own side of the interface's bounds too.

use patchhost_runtime::hooks::{ModelInfo, TensorInfo};

/// Most tensors in one list.
pub(super) const TENSORS: usize = 131_072;
/// Longest name of a tensor.
pub(super) const NAME_BYTES: usize = 512;
/// Longest reason or rule.
pub(super) const REASON_BYTES: usize = 256;
const DIMENSIONS: usize = 8;
const CONFIG_BYTES: usize = 1 << 20;

/// A question is larger than the interface allows.
pub(super) fn check_question(model: &ModelInfo, lists: &[&[TensorInfo]]) -> Result<(), String> {
    if model.config.len() > CONFIG_BYTES {
        return Err(format!("config.json has {} bytes; the interface allows {CONFIG_BYTES}", model.config.len()));
    }
    for list in lists {
        if list.len() > TENSORS {
            return Err(format!("{} tensors; the interface allows {TENSORS}", list.len()));
        }
        for tensor in *list {
            let (bytes, dims) = (tensor.name.len(), tensor.shape.len());
            if bytes > NAME_BYTES || dims > DIMENSIONS {
                let name = crate::base::text::clean(&tensor.name, 80);
                return Err(format!(
                    "tensor `{name}` has a name of {bytes} bytes and {dims} dimensions; \
                     the interface allows {NAME_BYTES} and {DIMENSIONS}"
                ));
            }
        }
    }
    Ok(())
}

/// Each interface repeats what it needs of the vocabulary, so each has Rust types of its own.
macro_rules! lower_model {
    () => {
        pub(super) fn model(model: &patchhost_runtime::hooks::ModelInfo) -> wit::Model<'_> {
            wit::Model {
                architecture: &model.architecture,
                model_type: &model.model_type,
                layers: model.layers,
                experts: model.experts,
                config: &model.config,
            }
        }
    };
}

macro_rules! lower_dtype {
    () => {
        pub(super) fn dtype(dtype: patchhost_runtime::hooks::Dtype) -> wit::Dtype {
            use patchhost_runtime::hooks::Dtype;
            match dtype {
                Dtype::F32 => wit::Dtype::F32,
                Dtype::F16 => wit::Dtype::F16,
                Dtype::Bf16 => wit::Dtype::Bf16,
                Dtype::F8E4m3 => wit::Dtype::F8E4m3,
                Dtype::F8E8m0 => wit::Dtype::F8E8m0,
                Dtype::I64 => wit::Dtype::I64,
                Dtype::U8 => wit::Dtype::U8,
                Dtype::Other => wit::Dtype::Other,
            }
        }
    };
}

macro_rules! lower_tensors {
    () => {
        lower_dtype!();

        pub(super) fn tensors(tensors: &[patchhost_runtime::hooks::TensorInfo]) -> Vec<wit::Tensor<'_>> {
            tensors
                .iter()
                .map(|t| wit::Tensor { name: &t.name, dtype: dtype(t.dtype), shape: &t.shape, role: role(t.role) })
                .collect()
        }

        fn role(role: patchhost_runtime::hooks::Role) -> wit::Role {
            use patchhost_runtime::hooks::Role;
            match role {
                Role::Embedding => wit::Role::Embedding,
                Role::Norm => wit::Role::Norm,
                Role::Attention => wit::Role::Attention,
                Role::Mlp => wit::Role::Mlp,
                Role::Expert => wit::Role::Expert,
                Role::SharedExpert => wit::Role::SharedExpert,
                Role::Router => wit::Role::Router,
                Role::LmHead => wit::Role::LmHead,
                Role::Buffer => wit::Role::Buffer,
                Role::Other => wit::Role::Other,
            }
        }
    };
}

/// A module `lower` with functions from the runtime's types to those of one interface: `model`, `dtype`, `tensors`.
macro_rules! lower {
    ($wit:ident: $($part:ident),*) => {
        mod lower {
            use crate::abi::bindings::$wit as wit;
            $($part!();)*
        }
    };
}
