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

/// How many odd names are kept.
const ODD: usize = 16;

/// Remembers a name that has anything but printable ASCII.
pub(super) fn odd(facts: &mut Facts, what: &'static str, name: &str, offset: usize) {
    let plain = name.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if !plain && facts.odd_names.len() < ODD {
        facts.odd_names.push((what, text::clean(name, 80), offset));
    }
}
