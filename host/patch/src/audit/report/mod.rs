//! What an audit says, and how it is shown.

mod finding;
mod sarif;
mod text;

pub use finding::{Finding, Kind, Report, Severity};
pub use sarif::sarif;
pub use text::{Style, text};
