//! From names and shapes to placements.

use crate::bindings::exports::patchhost::patch::loader_map::{Model, Place, Placement, Slot, Tensor};
use crate::name::{ExpertName, beyond_the_layers, parse};
use std::collections::BTreeMap;

/// Its fused experts are stored `[E, in, out]`; everybody else's as `[E, out, in]`. Only asked where the shape fits both and no
/// other tensor of the checkpoint settles it: transformers 5 writes these experts as everybody's.
const STORES_TRANSPOSED: &str = "Qwen3VLMoeForConditionalGeneration";

/// One placement for each checkpoint tensor, in order.
pub fn resolve(m: &Model, registry: &[Tensor], checkpoint: &[Tensor]) -> Result<Vec<Placement>, String> {
    let shapes: BTreeMap<&str, &[u64]> = registry.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
    checkpoint.iter().map(|t| place(m, &shapes, checkpoint, t)).collect()
}

fn place(m: &Model, registry: &BTreeMap<&str, &[u64]>, checkpoint: &[Tensor], t: &Tensor) -> Result<Placement, String> {
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
    let fits = orientation(&name, &part, &t.shape).ok_or_else(|| {
        format!(
            "tensor `{}` has shape {}, but its part of `{target}` {} is {}; check that config.json describes the same \
             model as the checkpoint (hidden and expert sizes)",
            t.name,
            show(&t.shape),
            show(runtime),
            show(&part)
        )
    })?;
    let transposed = match fits {
        Fits::Straight => false,
        Fits::Transposed => true,
        Fits::Both => settled(registry, checkpoint, &name).unwrap_or(m.architecture == STORES_TRANSPOSED),
    };
    Ok(Placement::Place(Place { target, slot: name.slot, expert: name.expert, transposed }))
}

/// How a square tensor of all experts is stored, where another one says it: the other half of its layer, else any other.
fn settled(registry: &BTreeMap<&str, &[u64]>, checkpoint: &[Tensor], square: &ExpertName<'_>) -> Option<bool> {
    let mut elsewhere = None;
    for t in checkpoint {
        let Some(name) = parse(&t.name).filter(|n| n.expert.is_none() && !n.scale) else { continue };
        let Some(&[experts, rows, cols]) = registry.get(name.target().as_str()).copied() else { continue };
        let transposed = match orientation(&name, &part_of(&name, experts, rows, cols), &t.shape) {
            Some(Fits::Straight) => false,
            Some(Fits::Transposed) => true,
            Some(Fits::Both) | None => continue,
        };
        if name.prefix == square.prefix {
            return Some(transposed);
        }
        elsewhere.get_or_insert(transposed);
    }
    elsewhere
}

/// The shape that fits: the expert dimension only where the tensor holds all experts, half of w13's rows for w1 and w3.
fn part_of(name: &ExpertName<'_>, experts: u64, rows: u64, cols: u64) -> Vec<u64> {
    let rows = if matches!(name.slot, Slot::W1 | Slot::W3) { rows / 2 } else { rows };
    match name.expert {
        Some(_) => vec![rows, cols],
        None => vec![experts, rows, cols],
    }
}

/// Which ways a shape fits.
enum Fits {
    Straight,
    Transposed,
    /// It is square.
    Both,
}

/// Whether the tensor is stored transposed; none if its shape fits neither way. Single projections of single experts
/// never are: those are plain linear layers, [out, in] everywhere.
fn orientation(name: &ExpertName<'_>, part: &[u64], shape: &[u64]) -> Option<Fits> {
    let straight = shape == part;
    let single = name.expert.is_some() && name.slot != Slot::W13;
    if single || name.scale {
        return straight.then_some(Fits::Straight);
    }
    let mut turned = part.to_vec();
    let last = turned.len() - 1;
    turned.swap(last - 1, last);
    match (straight, shape == turned) {
        (true, true) => Some(Fits::Both),
        (true, false) => Some(Fits::Straight),
        (false, true) => Some(Fits::Transposed),
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

    /// Eight experts, H 64, I 32: gate and up together are square, down is not.
    #[test]
    fn square_ones_by_the_other_half() {
        let registry = [
            tensor("model.layers.0.mlp.experts.w13_weight", &[8, 64, 64]),
            tensor("model.layers.0.mlp.experts.w2_weight", &[8, 64, 32]),
            tensor("model.layers.1.mlp.experts.w13_weight", &[8, 64, 64]),
            tensor("model.layers.1.mlp.experts.w2_weight", &[8, 64, 32]),
        ];
        let turned = |architecture: &str, checkpoint: &[(&str, [u64; 3])]| -> Vec<bool> {
            let checkpoint: Vec<Tensor> =
                checkpoint.iter().map(|(name, shape)| tensor(&format!("model.layers.{name}"), shape)).collect();
            let places = resolve(&model(architecture), &registry, &checkpoint).expect("it fits");
            places.into_iter().map(|p| placed(Ok(p)).3).collect()
        };
        let (up, straight, transposed) = ([8, 64, 64], [8, 64, 32], [8, 32, 64]);
        for architecture in ["Qwen3MoeForCausalLM", STORES_TRANSPOSED] {
            let both =
                |down| turned(architecture, &[("1.mlp.experts.gate_up_proj", up), ("1.mlp.experts.down_proj", down)]);
            assert_eq!(both(straight), [false, false], "{architecture}");
            assert_eq!(both(transposed), [true, true], "{architecture}");
            // An update without the other half of the layer: another layer's tells.
            let other = [("0.mlp.experts.down_proj", straight), ("1.mlp.experts.gate_up_proj", up)];
            assert_eq!(turned(architecture, &other), [false, false], "{architecture}");
        }
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
