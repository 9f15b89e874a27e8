//! Words of Python and their meaning here.

use patchhost_runtime::hooks::{Dtype, Elem, Role, TensorInfo};
use safetensors::Dtype as Stored;

use crate::errors::{Raised, Result};

/// A name of torch, without `torch.`.
pub fn dtype(name: &str) -> Dtype {
    match name {
        "float32" => Dtype::F32,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::Bf16,
        "float8_e4m3fn" => Dtype::F8E4m3,
        "float8_e8m0fnu" => Dtype::F8E8m0,
        "int64" => Dtype::I64,
        "uint8" => Dtype::U8,
        _ => Dtype::Other,
    }
}

/// The same as safetensors has it.
pub fn stored(tensor: &str, name: &str) -> Result<Stored> {
    Ok(match name {
        "float64" => Stored::F64,
        "float32" => Stored::F32,
        "float16" => Stored::F16,
        "bfloat16" => Stored::BF16,
        "float8_e4m3fn" => Stored::F8_E4M3,
        "float8_e5m2" => Stored::F8_E5M2,
        "float8_e8m0fnu" => Stored::F8_E8M0,
        "int64" => Stored::I64,
        "int32" => Stored::I32,
        "int16" => Stored::I16,
        "int8" => Stored::I8,
        "uint8" => Stored::U8,
        "bool" => Stored::BOOL,
        _ => {
            let next = "send floats (bfloat16, float16, float32), FP8 or integers";
            return Err(Raised::tensor(tensor, format!("its dtype is {name}, which no weights file can hold"), next));
        }
    })
}

/// What torch calls it.
pub fn name_of(stored: Stored) -> &'static str {
    match stored {
        Stored::F64 => "float64",
        Stored::F32 => "float32",
        Stored::F16 => "float16",
        Stored::BF16 => "bfloat16",
        Stored::F8_E4M3 => "float8_e4m3fn",
        Stored::F8_E5M2 => "float8_e5m2",
        Stored::F8_E8M0 => "float8_e8m0fnu",
        Stored::I64 => "int64",
        Stored::I32 => "int32",
        Stored::I16 => "int16",
        Stored::I8 => "int8",
        Stored::BOOL => "bool",
        _ => "uint8",
    }
}

/// A type that weights are computed in.
pub fn elem(tensor: &str, name: &str) -> Result<Elem> {
    match name {
        "float32" => Ok(Elem::F32),
        "float16" => Ok(Elem::F16),
        "bfloat16" => Ok(Elem::Bf16),
        _ => {
            let why = format!("its dtype is {name}; bfloat16, float16 and float32 can be quantized");
            Err(Raised::tensor(tensor, why, "give the weights before any quantization, or keep this tensor as it is"))
        }
    }
}

/// What a tensor is for.
pub fn role(tensor: &str, name: &str) -> Result<Role> {
    Ok(match name {
        "embedding" => Role::Embedding,
        "norm" => Role::Norm,
        "attention" => Role::Attention,
        "mlp" => Role::Mlp,
        "expert" => Role::Expert,
        "shared-expert" => Role::SharedExpert,
        "router" => Role::Router,
        "lm-head" => Role::LmHead,
        "buffer" => Role::Buffer,
        "other" => Role::Other,
        _ => {
            let next = "use embedding, norm, attention, mlp, expert, shared-expert, router, lm-head, buffer or other";
            return Err(Raised::tensor(tensor, format!("its role `{name}` is not known"), next));
        }
    })
}

/// What Python says about a tensor without its data: name, dtype, shape, role.
pub type Info = (String, String, Vec<u64>, String);

/// The same for a patch.
pub fn infos(tensors: Vec<Info>) -> Result<Vec<TensorInfo>> {
    tensors
        .into_iter()
        .map(|(name, of, shape, is)| Ok(TensorInfo { dtype: dtype(&of), role: role(&name, &is)?, name, shape }))
        .collect()
}
