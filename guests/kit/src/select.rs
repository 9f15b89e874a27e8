//! Which tensors become FP8. Names are matched by whole path component, never by substring: `mlp.gate` is a router,
//! `mlp.gate_up_proj` is not.

use crate::glob;
use crate::settings::{Policy, Selection};
use crate::types::{Decision, Dtype, Role, Tensor};

/// Path components that keep a tensor out of FP8 whatever its role, unless a `quantize` glob names it.
const NEVER: [&str; 22] = [
    "A_log",
    "conv1d",
    "dt_bias",
    "e_score_correction_bias",
    "eh_proj",
    "embed_tokens",
    "embeddings",
    "gate",
    "in_proj_ba",
    "in_proj_a",
    "in_proj_b",
    "inv_freq",
    "lm_head",
    "multi_modal_projector",
    "router",
    "rotary_emb",
    "shared_expert_gate",
    "vision_model",
    "vision_tower",
    "visual",
    "word_embeddings",
    "wte",
];

/// Names of fused expert tensors that may come without `.weight`.
const FUSED_EXPERTS: [&str; 4] = ["gate_up_proj", "down_proj", "w13_weight", "w2_weight"];

/// Decides about one tensor. `listed` are the modules that the model's own config.json excludes.
pub fn decide(selection: &Selection, listed: &[String], t: &Tensor<'_>) -> Decision {
    match verdict(selection, listed, t) {
        Ok(rule) => Decision::Quantize(short(rule)),
        Err(reason) => Decision::Keep(short(reason)),
    }
}

/// The interface allows 256 bytes.
fn short(mut text: String) -> String {
    const MOST: usize = 256;
    if text.len() > MOST {
        let cut = (0..=MOST - "…".len()).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        text.truncate(cut);
        text.push('…');
    }
    text
}

fn verdict(selection: &Selection, listed: &[String], t: &Tensor<'_>) -> Result<String, String> {
    if let Some(g) = selection.keep.iter().find(|g| glob::matches(g, t.name)) {
        return Err(format!("glob `{g}` in setting keep"));
    }
    match t.dtype {
        Dtype::F8E4m3 | Dtype::F8E8m0 => return Err(format!("already {}", t.dtype.name())),
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => {}
        _ => return Err(format!("{} is not a float type that can be quantized", t.dtype.name())),
    }
    let dims = t.shape.len();
    if dims < 2 {
        return Err(format!("{dims}-D (bias or vector)"));
    }
    if dims > 3 {
        return Err(format!("{dims}-D, blocks are of matrices"));
    }
    if let Some(g) = selection.quantize.iter().find(|g| glob::matches(g, t.name)) {
        return Ok(format!("glob `{g}` in setting quantize, {dims}-D {}", t.dtype.name()));
    }
    if let Some(entry) = listed.iter().find(|entry| names_module(entry, t.name)) {
        return Err(format!("`{entry}` in quantization_config of config.json"));
    }
    match selection.policy {
        Policy::Registry => by_registry(t),
        Policy::VerlSglang => by_sglang_name(t),
    }
}

/// The default: what the runtime's registry says the tensor is for.
fn by_registry(t: &Tensor<'_>) -> Result<String, String> {
    let dims = t.shape.len();
    let (role, dtype) = (t.role.name(), t.dtype.name());
    match t.role {
        Role::Router => return Err("router (never quantized unless listed)".into()),
        Role::Norm | Role::Embedding | Role::LmHead | Role::Buffer => {
            return Err(format!("role {role} (never quantized unless listed)"));
        }
        Role::Attention | Role::Mlp | Role::Expert | Role::SharedExpert | Role::Other => {}
    }
    if let Some(c) = never(t) {
        return Err(format!("`{c}` in its name (never quantized unless listed)"));
    }
    // A plain file has no registry, so its fused experts have no role: their names tell.
    let expert = t.role == Role::Expert || (t.role == Role::Other && t.name.split('.').any(|c| c == "experts"));
    if dims == 3 && !expert {
        return Err(format!("role {role}, 3-D (only experts have 3-D weights)"));
    }
    let last = t.name.rsplit('.').next().unwrap_or(t.name);
    let fused = t.role == Role::Expert && FUSED_EXPERTS.contains(&last);
    if t.role != Role::Other && last != "weight" && !fused {
        return Err(format!("role {role}, its name does not end in `weight`"));
    }
    Ok(format!("role {role}, {dims}-D {dtype}"))
}

/// The component of the name that keeps it out of FP8, if any.
fn never<'a>(t: &Tensor<'a>) -> Option<&'a str> {
    t.name.split('.').find(|c| NEVER.contains(c) || is_norm(c))
}

/// Components such as `norm`, `q_norm`, `input_layernorm`, `LayerNorm`.
fn is_norm(component: &str) -> bool {
    let bytes = component.as_bytes();
    bytes.len() >= 4 && bytes[bytes.len() - 4..].eq_ignore_ascii_case(b"norm")
}

/// verl's `should_quantize_param` for SGLang, substrings and all.
fn by_sglang_name(t: &Tensor<'_>) -> Result<String, String> {
    const WITHOUT: [&str; 6] = ["embed_tokens", "lm_head", "layernorm", "norm", "ln_", "embeddings"];
    const WITH: [&str; 11] =
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "fc1", "fc2", "gate", "mlp"];
    if !t.name.ends_with(".weight") {
        return Err("policy verl-sglang, its name does not end in `.weight`".into());
    }
    let name = t.name.to_ascii_lowercase();
    if let Some(w) = WITHOUT.iter().find(|w| name.contains(**w)) {
        return Err(format!("policy verl-sglang, `{w}` in its name"));
    }
    match WITH.iter().find(|w| name.contains(**w)) {
        Some(w) => Ok(format!("policy verl-sglang, `{w}` in its name, {}-D {}", t.shape.len(), t.dtype.name())),
        None => Err("policy verl-sglang, no known projection in its name".into()),
    }
}

/// Whether an entry of `modules_to_not_convert` names the tensor's module or one that holds it: all components of the
/// entry, in a row, somewhere in the name.
fn names_module(entry: &str, name: &str) -> bool {
    let mut rest = Some(name);
    while let Some(tail) = rest {
        if let Some(after) = tail.strip_prefix(entry)
            && (after.is_empty() || after.starts_with('.'))
        {
            return true;
        }
        rest = tail.split_once('.').map(|(_, after)| after);
    }
    false
}
