//! `patchhost:patch/state`: what a patch remembers, on its way from one generation to the next.

use super::bindings::state as wit;
use super::guest::{Guest, Subject};
use super::hooks::Exports;
use super::hooks::Memory;
use crate::base::Function;
use crate::base::text;
use crate::sandbox::{Budget, Fault, State, Stats, run};
use patchhost_runtime::hooks::{HookCause, HookError};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use wasmtime::Store;

/// Longest schema.
const SCHEMA_BYTES: usize = 64;
/// Largest payload.
const PAYLOAD_BYTES: usize = 1 << 20;

/// What a patch remembered. Only the patch knows what is in it.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Snapshot {
    schema: String,
    version: u32,
    payload: Vec<u8>,
}

impl Snapshot {
    /// A snapshot from elsewhere. The error names the bound that it breaks.
    pub fn new(schema: String, version: u32, payload: Vec<u8>) -> Result<Self, String> {
        match (schema.len(), payload.len()) {
            (0, _) => Err("its schema has no name".to_owned()),
            (n, _) if n > SCHEMA_BYTES => {
                Err(format!("its schema's name has {n} bytes; the interface allows {SCHEMA_BYTES}"))
            }
            (_, n) if n > PAYLOAD_BYTES => {
                Err(format!("its payload has {n} bytes; the interface allows {PAYLOAD_BYTES}"))
            }
            _ => Ok(Self { schema, version, payload }),
        }
    }

    /// The same where it came from a file or another process. The error names the bound that it breaks.
    pub(crate) fn checked(self) -> Result<Self, String> {
        Self::new(self.schema, self.version, self.payload)
    }

    /// What the payload holds, as the patch wrote it: escape it before it is shown.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// Version of the schema.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The bytes.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }
}

/// `refit_guard.last-refit v1, 31 bytes`: for messages and the ledger.
impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schema = text::clean(&self.schema, 4 * SCHEMA_BYTES);
        write!(f, "{schema} v{}, {} bytes", self.version, self.payload.len())
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Snapshot({self})")
    }
}

/// The snapshot that every new instance of a generation gets. Shared by the patch and by what makes its instances.
#[derive(Clone, Default)]
pub(super) struct Inherited(Arc<Mutex<Option<Arc<Snapshot>>>>);

impl Inherited {
    fn set(&self, snapshot: Option<Arc<Snapshot>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// Gives a new, configured instance what its generation inherited.
    pub(super) fn hand_over(
        &self,
        store: &mut Store<State>,
        stats: &Stats,
        guest: &wit::Guest,
        budget: &Budget,
    ) -> Result<(), Fault> {
        let inherited = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(snapshot) = inherited else { return Ok(()) };
        let Snapshot { schema, version, payload } = &*snapshot;
        let lowered = wit::SnapshotParam { schema, version: *version, payload };
        let answer = run(store, stats, Function::ImportState, budget, |store| guest.call_import_state(store, lowered))?;
        answer.map_err(|message| Fault {
            function: Function::ImportState,
            cause: HookCause::Refused,
            why: text::reason(&message, 512),
        })
    }
}

impl Memory for Guest {
    fn export_state(&self) -> Result<Option<Snapshot>, HookError> {
        if !self.has_state() {
            return Ok(None);
        }
        let budget = self.limits().state_budget(SCHEMA_BYTES + PAYLOAD_BYTES);
        let call = |store: &mut Store<State>, exports: &Exports| match &exports.state {
            Some(state) => state.call_export_state(store),
            None => Ok(Err("no export `state`".to_owned())),
        };
        let answer = self.call(Function::ExportState, &Subject::Nothing, &budget, None, call)?;
        let snapshot = Snapshot::new(answer.schema, answer.version, answer.payload);
        snapshot.map(Some).map_err(|why| self.state_error(Function::ExportState, HookCause::BadOutput, why))
    }

    /// The present instance goes, and each one from now on gets the snapshot after `configure`.
    fn import_state(&self, snapshot: Snapshot) -> Result<(), HookError> {
        let Some(inherited) = self.inherited() else {
            let why = "it exports no `state`, so it cannot take any".to_owned();
            return Err(self.state_error(Function::ImportState, HookCause::Unsupported, why));
        };
        inherited.set(Some(Arc::new(snapshot)));
        self.renew(Function::ImportState).inspect_err(|_| inherited.set(None))
    }
}

impl Guest {
    fn state_error(&self, function: Function, cause: HookCause, why: String) -> HookError {
        self.error(function, &Subject::Nothing, cause, why)
    }
}
