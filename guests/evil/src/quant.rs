//! The honest block quantization: profile `verl-triton`, so each number is the stored scale itself.

pub use crate::bindings::exports::patchhost::patch::block_quant::{
    self, ActivationRule, Blocks, Consumer, Decision, Model, Scheme, Tensor,
};
pub use crate::bindings::exports::patchhost::patch::identity::{self, Info, Target};
use crate::glue;
use kit::numeric::Profile;
use kit::settings::BlockSettings;
use std::marker::PhantomData;

/// The settings of every honest patch here.
pub fn settings() -> BlockSettings {
    BlockSettings { profile: Profile::VerlTriton, ..BlockSettings::default() }
}

/// The right scales.
pub fn honest_scales(b: &Blocks, amax: &[f32]) -> Result<Vec<f32>, String> {
    settings().recipe().scales(&b.tensor, b.first_block, amax)
}

/// The right decisions under the given settings.
pub fn honest_decisions(s: &BlockSettings, m: &Model, tensors: &[Tensor]) -> Result<Vec<Decision>, String> {
    glue::decide(&s.scheme(), &s.common.selection, m, tensors)
}

/// Says who a patch is.
pub fn honest_info(name: &str) -> Info {
    Info {
        name: name.replace('_', "-"),
        version: env!("CARGO_PKG_VERSION").into(),
        summary: "Misbehaves on purpose".into(),
        reason: "a test of the host".into(),
        upstream: None,
        remove_when: None,
        targets: vec![Target { engine: "patchhost".into(), versions: ">=0.1, <0.2".into(), architectures: vec![] }],
    }
}

/// A block quantization patch; every method is honest unless overridden.
pub trait Quant: 'static {
    /// Name of the patch.
    const NAME: &'static str;

    /// See `identity.wit`.
    fn describe() -> Info {
        honest_info(Self::NAME)
    }

    /// See `identity.wit`.
    fn configure(pairs: Vec<(String, String)>) -> Result<(), String> {
        match pairs.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("unknown setting `{key}`; known are: none")),
        }
    }

    /// See `block-quant.wit`.
    fn decide(m: Model, tensors: Vec<Tensor>) -> Result<Vec<Decision>, String> {
        honest_decisions(&settings(), &m, &tensors)
    }

    /// See `block-quant.wit`.
    fn scales(b: Blocks, amax: Vec<f32>) -> Result<Vec<f32>, String> {
        honest_scales(&b, &amax)
    }

    /// See `block-quant.wit`.
    fn activation() -> Option<ActivationRule> {
        Some(glue::activation(settings().activation()))
    }

    /// See `block-quant.wit`.
    fn activation_scales(amax: Vec<f32>) -> Result<Vec<f32>, String> {
        settings().activation().scales(&amax)
    }
}

/// Carries a [`Quant`] to the bindings.
pub struct Patch<T>(PhantomData<T>);

impl<T: Quant> identity::Guest for Patch<T> {
    fn describe() -> Info {
        T::describe()
    }
    fn configure(pairs: Vec<(String, String)>) -> Result<(), String> {
        T::configure(pairs)
    }
}

impl<T: Quant> block_quant::Guest for Patch<T> {
    fn decide(m: Model, _: Consumer, tensors: Vec<Tensor>) -> Result<Vec<Decision>, String> {
        T::decide(m, tensors)
    }
    fn activation(_: Model) -> Option<ActivationRule> {
        T::activation()
    }
    fn scales(b: Blocks, amax: Vec<f32>) -> Result<Vec<f32>, String> {
        T::scales(b, amax)
    }
    fn scales_with_moments(b: Blocks, amax: Vec<f32>, _: Vec<f32>) -> Result<Vec<f32>, String> {
        T::scales(b, amax)
    }
    fn activation_scales(amax: Vec<f32>) -> Result<Vec<f32>, String> {
        T::activation_scales(amax)
    }
}

/// Exports a [`Quant`] as a component of world `quant-patch`.
#[macro_export]
macro_rules! export_quant {
    ($patch:ident) => {
        type Component = $crate::quant::Patch<$patch>;
        $crate::bindings::export!(Component with_types_in $crate::bindings);
    };
}
