//! What the guests of `examples/` are made of: bindings of a world of two hooks and `state`.

/// Generated from the WIT.
#[allow(missing_docs, unused, clippy::all)]
pub mod bindings {
    wit_bindgen::generate!({
        inline: "
            package evil:state;
            world any-state {
                include patchhost:patch/mask-patch@0.1.0;
                include patchhost:patch/stateful-observer-patch@0.1.0;
            }
        ",
        path: "../../../wit/patch/0.1.0",
        world: "evil:state/any-state",
        pub_export_macro: true,
        default_bindings_module: "evil_state::bindings",
    });
}
