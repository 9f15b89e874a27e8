//! The twin: the same component, compiled a second time without optimization, and asked the same questions. Both must
//! give the same answers. If they differ, the compiler made an error, or the answer depends on which instance gives it.

use super::ask::{all, differ};
use super::matrix::{cast, weights};
use super::run::{Found, ProbeOptions};
use super::{synthetic, vectors};
use crate::base::text::answer;
use crate::patch::Patch;
use patchhost_runtime::hooks::{BlockQuant, Elem, Needs, Scheme};
use std::sync::Arc;

/// Whether both make the same decisions, and give the same activation scales.
pub(super) fn decisions(patch: &Patch, one: &dyn BlockQuant, twin: &dyn BlockQuant) -> Result<Found, String> {
    let (model, reader, tensors) = (synthetic::model(patch), synthetic::reader(), synthetic::tensors());
    let decide = |quant: &dyn BlockQuant| quant.decide(&model, &reader, &tensors).map_err(|e| e.to_string());
    let (a, b) = (decide(one)?, decide(twin)?);
    if let Some(at) = a.iter().zip(&b).position(|(a, b)| a != b) {
        let (a, b) = (answer(&a[at]), answer(&b[at]));
        return Err(format!("about `{}`: {a}, and without optimization {b}", tensors[at].name));
    }
    let amax = vectors::random(0x7b19, 256);
    // A patch that gives a rule for activations may refuse this call; then the twin must refuse it too.
    let ask = |quant: &dyn BlockQuant| quant.activation_scales(&amax).map_err(|e| e.why);
    match (ask(one), ask(twin)) {
        (Ok(a), Ok(b)) => differ("activation scales without optimization", &amax, &a, &b)?,
        (Err(_), Err(_)) => {}
        _ => return Err("activation scales: only one of the two answered".to_owned()),
    }
    Ok(Found::asked(tensors.len() + amax.len()))
}

/// Whether both builds give the same scales for the same questions.
pub(super) fn scales(
    one: &dyn BlockQuant,
    twin: &dyn BlockQuant,
    scheme: &Scheme,
    options: &ProbeOptions,
) -> Result<Found, String> {
    if scheme.needs == Needs::Rows {
        let (rows, cols) = (scheme.block_rows.min(160), 700);
        let bytes = weights(rows, cols, options.seed ^ 0x7b19);
        let ask = |quant: &dyn BlockQuant| cast(quant, scheme, bytes.clone(), Elem::Bf16, rows, cols);
        let (a, b) = (ask(one)?, ask(twin)?);
        differ("without optimization", &[], &a.1, &b.1)?;
        return Ok(Found::asked(a.1.len()));
    }
    let mut amax = vectors::random(options.seed ^ 0x7b19, options.random);
    amax.extend(vectors::edges(scheme).into_iter().flat_map(|(_, amax)| amax));
    differ("without optimization", &amax, &all(one, scheme, &amax)?, &all(twin, scheme, &amax)?)?;
    Ok(Found::asked(amax.len()))
}

/// Block quantization as the twin answers it; none: the probe is made without a twin.
pub(super) fn of(options: &ProbeOptions) -> Option<Arc<dyn BlockQuant>> {
    options.twin.as_ref().and_then(|twin| twin.block_quant())
}
