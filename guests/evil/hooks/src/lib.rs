//! What the guests of `examples/` are made of: bindings of a world of four hooks.

/// Generated from the WIT.
#[allow(missing_docs, unused, clippy::all)]
pub mod bindings {
    wit_bindgen::generate!({
        inline: "
            package evil:hooks;
            world any-hook {
                include patchhost:patch/layout-patch@0.1.0;
                include patchhost:patch/lora-patch@0.1.0;
                include patchhost:patch/mask-patch@0.1.0;
                include patchhost:patch/observer-patch@0.1.0;
            }
        ",
        path: "../../../wit/patch/0.1.0",
        world: "evil:hooks/any-hook",
        pub_export_macro: true,
        default_bindings_module: "evil_hooks::bindings",
    });
}
