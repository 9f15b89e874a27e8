//! What a component can call: nothing, or `row-source` and nothing else.

use super::{Sandbox, State};
use crate::abi::row_source;
use wasmtime::component::{Component, Linker};

/// An empty linker; with `row-source` only where the component imports it, so that the grant is visible in the link.
pub(crate) fn linker_for(sandbox: &Sandbox, component: &Component) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(sandbox.engine());
    let ty = component.component_type();
    if ty.imports(sandbox.engine()).any(|(name, _)| name == row_source::NAME) {
        row_source::add_to_linker(&mut linker)?;
    }
    Ok(linker)
}
