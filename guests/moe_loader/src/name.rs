//! What the name of a checkpoint tensor says about an expert weight. Names are split into path components; nothing is
//! matched as a substring, so `shared_experts` is not `experts`.

use crate::bindings::exports::patchhost::patch::loader_map::Slot;

/// A routed expert's weight or scale, as its checkpoint name tells it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertName<'a> {
    /// Everything before `.experts.`: `model.layers.3.mlp`.
    pub prefix: &'a str,
    /// The expert, or none where the tensor holds all of them.
    pub expert: Option<u32>,
    /// Which part of the runtime tensor it fills: w1, w2, w3 or w13.
    pub slot: Slot,
    /// A scale tensor instead of the weight.
    pub scale: bool,
}

impl ExpertName<'_> {
    /// Name of the runtime tensor.
    pub fn target(&self) -> String {
        let tensor = if self.slot == Slot::W2 { "w2_weight" } else { "w13_weight" };
        let scale = if self.scale { "_scale_inv" } else { "" };
        format!("{}.experts.{tensor}{scale}", self.prefix)
    }
}

/// Reads a name; none if it is not a routed expert's weight or scale.
pub fn parse(name: &str) -> Option<ExpertName<'_>> {
    const MARK: &str = ".experts.";
    let at = name.find(MARK)?;
    let (prefix, rest) = (&name[..at], &name[at + MARK.len()..]);
    let (first, after) = match rest.split_once('.') {
        Some((first, after)) => (first, Some(after)),
        None => (rest, None),
    };
    if first.bytes().all(|b| b.is_ascii_digit()) && !first.is_empty() {
        // An id that no u32 holds is an id out of range, which the caller reports with the number of experts.
        let expert = first.parse().unwrap_or(u32::MAX);
        let (slot, scale) = projection(after?)?;
        return Some(ExpertName { prefix, expert: Some(expert), slot, scale });
    }
    let (slot, scale) = projection(rest)?;
    Some(ExpertName { prefix, expert: None, slot, scale })
}

/// `gate_proj.weight`, `w1.weight_scale_inv`, `gate_up_proj`, … → part and whether it is a scale.
fn projection(text: &str) -> Option<(Slot, bool)> {
    let (projection, scale) = match text.split_once('.') {
        Some((projection, "weight")) => (projection, false),
        Some((projection, "weight_scale_inv" | "weight_scale")) => (projection, true),
        Some(_) => return None,
        None => match text.strip_suffix("_scale_inv") {
            Some(projection) => (projection, true),
            None => (text, false),
        },
    };
    let slot = match projection {
        "gate_proj" | "w1" => Slot::W1,
        "down_proj" | "w2" => Slot::W2,
        "up_proj" | "w3" => Slot::W3,
        "gate_up_proj" => Slot::W13,
        _ => return None,
    };
    Some((slot, scale))
}

/// Whether the prefix lies in a multi-token-prediction part, which the checkpoint carries beyond the model's layers.
pub fn beyond_the_layers(prefix: &str, layers: u32) -> bool {
    let mut components = prefix.split('.').peekable();
    if components.peek() == Some(&"mtp") {
        return true;
    }
    while let Some(component) = components.next() {
        if component == "layers" {
            let index = components.peek().and_then(|c| c.parse::<u32>().ok());
            return index.is_some_and(|i| layers > 0 && i >= layers);
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(name: &str, prefix: &str, expert: Option<u32>, slot: Slot, scale: bool) {
        assert_eq!(parse(name), Some(ExpertName { prefix, expert, slot, scale }), "{name}");
    }

    #[test]
    fn known_names() {
        let mlp = "model.layers.3.mlp";
        is("model.layers.3.mlp.experts.7.gate_proj.weight", mlp, Some(7), Slot::W1, false);
        is("model.layers.3.mlp.experts.7.up_proj.weight", mlp, Some(7), Slot::W3, false);
        is("model.layers.3.mlp.experts.127.down_proj.weight_scale_inv", mlp, Some(127), Slot::W2, true);
        is("model.layers.3.mlp.experts.0.gate_proj.weight_scale", mlp, Some(0), Slot::W1, true);
        is("model.layers.3.mlp.experts.gate_up_proj", mlp, None, Slot::W13, false);
        is("model.layers.3.mlp.experts.gate_up_proj.weight", mlp, None, Slot::W13, false);
        is("model.layers.3.mlp.experts.gate_up_proj_scale_inv", mlp, None, Slot::W13, true);
        is("model.layers.3.mlp.experts.down_proj", mlp, None, Slot::W2, false);
        is("model.layers.3.mlp.experts.5.gate_up_proj", mlp, Some(5), Slot::W13, false);
        is("model.layers.3.mlp.experts.5.gate_up_proj.weight", mlp, Some(5), Slot::W13, false);
        let mixtral = "model.layers.0.block_sparse_moe";
        is("model.layers.0.block_sparse_moe.experts.1.w2.weight", mixtral, Some(1), Slot::W2, false);
        is("model.layers.0.block_sparse_moe.experts.1.w3.weight", mixtral, Some(1), Slot::W3, false);
    }

    #[test]
    fn everything_else_is_native() {
        for name in [
            "model.layers.3.mlp.gate.weight",
            "model.layers.3.mlp.gate_up_proj.weight",
            "model.layers.3.mlp.shared_experts.gate_proj.weight",
            "model.layers.3.mlp.shared_expert.down_proj.weight",
            "model.layers.3.mlp.my_experts.0.gate_proj.weight",
            "model.layers.3.mlp.experts.0.gate_proj.bias",
            "model.layers.3.mlp.experts.0.gate_proj.input_scale",
            "model.layers.3.mlp.experts.0",
            "model.layers.3.mlp.experts.",
            "model.layers.3.mlp.experts.w13_weight",
            "experts.0.gate_proj.weight",
            "lm_head.weight",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    fn ids_too_large_for_u32_stay_ids() {
        is("m.experts.99999999999.w1.weight", "m", Some(u32::MAX), Slot::W1, false);
    }

    #[test]
    fn multi_token_prediction() {
        assert!(beyond_the_layers("model.layers.61.mlp", 61));
        assert!(!beyond_the_layers("model.layers.60.mlp", 61));
        assert!(!beyond_the_layers("model.layers.60.mlp", 0));
        assert!(beyond_the_layers("mtp.layers.0.mlp", 48));
    }
}
