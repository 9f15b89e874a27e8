//! From names and shapes to placements.

use crate::bindings::exports::patchhost::patch::loader_map::{Model, Place, Placement, Slot, Tensor};
use crate::name::{ExpertName, beyond_the_layers, parse};
use std::collections::BTreeMap;

/// Its fused experts are stored `[E, in, out]`; everybody else's as `[E, out, in]`. Only asked where the shape fits both.
const STORES_TRANSPOSED: &str = "Qwen3VLMoeForConditionalGeneration";

/// One placement for each checkpoint tensor, in order.
pub fn resolve(m: &Model, registry: &[Tensor], checkpoint: &[Tensor]) -> Result<Vec<Placement>, String> {
    let shapes: BTreeMap<&str, &[u64]> = registry.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
    checkpoint.iter().map(|t| place(m, &shapes, t)).collect()
}

fn place(m: &Model, registry: &BTreeMap<&str, &[u64]>, t: &Tensor) -> Result<Placement, String> {
    let Some(name) = parse(&t.name) else {
        return Ok(Placement::Native);
    };
    let target = name.target();
    let Some(&runtime) = registry.get(target.as_str()) else {
        if beyond_the_layers(name.prefix, m.layers) {
            return Ok(Placement::Ignore(format!("multi-token prediction, beyond the model's {} layers", m.layers)));
        }
        if name.scale {
            return Ok(Placement::Native);
        }
        return Err(format!(
            "tensor `{}` belongs into `{target}`, which the runtime does not have; check that config.json describes \
             the same model as the checkpoint (layers, and which of them have experts)",
            t.name
        ));
    };
    let &[experts, rows, cols] = runtime else {
        return Err(format!(
            "runtime tensor `{target}` has shape {}; [experts, rows, columns] is needed",
            show(runtime)
        ));
    };
    if let Some(e) = name.expert
        && u64::from(e) >= experts
    {
        return Err(format!(
            "tensor `{}` is of expert {}, but `{target}` holds {experts} experts; check that the number of experts in \
             config.json is the checkpoint's",
            t.name,
            if e == u32::MAX { "4294967295 or more".into() } else { e.to_string() }
        ));
    }
    let part = part_of(&name, experts, rows, cols);
    let transposed = orientation(m, &name, &part, &t.shape).ok_or_else(|| {
        format!(
            "tensor `{}` has shape {}, but its part of `{target}` {} is {}; check that config.json describes the same \
             model as the checkpoint (hidden and expert sizes)",
            t.name,
            show(&t.shape),
            show(runtime),
            show(&part)
        )
    })?;
    Ok(Placement::Place(Place { target, slot: name.slot, expert: name.expert, transposed }))
}

/// The shape that fits: the expert dimension only where the tensor holds all experts, half of w13's rows for w1 and w3.
fn part_of(name: &ExpertName<'_>, experts: u64, rows: u64, cols: u64) -> Vec<u64> {
    let rows = if matches!(name.slot, Slot::W1 | Slot::W3) { rows / 2 } else { rows };
    match name.expert {
        Some(_) => vec![rows, cols],
        None => vec![experts, rows, cols],
    }
}

/// Whether the tensor is stored transposed; none if its shape fits neither way. Single projections of single experts
/// never are: those are plain linear layers, [out, in] everywhere.
fn orientation(m: &Model, name: &ExpertName<'_>, part: &[u64], shape: &[u64]) -> Option<bool> {
    let straight = shape == part;
    let single = name.expert.is_some() && name.slot != Slot::W13;
    if single || name.scale {
        return straight.then_some(false);
    }
    let mut turned = part.to_vec();
    let last = turned.len() - 1;
    turned.swap(last - 1, last);
    match (straight, shape == turned) {
        (true, true) => Some(m.architecture == STORES_TRANSPOSED),
        (true, false) => Some(false),
        (false, true) => Some(true),
        (false, false) => None,
    }
}

