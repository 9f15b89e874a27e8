//! The classes of layers that are told apart, and the layer a tensor belongs to.

use patchhost_runtime::hooks::Role;
use serde::Serialize;

/// A class of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Attention projections.
    Attention,
    /// Routed experts.
    Experts,
    /// Shared experts.
    Shared,
    /// Dense feed-forward layers.
    Dense,
    /// Routers; quantized only where a patch is told to.
    Router,
    /// The output head; quantized only where a patch is told to.
    LmHead,
    /// Everything else, and all tensors of a plain file, which says of none what it is for.
    Other,
}

impl Class {
    /// The class of a tensor by its role in the registry.
    pub fn of(role: Role) -> Self {
        match role {
            Role::Attention => Class::Attention,
            Role::Expert => Class::Experts,
            Role::SharedExpert => Class::Shared,
            Role::Mlp => Class::Dense,
            Role::Router => Class::Router,
            Role::LmHead => Class::LmHead,
            Role::Embedding | Role::Norm | Role::Buffer | Role::Other => Class::Other,
        }
    }

    /// As tables and JSON show it.
    pub fn name(self) -> &'static str {
        match self {
            Class::Attention => "attention",
            Class::Experts => "experts",
            Class::Shared => "shared",
            Class::Dense => "dense",
            Class::Router => "router",
            Class::LmHead => "lm_head",
            Class::Other => "other",
        }
    }
}

/// The decoder layer that a checkpoint name belongs to: the number after the component `layers`.
pub fn layer_of(name: &str) -> Option<usize> {
    let mut components = name.split('.').skip_while(|c| *c != "layers");
    components.next();
    components.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::layer_of;

    #[test]
    fn layers_are_read_from_whole_components() {
        assert_eq!(layer_of("model.layers.11.self_attn.q_proj.weight"), Some(11));
        assert_eq!(layer_of("language_model.model.layers.0.mlp.experts.3.up_proj.weight"), Some(0));
        assert_eq!(layer_of("lm_head.weight"), None);
        assert_eq!(layer_of("model.layers"), None);
        assert_eq!(layer_of("model.sublayers.3.w"), None);
    }
}
