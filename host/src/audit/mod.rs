//! What can be said about a component without compiling it. The loader and `patchhost audit` run this very code.

mod burden;
mod caps;
mod facts;
mod input;
mod inspect;
mod names;
mod policy;
mod report;
mod rules;
mod scan;
mod validate;

pub use caps::Caps;
pub use facts::{Facts, FunctionCost, MemoryFacts, ModuleFacts};
pub use inspect::{inspect, inspect_with};
pub use policy::{AuditOptions, AuditPolicy, Ignore, Level};
pub use report::{Finding, Kind, Report, Severity};
pub(crate) use rules::probe::of_probe;
pub use rules::{Rule, catalogue};

#[cfg(test)]
mod tests;
