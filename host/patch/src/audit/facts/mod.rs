//! What one pass over the bytes counts, without validating or compiling any of it.

mod component;
mod data;
mod function;
mod module;

pub use component::{Facts, Lifted};
pub use data::{DataFacts, Mark, MarkKind};
pub use function::{CLASSES, FunctionCost, FunctionFacts};
pub(crate) use module::readable;
pub use module::{CoreExport, CoreImport, GlobalFacts, MemoryFacts, ModuleFacts, Producer};
