//! The rules, one file per group. An id, once used, never means something else.

pub(super) mod features;
pub(super) mod file;
pub(crate) mod probe;

mod cost;
mod imports;
mod memory;
mod structure;
mod world;

use super::input::Input;
use super::report::{Finding, Severity};
use serde::Serialize;

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// `PHnnn`; never used again for something else.
    pub id: &'static str,
    /// Short name.
    pub slug: &'static str,
    /// How bad a finding is, unless the finding says otherwise.
    pub severity: Severity,
    /// What it looks for, and why.
    pub about: &'static str,
}

impl Rule {
    const fn error(id: &'static str, slug: &'static str, about: &'static str) -> Self {
        Self { id, slug, severity: Severity::Error, about }
    }

    const fn warn(id: &'static str, slug: &'static str, about: &'static str) -> Self {
        Self { id, slug, severity: Severity::Warn, about }
    }

    const fn info(id: &'static str, slug: &'static str, about: &'static str) -> Self {
        Self { id, slug, severity: Severity::Info, about }
    }

    fn finding(&self, message: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding {
            id: self.id,
            slug: self.slug,
            severity: self.severity,
            message: message.into(),
            where_: String::new(),
            fix: fix.into(),
        }
    }

    fn found_at(&self, place: impl Into<String>, message: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { where_: place.into(), ..self.finding(message, fix) }
    }
}

/// Every rule there is, in order of id.
pub fn catalogue() -> Vec<Rule> {
    let groups: [&[Rule]; 8] = [
        &file::RULES,
        &imports::RULES,
        &world::RULES,
        &memory::RULES,
        &features::RULES,
        &cost::RULES,
        &structure::RULES,
        &probe::RULES,
    ];
    let mut rules: Vec<Rule> = groups.concat();
    rules.sort_by_key(|rule| rule.id);
    rules
}

/// PH506 about what the compiler would have to do.
pub(super) fn costs_too_much(message: String) -> Finding {
    cost::too_much(message)
}

/// Rules that need nothing but counting. What they refuse is not validated.
pub(super) fn before_validation(input: &Input<'_>, out: &mut Vec<Finding>) {
    structure::check(input, out);
    cost::check(input, out);
    memory::check(input, out);
    imports::check(input, out);
}

/// Rules about what a valid component is.
pub(super) fn after_validation(input: &Input<'_>, out: &mut Vec<Finding>) {
    features::check(input, out);
    world::check(input, out);
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_are_unique() {
        let rules = super::catalogue();
        let mut ids: Vec<_> = rules.iter().map(|rule| rule.id).collect();
        ids.dedup();
        assert_eq!(ids.len(), rules.len());
    }
}
