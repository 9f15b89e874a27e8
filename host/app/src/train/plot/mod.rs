//! A run over its steps, with a mark for each swap of patches: an HTML page, or one SVG. Neither needs anything else.

mod file;
mod marks;
mod page;
mod panels;
mod words;

pub use file::svg;
pub(crate) use marks::short;
pub use page::html;
pub(crate) use words::verdict;

#[cfg(test)]
mod tests;
