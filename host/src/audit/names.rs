//! Names of imports and exports as they are in the file: not escaped, not trusted.

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
