//! The names under which tensors arrive, and those that the model has for them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Result, RuntimeError};
use crate::rename::{Renames, two_become_one};

/// The renames of one refit, and what they did.
pub(super) struct Names {
    renames: Renames,
    /// The sender's name of each tensor, by the model's name.
    origins: BTreeMap<String, String>,
    /// The renames that matched a name.
    used: BTreeSet<usize>,
}

impl Names {
    pub(super) fn new(renames: Renames) -> Self {
        Self { renames, origins: BTreeMap::new(), used: BTreeSet::new() }
    }

    /// Whether names stay as they are.
    pub(super) fn are_plain(&self) -> bool {
        self.renames.is_empty()
    }

    /// The model's name of a tensor that arrives. Two names that become one are refused.
    pub(super) fn take<'n>(&mut self, name: &'n str) -> Result<Cow<'n, str>> {
        if self.renames.is_empty() {
            return Ok(Cow::Borrowed(name));
        }
        let new = self.renames.noting(name, &mut self.used).map_err(RuntimeError::Refit)?;
        match self.origins.get(&*new) {
            Some(first) if first != name => return Err(RuntimeError::Refit(two_become_one(first, name, &new))),
            Some(_) => {}
            None => {
                self.origins.insert(new.to_string(), name.to_string());
            }
        }
        Ok(new)
    }

    /// The model's name, and nothing is kept of it.
    pub(super) fn look<'n>(&self, name: &'n str) -> Result<Cow<'n, str>> {
        self.renames.apply(name).map_err(RuntimeError::Refit)
    }

    /// Forgets all names that `came` does not have.
    pub(super) fn keep(&mut self, came: impl Fn(&str) -> bool) {
        self.origins.retain(|name, _| came(name));
    }

    /// What is worth saying at the end.
    pub(super) fn notes(&self) -> Vec<String> {
        self.renames.notes(&self.used)
    }
}
