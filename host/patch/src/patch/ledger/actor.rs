//! Who caused an event.

use crate::base::text;
use serde::Serialize;
use std::fmt;

/// Longest text of an actor.
const ACTOR_BYTES: usize = 200;

/// Who or what caused an event: `cli`, `watch:PATH`, `sighup`, `unix:uid=1000`, `token`, `policy`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Actor(String);

impl Actor {
    /// Takes a text from anywhere: what a terminal would interpret is escaped, what is too long is cut.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(text::clean(text.as_ref(), ACTOR_BYTES))
    }

    /// Someone at the command line.
    pub fn cli() -> Self {
        Self("cli".to_owned())
    }

    /// The policy itself: an automatic abort, a fallback, a quarantine.
    pub fn policy() -> Self {
        Self("policy".to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
