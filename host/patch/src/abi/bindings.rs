//! Generated from `wit/patch/0.1.0`, and nothing else.

wasmtime::component::bindgen!({
    world: "host-view",
    path: "../../wit/patch/0.1.0",
    ownership: Borrowing { duplicate_if_necessary: true },
    imports: { default: trappable },
});

pub use self::patchhost::patch::row_source;
pub use exports::patchhost::patch::*;
