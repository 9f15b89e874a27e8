//! What can be said about a component without compiling it. The loader and `patchhost audit` run this very code.

mod burden;
mod caps;
pub mod diff;
mod ending;
mod facts;
mod graph;
mod input;
mod inspect;
mod levels;
mod names;
mod policy;
mod report;
mod rules;
mod scan;
mod skew;
mod validate;

pub use caps::Caps;
pub use facts::{
    CLASSES, CoreExport, CoreImport, DataFacts, Facts, FunctionCost, FunctionFacts, GlobalFacts, Lifted, Mark,
    MarkKind, MemoryFacts, ModuleFacts, Producer,
};
pub use inspect::{inspect, inspect_with};
pub use levels::PolicyFault;
pub use policy::{AuditOptions, AuditPolicy, Ignore, Level};
pub use report::{Finding, Kind, Report, Severity, Style, sarif, text};
pub use rules::probe as probe_rules;
pub(crate) use rules::trust as trust_rules;
pub use rules::{Rule, catalogue};

#[cfg(test)]
mod tests;
