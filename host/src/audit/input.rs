//! What the rules look at.

use super::names::{Export, Import};
use super::scan::Scan;
use super::{Caps, Facts};

/// A file's bytes, and what one pass over them found.
pub(super) struct Input<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) caps: &'a Caps,
    pub(super) facts: &'a Facts,
    pub(super) imports: &'a [Import],
    pub(super) exports: &'a [Export],
}

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8], caps: &'a Caps, scan: &'a Scan) -> Self {
        let Scan { facts, imports, exports } = scan;
        Self { bytes, caps, facts, imports, exports }
    }
}
