//! What a patch remembers goes to the one that takes its place.

use std::sync::Arc;

use patchhost_runtime::error::RuntimeError;
use serde_json::json;

use super::{Live, LiveError};
use crate::patch::{Generation, Landing, Patch, RefitTarget};

impl<T: RefitTarget> Live<T> {
    /// State goes from the patches that leave to those that take their place. Giving is best effort; a patch that does
    /// not take what it is given does not land. A set that was active before has its own state still.
    pub(super) fn hand_over(&self, active: &Generation, landing: &Landing) -> Result<(), LiveError> {
        if landing.rollback {
            return Ok(());
        }
        for patch in landing.to.set().patches() {
            let same = |old: &&Arc<Patch>| old.generation() == patch.generation();
            if !patch.has_state() || active.set().patches().iter().any(|old| same(&old)) {
                continue;
            }
            let Some(old) = active.set().patches().iter().find(|old| old.info().name == patch.info().name) else {
                continue;
            };
            match old.export_state() {
                Ok(Some(state)) => patch.import_state(state).map_err(RuntimeError::from)?,
                Ok(None) => {}
                Err(error) => {
                    let why = crate::base::text::clean(&error.to_string().replace('\n', " "), 600);
                    let fields = json!({ "name": old.info().name, "sha256": old.digest(), "why": why });
                    self.board.event("state.lost", &landing.by, fields);
                }
            }
        }
        Ok(())
    }
}
