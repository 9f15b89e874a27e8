//! A made-up model to ask about: names, shapes and roles of tensors as a Qwen3-MoE has them, without any weights.

use crate::checkpoint::bundled;
use crate::patch::{HostIdentity, Patch};
use patchhost_runtime::hooks::{Arrival, Consumer, Dtype, ModelInfo, Role, TensorInfo};

/// Layers of it, unless somebody wants more.
const LAYERS: usize = 4;
/// Experts of a layer.
const EXPERTS: usize = 4;

/// The model that a patch is asked about: of an architecture that it says it is for.
pub(super) fn model(patch: &Patch) -> ModelInfo {
    model_of(patch, LAYERS)
}

/// The same, so many layers deep.
pub(super) fn model_of(patch: &Patch, layers: usize) -> ModelInfo {
    let here = HostIdentity::patchhost().engine;
    let ours = patch.info().targets.iter().find(|target| target.engine == here);
    let named = ours.and_then(|target| target.architectures.first()).cloned();
    ModelInfo {
        architecture: named.unwrap_or_else(|| "Qwen3MoeForCausalLM".to_owned()),
        model_type: "qwen3_moe".to_owned(),
        layers: layers as u32,
        experts: EXPERTS as u32,
        config: bundled::CONFIG.to_owned(),
    }
}

/// Who reads the result.
pub(super) fn reader() -> Consumer {
    let HostIdentity { engine, version } = HostIdentity::patchhost();
    Consumer { engine, version }
}

/// Its tensors in bf16.
pub(super) fn tensors() -> Vec<TensorInfo> {
    tensors_of(LAYERS)
}

/// The same, so many layers deep.
pub(super) fn tensors_of(layers: usize) -> Vec<TensorInfo> {
    let mut all = Vec::new();
    let mut add = |name: String, role: Role, shape: &[u64]| {
        all.push(TensorInfo { name, dtype: Dtype::Bf16, shape: shape.to_vec(), role });
    };
    add("model.embed_tokens.weight".into(), Role::Embedding, &[512, 256]);
    for layer in 0..layers {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}.weight");
        add(name("input_layernorm"), Role::Norm, &[256]);
        for (proj, rows) in [("q_proj", 512), ("k_proj", 128), ("v_proj", 128)] {
            add(name(&format!("self_attn.{proj}")), Role::Attention, &[rows, 256]);
        }
        add(name("self_attn.o_proj"), Role::Attention, &[256, 512]);
        add(name("self_attn.q_norm"), Role::Norm, &[64]);
        add(name("post_attention_layernorm"), Role::Norm, &[256]);
        add(name("mlp.gate"), Role::Router, &[EXPERTS as u64, 256]);
        for expert in 0..EXPERTS {
            for (proj, shape) in [("gate_proj", [384, 256]), ("up_proj", [384, 256]), ("down_proj", [256, 384])] {
                add(name(&format!("mlp.experts.{expert}.{proj}")), Role::Expert, &shape);
            }
        }
    }
    add("model.norm.weight".into(), Role::Norm, &[256]);
    add("lm_head.weight".into(), Role::LmHead, &[512, 256]);
    all
}

/// Its tensors as a refit sees them arrive.
pub(super) fn arrivals() -> Vec<Arrival> {
    let arrival = |t: TensorInfo| {
        let sha256 = crate::base::Digest::of(t.name.as_bytes()).hex();
        Arrival { name: t.name, dtype: t.dtype, shape: t.shape, sha256 }
    };
    let mut all: Vec<Arrival> = tensors().into_iter().map(arrival).collect();
    // A refit shows them in the order of their names.
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// A LoRA adapter of rank 8 for its attention.
pub(super) fn adapter() -> (String, Vec<TensorInfo>) {
    let config = r#"{"peft_type":"LORA","task_type":"CAUSAL_LM","r":8,"lora_alpha":16,"bias":"none","target_modules":["q_proj","o_proj"]}"#;
    let mut all = Vec::new();
    for layer in 0..LAYERS {
        for (proj, rows, cols) in [("q_proj", 512, 256), ("o_proj", 256, 512)] {
            for (side, shape) in [("A", vec![8, cols]), ("B", vec![rows, 8])] {
                let name = format!("base_model.model.model.layers.{layer}.self_attn.{proj}.lora_{side}.weight");
                all.push(TensorInfo { name, dtype: Dtype::Bf16, shape, role: Role::Other });
            }
        }
    }
    (config.to_owned(), all)
}