fn show(shape: &[u64]) -> String {
    let dims: Vec<String> = shape.iter().map(u64::to_string).collect();
    format!("[{}]", dims.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bindings::exports::patchhost::patch::loader_map::{Dtype, Role};

    fn tensor(name: &str, shape: &[u64]) -> Tensor {
        Tensor { name: name.into(), dtype: Dtype::Bf16, shape: shape.into(), role: Role::Expert }
    }

    fn model(architecture: &str) -> Model {
        let (architecture, model_type) = (architecture.into(), String::new());
        Model { architecture, model_type, layers: 2, experts: 8, config: String::new() }
    }

    const L: &str = "model.layers.1.mlp.experts";

    /// Eight experts, H 64, I `i`.
    fn one(architecture: &str, i: u64, name: &str, shape: &[u64]) -> Result<Placement, String> {
        let registry =
            [tensor(&format!("{L}.w13_weight"), &[8, 2 * i, 64]), tensor(&format!("{L}.w2_weight"), &[8, 64, i])];
        let placed = resolve(&model(architecture), &registry, &[tensor(&format!("{L}.{name}"), shape)])?;
        Ok(placed.into_iter().next().expect("one"))
    }

    fn placed(p: Result<Placement, String>) -> (String, Slot, Option<u32>, bool) {
        match p {
            Ok(Placement::Place(p)) => (p.target, p.slot, p.expert, p.transposed),
            other => panic!("not placed: {other:?}"),
        }
    }

    #[test]
    fn single_experts() {
        let w13 = format!("{L}.w13_weight");
        let w2 = format!("{L}.w2_weight");
        let q = "Qwen3MoeForCausalLM";
        assert_eq!(placed(one(q, 24, "7.gate_proj.weight", &[24, 64])), (w13.clone(), Slot::W1, Some(7), false));
        assert_eq!(placed(one(q, 24, "0.up_proj.weight", &[24, 64])), (w13.clone(), Slot::W3, Some(0), false));
        assert_eq!(placed(one(q, 24, "3.w2.weight", &[64, 24])), (w2, Slot::W2, Some(3), false));
        assert_eq!(placed(one(q, 24, "3.gate_up_proj", &[48, 64])), (w13.clone(), Slot::W13, Some(3), false));
        assert_eq!(placed(one(q, 24, "3.gate_up_proj.weight", &[64, 48])), (w13, Slot::W13, Some(3), true));
    }

    #[test]
    fn all_experts_in_one_tensor_by_shape() {
        for architecture in ["Qwen3MoeForCausalLM", STORES_TRANSPOSED] {
            assert!(!placed(one(architecture, 24, "gate_up_proj", &[8, 48, 64])).3);
            assert!(placed(one(architecture, 24, "gate_up_proj", &[8, 64, 48])).3);
            assert!(!placed(one(architecture, 24, "down_proj.weight", &[8, 64, 24])).3);
            assert!(placed(one(architecture, 24, "down_proj", &[8, 24, 64])).3);
        }
    }

    #[test]
    fn square_ones_by_architecture() {
        assert!(!placed(one("Qwen3MoeForCausalLM", 32, "gate_up_proj", &[8, 64, 64])).3);
        assert!(placed(one(STORES_TRANSPOSED, 32, "gate_up_proj", &[8, 64, 64])).3);
        assert!(!placed(one("Qwen3MoeForCausalLM", 64, "down_proj", &[8, 64, 64])).3);
        assert!(placed(one(STORES_TRANSPOSED, 64, "down_proj", &[8, 64, 64])).3);
        assert!(!placed(one(STORES_TRANSPOSED, 64, "0.down_proj.weight", &[64, 64])).3);
    }

    #[test]
    fn errors_name_tensor_and_numbers() {
        let q = "Qwen3MoeForCausalLM";
        let e = one(q, 24, "8.gate_proj.weight", &[24, 64]).expect_err("eight experts");
        assert!(e.contains("experts.8.gate_proj.weight") && e.contains("expert 8") && e.contains("8 experts"), "{e}");
        let e = one(q, 24, "0.gate_proj.weight", &[64, 24]).expect_err("transposed");
        assert!(e.contains("[64, 24]") && e.contains("[24, 64]"), "{e}");
        let e = one(q, 24, "gate_up_proj", &[4, 48, 64]).expect_err("four experts");
        assert!(e.contains("[4, 48, 64]") && e.contains("[8, 48, 64]"), "{e}");
        let e = resolve(&model(q), &[], &[tensor(&format!("{L}.0.w1.weight"), &[24, 64])]).expect_err("no target");
        assert!(e.contains("w13_weight") && e.contains("config.json"), "{e}");
    }

    #[test]
    fn scales_and_prediction_layers() {
        let q = "Qwen3MoeForCausalLM";
        assert!(matches!(one(q, 24, "0.gate_proj.weight_scale_inv", &[1, 1]), Ok(Placement::Native)));
        let registry = [tensor(&format!("{L}.w13_weight_scale_inv"), &[8, 4, 1])];
        let scale = tensor(&format!("{L}.5.up_proj.weight_scale"), &[2, 1]);
        let p = resolve(&model(q), &registry, &[scale]).map(|mut v| v.remove(0));
        assert_eq!(placed(p), (format!("{L}.w13_weight_scale_inv"), Slot::W3, Some(5), false));
        let mtp = tensor("model.layers.2.mlp.experts.0.w1.weight", &[24, 64]);
        assert!(matches!(resolve(&model(q), &[], &[mtp]).as_deref(), Ok([Placement::Ignore(_)])));
    }
}
