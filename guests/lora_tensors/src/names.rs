//! From a PEFT tensor name to a part of a runtime tensor.

use crate::bindings::exports::patchhost::patch::lora::{Place, Side, Slot, Tensor};
use crate::config::Config;

/// Prefix that PEFT puts before the model's own names.
const PREFIX: &str = "base_model.model.";

/// Where an adapter tensor goes; an error names it.
pub fn place(config: &Config, registry: &[Tensor], t: &Tensor) -> Result<Place, String> {
    let refuse = |why: String| Err(format!("tensor `{}`: {why}", t.name));
    let Some((module, side)) = split(&t.name) else {
        return refuse(format!(
            "unexpected name; adapter tensors are `{PREFIX}MODULE.lora_A.weight` and `….lora_B.weight`"
        ));
    };
    let leaf = module.rsplit('.').next().unwrap_or(module);
    if let Some(modules) = &config.modules {
        let targeted = |m: &String| module == m || module.ends_with(&format!(".{m}"));
        if !modules.iter().any(targeted) {
            return refuse(format!("`{leaf}` is not in target_modules ({})", modules.join(", ")));
        }
    }
    let Some(found) = resolve(registry, module) else {
        return refuse(format!("the model has no linear module `{module}`"));
    };
    let (target, slot, expert) = found;
    let (rank_at, name) = if side == Side::A { (0, "A") } else { (1, "B") };
    if t.shape.len() != 2 || t.shape[rank_at] != u64::from(config.rank) {
        return refuse(format!(
            "its shape is {:?}; lora_{name} with r = {} has that in dimension {rank_at}",
            t.shape, config.rank
        ));
    }
    Ok(Place { target, slot, expert, side })
}

/// `base_model.model.M.lora_A.weight`, also with an adapter's name before `weight`.
fn split(name: &str) -> Option<(&str, Side)> {
    let rest = name.strip_prefix(PREFIX)?.strip_suffix(".weight")?;
    for (mark, side) in [(".lora_A", Side::A), (".lora_B", Side::B)] {
        if let Some((module, adapter)) = rest.split_once(mark)
            && (adapter.is_empty() || (adapter.starts_with('.') && !adapter[1..].contains('.')))
        {
            return Some((module, side));
        }
    }
    None
}

/// The runtime tensor of a checkpoint module, the part of it, and the expert.
fn resolve(registry: &[Tensor], module: &str) -> Option<(String, Slot, Option<u32>)> {
    let has = |name: &str| registry.iter().any(|t| t.name == name && t.shape.len() >= 2);
    let own = format!("{module}.weight");
    if has(&own) {
        return Some((own, Slot::Whole, None));
    }
    let (parent, leaf) = module.rsplit_once('.')?;
    let fused = match leaf {
        "q_proj" => Some(("qkv_proj", Slot::Q)),
        "k_proj" => Some(("qkv_proj", Slot::K)),
        "v_proj" => Some(("qkv_proj", Slot::V)),
        "gate_proj" => Some(("gate_up_proj", Slot::Gate)),
        "up_proj" => Some(("gate_up_proj", Slot::Up)),
        _ => None,
    };
    if let Some((name, slot)) = fused {
        let target = format!("{parent}.{name}.weight");
        if has(&target) {
            return Some((target, slot, None));
        }
    }
    let (experts, id) = parent.rsplit_once('.')?;
    let expert: u32 = id.parse().ok()?;
    let (name, slot) = match leaf {
        "gate_proj" | "w1" => ("w13_weight", Slot::W1),
        "up_proj" | "w3" => ("w13_weight", Slot::W3),
        "down_proj" | "w2" => ("w2_weight", Slot::W2),
        _ => return None,
    };
    let target = format!("{experts}.{name}");
    let decl = registry.iter().find(|t| t.name == target)?;
    (u64::from(expert) < *decl.shape.first()?).then_some((target, slot, Some(expert)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bindings::exports::patchhost::patch::lora::{Dtype, Role};

    fn tensor(name: &str, shape: &[u64]) -> Tensor {
        Tensor { name: name.into(), dtype: Dtype::Bf16, shape: shape.into(), role: Role::Other }
    }

    fn one(name: &str, shape: &[u64]) -> Result<(String, Slot, Option<u32>), String> {
        let registry = [
            tensor("model.layers.0.self_attn.qkv_proj.weight", &[48, 16]),
            tensor("model.layers.0.self_attn.o_proj.weight", &[16, 16]),
            tensor("model.layers.0.mlp.experts.w13_weight", &[4, 64, 16]),
        ];
        let config =
            Config { rank: 2, scaling: 1.0, modules: Some(vec!["q_proj".into(), "o_proj".into(), "up_proj".into()]) };
        place(&config, &registry, &tensor(name, shape)).map(|p| (p.target, p.slot, p.expert))
    }

    #[test]
    fn modules_are_found() {
        let layer = "base_model.model.model.layers.0";
        let q = one(&format!("{layer}.self_attn.q_proj.lora_A.weight"), &[2, 16]);
        assert_eq!(q, Ok(("model.layers.0.self_attn.qkv_proj.weight".into(), Slot::Q, None)));
        let o = one(&format!("{layer}.self_attn.o_proj.lora_B.default.weight"), &[16, 2]);
        assert_eq!(o, Ok(("model.layers.0.self_attn.o_proj.weight".into(), Slot::Whole, None)));
        let e = one(&format!("{layer}.mlp.experts.3.up_proj.lora_A.weight"), &[2, 16]);
        assert_eq!(e, Ok(("model.layers.0.mlp.experts.w13_weight".into(), Slot::W3, Some(3))));
    }

    #[test]
    fn others_are_refused_by_name() {
        let layer = "base_model.model.model.layers";
        for (name, shape, says) in [
            (format!("{layer}.0.self_attn.k_proj.lora_A.weight"), [2, 16], "target_modules"),
            (format!("{layer}.9.self_attn.q_proj.lora_A.weight"), [2, 16], "no linear module"),
            (format!("{layer}.0.mlp.experts.4.up_proj.lora_A.weight"), [2, 16], "no linear module"),
            (format!("{layer}.0.self_attn.q_proj.lora_A.weight"), [3, 16], "r = 2"),
            (format!("{layer}.0.self_attn.q_proj.lora_embedding_A"), [2, 16], "unexpected name"),
            ("model.layers.0.self_attn.q_proj.lora_A.weight".to_string(), [2, 16], "unexpected name"),
        ] {
            let error = one(&name, &shape).expect_err(&name);
            assert!(error.contains(&name) && error.contains(says), "{error}");
        }
    }
}
