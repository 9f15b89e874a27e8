//! `patchhost:patch/refit-observer`: sees a refit's names, shapes and digests, and may veto it. One instance sees all of
//! one refit.

use super::bindings::refit_observer as wit;
use super::guest::{Guest, Subject};
use super::hooks::Exports;
use crate::base::Function;
use crate::base::text;
use crate::sandbox::{Budget, Lease};
use patchhost_runtime::hooks::{Arrival, HookCause, HookError, RefitObserver, RefitWatch, Verdict};
use std::sync::Arc;

lower!(refit_observer: lower_dtype);

/// Longest version.
const VERSION_BYTES: usize = 256;
/// Most tensors of one call.
const BATCH: usize = 4_096;
/// Longest reason of a veto.
const REASON_BYTES: usize = 1 << 10;

/// A patch as the runtime's [`RefitObserver`].
pub(crate) struct ObserverAdapter(pub(crate) Arc<Guest>);

/// One refit, watched.
struct Watch {
    guest: Arc<Guest>,
    lease: Lease<Exports>,
}

impl RefitObserver for ObserverAdapter {
    fn name(&self) -> &str {
        &self.0.info().name
    }

    fn begin(&self, version: &str, expected: Option<&[String]>) -> Result<(Verdict, Box<dyn RefitWatch>), HookError> {
        let guest = &self.0;
        let subject = Subject::Named(version);
        if version.len() > VERSION_BYTES {
            let why = format!("the version has {} bytes; the interface allows {VERSION_BYTES}", version.len());
            return Err(guest.error(Function::Begin, &subject, HookCause::Limit, why));
        }
        let mut lease = guest.lease(Function::Begin, &subject)?;
        let expected: Option<Vec<&str>> = expected.map(|names| names.iter().map(String::as_str).collect());
        let names = expected.as_ref().map_or(0, Vec::len);
        let budget = guest.limits().model_budget(names, 0, REASON_BYTES);
        let verdict = guest.call_leased(&mut lease, Function::Begin, &subject, &budget, |store, exports| {
            let Some(exports) = &exports.refit_observer else { return Ok(Err("no export `refit-observer`".into())) };
            exports.call_begin(store, version, expected.as_deref()).map(Ok)
        })?;
        let verdict = raise(guest, Function::Begin, verdict)?;
        Ok((verdict, Box::new(Watch { guest: Arc::clone(guest), lease })))
    }
}

impl Watch {
    fn ask(
        &mut self,
        function: Function,
        count: usize,
        budget: &Budget,
        ask: impl FnOnce(&mut wasmtime::Store<crate::sandbox::State>, &wit::Guest) -> wasmtime::Result<wit::Verdict>,
    ) -> Result<Verdict, HookError> {
        let subject = Subject::Tensors(count);
        let verdict = self.guest.call_leased(&mut self.lease, function, &subject, budget, |store, exports| {
            match &exports.refit_observer {
                Some(exports) => ask(store, exports).map(Ok),
                None => Ok(Err("no export `refit-observer`".into())),
            }
        })?;
        raise(&self.guest, function, verdict)
    }
}

impl RefitWatch for Watch {
    fn tensors(&mut self, batch: &[Arrival]) -> Result<Verdict, HookError> {
        if batch.len() > BATCH {
            let why = format!("{} tensors in one call; the interface allows {BATCH}", batch.len());
            let subject = Subject::Tensors(batch.len());
            return Err(self.guest.error(Function::Tensors, &subject, HookCause::Limit, why));
        }
        let lowered: Vec<wit::Arrival<'_>> = batch
            .iter()
            .map(|a| wit::Arrival { name: &a.name, dtype: lower::dtype(a.dtype), shape: &a.shape, sha256: &a.sha256 })
            .collect();
        let budget = self.guest.limits().model_budget(batch.len(), 0, REASON_BYTES);
        self.ask(Function::Tensors, batch.len(), &budget, |store, exports| exports.call_tensors(store, &lowered))
    }

    fn finish(&mut self, total: u32) -> Result<Verdict, HookError> {
        let budget = self.guest.limits().model_budget(total as usize, 0, REASON_BYTES);
        self.ask(Function::Finish, total as usize, &budget, |store, exports| exports.call_finish(store, total))
    }
}

fn raise(guest: &Guest, function: Function, verdict: wit::Verdict) -> Result<Verdict, HookError> {
    match verdict {
        wit::Verdict::Accept => Ok(Verdict::Accept),
        wit::Verdict::Veto(reason) if reason.len() <= REASON_BYTES => {
            Ok(Verdict::Veto(text::clean(&reason, 4 * REASON_BYTES)))
        }
        wit::Verdict::Veto(reason) => {
            let why = format!("its reason has {} bytes; the interface allows {REASON_BYTES}", reason.len());
            Err(guest.error(function, &Subject::Nothing, HookCause::BadOutput, why))
        }
    }
}
