//! One refit of an engine at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Whose turn it is to refit: one at a time.
#[derive(Default)]
pub(crate) struct Turn {
    taken: Mutex<bool>,
    free: Condvar,
}

/// Gives the turn back when dropped.
pub(crate) struct TurnGuard<'a>(&'a Turn);

impl Turn {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the others.
    pub(crate) fn wait(&self) -> TurnGuard<'_> {
        let mut taken = self.lock();
        while *taken {
            taken = self.free.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken = true;
        TurnGuard(self)
    }

    /// Only if nobody has it.
    pub(crate) fn take(&self) -> Option<TurnGuard<'_>> {
        let mut taken = self.lock();
        (!std::mem::replace(&mut *taken, true)).then(|| TurnGuard(self))
    }

    /// Whether somebody has it.
    pub(crate) fn is_taken(&self) -> bool {
        *self.lock()
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        *self.0.lock() = false;
        self.0.free.notify_one();
    }
}
