//! What the rules look at.

use super::names::{Export, Import};
use super::scan::Scan;
use super::{AuditOptions, AuditPolicy, Caps, Facts};
use crate::base::Grants;

/// A file's bytes, and what one pass over them found.
pub(super) struct Input<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) caps: &'a Caps,
    pub(super) facts: &'a Facts,
    pub(super) imports: &'a [Import],
    pub(super) exports: &'a [Export],
    pub(super) grants: &'a Grants,
    /// Tools that the policy allows; none: any.
    pub(super) toolchains: &'a [String],
}

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8], options: &'a AuditOptions, scan: &'a Scan) -> Self {
        let Scan { facts, imports, exports, .. } = scan;
        let AuditPolicy { caps, toolchains, .. } = &options.policy;
        Self { bytes, caps, facts, imports, exports, grants: &options.grants, toolchains }
    }
}
