//! Names of imports and exports as they are in the file: not escaped, not trusted.

use super::Facts;
use crate::base::text;

/// An import of the root component.
pub(super) struct Import {
    pub(super) name: String,
    pub(super) offset: usize,
}

/// An export of the root component.
pub(super) struct Export {
    pub(super) name: String,
    pub(super) offset: usize,
}

/// What a function's name suggests that it is, for people. The name is the author's word: it may explain a finding, and it
/// never takes one away or lowers it.
pub(super) fn looks_like(name: &str) -> Option<&'static str> {
    const ALLOCATOR: [&str; 4] = ["dlmalloc", "__rust_alloc", "__rdl_", "cabi_realloc"];
    const LIBRARY: [&str; 8] = ["core::", "alloc::", "std::", "__rustc::", "rust_", "<core::", "<alloc::", "<std::"];
    if ALLOCATOR.iter().any(|part| name.contains(part)) {
        Some("an allocator")
    } else if LIBRARY.iter().any(|begins| name.starts_with(begins))
        || (name.starts_with('<') && name.contains(" as core::"))
    {
        Some("a part of Rust's standard library")
    } else {
        None
    }
}

/// How many odd names are kept.
const ODD: usize = 16;

/// Remembers a name that has anything but printable ASCII.
pub(super) fn odd(facts: &mut Facts, what: &'static str, name: &str, offset: usize) {
    let plain = name.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if !plain && facts.odd_names.len() < ODD {
        facts.odd_names.push((what, text::clean(name, 80), offset));
    }
}
