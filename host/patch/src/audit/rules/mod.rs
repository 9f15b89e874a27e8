//! The rules, one file per group. An id, once used, never means something else.

pub(super) mod features;
pub(super) mod file;
pub mod probe;
pub(crate) mod trust;

mod code;
mod cost;
mod data;
mod imports;
mod memory;
mod origin;
mod structure;
mod world;

use super::input::Input;
use super::report::{Finding, Severity};
use serde::Serialize;

/// One rule of the audit: what it is called, how bad its findings are, why it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// `PHnnn`; never used again for something else.
    pub id: &'static str,
    /// Its name in words: `recursion`. A policy may use it in the place of the id.
    pub slug: &'static str,
    /// How bad a finding is, unless the finding says otherwise.
    pub severity: Severity,
    /// What it looks for, and why.
    pub about: &'static str,
}

impl Rule {
    /// How often a finding is right: SARIF's words.
    pub fn precision(&self) -> &'static str {
        match self.id {
            "PH503" | "PH510" | "PH511" => "medium",
            "PH004" | "PH006" | "PH007" | "PH107" | "PH109" | "PH207" | "PH502" | "PH504" | "PH507" | "PH508"
            | "PH509" | "PH601" | "PH602" | "PH603" | "PH604" | "PH904" => "high",
            _ => "very-high",
        }
    }

    pub(in crate::audit) const fn error(id: &'static str, slug: &'static str, about: &'static str) -> Self {
        Self { id, slug, severity: Severity::Error, about }
    }

    pub(in crate::audit) const fn warn(id: &'static str, slug: &'static str, about: &'static str) -> Self {
        Self { id, slug, severity: Severity::Warn, about }
    }

    pub(in crate::audit) const fn info(id: &'static str, slug: &'static str, about: &'static str) -> Self {
        Self { id, slug, severity: Severity::Info, about }
    }

    pub fn finding(&self, message: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding {
            id: self.id,
            slug: self.slug,
            severity: self.severity,
            message: message.into(),
            where_: String::new(),
            fix: fix.into(),
        }
    }

    pub fn found_at(&self, place: impl Into<String>, message: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { where_: place.into(), ..self.finding(message, fix) }
    }
}

/// Every rule there is, in order of id.
pub fn catalogue() -> Vec<Rule> {
    let groups: [&[Rule]; 14] = [
        &file::RULES,
        &imports::RULES,
        &world::RULES,
        &memory::RULES,
        &features::RULES,
        &cost::RULES,
        &structure::RULES,
        &code::RULES,
        &data::RULES,
        &origin::RULES,
        &super::diff::RULES,
        &super::levels::RULES,
        &trust::RULES,
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
    file::inside(input, out);
    data::check(input, out);
}

/// Rules about what a valid component is.
pub(super) fn after_validation(input: &Input<'_>, out: &mut Vec<Finding>) {
    features::check(input, out);
    world::check(input, out);
    code::check(input, out);
    origin::check(input, out);
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
