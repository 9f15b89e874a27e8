//! What a component can call: nothing; `row-source`; WASI, where it was granted.

use super::row_source;
use crate::base::{Grants, ROW_SOURCE};
use crate::sandbox::{Sandbox, State, add_wasi_to_linker};
use wasmtime::component::{Component, Linker};

/// An empty linker; with `row-source` and WASI only where the component imports them, so that the grant is visible in the
/// link. WASI without a grant is not linked, whatever the audit said.
pub(crate) fn linker_for(sandbox: &Sandbox, component: &Component, grants: &Grants) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(sandbox.engine());
    let ty = component.component_type();
    if ty.imports(sandbox.engine()).any(|(name, _)| name == ROW_SOURCE) {
        row_source::add_to_linker(&mut linker)?;
    }
    if grants.wasi.is_some() && ty.imports(sandbox.engine()).any(|(name, _)| name.starts_with("wasi:")) {
        add_wasi_to_linker(&mut linker)?;
    }
    Ok(linker)
}
