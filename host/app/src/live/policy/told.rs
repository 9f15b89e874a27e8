//! What is done to a live model, told when it is over to whoever asked for it: traces are made of it. Where nobody asked it costs
//! nothing.

use std::sync::Arc;
use std::time::SystemTime;

use super::Live;
use crate::patch::{Actor, RefitTarget};

/// A refit, a swap, or the staging of a candidate, once it is over.
#[derive(Debug, Clone, PartialEq)]
pub struct Deed {
    /// What it was: `refit`, `stage`, `swap`, `rollback` or `mode`.
    pub name: &'static str,
    /// When it began.
    pub began: SystemTime,
    /// When it was over.
    pub ended: SystemTime,
    /// What is worth knowing, by names such as `patch_set`.
    pub facts: Vec<(&'static str, Fact)>,
    /// Its parts, one after the other.
    pub steps: Vec<Step>,
    /// Why it was refused or given up, where it was.
    pub error: Option<String>,
}

/// A part of a [`Deed`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What was done.
    pub name: &'static str,
    /// When it began.
    pub began: SystemTime,
    /// When it was over.
    pub ended: SystemTime,
}

/// A value of a fact.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// A count.
    Number(u64),
    /// A text of this program, or one that was made safe.
    Text(String),
    /// Yes or no.
    Flag(bool),
}

/// Who is told.
pub type Listener = Arc<dyn Fn(Deed) + Send + Sync>;

/// Longest text of a fact or an error.
const MOST: usize = 1000;

/// A deed that is being done; none where nobody asked. Dropping it tells that it was given up.
pub(super) struct Telling(Option<Box<Open>>);

struct Open {
    to: Listener,
    deed: Deed,
    /// When the last step was over.
    last: SystemTime,
}

impl<T: RefitTarget> Live<T> {
    /// Tells this one of every refit, swap and staging from now on. The first one that asks stays the only one; false says that
    /// another did.
    pub fn tell(&self, listener: Listener) -> bool {
        self.told.set(listener).is_ok()
    }

    /// Something begins.
    pub(super) fn begins(&self, name: &'static str, actor: &Actor) -> Telling {
        let telling = Telling(self.told.get().map(|to| {
            let now = SystemTime::now();
            let deed = Deed { name, began: now, ended: now, facts: Vec::new(), steps: Vec::new(), error: None };
            Box::new(Open { to: Arc::clone(to), deed, last: now })
        }));
        telling.with("actor", || actor.as_str())
    }
}

impl Telling {
    fn with<F: Into<Fact>>(mut self, name: &'static str, fact: impl FnOnce() -> F) -> Self {
        self.fact(name, fact);
        self
    }

    /// Notes a fact, which is only made where somebody asked.
    pub(super) fn fact<F: Into<Fact>>(&mut self, name: &'static str, fact: impl FnOnce() -> F) {
        if let Some(open) = &mut self.0 {
            open.deed.facts.push((name, fact().into()));
        }
    }

    /// The same, where there is one.
    pub(super) fn maybe<F: Into<Fact>>(&mut self, name: &'static str, fact: impl FnOnce() -> Option<F>) {
        if let Some(open) = &mut self.0
            && let Some(fact) = fact()
        {
            open.deed.facts.push((name, fact.into()));
        }
    }

    /// A part is over; the next one begins.
    pub(super) fn step(&mut self, name: &'static str) {
        if let Some(open) = &mut self.0 {
            let now = SystemTime::now();
            open.deed.steps.push(Step { name, began: open.last, ended: now });
            open.last = now;
        }
    }

    /// It is over: as it should be, or with an error.
    pub(super) fn ends<E: std::fmt::Display>(mut self, error: Option<&E>) {
        if let Some(open) = self.0.take() {
            open.tell(error.map(ToString::to_string));
        }
    }
}

impl Open {
    fn tell(self, error: Option<String>) {
        let Self { to, mut deed, .. } = self;
        deed.ended = SystemTime::now();
        deed.error = error.map(|text| crate::base::text::clean(&text.replace('\n', " "), MOST));
        to(deed);
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            open.tell(Some("it was given up".to_owned()));
        }
    }
}

impl From<u64> for Fact {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<usize> for Fact {
    fn from(number: usize) -> Self {
        Self::Number(number as u64)
    }
}

impl From<bool> for Fact {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<String> for Fact {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<&str> for Fact {
    fn from(text: &str) -> Self {
        Self::Text(crate::base::text::clean(text, MOST))
    }
}

impl From<crate::base::Digest> for Fact {
    fn from(digest: crate::base::Digest) -> Self {
        Self::Text(digest.to_string())
    }
}
