//! Patches that misbehave on purpose, one file each in `examples/`. Each implements [`Quant`],
//! whose default methods are honest, and overrides one thing.

#[path = "../../kit/glue/block_quant.rs"]
mod glue;

pub mod quant;

/// Generated from the WIT.
#[allow(missing_docs, unused, clippy::all)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit/patch/0.1.0",
        world: "quant-patch",
        pub_export_macro: true,
        default_bindings_module: "evil::bindings",
    });
}

pub use quant::Quant;

/// Never returns.
pub fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}
