//! A probe of a file, and the short one before a patch may answer for a model.

use super::constants::constants;
use super::report::ProbeReport;
use super::run::{ProbeOptions, run};
use crate::patch::{Admitted, Patch, Site, StageError};
use patchhost_runtime::error::Refusal;
use std::sync::Arc;

/// Audits a component and makes the thorough probe of it. It is started twice: in `site`, and compiled without optimization
/// (the twin). The questions include every number that occurs in the component.
pub fn examine(
    admitted: Admitted,
    site: &Site,
    options: &ProbeOptions,
) -> Result<(Arc<Patch>, ProbeReport), StageError> {
    let known = Arc::new(constants(admitted.candidate().bytes()));
    let audited = admitted.audit()?;
    let unoptimized = site.unoptimized().map_err(|error| StageError::Compile {
        name: audited.name().to_owned(),
        why: crate::base::text::clean(&format!("the second engine does not start: {error:#}"), 512),
    })?;
    let twin = audited.clone().compile(unoptimized)?.ready()?;
    let patch = audited.compile(site)?.ready()?;
    let options = ProbeOptions { twin: Some(twin), constants: Some(known), ..options.clone() };
    let report = run(&patch, &options);
    Ok((patch, report))
}

/// The short probe. A patch that is wrong is refused with the first check that failed.
pub fn before_activation(patch: &Arc<Patch>) -> Result<ProbeReport, Refusal> {
    let report = run(patch, &ProbeOptions::quick());
    match report.first_failure() {
        None => Ok(report),
        Some(check) => Err(Refusal::new(
            format!("patch `{}` at stage probe", report.patch),
            format!("check `{}`: {}", check.title(), check.why.as_deref().unwrap_or("no answer")),
            "`patchhost audit --probe` asks more; nothing was changed",
        )),
    }
}
