//! Loader maps that misbehave on purpose, one file each in `examples/`. Each is honest but for one thing. A package of
//! its own, because the export macros of two worlds in one package clash.

/// Generated from the WIT.
#[allow(missing_docs, unused, clippy::all)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit/patch/0.1.0",
        world: "loader-patch",
        pub_export_macro: true,
        default_bindings_module: "evil_loader::bindings",
    });
}

pub use crate::bindings::exports::patchhost::patch::identity::{self, Info, Target};
pub use crate::bindings::exports::patchhost::patch::loader_map::{self, Model, Place, Placement, Slot, Tensor};
use std::marker::PhantomData;

/// The right placements of single experts, in Qwen-style and Mixtral checkpoints.
pub fn honest_placements(checkpoint: &[Tensor]) -> Vec<Placement> {
    let place = |t: &Tensor| expert(&t.name).map_or(Placement::Native, Placement::Place);
    checkpoint.iter().map(place).collect()
}

/// `PREFIX.experts.7.gate_proj.weight` → where it goes.
fn expert(name: &str) -> Option<Place> {
    let (prefix, rest) = name.split_once(".experts.")?;
    let (expert, projection) = rest.split_once('.')?;
    let (slot, tensor) = match projection.strip_suffix(".weight")? {
        "gate_proj" | "w1" => (Slot::W1, "w13_weight"),
        "up_proj" | "w3" => (Slot::W3, "w13_weight"),
        "down_proj" | "w2" => (Slot::W2, "w2_weight"),
        _ => return None,
    };
    let target = format!("{prefix}.experts.{tensor}");
    Some(Place { target, slot, expert: Some(expert.parse().ok()?), transposed: false })
}

/// A loader map; every method is honest unless overridden.
pub trait Loader: 'static {
    /// Name of the patch.
    const NAME: &'static str;

    /// See `loader-map.wit`.
    fn resolve(checkpoint: Vec<Tensor>) -> Result<Vec<Placement>, String>;
}

/// Carries a [`Loader`] to the bindings.
pub struct Patch<T>(PhantomData<T>);

impl<T: Loader> identity::Guest for Patch<T> {
    fn describe() -> Info {
        Info {
            name: T::NAME.replace('_', "-"),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Misbehaves on purpose".into(),
            reason: "a test of the host".into(),
            upstream: None,
            remove_when: None,
            targets: vec![Target { engine: "patchhost".into(), versions: ">=0.1, <0.2".into(), architectures: vec![] }],
        }
    }
    fn configure(_: Vec<(String, String)>) -> Result<(), String> {
        Ok(())
    }
}

impl<T: Loader> loader_map::Guest for Patch<T> {
    fn resolve(_: Model, _: Vec<Tensor>, checkpoint: Vec<Tensor>) -> Result<Vec<Placement>, String> {
        T::resolve(checkpoint)
    }
}

/// Exports a [`Loader`] as a component of world `loader-patch`.
#[macro_export]
macro_rules! export_loader {
    ($patch:ident) => {
        type Component = $crate::Patch<$patch>;
        $crate::bindings::export!(Component with_types_in $crate::bindings);
    };
}
